"""The layer rule: imports point down only, stages never meet, and drawing a picture needs the light install alone."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
# From the top down. A part imports itself and parts of the rows below its own; `snapfusion` is the package's __init__.
ROWS = (
    {"__main__"},
    {"cli"},
    {"commands"},
    {"recipes"},
    {"plan"},
    {"compress"},
    {"stages", "serve", "generate_command", "tiny", "costs"},
    {"snapfusion"},
    {"generate", "sampling", "png"},
    {"settings", "info"},
    {"denoising", "convert"},
    {"single_file", "lora"},
    {"bundle", "table", "latents", "bench"},
    {"runtimes"},
    {"checkpoint"},
    {"fit", "metrics", "data", "model", "diffusion", "picture_file"},
    {"fit_state"},
    {"fit_shards"},
    {"tokens", "weights", "stage_folder", "progress", "memory", "autocast"},
    {"json_file", "processes"},
)
DRAWING = (
    "snapfusion",
    "cli",
    "commands",
    "generate_command",
    "generate",
    "info",
    "png",
    "bundle",
    "runtimes.choice",
    "runtimes.openvino",
    "diffusion",
    "tokens",
)


def module_of(path: Path) -> str:
    """A source file's dotted name, a package by its own: `src/snapfusion/model/__init__.py` -> `snapfusion.model`."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for path in sorted((SRC / "snapfusion").rglob("*.py"))}


def part_of(module: str) -> str:
    """What the rule speaks of: a file or folder of the package, and each stage for itself."""
    names = module.split(".")[1:] or ["snapfusion"]
    return ".".join(names[:2] if names[0] == "stages" else names[:1])


def row_of(part: str) -> int:
    rows = [number for number, row in enumerate(ROWS) if part.split(".")[0] in row]
    assert rows, f"{part} stands in no row of the layer rule: give it one in {Path(__file__).name}"
    return rows[0]


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every module that `source` names in an import, wherever it stands; relative ones resolved."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            submodules = [name for alias in node.names if (name := f"{base}.{alias.name}") in SOURCES]
            # `from snapfusion import cli` names cli alone; `from snapfusion import open_bundle` names the package.
            yield from submodules
            if len(submodules) < len(node.names):
                yield base


@cache
def imports_of(module: str) -> set[str]:
    path = SOURCES[module]
    return set(imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"))


def allowed(importer: str, imported: str) -> bool:
    above, below = part_of(importer), part_of(imported)
    return above == below or row_of(above) < row_of(below)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("import snapfusion.cli as c", {"snapfusion.cli"}),
        ("def f():\n    from snapfusion.model import x", {"snapfusion.model"}),
        ("from snapfusion import diffusion", {"snapfusion.diffusion"}),
        ("from snapfusion import open_bundle", {"snapfusion"}),
        ("from . import y", {"snapfusion.stages.train"}),
        ("from ..export import y", {"snapfusion.stages.export"}),
        ("from ... import data, y", {"snapfusion.data", "snapfusion"}),
    ],
)
def test_imports_are_found_in_every_spelling(source: str, named: set[str]) -> None:
    assert set(imports(source, "snapfusion.stages.train.stage", is_package=False)) == named


@pytest.mark.parametrize(
    ("importer", "imported", "verdict"),
    [
        ("snapfusion.cli", "snapfusion.stages.train.stage", True),
        ("snapfusion.stages.train.stage", "snapfusion.stages.train.loss", True),
        ("snapfusion.stages.train.stage", "snapfusion.stages.export.stage", False),
        ("snapfusion.stages.train.stage", "snapfusion.checkpoint", True),
        ("snapfusion.checkpoint", "snapfusion.bundle", False),
        ("snapfusion.model.unet", "snapfusion.fit", False),
        ("snapfusion.generate", "snapfusion", False),
        ("snapfusion", "snapfusion.generate", True),
    ],
)
def test_the_rule_says_who_may_import_whom(importer: str, imported: str, verdict: bool) -> None:
    assert allowed(importer, imported) is verdict


