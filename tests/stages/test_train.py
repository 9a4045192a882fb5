"""The training stage, whole, with the real classes at tiny size."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny_models
from snapfusion.checkpoint import load_checkpoint, load_unet, load_vae
from snapfusion.data.pairs import load_index, read_images
from snapfusion.data.stickers import build
from snapfusion.latents import captions_of, train_rows
from snapfusion.metrics.lpips import Lpips
from snapfusion.stage_folder import PausedError
from snapfusion.stages.train import stage
from snapfusion.stages.train.autoencoder import Reconstruct, draw_crops
from snapfusion.stages.train.stage import Config, Result, run
from snapfusion.stages.train.unet import sticker_unet
from tiny_stickers import tiny_packages

CONFIG = Config(
    images=24,
    batch=4,
    lr=7e-4,
    warmup=2,
    autoencoder_images=16,
    autoencoder_batch=4,
    observe_steps=3,
    length=16,
    variants=3,
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of 32 px pictures; the stage's networks are replaced by tiny ones of the same classes."""
    monkeypatch.setattr(stage, "sticker_autoencoder", lambda size: tiny_models.tiny_vae(levels=2, patch_size=2))
    monkeypatch.setattr(
        stage, "sticker_unet", lambda channels, width, widths, side: tiny_models.tiny_unet(sample_size=side)
    )
    checkpoint = tiny_models.sticker_checkpoint()
    monkeypatch.setattr(stage, "minilm_text_encoder", lambda: (checkpoint.text_encoder, checkpoint.tokenizer))
    monkeypatch.setattr(stage, "load_lpips", lambda levels: Lpips(1))
    torch.manual_seed(0)
    return build(tmp_path / "set", size=32, cache=tiny_packages(tmp_path / "packages", monkeypatch), workers=1)


def weights(result: Result) -> dict[str, torch.Tensor]:
    return load_file(Path(result.checkpoint) / "unet" / "diffusion_pytorch_model.safetensors")


