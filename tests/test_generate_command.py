"""`snapfusion generate`: files, what is printed, and one line for each mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapfusion.cli import main

PROMPT = "a red fox, 3D render"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_is_drawn_and_reported(tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--out", "fox.png", "--seed", "7", "--bundle", str(tiny_bundle)]) == 0
    assert Image.open(here / "fox.png").size == (64, 64)
    out, err = capsys.readouterr()
    where, seconds = out.splitlines()
    assert where == "fox.png  (seed 7, 3 steps, guidance 2)"
    assert [part.split()[0] for part in seconds.split(", ")] == ["load", "text", "unet", "decode", "total"]
    assert err == ""


def test_json_is_one_object(tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seed", "7", "--steps", "2", "--guidance", "1.5", "--n", "2", "--json", "--bundle", str(tiny_bundle)]
    assert main(["generate", PROMPT, *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    seconds = record.pop("seconds")
    assert record == {
        "images": ["a-red-fox-3d-render-1.png", "a-red-fox-3d-render-2.png"],
        "seed": 7,
        "steps": 2,
        "guidance": 1.5,
        "guidance_stop": 1.0,
    }
    assert list(seconds) == ["load", "text", "unet", "decode", "total"]
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) - seconds["total"] <= seconds["total"]
    assert names(here) == record["images"]


def test_quiet_prints_nothing(tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--quiet", "--bundle", str(tiny_bundle)]) == 0
    assert capsys.readouterr() == ("", "")
    assert names(here) == ["a-red-fox-3d-render.png"]


def test_without_out_nothing_is_overwritten(tiny_bundle: Path, here: Path) -> None:
    arguments = ["generate", "fox", "--quiet", "--bundle", str(tiny_bundle), "--seed"]
    assert [main([*arguments, str(seed)]) for seed in (1, 2)] == [0, 0]
    assert names(here) == ["fox-2.png", "fox.png"]
    assert (here / "fox.png").read_bytes() != (here / "fox-2.png").read_bytes()


def test_picture_k_is_the_picture_of_its_seed_byte_for_byte(tiny_bundle: Path, here: Path) -> None:
    flags = ["--quiet", "--bundle", str(tiny_bundle), "--negative", "blue", "--scheduler", "dpm++"]
    assert main(["generate", PROMPT, *flags, "--seed", "5", "--n", "3", "--out", "many.png"]) == 0
    for k in range(3):
        assert main(["generate", PROMPT, *flags, "--seed", str(5 + k), "--out", "one.png"]) == 0
        assert (here / "one.png").read_bytes() == (here / f"many-{k + 1}.png").read_bytes()


def test_a_file_of_prompts_draws_each_as_it_would_be_alone(tiny_bundle: Path, here: Path) -> None:
    (here / "prompts.txt").write_text("a red fox\n\n  a blue whale, flat \n", encoding="utf-8")
    flags = ["--quiet", "--bundle", str(tiny_bundle), "--seed", "5"]
    assert main(["generate", "--prompts", "prompts.txt", "--n", "2", *flags]) == 0
    drawn = ["a-blue-whale-flat-1.png", "a-blue-whale-flat-2.png", "a-red-fox-1.png", "a-red-fox-2.png"]
    assert names(here) == [*drawn, "prompts.txt"]
    assert main(["generate", "a blue whale, flat", *flags, "--out", "alone.png"]) == 0
    assert (here / "alone.png").read_bytes() == (here / "a-blue-whale-flat-1.png").read_bytes()
    assert main(["generate", "--prompts", "prompts.txt", *flags, "--out", "all.png"]) == 0
    assert (here / "all-2.png").read_bytes() == (here / "alone.png").read_bytes()


def test_a_long_prompt_draws_and_says_what_was_cut(
    tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a red fox of the blue sticker a red fox of the flat cat blue whale"
    assert main(["generate", long, "--out", "fox.png", "--json", "--bundle", str(tiny_bundle)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == ["fox.png"]
    assert err == "snapfusion: longer than 16 tokens, not drawn: 'blue whale'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "got a blank prompt, expected some words"),
        (["  "], "got a blank prompt"),
        ([], "got a blank prompt"),
        (["fox", "--steps", "0"], "got 0 steps, expected 1 to 1000"),
        (["fox", "--steps", "1001"], "got 1001 steps, expected 1 to 1000"),
        (["fox", "--steps", "many"], "--steps: got 'many', expected a whole number"),
        (["fox", "--n", "0"], "got n 0, expected 1 to 64"),
        (["fox", "--n", "65"], "got n 65, expected 1 to 64"),
        (["fox", "--guidance", "nan"], "got guidance nan, expected a number from 0 to 50"),
        (["fox", "--guidance", "inf"], "got guidance inf"),
        (["fox", "--guidance", "-1"], "got guidance -1.0"),
        (["fox", "--guidance", "51"], "got guidance 51.0"),
        (["fox", "--guidance", "strong"], "--guidance: got 'strong', expected a number"),
        (["fox", "--seed", "-1"], "got seed -1, expected a whole number from 0 to 2^64-1"),
        (["fox", "--seed", str(2**64)], "got seed 18446744073709551616"),
        (["fox", "--seed", "seven"], "--seed: got 'seven', expected a whole number"),
        (["fox", "--seed", "1.5"], "--seed: got '1.5', expected a whole number"),
        (["fox", "--size", "512"], "got size 512, expected 64"),
        (["fox", "--threads", "0"], "got 0 threads, expected at least 1"),
        (["fox", "--scheduler", "lcm"], "got scheduler 'lcm', expected ddim, dpm++, euler"),
        (["fox", "--runtime", "abacus"], "got runtime 'abacus', expected one of openvino"),
        (["fox", "--out", "."], "got --out ., which is a folder"),
        (["fox", "--out", "nowhere/fox.png"], "expected a folder that exists; make nowhere first"),
        (["fox", "--out", "fox.jpg"], "expected a name that ends in .png"),
        (["fox", "--prompts", "prompts.txt"], "got a prompt and --prompts"),
        (["--prompts", "nowhere.txt"], "got --prompts nowhere.txt, expected a text file"),
        (["a", "red", "fox"], "Unrecognized options: red, fox; put words that belong together in quotes (snap"),
        (["fox", "--seed", "x"], "snapfusion: --seed: got 'x', expected a whole number (snapfusion generate --help)\n"),
        (["fox", "--stepz", "3"], "Unrecognized options: --stepz"),
        (["fox", "--steps"], "Missing value for argument '--steps'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["generate", "--bundle", str(tiny_bundle), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("snapfusion: ")
    assert err.count("\n") == 1
    assert message in err
    assert names(here) == []


def test_with_little_memory_the_time_to_load_is_told_as_such(
    tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every network is opened when it is called, which takes longer than to run one so small."""
    drawn = {}
    for flags in ([], ["--low-memory"]):
        assert main(["generate", "fox", "--seed", "1", "--bundle", str(tiny_bundle), "--json", *flags]) == 0
        record = json.loads(capsys.readouterr().out)
        seconds = record["seconds"]
        assert seconds["load"] > seconds["text"] + seconds["unet"] + seconds["decode"]
        assert seconds["total"] >= sum(value for name, value in seconds.items() if name != "total")
        drawn[bool(flags)] = np.asarray(Image.open(here / record["images"][0]))
    assert (drawn[False] == drawn[True]).all()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_mistake_is_told_alike_whatever_a_terminal_can_show(encoding: str) -> None:
    """The argument parser draws its boxes with lines where it may, else with dashes."""
    command = [sys.executable, "-m", "snapfusion", "generate", "fox", "--seed", "x"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == "snapfusion: --seed: got 'x', expected a whole number (snapfusion generate --help)\n"


def test_a_missing_or_broken_bundle_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "fox", "--bundle", "nowhere"]) == 2
    assert capsys.readouterr().err == "snapfusion: got bundle nowhere, expected a folder with a manifest.json\n"
    (here / "broken").mkdir()
    assert main(["generate", "fox", "--bundle", "broken"]) == 2
    assert "broken/manifest.json: missing" in capsys.readouterr().err