def test_imports_point_down_only() -> None:
    upward = [
        f"{module} imports {name}"
        for module in SOURCES
        for name in sorted(imports_of(module))
        if name.split(".")[0] == "snapfusion" and not allowed(module, name)
    ]
    assert upward == []


def test_judge_b_only_reports() -> None:
    """Nothing that trains or searches may see judge B: it would be trained against, and its verdict worth nothing."""
    judge = "snapfusion.metrics.judge_b"
    assert judge in SOURCES
    assert {part_of(module) for module in SOURCES if judge in imports_of(module)} <= {"stages.evaluate"}


def test_no_module_is_named_for_nothing() -> None:
    """A file that holds one noun is called by it; these names hold anything."""
    nothing = {"util", "utils", "helper", "helpers", "common", "misc", "base", "manager", "handler", "processor"}
    assert [module for module in SOURCES if module.split(".")[-1] in nothing] == []


def distribution(name: str) -> str:
    """A requirement or an import's distribution by its normal name: `PyYAML>=6` -> `pyyaml`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name)[0]).lower()


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    declared = {distribution(name) for name in project["dependencies"] + extras}
    owners = metadata.packages_distributions()
    undeclared = [
        f"{module} imports {name}"
        for module in SOURCES
        for name in sorted({name.split(".")[0] for name in imports_of(module)})
        if name not in {*sys.stdlib_module_names, "snapfusion"}
        and declared.isdisjoint(distribution(owner) for owner in owners.get(name, [name]))  # as named, if not here
    ]
    assert undeclared == []


def light_distributions(*roots: str) -> Iterator[metadata.Distribution]:
    """SnapFusion and all that installing it without extras brings; and what else is named."""
    wanted, seen = ["snapfusion", *roots], set[str]()
    while wanted:
        name = distribution(wanted.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform or Python
        yield found
        wanted += [requirement for requirement in found.requires or [] if "extra ==" not in requirement]


@pytest.fixture(scope="module")
def light_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables under which `python -S` finds the light install and nothing else."""
    return environment_of(tmp_path_factory.mktemp("light"))


def environment_of(folder: Path, *roots: str) -> dict[str, str]:
    for found in light_distributions(*roots):
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (folder / name).symlink_to(Path(str(found.locate_file(name))))
    (folder / "snapfusion").symlink_to(SRC / "snapfusion")
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def run(environment: dict[str, str], code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_light_environment_lacks_what_trains(light_environment: dict[str, str], tmp_path: Path) -> None:
    found = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    names = ("numpy", "openvino", "torch", "diffusers", "transformers", "accelerate", "safetensors", "scipy")
    assert run(light_environment, found, *names, cwd=tmp_path).stdout.strip() == "['numpy', 'openvino']"


def test_drawing_modules_import_without_what_trains(light_environment: dict[str, str], tmp_path: Path) -> None:
    wanted = ["snapfusion" if name == "snapfusion" else f"snapfusion.{name}" for name in DRAWING]
    inside = [module for module in SOURCES if module.startswith("snapfusion.diffusion.")]
    load = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    result = run(light_environment, load, *wanted, *inside, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_onnx_runtime_draws_without_what_trains(tmp_path: Path) -> None:
    (tmp_path / "light").mkdir()
    environment = environment_of(tmp_path / "light", "onnxruntime")
    result = run(environment, "import snapfusion.runtimes.onnx, sys; print('torch' in sys.modules)", cwd=tmp_path)
    assert result.stdout.strip() == "False", result.stderr


def test_open_bundle_draws_without_what_trains(light_environment: dict[str, str], tmp_path: Path) -> None:
    draw = "import snapfusion; print(*snapfusion.open_bundle()('a red fox', seed=1, steps=1))"
    result = run(light_environment, draw, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "PIL.Image.Image" in result.stdout


def test_generate_draws_without_what_trains(light_environment: dict[str, str], tmp_path: Path) -> None:
    command = "import sys; from snapfusion.cli import main; sys.exit(main())"
    result = run(light_environment, command, "generate", "a red fox", "--steps", "1", "--out", "fox.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "fox.png").read_bytes().startswith(b"\x89PNG")
