"""What the README says is true: its commands run, its links lead somewhere, its tree is the tree.

Blocks run from top to bottom in one folder, as a reader would run them, the folder being a copy of the repository's.
`<!-- tiny: OPTIONS -->` above a long one appends options to its single command; the command itself runs as printed.
`<!-- runs in tests/FILE -->` above one says which other test runs it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(
    r"(?:^<!-- (?:tiny: (?P<tiny>[^\n]+)|runs in (?P<elsewhere>\S+)) -->\n+)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, what it says, the options that make it short, the file whose tests run it."""

    line: int
    language: str
    code: str
    tiny: str
    elsewhere: str

    @property
    def command(self) -> list[str]:
        if self.language == "python":
            assert not self.tiny, "options are appended to commands only"
            return [sys.executable, "-c", self.code]
        return ["bash", "-euo", "pipefail", "-c", f"{self.code.rstrip()} {self.tiny}"]


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(line, match["language"], match["code"], match["tiny"] or "", match["elsewhere"] or "")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in: a copy, so that no command writes into the repository; only the package is the real one."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("benchmarks", "models"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
    (folder / "src").symlink_to(ROOT / "src")
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """This environment's own commands first, and nothing of a `make` that runs the tests."""
    outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return {**outer, "VIRTUAL_ENV": sys.prefix, "PATH": os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])}


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"line-{block.line}")
        for block in blocks(README)
        if block.language in ("sh", "python") and not block.elsewhere
    ],
)
def test_blocks_run(block: Block, workspace: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(
        block.command,
        cwd=workspace,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"README.md:{block.line}\n{block.code}\n{result.stdout}\n{result.stderr}"


def test_what_runs_elsewhere_is_there() -> None:
    elsewhere = [block for block in blocks(README) if block.elsewhere]
    assert all("README.md" in (ROOT / block.elsewhere).read_text(encoding="utf-8") for block in elsewhere)


def test_every_block_says_whether_it_runs() -> None:
    strange = [block.line for block in blocks(README) if block.language not in ("sh", "python", "text")]
    assert strange == [], "use sh, python, or text for what does not run"
    assert README.count("\n```") == 2 * len(list(blocks(README))), "a fence is not closed"


def test_options_are_appended_to_one_command() -> None:
    def commands(block: Block) -> list[str]:
        return block.code.replace("\\\n", " ").strip().splitlines()

    assert [block.line for block in blocks(README) if block.tiny and len(commands(block)) != 1] == []
    (block,) = blocks("<!-- tiny: --steps 2 -->\n```sh\nsnapfusion generate fox \\\n    --n 4\n```\n")
    assert block.command[-1] == "snapfusion generate fox \\\n    --n 4 --steps 2"


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", README)
    paths = {(link or picture).split("#")[0] for link, picture in targets}
    assert [path for path in sorted(paths - {""}) if "://" not in path and not (ROOT / path).exists()] == []


def tree_of(text: str) -> set[str]:
    """Paths of an indented tree, two spaces a level: first word of a line is the name, a folder's ends in a slash."""
    paths, above = set[str](), list[str]()
    for line in text.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        above = [*above[:depth], name]
        paths.add("".join(above))
    return paths


def test_the_tree_has_one_line_a_file() -> None:
    (tree,) = (block.code for block in blocks(README) if block.code.startswith("src/snapfusion/\n"))
    real = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src" / "snapfusion").rglob("*.py")
        if path.name != "__init__.py"
    }
    named = {path for path in tree_of(tree) if path.endswith(".py")} - {"src/snapfusion/__init__.py"}
    assert sorted(real ^ named) == [], "no line in the README, or no such file"


def test_a_tree_is_read_by_its_indentation() -> None:
    assert tree_of("a/\n  b.py   what it is\n  c/\n    d.py\n  e.py") == {"a/", "a/b.py", "a/c/", "a/c/d.py", "a/e.py"}