def test_prompts_that_are_no_text_or_none_at_all_are_refused(
    tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "latin.txt").write_bytes(b"caf\xe9")
    (here / "blank.txt").write_text("\n \n")
    for name, message in (("latin.txt", "expected text in UTF-8"), ("blank.txt", "without a prompt")):
        assert main(["generate", "--prompts", name, "--bundle", str(tiny_bundle)]) == 2
        assert message in capsys.readouterr().err


WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "diffusers", "transformers", "accelerate", "safetensors", "nncf"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
from snapfusion.cli import main
sys.exit(main())
"""


def test_it_draws_where_torch_cannot_be_imported(tiny_bundle: Path, here: Path) -> None:
    command = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        "generate",
        PROMPT,
        "--out",
        "fox.png",
        "--bundle",
        str(tiny_bundle),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert Image.open(here / "fox.png").size == (64, 64)


def test_two_processes_draw_the_same_bytes(tiny_bundle: Path, here: Path) -> None:
    for name in ("one.png", "other.png"):
        arguments = ["generate", PROMPT, "--seed", "3", "--out", name, "--bundle", str(tiny_bundle)]
        subprocess.run([sys.executable, "-m", "snapfusion", *arguments], check=True, capture_output=True)
    assert (here / "one.png").read_bytes() == (here / "other.png").read_bytes()


def test_an_interrupt_leaves_whole_pictures_only(tiny_bundle: Path, here: Path) -> None:
    arguments = ["generate", PROMPT, "--n", "64", "--steps", "300", "--bundle", str(tiny_bundle)]
    process = subprocess.Popen(
        [sys.executable, "-m", "snapfusion", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 300
    while not names(here) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (out, err) == ("", "snapfusion: interrupted\n")
    assert 1 <= len(names(here)) < 64
    for name in names(here):
        Image.open(here / name).load()


def test_a_bar_is_shown_on_a_terminal_only(
    tiny_bundle: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["generate", PROMPT, "--bundle", str(tiny_bundle)]) == 0
    assert "/3" in capsys.readouterr().err
