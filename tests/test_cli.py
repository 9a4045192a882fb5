"""The command line finds its commands, and says in one line what it did not understand."""

import subprocess
import sys

import pytest

import snapfusion
from snapfusion import cli, commands


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(commands.COMMANDS)
    assert "snapfusion generate         Draw pictures from a prompt." in listed


def test_a_commands_help_names_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--help"]) == 0
    out, err = capsys.readouterr()
    flags = "out negative seed steps guidance n scheduler size bundle runtime threads prompts json quiet"
    assert all(f"--{flag} " in out for flag in flags.split())
    assert err == ""


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"snapfusion {snapfusion.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got no command, expected one of: generate,"),
        (["draw"], "got draw, expected one of: generate,"),
        (["--loud"], "got no command, expected one of: generate,"),
    ],
)
def test_words_that_name_no_command_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"snapfusion: {message}")


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def loader() -> commands.Command:
        import a_library_that_nobody_has  # pyright: ignore[reportMissingImports]

        return a_library_that_nobody_has.run

    monkeypatch.setitem(commands.COMMANDS, "train moon", loader)
    assert cli.main(["train", "moon", "--out", "x"]) == 2
    expected = "needs a_library_that_nobody_has, which is not installed: in a clone: pip install '.[compress]'"
    assert capsys.readouterr().err == f"snapfusion: {expected}\n"


def test_a_group_of_commands_lists_its_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commands.COMMANDS, "moon land", commands.bundles.generate)
    assert cli.main(["moon", "--help"]) == 0
    assert capsys.readouterr().out.splitlines() == ["snapfusion moon land        Draw pictures from a prompt."]
    assert cli.main(["moon"]) == 2
    assert capsys.readouterr().err == "snapfusion: got moon, expected one of: moon land\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def loader() -> commands.Command:
        def command() -> None:
            raise AssertionError("shapes")

        return command

    monkeypatch.setitem(commands.COMMANDS, "break", loader)
    with pytest.raises(AssertionError, match="shapes"):
        cli.main(["break"])


def test_help_starts_without_numpy_or_an_engine() -> None:
    heavy = "numpy", "PIL", "openvino", "tokenizers", "torch"
    code = f"import sys, snapfusion.cli as c; c.main(['--help']); print([n for n in {heavy} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