def test_pictures_to_checkpoint(data: Path, tmp_path: Path) -> None:
    result = run(CONFIG, data, tmp_path / "run")
    assert result.images == 24
    checkpoint = load_checkpoint(Path(result.checkpoint))
    image = torch.zeros(1, 3, 32, 32)
    assert checkpoint.vae.decode(checkpoint.vae.encode(image).latent_dist.mean).sample.shape == image.shape
    looks = [json.loads(line) for line in (tmp_path / "run" / "unet" / "history.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [3, 6]
    assert result.held_out_loss == min(look["held_out_loss"] for look in looks)
    assert len(list((tmp_path / "run" / "unet" / "sheets").iterdir())) == 2


def test_a_finished_run_is_only_read(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(CONFIG, data, tmp_path / "run")
    monkeypatch.setattr(stage, "fit", None)  # what trains is not called again
    assert run(CONFIG, data, tmp_path / "run") == first


def test_the_best_or_the_last_weights_are_kept(data: Path, tmp_path: Path) -> None:
    config, out = replace(CONFIG, observe_steps=5), tmp_path / "run"  # six steps, one look: the last are no best ones
    best = weights(run(config, data, out))
    last_run = run(replace(config, keep="last"), data, out)
    last, state = weights(last_run), load_file(out / "unet" / "state.safetensors")
    looked_at = load_file(out / "unet" / "best.safetensors")
    names = [name for name, _ in load_checkpoint(Path(last_run.checkpoint)).unet.named_parameters()]
    for place, name in enumerate(names):
        torch.testing.assert_close(best[name], looked_at[name].half())
        torch.testing.assert_close(last[name], state[f"ema.{place}"].half())
    assert any(not torch.equal(best[name], last[name]) for name in names)


def test_latents_have_unit_deviation(data: Path, tmp_path: Path) -> None:
    run(CONFIG, data, tmp_path / "run")
    cached = load_file(tmp_path / "run" / "cache" / "train.safetensors")
    assert cached["latents"].float().std().item() == pytest.approx(1, abs=0.1)


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("part", "at"), [("draw_crops", 2), ("draw_batch", 1), ("draw_batch", 5)])
def test_a_killed_run_ends_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, at: int
) -> None:
    undisturbed = weights(run(CONFIG, data, tmp_path / "a"))
    calls, draw = [], getattr(stage, part)

    def deadly(*arguments, **named):
        calls.append(1)
        if len(calls) == at + 1:
            raise Killed
        return draw(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(stage, part, deadly)
        with pytest.raises(Killed):
            run(CONFIG, data, tmp_path / "b")
    resumed = weights(run(CONFIG, data, tmp_path / "b"))
    for name, weight in undisturbed.items():
        assert torch.equal(resumed[name], weight), name


def test_a_run_goes_on_from_a_checkpoint_with_its_autoencoder(data: Path, tmp_path: Path) -> None:
    first = run(CONFIG, data, tmp_path / "a")
    second = run(CONFIG, data, tmp_path / "b", init=Path(first.checkpoint))
    vae = [load_file(Path(r.checkpoint) / "vae" / "diffusion_pytorch_model.safetensors") for r in (first, second)]
    assert all(torch.equal(vae[0][name], vae[1][name]) for name in vae[0])
    assert any(not torch.equal(weights(first)[name], weights(second)[name]) for name in weights(first))


def test_a_set_of_another_size_than_the_checkpoints_is_refused(data: Path, tmp_path: Path) -> None:
    first = run(CONFIG, data, tmp_path / "a")
    larger = build(tmp_path / "larger", size=64, cache=tmp_path / "packages", workers=1)
    with pytest.raises(ValueError, match=r"with latents of 16x16, expected the 8x8 that .* draws"):
        run(CONFIG, larger, tmp_path / "b", init=Path(first.checkpoint))


def test_a_run_goes_on_at_other_widths(data: Path, tmp_path: Path) -> None:
    first = run(CONFIG, data, tmp_path / "a")
    small = load_unet(Path(first.checkpoint)).architecture.widths
    wide = replace(CONFIG, widths=tuple(2 * width for width in small))
    with pytest.raises(PausedError):
        run(replace(wide, max_seconds=0), data, tmp_path / "b", init=Path(first.checkpoint))
    second = run(wide, data, tmp_path / "b", init=Path(first.checkpoint))
    assert load_unet(Path(second.checkpoint)).architecture.widths == wide.widths
    assert run(wide, data, tmp_path / "b", init=Path(first.checkpoint)) == second
    with pytest.raises(ValueError, match="expected whole multiples"):
        run(replace(CONFIG, widths=(7, 7)), data, tmp_path / "c", init=Path(first.checkpoint))


@pytest.mark.parametrize("widths", [(32, 64, 64), (32, 64, 64, 48), (0, 32, 32, 32)])
def test_widths_that_no_base_has_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected four multiples of 32"):
        sticker_unet(8, 384, widths)


@pytest.mark.parametrize("part", ["train", "decoder"])
def test_an_autoencoder_trains_on_from_a_checkpoint(
    data: Path, tmp_path: Path, part: Literal["train", "decoder"]
) -> None:
    first = run(CONFIG, data, tmp_path / "a")
    second = run(replace(CONFIG, autoencoder=part), data, tmp_path / "b", init=Path(first.checkpoint))
    before, after = (load_vae(Path(result.checkpoint)) for result in (first, second))
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    old, new = (vae.encode(image).latent_dist.mean * vae.config["scaling_factor"] for vae in (before, after))
    assert torch.equal(old, new) == (part == "decoder")
    assert not torch.equal(before.decode(old).sample, after.decode(old).sample)


def test_a_folder_of_another_config_is_refused(data: Path, tmp_path: Path) -> None:
    run(CONFIG, data, tmp_path / "run")
    with pytest.raises(ValueError, match=r"got lr 0\.1 .*expected 0\.0007"):
        run(Config(**{**vars(CONFIG), "lr": 0.1}), data, tmp_path / "run")


@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_a_shift_that_leaves_the_noise_levels_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match=r"got noise shift .*, expected a number above 0"):
        replace(CONFIG, noise_shift=shift)


def test_recoloured_copies_say_their_colour(data: Path) -> None:
    pairs = load_index(data)
    rows, words, images = train_rows(pairs, read_images(data, pairs), seed=0)
    assert words[: len(pairs)] == [None] * len(pairs)
    assert len(rows) == len(words) == len(images)
    assert len(rows) > len(pairs)
    places, sentences = captions_of(rows, words, variants=5, seed=0)
    assert sentences[0] == ""
    for row, word in enumerate(words):
        if word is not None:
            assert all(word in sentences[place] for place in places[row])


def test_crops_come_from_the_pictures() -> None:
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    crops = draw_crops(images, seed=0, step=0, batch=16, side=4)
    assert crops.shape == (16, 3, 4, 4)
    values = ((crops + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    windows = {
        images[n, y : y + 4, x : x + 4].tobytes() for n in range(2) for y in range(5) for x in range(5)
    }  # fmt: skip
    assert all({crop.tobytes(), crop[:, ::-1].tobytes()} & windows for crop in values)


def test_the_kl_term_is_that_of_two_gaussians() -> None:
    torch.manual_seed(0)
    vae = tiny_models.tiny_vae(levels=2, patch_size=2)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    lpips = Lpips(1)
    with_kl, without = (Reconstruct(vae, kl_weight, 0.0)(image, lpips, 1) for kl_weight in (1.0, 0.0))
    posterior = vae.encode(image).latent_dist
    gaussian = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0, 1)).mean()
    torch.testing.assert_close(with_kl - without, expected)
