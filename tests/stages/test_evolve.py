"""The whole stage with the real classes at tiny size; the judge's backbone alone is replaced by a small one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny_evaluation
from metrics.test_judges import JUDGE_B, reach
from snapfusion import cli
from snapfusion.checkpoint import hash_of, load_checkpoint, load_unet, save_checkpoint
from snapfusion.denoising import Batch
from snapfusion.fit import Share
from snapfusion.metrics import judge_a
from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.stage_folder import PausedError
from snapfusion.stages.evolve import member, rounds, setting, trial
from snapfusion.stages.evolve.setting import Setting, Sources, prepare
from snapfusion.stages.evolve.stage import Config, Result, goal_of, run
from snapfusion.table import load_table
from tiny_evaluation import small_backbone, sticker_set
from tiny_models import sticker_checkpoint
from tiny_tables import tiny_table

THINGS = tiny_evaluation.THINGS[:6]
BUDGET, NAME = 25.0, "25ms"  # of 48 ms
CONFIG = Config(
    budget_ms=(BUDGET,),
    cuts=1,
    copy_rounds=1,
    copies=1,
    latents=4,
    prompts=3,
    steps=1,
    guidance=2.0,
    skip=0.3,
    skip_rise=1,
    robust_images=8,
    round_images=4,
    finetune_images=8,
    batch=4,
    warmup=1,
    variants=2,
)


@pytest.fixture(autouse=True)
def small_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_a, "load_backbone", small_backbone)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sticker_set(tmp_path_factory.mktemp("stickers") / "set", THINGS, size=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sticker base in small, with two levels: 18 blocks can go."""
    torch.manual_seed(0)
    unet = ElasticUNet(
        Architecture.sd15((8, 8)), sample_size=16, cross_attention_dim=16, num_attention_heads=2, norm_num_groups=8
    )
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(replace(sticker_checkpoint(), unet=unet.eval()), folder)
    return folder


