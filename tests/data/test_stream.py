"""Streams of every kind of source: each sample once an epoch, the same again, dealt out, resumed; broken ones left."""

import io
import json
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from snapfusion.data.sources import Broken, Raw, open_source
from snapfusion.data.stream import Config, PairStream, on_white, square

SHARDS, IN_SHARD = 4, 6
COUNT = SHARDS * IN_SHARD


def png(number: int, size: tuple[int, int] = (4, 3)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (number, 0, 255 - number)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(file: Path, files: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        files = {}
        for number in range(shard * IN_SHARD, (shard + 1) * IN_SHARD):
            caption = {"txt": f"picture {number}\n".encode()}
            if number % 2:
                caption = {"json": json.dumps({"caption": f"picture {number}", "width": 4}).encode()}
            files |= {f"{number:03}.png": png(number)} | {f"{number:03}.{name}": data for name, data in caption.items()}
        write_tar(folder / f"part-{shard}.tar", files)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for number in range(COUNT):
        file = folder / ("below" if number % 3 else ".") / f"{number:03}.png"
        file.write_bytes(png(number))
        if number % 2:
            file.with_suffix(".txt").write_text(f"picture {number}\n")
    with (folder / "metadata.jsonl").open("w") as table:
        for number in range(0, COUNT, 2):
            name = f"below/{number:03}.png" if number % 3 else f"{number:03}.png"
            table.write(json.dumps({"file_name": name, "text": f"picture {number}"}) + "\n")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = {
        "picture": [{"bytes": png(number)} for number in range(COUNT)],
        "text": [f"picture {n}" for n in range(COUNT)],
    }
    return Dataset.from_dict(rows, Features({"picture": ImageFeature(), "text": Value("string")}))


@pytest.fixture(params=["folder", "glob", "braces", "pipe", "pictures", "saved", "parquet"])
def text(request: pytest.FixtureRequest, shards: Path, pictures: Path, table: Dataset, tmp_path: Path) -> str:
    """How a person names a source."""
    if request.param == "saved":
        table.save_to_disk(tmp_path / "saved")
    if request.param == "parquet":
        (tmp_path / "parquet").mkdir()
        table.to_parquet(tmp_path / "parquet" / "train.parquet")
    pipes = "::".join(f"pipe:cat {shards}/part-{number}.tar" for number in range(SHARDS))
    return {
        "folder": str(shards),
        "glob": f"{shards}/part-*.tar",
        "braces": f"{shards}/part-{{0..{SHARDS - 1}}}.tar",
        "pipe": pipes,
        "pictures": str(pictures),
        "saved": str(tmp_path / "saved"),
        "parquet": f"hf:{tmp_path / 'parquet'}",
    }[request.param]


def numbers(stream: PairStream, count: int) -> list[int]:
    """The next samples, each found to be what its caption says."""
    found = []
    for sample in islice(stream, count):
        number = int(sample.caption.removeprefix("picture "))
        assert sample.image.shape == (3, 4, 3)
        assert np.all(sample.image == (number, 0, 255 - number))
        found.append(number)
    return found


def test_every_kind_of_source_gives_each_sample_once_an_epoch(text: str) -> None:
    stream = PairStream(open_source(text))
    first, second = numbers(stream, COUNT), numbers(stream, COUNT)
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    again = PairStream(open_source(text))
    assert numbers(again, 2 * COUNT) == first + second
    assert stream.state()["corrupt"] == 0


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_an_epoch(shards: Path, world: int) -> None:
    """By shards, or sample by sample where there are fewer shards than processes."""
    source = open_source(str(shards))
    shares = []
    for rank in range(world):
        stream = PairStream(source, rank=rank, world=world)
        shares.append([sample.key for sample in stream.epoch()])
    assert len({key for share in shares for key in share}) == sum(map(len, shares)) == COUNT
    assert all(shares)


@pytest.mark.parametrize("window", [4, 1000])
@pytest.mark.parametrize("taken", [1, 5, IN_SHARD, COUNT // 2 + 1, COUNT, COUNT + 3])
def test_a_stream_goes_on_where_it_was(shards: Path, window: int, taken: int) -> None:
    """With JSON in between, as a checkpoint of a training has it."""
    config = Config(seed=3, window=window)
    whole = numbers(PairStream(open_source(str(shards)), config, rank=0, world=1), 3 * COUNT)
    stream = PairStream(open_source(str(shards)), config)
    begun = numbers(stream, taken)
    resumed = PairStream(open_source(str(shards)), config)
    resumed.resume(json.loads(json.dumps(stream.state())))
    assert begun + numbers(resumed, 3 * COUNT - taken) == whole


def test_one_rank_of_several_goes_on_where_it_was(shards: Path) -> None:
    for world in (3, 7):
        whole = numbers(PairStream(open_source(str(shards)), rank=1, world=world), 12)
        stream = PairStream(open_source(str(shards)), rank=1, world=world)
        begun = numbers(stream, 5)
        resumed = PairStream(open_source(str(shards)), rank=1, world=world)
        resumed.resume(stream.state())
        assert begun + numbers(resumed, 7) == whole


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """Of seven samples two are whole; and the second shard ends too early."""
    whole = png(1, (64, 64))
    files = {
        "a.png": png(0), "a.txt": b"whole",
        "b.png": b"no picture", "b.txt": b"b",
        "c.png": whole[: len(whole) // 2], "c.txt": b"c",
        "d.png": whole,
        "e.txt": b"e",
        "f.png": whole, "f.json": b"{",
    }  # fmt: skip
    write_tar(tmp_path / "0.tar", files)
    cut = write_tar(tmp_path / "1.tar", {"g.png": png(0), "g.txt": b"whole", "h.png": bytes(4096), "h.txt": b"h"})
    cut.write_bytes(cut.read_bytes()[: 512 * 6])
    return f"{tmp_path}/*.tar"


def test_broken_samples_are_counted_and_skipped(broken: str) -> None:
    found = [raw for part in range(2) for raw in open_source(broken).read(part)]
    assert [raw.caption for raw in found if isinstance(raw, Raw)] == ["whole", "b", "c", "whole"]
    reasons = [raw.reason.removeprefix(broken[:-5]) for raw in found if isinstance(raw, Broken)]
    assert reasons[:2] == [
        "0.tar: d: got png, expected a picture and a caption",
        "0.tar: e: got txt, expected a picture and a caption",
    ]
    assert reasons[2].startswith("0.tar: f: ")  # Python's words for what is no JSON
    assert reasons[3].startswith("1.tar: ReadError: unexpected end of data")
    assert len(reasons) == 4

    stream = PairStream(open_source(broken), Config(corrupt=20))
    seen = []
    for sample in stream:  # the second epoch's first sample is the third that is whole
        seen.append((sample.caption, stream.position.epoch))
        if stream.position.epoch == 1:
            break
    assert seen == [("whole", 0), ("whole", 0), ("whole", 1)]
    assert 6 <= stream.state()["corrupt"] < 12  # b and c besides, and those that came before the third


def test_a_picture_is_as_people_see_it() -> None:
    seen = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    seen.putpixel((1, 0), (0, 0, 255, 255))
    assert np.asarray(on_white(seen)).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    upright = Image.new("RGB", (2, 1), "red")
    upright.getexif()[0x0112] = 6  # a camera that was held on its side
    assert on_white(upright).size == (1, 2)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.png": png(0), "a.txt": b" \n"}, "a: got a blank caption, expected words"),
        ({"a.png": png(0)[:33] + b"\0\0\0\1zTXt" + png(0)[33:], "a.txt": b"a"}, "a: "),
    ],
)
def test_what_is_odd_is_one_broken_sample(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    stream = PairStream(open_source(str(write_tar(tmp_path / "a.tar", files))))
    assert list(stream.epoch()) == []
    assert reason in stream.broken
    assert stream.position.corrupt == 1


def test_too_many_broken_samples_are_an_error(broken: str) -> None:
    with pytest.raises(ValueError, match=r"got 3 broken samples, expected at most 2; the last: .*tar"):
        list(islice(PairStream(open_source(broken), Config(corrupt=2)), 100))


def test_the_count_outlives_a_pause(broken: str) -> None:
    stream = PairStream(open_source(broken), Config(corrupt=20))
    next(iter(stream))
    state = stream.state()
    resumed = PairStream(open_source(broken), Config(corrupt=state["corrupt"]))
    resumed.resume(state)
    with pytest.raises(ValueError, match=f"got {state['corrupt'] + 1} broken samples, expected at most"):
        list(islice(resumed, 100))


def test_a_command_that_fails_is_counted(tmp_path: Path) -> None:
    (found,) = open_source("pipe:exit 3").read(0)
    assert isinstance(found, Broken)
    assert "pipe:exit 3" in found.reason


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": png(1)})
    with pytest.raises(ValueError, match="got an epoch without a single sample"):
        list(PairStream(open_source(f"{tmp_path}/a.tar")))


def test_names_that_name_nothing(tmp_path: Path, table: Dataset) -> None:
    with pytest.raises(ValueError, match=r"where there is no file, expected shards, a folder or hf:NAME"):
        open_source(f"{tmp_path}/*.tar")
    with pytest.raises(ValueError, match="without shards or pictures, expected"):
        open_source(str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    (tmp_path / "photos" / "metadata.jsonl").write_text("{}\nno JSON\n")
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2: expected a JSON object"):
        open_source(str(tmp_path / "photos"))
    table.remove_columns("text").save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="with columns picture, expected one of pictures, and one of txt, text"):
        open_source(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="got rank 2 of 2 processes, expected 0 to 1"):
        PairStream(open_source("pipe:true"), rank=2, world=2)


def test_nothing_in_a_shard_is_run(tmp_path: Path) -> None:
    """WebDataset's own decoders would unpickle a .pyd."""
    files = {"a.pyd": b"cos\nsystem\n(S'false'\ntR.", "a.png": png(1), "a.txt": b"a"}
    (found,) = open_source(str(write_tar(tmp_path / "a.tar", files))).read(0)
    assert found == Raw(f"{tmp_path}/a.tar: a", png(1), "a")


def test_the_middle_of_a_picture() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 200
    assert square(image, 8).shape == (8, 8, 3)
    assert np.all(square(image, 8) == 200)
    assert np.all(square(image.transpose(1, 0, 2), 8) == 200)
