"""The search on prices alone: scores of another network for the same positions, a budget in milliseconds."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from snapfusion import cli
from snapfusion.metrics.estimate import Estimate
from snapfusion.model.architecture import Architecture
from snapfusion.stages.evolve.config import Config
from snapfusion.stages.evolve.price_only import budgets, search
from snapfusion.stages.evolve.scores import Score
from snapfusion.stages.evolve.search import Limits
from tiny_tables import tiny_table


def round_file(folder: Path, drops: dict[str, float]) -> Path:
    scores = [asdict(Score(name, Estimate(drop, drop, drop), 1.0)) for name, drop in drops.items()]
    file = folder / "round.json"
    file.write_text(json.dumps({"scores": scores}))
    return file


def test_stable_diffusions_positions_are_searched_with_scores_of_the_same_positions(tmp_path: Path) -> None:
    whole = Architecture.sd15()
    table = tiny_table(whole)  # attentions at the largest latent are dearest: 5 ms of each
    removable = [block for block in whole.blocks() if block.removable]
    drops = {block.name: 0.01 if block.level == 0 and block.kind == "attention" else 0.1 for block in removable}
    price = table.price(whole).milliseconds
    scores = round_file(tmp_path, drops)
    answer = search("sd15", price - 24, table, scores, Limits(cuts=3, copy_rounds=0))
    assert answer.after == Architecture.without_top_attention()
    assert "Provisional" in answer.describe()
    assert "| Up-3 | latent | 320 | **3 → 0** | 3 |" in answer.describe()
    # With room left, the best block that fits is copied: an attention at the smallest latent costs least.
    roomy = search("sd15", price - 24 + 0.4, table, scores, Limits(cuts=3, copy_rounds=1, copies=1))
    (copied,) = {b.name for b in roomy.after.blocks()} - {b.name for b in whole.blocks()}
    assert copied.endswith(".copies.0")
    with pytest.raises(ValueError, match="expected at least"):
        search("sd15", 1.0, table, round_file(tmp_path, drops), Limits())
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="got no scores"):
        search("sd15", 50.0, table, tmp_path / "other.json", Limits())


def test_a_position_without_a_score_stays(tmp_path: Path) -> None:
    """So it is between scores of the sticker base and Stable Diffusion: at level 3 only the latter keeps its width."""
    stickers, whole = Architecture.sd15((64, 128, 192, 256)), Architecture.sd15()
    table = tiny_table(whole)
    scored = round_file(tmp_path, {block.name: 0.1 for block in stickers.blocks() if block.removable})
    answer = search("sd15", table.price(whole).milliseconds / 2, table, scored, Limits(copy_rounds=0))
    assert answer.unscored == ("down_blocks.3.resnets.0", "up_blocks.1.resnets.0")
    assert "stay without a score: down_blocks.3.resnets.0" in answer.describe()
    assert set(answer.unscored) <= {block.name for block in answer.after.blocks()}
    # All that has a score may go, and no budget below that is worth a search.
    least = table.price(whole.without(*(b.name for b in stickers.blocks() if b.removable))).milliseconds
    assert table.price(search("sd15", least, table, scored, Limits()).after).milliseconds == pytest.approx(least)
    with pytest.raises(ValueError, match=f"got a budget of .* ms, expected at least {least:.4g}"):
        search("sd15", least - 0.1, table, scored, Limits())


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Architecture.sd15()
    table, budget = tiny_table(whole), round(tiny_table(whole).price(whole).milliseconds / 2)
    table.save(tmp_path / "table.json")
    scores = round_file(tmp_path, {block.name: 0.1 for block in whole.blocks() if block.removable})
    files = ["--table", str(tmp_path / "table.json"), "--scores", str(scores), "--out", str(tmp_path / "found")]
    assert cli.main(["evolve", "--price-only", "sd15", *files, "--budget-ms", str(budget)]) == 0
    found = Architecture.from_dict(json.loads((tmp_path / "found" / f"{budget}ms" / "architecture.json").read_text()))
    assert found == search("sd15", budget, table, scores, Config().limits).after != whole
    assert "Provisional" in capsys.readouterr().out


def test_prices_alone_know_milliseconds() -> None:
    assert budgets(Config(budget_ms=(3.0, 2.0))) == (3.0, 2.0)
    for config in (Config(), Config(budget_mb=(3.0,)), Config(budget_ms=(1.0,), budget_mb=(3.0,))):
        with pytest.raises(ValueError, match="expected milliseconds"):
            budgets(config)
