"""Names from prompts, and files that are whole or not there."""

from pathlib import Path

import pytest

from snapfusion.picture_file import check_out, stem_for, write_new, write_numbered


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("a red fox, 3D render", "a-red-fox-3d-render"),
        ("../../etc/passwd", "etc-passwd"),
        ("CON: what?\n*new*", "con-what-new"),
        ("狐狸 和 Füchse", "狐狸-和-füchse"),
        ("?!", "picture"),
        ("a" * 300, "a" * 120),
        ("狐" * 100, "狐" * 40),
        ("-rf", "rf"),
    ],
)
def test_a_name_is_made_of_the_prompts_words(prompt: str, stem: str) -> None:
    assert stem_for(prompt) == stem


def test_a_new_file_never_overwrites(tmp_path: Path) -> None:
    names = [write_new(bytes([k]), tmp_path, "fox", None).name for k in range(3)]
    assert names == ["fox.png", "fox-2.png", "fox-3.png"]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"\0", b"\1", b"\2"]


def test_numbered_new_files_go_on_after_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "fox-2.png").touch()
    names = [write_new(b"", tmp_path, "fox", number).name for number in (1, 2, 3)]
    assert names == ["fox-1.png", "fox-3.png", "fox-4.png"]


def test_a_named_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(b"old")
    assert write_numbered(b"new", tmp_path / "fox.png", None) == tmp_path / "fox.png"
    assert write_numbered(b"two", tmp_path / "fox.png", 2) == tmp_path / "fox-2.png"
    assert (tmp_path / "fox.png").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox-2.png", "fox.png"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException | type[BaseException]
) -> None:
    (tmp_path / "old.png").write_bytes(b"old")

    def interrupt(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:1])
        raise failure

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_new(b"new", tmp_path, "new", None)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_numbered(b"new", tmp_path / "old.png", None)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old.png", b"old")]


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures.png").mkdir()
    with pytest.raises(ValueError, match=r"which is a folder, expected a file name such as .*g/picture\.png"):
        check_out(tmp_path / "pictures.png")
    with pytest.raises(ValueError, match=r"expected a folder that exists; make .*nowhere first"):
        check_out(tmp_path / "nowhere" / "fox.png")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.png"):
        check_out(tmp_path / "fox.jpg")
    check_out(tmp_path / "fox.PNG")
