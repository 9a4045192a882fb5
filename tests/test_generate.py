"""The picture is the one that diffusers draws, and the same on every run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import snapfusion
from snapfusion.bundle import Bundle, Network, Networks, read_bundle
from snapfusion.checkpoint import load_checkpoint
from snapfusion.generate import OpenBundle, generate, open_bundle, open_networks, unet_rows
from snapfusion.runtimes.torch import Network as TorchNetwork
from snapfusion.settings import settings_for
from snapfusion.stages.export.modules import modules

PROMPT = "a red fox, 3D render"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def networks(few_blocks: Path) -> Networks:
    """The checkpoint's own, in torch: float32, so that what is compared is the sampler and not the rounding."""
    parts = modules(load_checkpoint(few_blocks))
    return Networks(**{part: TorchNetwork(module) for part, module in parts.items()})


@pytest.fixture(scope="module")
def draw(tiny_bundle: Path) -> OpenBundle:
    return open_bundle(tiny_bundle)


class Watched:
    """A network that remembers its inputs."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.calls: list[dict[str, NDArray[Any]]] = []

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        self.calls.append(inputs)
        return self.network(**inputs)


def watch(networks: Networks) -> tuple[Networks, Watched]:
    unet = Watched(networks.unet)
    return Networks(networks.text_encoder, unet, networks.vae_decoder), unet


def pixels(image: Any) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def test_the_picture_is_the_one_that_diffusers_scheduler_leads_to(
    bundle: Bundle, networks: Networks, few_blocks: Path
) -> None:
    import torch
    from diffusers import DDIMScheduler

    checkpoint = load_checkpoint(few_blocks)
    scheduler = DDIMScheduler.from_pretrained(few_blocks, subfolder="scheduler")
    scheduler.set_timesteps(5)
    ids = [checkpoint.tokenizer.encode(text).ids for text in ("blue", PROMPT)]
    tokens = torch.tensor([row + [0] * (checkpoint.length - len(row)) for row in ids])  # [PAD] is token 0
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        embedding = checkpoint.text_encoder(tokens)
        for t in scheduler.timesteps:
            uncond, cond = checkpoint.unet(torch.cat([latent, latent]), t, embedding).sample.chunk(2)
            latent = scheduler.step(uncond + 3.5 * (cond - uncond), t, latent).prev_sample
        image = checkpoint.vae.decode(latent / checkpoint.vae.config["scaling_factor"]).sample[0]
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()

    (settings,) = settings_for(bundle, PROMPT, seed=11, negative="blue", steps=5, guidance=3.5)
    drawn = pixels(generate(bundle, networks, settings))
    assert np.ptp(expected) > 20  # not a blank
    assert np.abs(drawn - expected).max() <= 1


def test_guidance_1_leaves_the_unconditional_pass_out(bundle: Bundle, networks: Networks) -> None:
    watched, unet = watch(networks)
    generate(bundle, watched, settings_for(bundle, PROMPT, seed=0, steps=4, guidance=1.0)[0])
    generate(bundle, watched, settings_for(bundle, PROMPT, seed=0, steps=2, guidance=1.5)[0])
    assert [len(call["sample"]) for call in unet.calls] == [1] * 4 + [2] * 2


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler"])
def test_guidance_stops_after_its_share_of_the_steps(bundle: Bundle, networks: Networks, scheduler: str) -> None:
    watched, unet = watch(networks)
    options = {"seed": 0, "negative": "a blue whale", "steps": 5, "guidance": 4.0, "scheduler": scheduler}
    (stopped,) = settings_for(bundle, PROMPT, **options, guidance_stop=0.4)
    image = generate(bundle, watched, stopped)
    assert [len(call["sample"]) for call in unet.calls] == [2, 2, 1, 1, 1]
    prompt = unet.calls[0]["encoder_hidden_states"][1:]
    assert all((call["encoder_hidden_states"] == prompt).all() for call in unet.calls[2:])

    (throughout,) = settings_for(bundle, PROMPT, **options)
    assert image.tobytes() != generate(bundle, networks, throughout).tobytes()


def test_guidance_0_draws_the_negative_prompt(bundle: Bundle, networks: Networks) -> None:
    (negative,) = settings_for(bundle, PROMPT, seed=0, negative="a blue whale", guidance=0)
    (prompt,) = settings_for(bundle, "a blue whale", seed=0, guidance=1)
    difference = pixels(generate(bundle, networks, negative)) - pixels(generate(bundle, networks, prompt))
    assert np.abs(difference).max() <= 1
    stopped = generate(bundle, networks, replace(negative, guidance_stop=0.5))
    assert np.array_equal(pixels(stopped), pixels(generate(bundle, networks, negative)))  # to the end


def test_the_unet_is_ready_for_the_rows_that_a_picture_takes(bundle: Bundle) -> None:
    assert unet_rows(8, 4.0, 1.0) == (2,)
    assert unet_rows(8, 4.0, 0.75) == (2, 1)
    assert unet_rows(8, 1.0, 0.75) == (1,)
    defaults = replace(bundle.manifest.defaults, guidance=4.0, guidance_stop=0.5, steps=2)
    stopping = replace(bundle, manifest=replace(bundle.manifest, defaults=defaults))
    unet: Any = open_networks(stopping).unet
    assert sorted(unet.requests) == [1, 2]


def test_every_step_is_told(bundle: Bundle, networks: Networks) -> None:
    steps: list[None] = []
    generate(bundle, networks, settings_for(bundle, PROMPT, seed=0, steps=4)[0], lambda: steps.append(None))
    assert len(steps) == 4


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0}, {"scheduler": "dpm++"}, {"scheduler": "euler"}])
def test_a_seed_is_one_picture_alone_or_among_others(draw: OpenBundle, options: dict[str, Any]) -> None:
    together = draw(PROMPT, seed=40, n=3, **options)
    alone = [image for seed in (40, 41, 42) for image in draw(PROMPT, seed=seed, **options)]
    assert [image.tobytes() for image in together] == [image.tobytes() for image in alone]
    assert len({image.tobytes() for image in together}) == 3


def test_the_prompt_the_negative_and_the_seed_matter(draw: OpenBundle) -> None:
    pictures = [draw(PROMPT, seed=1), draw("whale", seed=1), draw(PROMPT, seed=2), draw(PROMPT, seed=1, negative="cat")]
    assert len({image.tobytes() for (image,) in pictures}) == 4


def test_two_bundles_in_memory_draw_the_same(tiny_bundle: Path, draw: OpenBundle) -> None:
    (one,), (other,) = draw(PROMPT, seed=3), snapfusion.open_bundle(str(tiny_bundle), threads=1)(PROMPT, seed=3)
    assert one.size == other.size == (64, 64)
    assert one.mode == "RGB"
    assert np.abs(pixels(one) - pixels(other)).max() <= 2  # threads may sum in another order


def test_without_a_seed_every_picture_is_new(draw: OpenBundle) -> None:
    (one,), (other,) = draw(PROMPT), draw(PROMPT)
    assert one.tobytes() != other.tobytes()


def test_what_does_not_fit_into_the_tokens_is_said(draw: OpenBundle) -> None:
    with pytest.warns(UserWarning, match=r"longer than 16 tokens, not drawn: 'blue whale'"):
        draw("a red fox of the blue sticker a red fox of the flat cat blue whale", seed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda draw: draw(" "), "got a blank prompt"),
        (lambda draw: draw("fox", steps=0), "got 0 steps"),
        (lambda draw: open_bundle(draw.bundle.folder, threads=0), "got 0 threads, expected at least 1"),
        (lambda draw: open_bundle(draw.bundle.folder, runtime="abacus"), "got runtime 'abacus'"),
    ],
)
def test_mistakes_are_value_errors(draw: OpenBundle, call: Callable[[OpenBundle], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(draw)
