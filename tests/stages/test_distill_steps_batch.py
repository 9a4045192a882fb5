"""One batch of step distillation: what it holds, whom its gradient reaches, what teacher and student are asked."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import tiny_models
from snapfusion.diffusion.guidance import guide
from snapfusion.diffusion.schedule import Schedule, x_and_noise
from snapfusion.latents import Cache
from snapfusion.stages.distill_steps.batch import draw_batch
from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.grid import leaps
from snapfusion.stages.distill_steps.lesson import branches, distillation_loss, losses, teach
from snapfusion.stages.distill_steps.losses import two_step_target, vanilla_loss

CONFIG = Config(
    images=24, batch=4, lr=1e-3, warmup=1, ema=0.9, steps=4, p=0.5, variants=2, observe_steps=3, precision="no",
    tracker=None,
)  # fmt: skip


def random_cache(rows: int = 12) -> Cache:
    draw = torch.Generator().manual_seed(0)
    return Cache(
        latents=torch.randn(rows, 4, 8, 8, generator=draw).half(),
        mirrored=torch.randn(rows, 4, 8, 8, generator=draw).half(),
        captions=torch.arange(1, 2 * rows + 1).reshape(rows, 2),
        embeddings=torch.randn(2 * rows + 1, 5, tiny_models.WIDTH, generator=draw).half(),
        recoloured=torch.zeros(rows, dtype=torch.bool),
    )


def sticker_schedule() -> Schedule:
    return tiny_models.sticker_checkpoint().schedule


def test_a_batch_depends_on_seed_and_step_alone_and_holds_what_it_says() -> None:
    cache, steps = random_cache(), leaps(sticker_schedule(), 8)
    config = Config(batch=64, p=0.3, guidance=(2.0, 14.0), dropout=0.25, seed=5, steps=8)
    guided = 0
    for step in range(60):
        batch, again = (draw_batch(cache, steps, config, step) for _ in range(2))
        assert torch.equal(batch.latent, again.latent)
        assert sorted(set(batch.leap.t.tolist())) == sorted(steps.t.tolist())  # every step of the student is there
        x, _ = x_and_noise(batch.velocity, batch.latent, *batch.leap.now, "v_prediction")
        assert (x[:, None] - torch.cat([cache.latents, cache.mirrored]).float()).abs().amax((2, 3, 4)).min(
            1
        ).values.max() < 1e-3
        empty = (batch.embedding == batch.empty).all(dim=(1, 2))
        if batch.w is None:
            assert torch.equal(empty, batch.dropped)
        else:
            guided += 1
            assert not empty.any()
            assert batch.w.shape == (64, 1, 1, 1)
            assert 2 <= batch.w.min() < 4 < 12 < batch.w.max() <= 14
    assert guided / 60 == pytest.approx(0.3, abs=0.15)


def test_a_share_is_its_rows_of_the_batch() -> None:
    steps = leaps(sticker_schedule(), 8)
    batch = draw_batch(random_cache(), steps, Config(batch=8, p=1.0), 0)
    half = batch[slice(1, None, 2)]
    for one, whole in ((half.latent, batch.latent), (half.leap.t, batch.leap.t), (half.velocity, batch.velocity)):
        assert torch.equal(one, whole[1::2])
    assert half.w is not None
    assert batch.w is not None
    assert torch.equal(half.w, batch.w[1::2])
    assert torch.equal(half.leap.then[0], batch.leap.then[0][1::2])


@pytest.mark.parametrize("p", [0.0, 1.0], ids=["vanilla", "cfg_aware"])
def test_the_gradient_reaches_the_student_alone(p: float) -> None:
    torch.manual_seed(0)
    student, teacher = tiny_models.tiny_unet(), tiny_models.tiny_unet()
    batch = draw_batch(random_cache(), leaps(sticker_schedule(), 4), replace(CONFIG, p=p), 0)
    distillation_loss(student, teacher, batch, 0.2, bf16=False).backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    missed = [name for name, weight in student.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert [name for name in missed if "to_k" not in name and "to_q" not in name] == []


def calls_of(unet: nn.Module) -> list[tuple[Tensor, ...]]:
    """Fills with (latent, t, embedding) of every call."""
    calls: list[tuple[Tensor, ...]] = []
    unet.register_forward_pre_hook(lambda _, given: calls.append(tuple(tensor.detach().clone() for tensor in given)))
    return calls


def test_teacher_and_student_share_text_and_guidance() -> None:
    """Called by hand with the batch's own w, the teacher's two steps give the target that the stage trains on."""
    torch.manual_seed(0)
    student, teacher = tiny_models.tiny_unet(), tiny_models.tiny_unet()
    batch = draw_batch(random_cache(), leaps(sticker_schedule(), 4), replace(CONFIG, p=1.0), 3)
    assert batch.w is not None
    seen_by_student, seen_by_teacher = calls_of(student), calls_of(teacher)
    target = teach(teacher, batch, bf16=False)
    distilled, original = losses(student, batch, target)
    first, second = seen_by_teacher
    (own,) = seen_by_student
    assert torch.equal(first[1], torch.cat([batch.leap.t, batch.leap.t]))
    assert torch.equal(second[1], torch.cat([batch.leap.t_middle, batch.leap.t_middle]))
    both = torch.cat([batch.embedding, batch.empty.expand_as(batch.embedding)])
    assert all(torch.equal(call[2], both) for call in (first, second, own))
    assert all(torch.equal(call[0], torch.cat([batch.latent, batch.latent])) for call in (first, own))

    def by_hand(latent: Tensor, t: Tensor) -> Tensor:
        cond, uncond = (teacher(latent, t, rows).sample for rows in both.chunk(2))
        return guide(cond, uncond, batch.w)  # pyright: ignore[reportArgumentType]

    with torch.no_grad():
        torch.testing.assert_close(target, two_step_target(by_hand, batch.latent, batch.leap), rtol=1e-4, atol=1e-4)
        cond, uncond = (student(batch.latent, batch.leap.t, rows).sample for rows in both.chunk(2))
        expected = vanilla_loss(batch.w * cond - (batch.w - 1) * uncond, batch.latent, target, batch.leap.now)
        torch.testing.assert_close(distilled, expected, rtol=1e-4, atol=1e-6)
        plain = torch.stack([u if drop else c for c, u, drop in zip(cond, uncond, batch.dropped, strict=True)])
        torch.testing.assert_close(original, nn.functional.mse_loss(plain, batch.velocity), rtol=1e-4, atol=1e-6)


def test_the_vanilla_loss_asks_for_the_caption_alone() -> None:
    torch.manual_seed(0)
    unet = tiny_models.tiny_unet()
    batch = draw_batch(random_cache(), leaps(sticker_schedule(), 4), replace(CONFIG, p=0.0), 0)
    calls = calls_of(unet)
    _, uncond = branches(unet, batch.latent, batch.leap.t, batch)
    assert uncond is None
    assert torch.equal(calls[0][0], batch.latent)
    assert torch.equal(calls[0][2], batch.embedding)
