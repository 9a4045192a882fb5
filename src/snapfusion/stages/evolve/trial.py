"""What every network is put to: the same things for all of them, so that differences come from the networks alone.

drawing     pictures of fixed prompts from fixed seeds, as judge A sees them: the paper's way, and the dearest
trajectory  how far the latents that it draws are from those that the whole network draws: guidance, which makes much of
            what a prompt changes, counts as it does in pictures, and differences are seen with fewer of them
denoising   the denoising loss on real latents: no sampling, a hundredth of the full protocol's cost
output      how far the output is from the whole network's, on the same latents
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snapfusion.autocast import autocast
from snapfusion.bench import Bench
from snapfusion.checkpoint import Checkpoint
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import Pair
from snapfusion.data.prompts import prompt_of
from snapfusion.denoising import Batch
from snapfusion.metrics.estimate import Estimate, ratio_of_means
from snapfusion.metrics.features import image_vectors
from snapfusion.model.unet import ElasticUNet
from snapfusion.sampling import Sampling, decode, embed, latent_shape, noise_of, pixels, sample_latents
from snapfusion.stages.evolve.robust import Without
from snapfusion.stages.evolve.scores import Merits


@dataclass(frozen=True)
class Protocol:
    """How many prompts are drawn, in how many steps."""

    prompts: int
    steps: int


FULL = Protocol(prompts=500, steps=50)  # the paper: 2,000 prompts, 50 steps, guidance 7.5
PROXY = Protocol(prompts=64, steps=8)  # 1/49 of the cost


@dataclass(frozen=True)
class Trial:
    """`measure(unet, off)` gives a figure for each of the same N things, `[N]`: larger is better."""

    measure: Callable[[ElasticUNet, Collection[str]], Merits]
    scale: Merits
    """What the mean of those figures is divided by: for drawing, what judge A finds in the real pictures, `[N]`."""
    protocol: str
    """One line for beside a figure."""

    def quality(self, unet: ElasticUNet, off: Collection[str] = ()) -> Estimate:
        """A network's quality: for drawing its alignment, 1 being that of real pictures."""
        return ratio_of_means(self.measure(unet, off), self.scale)


def fair_prompts(bench: Bench, pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Pictures of `train` whose prompts are drawn, those alone that the judge has not learned from.

    The first of a longer list are a shorter one. None is of those that judge B reports on.
    """
    return chosen(bench.unseen([pair for pair in pairs if pair.split == "train"]), count, "evolve")


Draw = Callable[[ElasticUNet, Collection[str]], Iterator[Tensor]]


def drawing_trial(checkpoint: Checkpoint, bench: Bench, pairs: Sequence[Pair], sampling: Sampling, batch: int) -> Trial:
    """Alignment of the pictures that a UNet draws of the pairs' prompts with the rest of `checkpoint`."""
    draw = _drawing(checkpoint, pairs, sampling, batch)

    def measure(unet: ElasticUNet, off: Collection[str]) -> Merits:
        images = (pixels(decode(checkpoint.vae, latent)) for latent in draw(unet, off))
        return bench.verdict(image_vectors(bench.backbone, images), pairs).gap

    protocol = f"judge A, {_drawn(pairs, sampling)}; 1 is real"
    return Trial(measure, bench.verdict(bench.real(pairs), pairs).gap, protocol)


def trajectory_trial(checkpoint: Checkpoint, pairs: Sequence[Pair], sampling: Sampling, batch: int) -> Trial:
    """The squared distance of the latents that a UNet draws from those of `checkpoint`'s own UNet, negative; as a share
    of those."""
    draw = _drawing(checkpoint, pairs, sampling, batch)
    whole = torch.cat(list(draw(checkpoint.unet, ())))

    def measure(unet: ElasticUNet, off: Collection[str]) -> Merits:
        return -_distance(torch.cat(list(draw(unet, off))), whole).cpu().numpy()

    protocol = f"distance of latents, {_drawn(pairs, sampling)}; 0 is the whole network"
    return Trial(measure, _distance(whole, torch.zeros_like(whole)).cpu().numpy(), protocol)


def _drawing(checkpoint: Checkpoint, pairs: Sequence[Pair], sampling: Sampling, batch: int) -> Draw:
    """What draws the pairs' prompts by a UNet without some of its blocks: latents `[<= batch, C, h, w]` in order."""
    embedding = embed(checkpoint, ["", *map(prompt_of, pairs)])
    noise = noise_of(latent_shape(checkpoint), [seed_of(pair) for pair in pairs]).to(embedding.device)
    parts = [slice(start, start + batch) for start in range(0, len(pairs), batch)]

    def draw(unet: ElasticUNet, off: Collection[str]) -> Iterator[Tensor]:
        without = Without(unet.eval(), off)
        for part in parts:
            rows = embedding[1:][part], embedding[:1], noise[part]
            yield sample_latents(without, checkpoint.schedule, *rows, sampling)

    return draw


def _drawn(pairs: Sequence[Pair], sampling: Sampling) -> str:
    steps = f"{sampling.steps} steps of {sampling.scheduler}"
    return f"{len(pairs)} prompts of train, {steps}, guidance {sampling.guidance:g}"


def denoising_trial(whole: ElasticUNet, batches: Sequence[Batch], bf16: bool = False) -> Trial:
    """The denoising loss of each row (Eq. 6), negative; as a share of the whole network's."""

    def measure(unet: ElasticUNet, off: Collection[str]) -> Merits:
        errors = [batch.weight * _distance(_output(unet, batch, off, bf16), batch.target) for batch in batches]
        return -torch.cat(errors).cpu().numpy()

    return Trial(measure, -measure(whole, ()), f"denoising loss, {_rows(batches)} latents; -1 is the whole network")


def output_trial(whole: ElasticUNet, batches: Sequence[Batch], bf16: bool = False) -> Trial:
    """The squared distance of each row's output from the whole network's, negative; as a share of that output's."""
    outputs = [_output(whole, batch, (), bf16) for batch in batches]

    def measure(unet: ElasticUNet, off: Collection[str]) -> Merits:
        outputs_off = (_output(unet, batch, off, bf16) for batch in batches)
        return -torch.cat([_distance(a, b) for a, b in zip(outputs_off, outputs, strict=True)]).cpu().numpy()

    scale = torch.cat([_distance(output, torch.zeros_like(output)) for output in outputs]).cpu().numpy()
    return Trial(measure, scale, f"distance of the output, {_rows(batches)} latents; 0 is the whole network")


@torch.no_grad()
def _output(unet: ElasticUNet, batch: Batch, off: Collection[str], bf16: bool) -> Tensor:
    with autocast(batch.latent.device, bf16):
        return unet.eval()(batch.latent, batch.t, batch.embedding, off=off).sample.float()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each row, `[B]`."""
    return (a - b).square().mean(dim=(1, 2, 3))


def _rows(batches: Sequence[Batch]) -> int:
    return sum(len(batch.latent) for batch in batches)
