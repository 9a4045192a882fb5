"""What a UNet is trained to find in a batch, and how much each noise level counts."""

import numpy as np
import pytest
import torch

from snapfusion.denoising import draw_batch, min_snr_weight
from snapfusion.diffusion.schedule import Schedule, shifted, x_and_noise
from snapfusion.latents import Cache, Shares
from snapfusion.stages.train.unet import sticker_schedule

NOISE_SCHEDULE = Schedule(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)  # Stable Diffusion's


def nothing() -> Cache:
    """One picture whose latent is zero."""
    return Cache(
        latents=torch.zeros(1, 4, 8, 8).half(),
        mirrored=torch.zeros(1, 4, 8, 8).half(),
        captions=torch.zeros(1, 1, dtype=torch.int64),
        embeddings=torch.zeros(1, 5, 3).half(),
        recoloured=torch.zeros(1, dtype=torch.bool),
    )


def test_batches_depend_on_seed_and_step_alone() -> None:
    cache = Cache(
        latents=torch.randn(6, 4, 8, 8).half(),
        mirrored=torch.randn(6, 4, 8, 8).half(),
        captions=torch.arange(12).reshape(6, 2),
        embeddings=torch.randn(12, 5, 3).half(),
        recoloured=torch.tensor([False] * 4 + [True] * 2),
    )
    schedule = sticker_schedule()
    first = draw_batch(cache, schedule, 512, 3, 7, Shares(dropout=0.1, recoloured=0.25))
    again = draw_batch(cache, schedule, 512, 3, 7, Shares(dropout=0.1, recoloured=0.25))
    assert torch.equal(first.latent, again.latent)
    empty = (first.embedding == cache.embeddings[0].float()).all(dim=(1, 2)).float().mean().item()
    assert empty == pytest.approx(0.1 + 0.9 * 0.75 / 8, abs=0.05)  # dropped, or row 0's first sentence is the empty one
    # v and z at (alpha, sigma) give x back, exactly one of the cached latents
    alpha, sigma = (torch.from_numpy(level[first.t.numpy()]).float()[:, None, None, None]
                    for level in (schedule.alphas, schedule.sigmas))  # fmt: skip
    x, noise = x_and_noise(first.target, first.latent, alpha, sigma, "v_prediction")
    known = torch.cat([cache.latents, cache.mirrored]).float()
    assert (x[:, None] - known[None]).abs().amax(dim=(2, 3, 4)).min(dim=1).values.max() < 1e-4
    assert noise.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("schedule", "other"), [(sticker_schedule(), 1), (NOISE_SCHEDULE, 0)])
def test_min_snr_weight_by_hand(schedule: Schedule, other: int) -> None:
    t = np.array([0, 500, 999])
    snr = (schedule.alphas[t] / np.maximum(schedule.sigmas[t], 1e-12)) ** 2
    expected = np.minimum(snr, 5) / (snr + other)
    np.testing.assert_allclose(min_snr_weight(schedule, t).numpy(), expected, rtol=1e-4, atol=1e-7)


def test_noise_levels_count_alike_unless_min_snr_is_asked_for() -> None:
    cache = nothing()
    schedule = sticker_schedule()
    plain, weighted = (draw_batch(cache, schedule, 8, 0, 0, snr_gamma=gamma) for gamma in (None, 5.0))
    assert torch.equal(plain.t, weighted.t)
    assert torch.equal(plain.weight, torch.ones(8))
    assert torch.equal(weighted.weight, min_snr_weight(schedule, weighted.t.numpy(), 5.0))


def test_where_the_checkpoint_predicts_noise_the_noise_is_the_target() -> None:
    cache = nothing()
    batch = draw_batch(cache, NOISE_SCHEDULE, 4, seed=0, step=0)
    sigma = torch.from_numpy(NOISE_SCHEDULE.sigmas[batch.t.numpy()]).float()[:, None, None, None]
    torch.testing.assert_close(batch.latent, sigma * batch.target)  # z = sigma eps, for x is nothing


def test_noisy_levels_are_drawn_more_often() -> None:
    uniform = (np.arange(10_000) + 0.5) / 10_000
    assert np.array_equal(shifted(uniform, 1.0), uniform)
    moved = shifted(uniform, 3.0)
    assert moved[0] < 0.001  # the ends stay where they are
    assert 0.999 < moved[-1] < 1
    assert np.mean(moved > 0.5) == pytest.approx(3 / 4, abs=1e-3)
    # arXiv 2403.03206, section 5.3.2: sigma / (1 - sigma) is multiplied by the shift
    np.testing.assert_allclose(moved / (1 - moved), 3 * uniform / (1 - uniform), rtol=1e-9)


def test_a_batch_is_drawn_at_the_shifted_levels() -> None:
    plain, moved = (draw_batch(nothing(), sticker_schedule(), 64, 0, 0, shift=shift) for shift in (1.0, 2.0))
    expected = shifted(plain.t.double().numpy() / 1000, 2.0) * 1000
    np.testing.assert_allclose(moved.t.numpy(), expected, atol=2.5)  # t is whole, and the shift stretches its rounding
