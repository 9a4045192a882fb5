"""The table: any architecture priced piece by piece; a file from elsewhere read, or refused in one line."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfusion.model.architecture import Architecture
from snapfusion.table import Entry, Table, load_table, pieces
from tiny_tables import tiny_table

SD15 = Architecture.sd15()
TABLE = tiny_table(SD15)


def cost(**milliseconds: float) -> float:
    """Milliseconds of SD-v1.5 by `tiny_tables`, worked out by hand, plus and minus what is named."""
    between = 3 * 0.5 + (1 + 1 / 2 + 1 / 4) + (1 / 8 + 1 / 4 + 1 / 2) + 0.25
    attentions = 5 * (5 + 5 / 2 + 5 / 4 + 1 / 8)
    resnets = 2 * (5 + 5 / 2 + 5 / 4 + 7 / 8)
    return between + attentions + resnets + sum(milliseconds.values())


def test_the_price_of_stable_diffusion_is_the_sum_of_its_pieces() -> None:
    count = 16 + 22 + 6 + 4
    price = TABLE.price(SD15)
    assert len(TABLE.entries) == count
    assert price.milliseconds == pytest.approx(cost(), abs=1e-12)
    assert price.parameters == sum(range(100, 100 + count))
    assert price.megabytes == pytest.approx(2 * price.parameters / 1e6)
    assert price.macs == 1000 * count * (count + 1) // 2


def test_removing_and_copying_change_the_price_by_that_block() -> None:
    assert TABLE.price(SD15.without("down_blocks.0.attentions.1")).milliseconds == pytest.approx(cost(gone=-5))
    copied = SD15.with_copies("up_blocks.1.attentions.0", "up_blocks.1.resnets.0").with_copies("up_blocks.1.resnets.0")
    assert TABLE.price(copied).milliseconds == pytest.approx(cost(attention=5 / 4, resnets=2 * 2 / 4))
    original = TABLE.entry("up_blocks.1.resnets.0", 2).parameters
    attention = TABLE.entry("up_blocks.1.attentions.0", 2).parameters
    assert TABLE.price(copied).parameters == TABLE.price(SD15).parameters + 2 * original + attention


def test_a_pair_that_gives_up_its_skip_takes_its_resnets_along() -> None:
    pair = SD15.without_pair("down_blocks.2.resnets.1", "up_blocks.1.resnets.1")
    assert TABLE.price(pair).milliseconds == pytest.approx(cost(resnets=-2 * 2 / 4))


def test_a_network_that_ends_early_pays_for_no_samplers_below() -> None:
    """BK-SDM-Tiny: levels 0 to 2, second positions gone, no middle."""
    between = 3 * 0.5 + (1 + 1 / 2) + (1 / 4 + 1 / 2) + 0.25
    blocks = (5 + 2) * (3 + 3 / 2 + 3 / 4)
    assert TABLE.price(Architecture.bk_tiny()).milliseconds == pytest.approx(between + blocks)


def test_a_middle_that_runs_higher_up_has_an_entry_of_its_own() -> None:
    tiny = replace(Architecture.bk_tiny(), mid=SD15.mid)
    with pytest.raises(
        ValueError, match=r"without mid_block.resnets.0 at level 2, mid_block.attentions.0 at level 2, "
    ):
        TABLE.price(tiny)
    higher = tuple(replace(entry, level=2) for entry in TABLE.entries if entry.name.startswith("mid_block"))
    middle = 3 * 1000.0
    priced = replace(TABLE, entries=TABLE.entries + tuple(replace(entry, milliseconds=1000.0) for entry in higher))
    expected = TABLE.price(Architecture.bk_tiny()).milliseconds + middle
    assert priced.price(tiny).milliseconds == pytest.approx(expected)


def test_pieces_are_the_networks() -> None:
    """The first names of Stable Diffusion's state dict, and "rest"."""
    unet = pytest.importorskip("snapfusion.model.unet")
    torch = pytest.importorskip("torch")
    for architecture in (SD15, Architecture.bk_tiny(), Architecture.table3()):
        with torch.device("meta"):
            names = unet.ElasticUNet(architecture).state_dict().keys()
        kinds = Counter(name for name, _ in pieces(architecture))
        assert set(kinds) == {first_names(name) for name in names} | {"rest"}
        assert sum(kinds.values()) == len(architecture.blocks()) + 2 * (len(architecture.down) - 1) + 4


def first_names(weight: str) -> str:
    """The piece that a weight belongs to."""
    if weight.startswith("conv_norm_out"):
        return "conv_out"
    words = weight.split(".")
    return ".".join(words[: {"mid_block": 3, "down_blocks": 4, "up_blocks": 4}.get(words[0], 1)])


def test_other_widths_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"widths \(8, 8, 16, 16\), expected \(320, 640, 1280, 1280\).*measure a table"
    ):
        TABLE.price(Architecture.sd15((8, 8, 16, 16)))


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "table.json")
    assert load_table(tmp_path / "table.json") == TABLE


def changed(**fields: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "device": "iPhone 14 Pro",
        "engine": "Core ML",
        "precision": "f16",
        "threads": 1,
        "batch": 1,
        "sample_size": 64,
        "widths": [320],
        "entries": [entry()],
        **fields,
    }


def entry(**fields: Any) -> dict[str, Any]:
    return {"name": "conv_in", "level": 0, "milliseconds": 2.5, "parameters": 10, "bytes": 20, "macs": 30, **fields}


def test_a_phones_table_may_leave_out_the_spread(tmp_path: Path) -> None:
    file = tmp_path / "phone.json"
    file.write_text(json.dumps(changed()))
    expected = Entry("conv_in", 0, 2.5, 10, 20, 30, spread=0.0)
    assert load_table(file) == Table("iPhone 14 Pro", "Core ML", "f16", 1, 1, 64, (320,), (expected,))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(version=2), "got a table of version 2, expected version 1"),
        ({name: value for name, value in changed().items() if name != "batch"}, "got no batch in the table"),
        (changed(phone="x"), "got phone in the table, expected only batch, device"),
        (changed(batch=0), "got batch 0 in a table, expected a count"),
        (changed(device=7), "got device 7 in a table, expected text"),
        (changed(widths=320), "got widths 320, expected a list"),
        (changed(entries={}), "got entries that are not a list of objects"),
        (changed(entries=[entry(), entry()]), "got two entries for conv_in at level 0"),
        (changed(entries=[entry(macs=None)]), "got macs None in the entry 'conv_in', expected a whole number"),
        (
            changed(entries=[entry(milliseconds="2")]),
            "got milliseconds '2' in the entry 'conv_in', expected a number",
        ),
        (
            changed(entries=[entry(milliseconds=-2.0)]),
            "got milliseconds -2.0 in the entry 'conv_in', expected a number of at least 0",
        ),
        (changed(entries=[entry(milliseconds=float("nan"))]), "got milliseconds nan in the entry 'conv_in'"),
        (changed(entries=[{"name": "conv_in"}]), "got no bytes, level, macs, milliseconds, parameters in the entry"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "phone.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
        load_table(file)


def test_only_the_rest_may_be_negative() -> None:
    assert Entry("rest", 0, -0.5, 0, 0, 0).milliseconds == -0.5