@pytest.fixture(scope="module")
def table(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("table") / "table.json"
    tiny_table(load_unet(base).architecture).save(file)
    return file


@pytest.fixture(scope="module")
def evolved(base: Path, table: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One evolution for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("evolved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_a, "load_backbone", small_backbone)
        return run(CONFIG, base, table, data, folder / "out", folder / "cache")


@pytest.mark.slow
def test_a_checkpoint_evolves_to_its_budget(evolved: Result, base: Path, table: Path) -> None:
    (member,) = evolved.members
    checkpoint, before = load_checkpoint(evolved.out / NAME), load_checkpoint(base)
    price = load_table(table).price(checkpoint.unet.architecture)
    assert member.price == price
    assert price.milliseconds <= BUDGET < evolved.base.milliseconds
    assert price.parameters < evolved.base.parameters
    assert checkpoint.unet.architecture != before.unet.architecture
    assert not torch.equal(checkpoint.unet.conv_in.weight, before.unet.conv_in.weight.half().float())  # it was trained
    for part in ("text_encoder", "vae"):
        kept, given = getattr(checkpoint, part).state_dict(), getattr(before, part).state_dict()
        assert all(torch.equal(kept[name], given[name].half().float()) for name in given)
    written = json.loads((evolved.out / NAME / "architecture.json").read_text())
    assert Architecture.from_dict(written) == checkpoint.unet.architecture
    assert "| Down-1 | latent | 8 |" in (evolved.out / NAME / "README.md").read_text()
    assert f"{NAME}: " in evolved.describe()


@pytest.mark.slow
def test_the_history_tells_every_round(evolved: Result, table: Path) -> None:
    history = json.loads((evolved.out / "history.json").read_text())
    rows = history["rounds"]
    assert [row["action"] for row in rows][:2] == ["start", "remove"]
    assert [row["round"] for row in rows] == list(range(len(rows)))
    assert rows[0]["milliseconds"] == evolved.base.milliseconds
    assert all(row["milliseconds"] <= BUDGET for row in rows[1:])
    assert all(row["quality"]["low"] <= row["quality"]["value"] <= row["quality"]["high"] for row in rows)
    assert history["members"][0]["name"] == NAME
    first = json.loads((evolved.out / "rounds" / "00" / "round.json").read_text())
    prices = load_table(table)
    whole = Architecture.from_dict(first["architecture"])
    assert {score["block"] for score in first["scores"]} == {b.name for b in whole.blocks() if b.removable}
    for score in first["scores"]:
        saved = prices.price(whole).milliseconds - prices.price(whole.without(score["block"])).milliseconds
        assert score["saving"] == pytest.approx(saved)
    assert (evolved.out / "path.svg").read_text().count("<circle") >= len(rows) + 1
    assert "3 prompts of train, 1 steps of ddim, guidance 2" in first["protocol"]


@pytest.mark.slow
def test_what_only_served_the_search_is_gone(evolved: Result) -> None:
    left = {file.relative_to(evolved.out).parts[0] for file in evolved.out.rglob("*") if file.is_file()}
    assert left == {NAME, "base.json", "history.json", "path.svg", "result.json", "rounds"}
    assert not list(evolved.out.rglob("state.safetensors"))
    assert (evolved.out / "rounds" / "00" / "unet").is_dir()  # the network that bears all removals


@pytest.mark.slow
def test_a_finished_evolution_is_only_read(
    evolved: Result, base: Path, table: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "train_robustly", None)  # what trains is not called again
    again = run(CONFIG, base, table, data, evolved.out, evolved.out.parent / "cache")
    assert again == evolved
    with pytest.raises(ValueError, match=r"made with skip 0\.3, expected 0\.2"):
        run(replace(CONFIG, skip=0.2), base, table, data, evolved.out)


@pytest.mark.slow
def test_a_stopped_evolution_ends_as_an_undisturbed_one(
    evolved: Result, base: Path, table: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, sample = [], trial.sample_latents

    def deadly(*arguments):
        calls.append(1)
        if len(calls) in (5, 24):  # among the scores of the first round, and of the second
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(trial, "sample_latents", deadly)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(CONFIG, base, table, data, tmp_path / "out", evolved.out.parent / "cache")
        assert not (tmp_path / "out").exists()
    paused = replace(CONFIG, max_seconds=0.0)
    with pytest.raises(PausedError):
        run(paused, base, table, data, tmp_path / "out", evolved.out.parent / "cache")
    result = run(CONFIG, base, table, data, tmp_path / "out", evolved.out.parent / "cache")
    assert result.members == evolved.members
    assert hash_of(tmp_path / "out" / NAME / "unet") == hash_of(evolved.out / NAME / "unet")
    assert (tmp_path / "out" / "history.json").read_text() == (evolved.out / "history.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("score", ["trajectory", "denoising", "output"])
def test_a_family_from_one_supernet_scored_without_a_judge(
    base: Path, table: Path, data: Path, tmp_path: Path, score, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_a, "load_backbone", None)  # no judge is asked
    prices, whole = load_table(table), load_unet(base).architecture
    megabytes = prices.price(whole).megabytes
    config = replace(CONFIG, budget_ms=(), budget_mb=(0.6 * megabytes, 0.8 * megabytes), copy_rounds=0, score=score)
    result = run(config, base, table, data, tmp_path / "out")
    assert [member.budget for member in result.members] == [0.8 * megabytes, 0.6 * megabytes]
    assert all(member.price.megabytes <= member.budget for member in result.members)
    large, small = (load_unet(result.out / member.name) for member in result.members)
    assert {block.name for block in small.architecture.blocks()} < {block.name for block in large.architecture.blocks()}
    # Every score divides by megabytes here.
    first = json.loads((result.out / "rounds" / "00" / "round.json").read_text())["scores"][0]
    saved = megabytes - prices.price(whole.without(first["block"])).megabytes
    assert first["saving"] == pytest.approx(saved)


@pytest.mark.slow
def test_a_family_goes_on_after_its_first_member_is_done(
    base: Path, table: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, budget_ms=(25.0, 35.0), copy_rounds=0, score="denoising")
    undisturbed = run(config, base, table, data, tmp_path / "a")
    tuned, finetune = [], member.finetune

    def deadly(*arguments):
        tuned.append(1)
        if len(tuned) == 2:
            raise KeyboardInterrupt
        return finetune(*arguments)

    monkeypatch.setattr(member, "finetune", deadly)
    with pytest.raises(KeyboardInterrupt):
        run(config, base, table, data, tmp_path / "b")
    assert run(config, base, table, data, tmp_path / "b").members == undisturbed.members
    assert len(tuned) == 3  # the first member was not tuned again


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cuts": 0}, "got --cuts 0, expected at least 1"),
        ({"accumulate": 0}, "got --accumulate 0, expected at least 1"),
        ({"draw_batch": 0}, "got --draw-batch 0, expected at least 1"),
        ({"skip_rise": -1}, "got --skip-rise -1, expected 0 or more steps"),
        ({"round_images": 3}, "got --round-images 3, expected 0 or"),
    ],
)
def test_an_evolution_of_nothing_is_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, budget_ms=(3.0,)), r"got a budget of 3 ms, expected at least \d+"),
        (replace(CONFIG, budget_ms=()), "got neither of --budget-ms and --budget-mb"),
        (replace(CONFIG, budget_mb=(1.0,)), "got both of --budget-ms and --budget-mb"),
    ],
)
def test_an_impossible_budget_is_refused_before_training(
    config: Config, message: str, base: Path, table: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(config, base, table, data, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [-0.1, 1.0, float("nan")])
def test_room_is_a_share_of_the_budget(room: float) -> None:
    with pytest.raises(ValueError, match=r"got room .*, expected a share of the budget, from 0 to less than 1"):
        replace(CONFIG, room=room)
    assert replace(CONFIG, room=0.2).limits.room == 0.2
    assert replace(CONFIG, room=0.2, copy_rounds=0).limits.room == 0  # nothing is copied into it


def prepared(config: Config, base: Path, table: Path, data: Path, folder: Path) -> Setting:
    sources = Sources(base, data, load_table(table), folder / "judges")
    return prepare(config, sources, goal_of(config, sources.table, load_unet(base).architecture), folder)


def test_the_judge_learns_from_the_asked_subset_alone(base: Path, table: Path, data: Path, tmp_path: Path) -> None:
    small = sticker_set(tmp_path / "core", THINGS, size=64, core=True)
    of_core, of_full = (prepared(CONFIG, base, table, source, tmp_path / source.name) for source in (small, data))
    assert of_core.quality == of_full.quality
    everything = prepared(replace(CONFIG, subset="full"), base, table, data, tmp_path / "everything")
    assert everything.quality != of_full.quality


@pytest.mark.parametrize("score", ["denoising", "output"])
@pytest.mark.parametrize(("training", "scores", "expected"), [(4, None, 4), (1, 4, 4), (4, 2, 2)])
def test_losses_are_at_the_noise_levels_that_were_asked_for(
    base: Path, table: Path, data: Path, tmp_path: Path, score, training, scores, expected, monkeypatch
) -> None:
    wanted, batches = f"{score}_trial", list[Batch]()
    built = getattr(setting, wanted)
    monkeypatch.setattr(setting, wanted, lambda unet, of, bf16: built(unet, batches.extend(of) or of, bf16))
    plain = replace(CONFIG, score=score)
    configs = plain, replace(plain, noise_shift=training, score_shift=scores)
    of_training = [prepared(config, base, table, data, tmp_path).data.draw(0, Share()).t for config in configs]
    of_losses = [batch.t for batch in batches]
    steps = load_checkpoint(base).schedule.num_train_timesteps
    for (before, after), shift in ((of_training, training), (of_losses, expected)):
        place = before.double() / steps
        by_hand = shift * place / (1 + (shift - 1) * place) * steps
        assert (after - by_hand).abs().max() <= shift  # steps are whole numbers


@pytest.mark.parametrize("field", ["noise_shift", "score_shift"])
def test_shifts_that_leave_the_noise_levels_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=r"got noise shift 0\.0, expected a number above 0"):
        replace(CONFIG, **{field: 0.0})


def test_the_search_cannot_reach_the_judge_that_reports() -> None:
    reached = reach("snapfusion.stages.evolve.stage")
    assert "snapfusion.metrics.judge_a" in reached
    assert JUDGE_B not in reached


def test_the_command_says_in_one_line_what_it_misses(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    assert cli.main(["evolve", "--table", str(table), "--budget-ms", "20"]) == 2
    expected = "snapfusion: got too little, expected a checkpoint, --data and --out, or --price-only and --scores"
    assert capsys.readouterr().err.startswith(expected)
