"""The maths of the stage: Eq. 5's draws, the losses, Table 3, the baselines, the path as a picture."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from snapfusion import tiny
from snapfusion.data.choice import seed_of
from snapfusion.data.prompts import prompt_of
from snapfusion.denoising import Batch
from snapfusion.fit import FitConfig
from snapfusion.latents import Cache, Shares
from snapfusion.metrics.estimate import Estimate
from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.sampling import Sampling, draw_latents
from snapfusion.stage_folder import PausedError
from snapfusion.stages.evolve.baselines import by_chance, by_hand
from snapfusion.stages.evolve.finetune import Distillation, feature_distance, finetuning_loss, stage_features
from snapfusion.stages.evolve.plot import Point, path_svg
from snapfusion.stages.evolve.report import stage_table, stages
from snapfusion.stages.evolve.robust import (
    Data,
    Schooling,
    Skip,
    draw_off,
    robust_loss,
    skip_probability,
    train_robustly,
)
from snapfusion.stages.evolve.trial import denoising_trial, output_trial, trajectory_trial
from snapfusion.stages.train.unet import sticker_schedule
from tiny_evaluation import pair_of
from tiny_tables import tiny_table

WIDTHS = (8, 8, 16, 16)
ATTENTION, RESNET = "down_blocks.1.attentions.0", "up_blocks.2.resnets.1"


@pytest.fixture(scope="module")
def unet() -> ElasticUNet:
    torch.manual_seed(0)
    config = {"sample_size": 8, "cross_attention_dim": 12, "num_attention_heads": 2, "norm_num_groups": 8}
    return ElasticUNet(Architecture.sd15(WIDTHS), **config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch() -> Batch:
    torch.manual_seed(1)
    latent, target = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    weight = torch.tensor([0.5, 1.0, 2.0])
    return Batch(latent, torch.tensor([10, 400, 900]), torch.randn(3, 5, 12), target, weight)


def test_blocks_are_left_out_with_the_given_probability_independently() -> None:
    names = [f"block{number}" for number in range(30)]
    drawn = np.array([[name in draw_off(names, 0.2, seed=1, step=step) for name in names] for step in range(2000)])
    assert drawn.mean() == pytest.approx(0.2, abs=0.01)
    assert abs(drawn.mean(axis=0) - 0.2).max() < 0.05
    off_diagonal = np.corrcoef(drawn.T) - np.eye(30)
    assert abs(off_diagonal).max() < 0.12


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    names = [f"block{number}" for number in range(30)]
    assert draw_off(names, 0.5, 3, 7) == draw_off(list(reversed(names)), 0.5, 3, 7)
    assert len({draw_off(names, 0.5, 3, step) for step in range(50)}) == 50
    assert draw_off(names, 0.5, 4, 7) != draw_off(names, 0.5, 3, 7)
    assert draw_off(names, 0.0, 3, 7) == frozenset()
    assert draw_off(names, 1.0, 3, 7) == frozenset(names)


def test_the_probability_rises_and_stays() -> None:
    assert [skip_probability(step, 0.4, rise=3) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert skip_probability(0, 0.4, rise=0) == pytest.approx(0.4)


def test_the_robust_loss_is_the_smaller_networks_and_the_distance_to_the_base(unet: ElasticUNet, batch: Batch) -> None:
    off = {ATTENTION, RESNET}
    smaller = unet.without(*off)(batch.latent, batch.t, batch.embedding).sample
    per_row = ((smaller - batch.target) ** 2).flatten(1).mean(dim=1)
    plain = (batch.weight * per_row).sum() / 3
    torch.testing.assert_close(robust_loss(unet, batch, off), plain)
    whole = unet(batch.latent, batch.t, batch.embedding).sample
    distance = (batch.weight * ((smaller - whole) ** 2).flatten(1).mean(dim=1)).sum() / 3
    expected = plain + 0.5 * distance
    torch.testing.assert_close(robust_loss(unet, batch, off, unet, 0.5), expected, rtol=0.02, atol=0.0)  # base in bf16


def test_blocks_left_out_get_no_gradient(unet: ElasticUNet, batch: Batch) -> None:
    trained = unet.evolve(unet.architecture).requires_grad_(True)
    robust_loss(trained, batch, {ATTENTION}).backward()
    assert all(weight.grad is None for weight in trained.get_submodule(ATTENTION).parameters())
    assert all(weight.grad is not None for weight in trained.get_submodule(RESNET).parameters())


@pytest.fixture(scope="module")
def pictures(unet: ElasticUNet) -> Data:
    torch.manual_seed(2)
    cache = Cache(
        latents=torch.randn(6, 4, 8, 8).half(),
        mirrored=torch.randn(6, 4, 8, 8).half(),
        captions=torch.arange(12).reshape(6, 2),
        embeddings=torch.randn(12, 5, 12).half(),
        recoloured=torch.zeros(6, dtype=torch.bool),
    )
    return Data(cache, sticker_schedule(), batch=2, seed=0, shares=Shares(dropout=0.1))


def test_robust_training_that_pauses_after_every_step_comes_to_the_same(
    unet: ElasticUNet, pictures: Data, tmp_path: Path
) -> None:
    """Also where some blocks have had no gradient yet when it pauses."""
    fit = FitConfig(steps=0, batch=2, lr=1e-2, warmup=1, skips_blocks=True, tracker=None)
    schooling = Schooling(first_steps=2, steps=3, skip=Skip(0.5), fit=fit)
    at_once, paused = (unet.evolve(unet.architecture).requires_grad_(True) for _ in range(2))
    train_robustly(at_once, unet, pictures, schooling, 1, tmp_path / "a")
    one_step = replace(schooling, fit=replace(fit, max_seconds=0.0))
    for _ in range(2):
        with pytest.raises(PausedError, match="robust training, round 1 paused"):
            train_robustly(paused, unet, pictures, one_step, 1, tmp_path / "b")
    train_robustly(paused, unet, pictures, one_step, 1, tmp_path / "b")
    weights = zip(at_once.parameters(), paused.parameters(), unet.parameters(), strict=True)
    moved = [not torch.equal(a, whole) for a, b, whole in weights if torch.equal(a, b)]
    assert len(moved) == len(list(unet.parameters()))
    assert any(moved)
    # The data goes on where the first round, of two steps, left off.
    assert draw_off(unet.removable, 0.5, 0, 2) != draw_off(unet.removable, 0.5, 0, 0)
    assert schooling.steps_before(1) == 2
    assert schooling.steps_before(3) == 8


def test_stage_features_are_what_leaves_each_stage(unet: ElasticUNet, batch: Batch) -> None:
    with stage_features(unet) as features:
        prediction = unet(batch.latent, batch.t, batch.embedding).sample
    assert list(features) == [f"down_blocks.{n}" for n in range(4)] + ["mid_block"] + [
        f"up_blocks.{n}" for n in range(4)
    ]
    assert [features[f"down_blocks.{n}"].shape[1:] for n in range(4)] == [(8, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)]
    last = unet.conv_out(unet.conv_act(unet.conv_norm_out(features["up_blocks.3"])))
    torch.testing.assert_close(last, prediction)
    before = dict(features)
    unet(batch.latent + 1, batch.t, batch.embedding)
    assert all(features[name] is before[name] for name in before)  # the hooks are gone


def test_the_fine_tuning_loss_by_hand(unet: ElasticUNet, batch: Batch) -> None:
    student = unet.without(ATTENTION, "mid_block.resnets.1")
    with stage_features(unet) as wanted:
        target = unet(batch.latent, batch.t, batch.embedding).sample
    with stage_features(student) as features:
        prediction = student(batch.latent, batch.t, batch.embedding).sample

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum(w * ((x - y) ** 2).mean().item() for w, x, y in zip(batch.weight.tolist(), a, b, strict=True)) / 3

    relative = [
        ((features[name] - wanted[name]) ** 2).sum().item() / (wanted[name] ** 2).sum().item() for name in wanted
    ]
    expected = error(prediction, batch.target) + 2 * error(prediction, target) + 3 * float(np.mean(relative))
    loss = finetuning_loss(student, unet, batch, Distillation(output=2.0, features=3.0))
    assert loss.item() == pytest.approx(expected, rel=0.02)  # the base in bf16
    assert feature_distance(features, wanted).item() == pytest.approx(np.mean(relative), rel=1e-4)


def test_losses_without_sampling(unet: ElasticUNet, batch: Batch) -> None:
    denoising, output = denoising_trial(unet, [batch, batch]), output_trial(unet, [batch, batch])
    assert denoising.quality(unet).value == pytest.approx(-1)
    assert output.quality(unet).value == pytest.approx(0, abs=1e-6)
    whole = unet(batch.latent, batch.t, batch.embedding).sample
    without = unet(batch.latent, batch.t, batch.embedding, off={RESNET}).sample
    expected = ((without - whole) ** 2).mean().item() / (whole**2).mean().item()
    assert output.quality(unet, {RESNET}).value == pytest.approx(-expected, rel=0.1)  # in bf16
    losses = [(batch.weight * ((p - batch.target) ** 2).flatten(1).mean(dim=1)).mean().item() for p in (whole, without)]
    assert denoising.quality(unet, {RESNET}).value == pytest.approx(-losses[1] / losses[0], rel=0.01)
    assert len(denoising.scale) == len(output.scale) == 6


def test_latents_are_held_against_those_of_the_whole_network() -> None:
    torch.manual_seed(0)
    checkpoint, sampling = tiny.checkpoint(), Sampling(steps=3, guidance=4.0)
    pairs = [pair_of(thing, 0, "3d") for thing in ("fox", "apple", "ghost")]
    trial = trajectory_trial(checkpoint, pairs, sampling, batch=2)
    assert trial.quality(checkpoint.unet).value == pytest.approx(0, abs=1e-9)
    asked = [prompt_of(pair) for pair in pairs], [seed_of(pair) for pair in pairs]
    whole = draw_latents(checkpoint, *asked, sampling)
    without = draw_latents(replace(checkpoint, unet=checkpoint.unet.without(RESNET)), *asked, sampling)
    expected = (without - whole).square().mean() / whole.square().mean()
    assert trial.quality(checkpoint.unet, {RESNET}).value == pytest.approx(-expected.item(), rel=1e-3)
    drawn = "3 prompts of train, 3 steps of ddim, guidance 4"
    assert trial.protocol == f"distance of latents, {drawn}; 0 is the whole network"


def test_the_papers_table_3_is_told_as_in_the_paper() -> None:
    before = [(row.name, row.width, row.attentions, row.resnets) for row in stages(Architecture.sd15())]
    after = [(row.attentions, row.resnets) for row in stages(Architecture.table3())]
    assert before == [
        ("Down-1", 320, 2, 2), ("Down-2", 640, 2, 2), ("Down-3", 1280, 2, 2), ("Mid", 1280, 1, 7),
        ("Up-1", 1280, 3, 3), ("Up-2", 640, 3, 3), ("Up-3", 320, 3, 3),
    ]  # fmt: skip
    assert after == [(0, 2), (2, 2), (2, 1), (1, 4), (6, 2), (3, 3), (0, 3)]
    lines = stage_table(Architecture.sd15(), Architecture.table3()).splitlines()
    assert lines[2] == "| Down-1 | latent | 320 | **2 → 0** | 2 |"
    assert lines[5] == "| Mid | latent / 8 | 1280 | 1 | **7 → 4** |"


def test_removal_by_chance_meets_the_budget_and_nothing_can_be_put_back() -> None:
    whole = Architecture.sd15(WIDTHS)
    table = tiny_table(whole)

    def cost(architecture: Architecture) -> float:
        return table.price(architecture).milliseconds

    budget = 0.6 * cost(whole)
    drawn = [by_chance(whole, cost, budget, seed) for seed in range(3)]
    assert len({str(architecture.to_dict()) for architecture in drawn}) == 3
    assert drawn[0] == by_chance(whole, cost, budget, 0)
    for architecture in drawn:
        assert cost(architecture) <= budget
        gone = {block.name for block in whole.blocks()} - {block.name for block in architecture.blocks()}
        assert all(cost(whole.without(*(gone - {name}))) > budget for name in gone)
    with pytest.raises(ValueError, match="no more blocks can go"):
        by_chance(whole, cost, 1.0, 0)


def test_every_network_chosen_by_hand_starts_from_the_base(unet: ElasticUNet, batch: Batch) -> None:
    chosen = by_hand(WIDTHS)
    assert list(chosen) == ["bk-base", "bk-small", "bk-tiny", "table3"]
    for architecture in chosen.values():
        student = unet.evolve(architecture)
        assert student(batch.latent, batch.t, batch.embedding).sample.isfinite().all()


def test_the_path_is_a_picture() -> None:
    points = [
        Point(60.0, Estimate(0.5, 0.4, 0.6), "start", "round 0"),
        Point(30.0, Estimate(0.4, 0.3, 0.5), "remove", "round 1"),
        Point(30.0, Estimate(0.45, 0.4, 0.5), "finetune", "30ms"),
    ]
    root = ElementTree.fromstring(path_svg(points, [30.0], "milliseconds", "judge A, 1 < 2"))
    svg = "{http://www.w3.org/2000/svg}"
    assert [title.text for title in root.iter(f"{svg}title")] == ["round 0", "round 1", "30ms"]
    first, second, _ = [circle for circle in root.iter(f"{svg}circle") if circle.find(f"{svg}title") is not None]
    assert float(first.attrib["cx"]) > float(second.attrib["cx"])  # dearer is further right
    assert float(first.attrib["cy"]) < float(second.attrib["cy"])  # better is higher
