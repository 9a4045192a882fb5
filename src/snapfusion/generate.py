"""A picture from a prompt.

    prompt -tokenizer-> tokens -text_encoder-> embedding --+
    seed ------------------------------> latent -----------+- sampler(unet, guidance) x steps -> latent -decoder-> image

`generate` tells it in that order. It knows three callables and no engine, so OpenVINO and torch draw by the same code.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from snapfusion.bundle import PARTS, Bundle, Network, Networks, Part, read_bundle
from snapfusion.diffusion.guidance import guide, guided_steps, last_guided
from snapfusion.diffusion.noise import randn
from snapfusion.diffusion.sampler import Scheduler, path_of, sample
from snapfusion.settings import Settings, new_seed, settings_for
from snapfusion.tokens import tokenize

Latent = NDArray[np.float32]


def generate(
    bundle: Bundle, networks: Networks, settings: Settings, on_step: Callable[[], object] = lambda: None
) -> Image.Image:
    """The picture that `settings` asks for, the same to the last bit on every run.

    One picture at a time: a batch of several would round otherwise, and a seed would no longer be one picture.
    The prediction without the prompt shares a batch with the one that follows it: two rows are faster than two calls.
    """
    guided = settings.guidance != 1  # guidance 1 is the prompt's own prediction (Eq. 3)
    prompts = [settings.negative, settings.prompt] if guided else [settings.prompt]
    tokens, _ = tokenize(bundle.tokenizer, prompts, bundle.length)
    embedding = networks.text_encoder(input_ids=tokens)
    timesteps = [step.t for step in path_of(bundle.schedule, settings.steps, settings.scheduler)]
    last = last_guided(timesteps, settings.guidance_stop, settings.guidance)

    def predict(latent: Latent, t: int) -> Latent:
        texts = embedding if t >= last else embedding[-1:]
        rows = np.repeat(latent, len(texts), axis=0)
        prediction = networks.unet(sample=rows, timestep=np.array([t]), encoder_hidden_states=texts)
        if len(texts) == 1:
            return prediction
        uncond, cond = np.split(prediction, 2)
        return guide(cond, uncond, settings.guidance)

    latent = noise = randn((1, *bundle.latent_shape), settings.seed)
    for latent in sample(predict, bundle.schedule, noise, settings.steps, settings.scheduler):  # noqa: B007
        on_step()
    (image,) = networks.vae_decoder(latent_sample=latent / bundle.scaling_factor)
    return _picture(image)


def _picture(image: NDArray[np.float32]) -> Image.Image:
    """`[3, H, W]` in -1..1 to 8-bit RGB, rounded as diffusers rounds."""
    unit = (image / 2 + 0.5).clip(0, 1)
    return Image.fromarray((unit * 255).round().astype(np.uint8).transpose(1, 2, 0))


def unet_rows(steps: int, guidance: float, guidance_stop: float) -> tuple[int, ...]:
    """With how many rows the UNet is called for a picture: two while it is guided, one before an end without."""
    guided = guided_steps(steps, guidance_stop, guidance)
    return (2,) * (guided > 0) + (1,) * (guided < steps)


def open_networks(
    bundle: Bundle,
    rows: Sequence[int] | None = None,
    threads: int | None = None,
    low_memory: bool = False,
    on_open: Callable[[float], object] = lambda seconds: None,
) -> Networks:
    """All three networks in memory, the UNet ready for `rows`: what `unet_rows` says, or None for the bundle's own.

    With `low_memory` there is never more than one: each comes when it is called, and goes when another is; `on_open` is
    told the seconds that it took to come.

    A network that comes to be called with other rows is made ready for them then.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"got {threads} threads, expected at least 1")
    if low_memory:

        def opened(part: Part, rows: int) -> Network:
            start = perf_counter()
            network = bundle.open(part, rows, threads)
            on_open(perf_counter() - start)
            return network

        turns = Turns(opened)
        return Networks(*(partial(turns.call, part) for part in PARTS))
    if rows is None:
        defaults = bundle.manifest.defaults
        rows = unet_rows(defaults.steps, defaults.guidance, defaults.guidance_stop)
    with ThreadPoolExecutor() as pool:  # opening a network keeps one core busy: no need to wait for each other
        text_encoder = pool.submit(bundle.open, "text_encoder", rows[0], threads)
        unet = pool.submit(bundle.open, "unet", rows[0], threads, rows[1:])
        vae_decoder = pool.submit(bundle.open, "vae_decoder", 1, threads)
    return Networks(text_encoder.result(), unet.result(), vae_decoder.result())


class Turns:
    """Networks of which one at a time is in memory, made ready for as many rows as it was last called with."""

    def __init__(self, open_part: Callable[[Part, int], Network]) -> None:
        self.open_part = open_part
        self.opened: tuple[Part, int] | None = None
        self.network: Network | None = None

    def call(self, part: Part, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run a network, which is brought into memory first where it is not there."""
        wanted = part, max(map(len, inputs.values()))
        if self.network is None or self.opened != wanted:
            self.network = None  # it goes before the other comes
            self.opened, self.network = wanted, self.open_part(*wanted)
        return self.network(**inputs)


@dataclass(frozen=True)
class OpenBundle:
    """A bundle in memory: call it with a prompt."""

    bundle: Bundle
    networks: Networks

    def __call__(
        self,
        prompt: str,
        *,
        negative: str = "",
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        n: int = 1,
        scheduler: Scheduler | None = None,
        guidance_stop: float | None = None,
        size: int | None = None,
    ) -> list[Image.Image]:
        """Draw `n` pictures, with the seeds `seed`, `seed + 1`, ...: each is the one that its seed alone gives.

        Args:
            negative: What the picture should not show; takes the place of the empty prompt.
            seed: 0 to 2^64-1; None for a new one every time.
            steps, guidance, scheduler: None for the bundle's own.
            guidance_stop: Share of the steps that are guided, the first ones; None for the bundle's own.
            size: Pixels of a side. A bundle draws one size.
        Raises:
            ValueError: For anything outside these bounds. What `remarks` finds is a warning.
        """
        seed = new_seed() if seed is None else seed
        settings = settings_for(
            self.bundle, prompt, seed=seed, negative=negative, steps=steps, guidance=guidance, n=n, scheduler=scheduler,
            guidance_stop=guidance_stop, size=size,
        )  # fmt: skip
        for remark in remarks(self.bundle, settings[0].steps, prompt, negative):
            warnings.warn(remark, stacklevel=2)
        return [generate(self.bundle, self.networks, one) for one in settings]


def open_bundle(
    path: str | Path | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    low_memory: bool = False,
) -> OpenBundle:
    """Bring a bundle into memory.

        draw = snapfusion.open_bundle()
        images = draw("a red fox", seed=1)

    Args:
        path: The bundle's folder; None for the one that is embedded.
        runtime: What runs the networks, of those that the bundle holds files of: "openvino", "onnx",
            "coreml", "executorch" or "torch"; None for the best that is installed.
        threads: Of the CPU; None for all.
        low_memory: Keep one network in memory at a time. Every picture opens them again, which takes longer.
    Raises:
        ValueError: Where the bundle is missing, broken, or not what was sealed, or where its runtime is not installed.
    """
    bundle = read_bundle(None if path is None else Path(path), runtime)
    return OpenBundle(bundle, open_networks(bundle, None, threads, low_memory))


def remarks(bundle: Bundle, steps: int, *texts: str) -> list[str]:
    """What a person may not expect: words that the text encoder does not read, steps that a bundle is not made for."""
    lost = [text for text in tokenize(bundle.tokenizer, texts, bundle.length)[1] if text]
    found = [f"longer than {bundle.length} tokens, not drawn: {text!r}" for text in lost]
    schedule, placed_for = bundle.schedule, bundle.manifest.defaults.steps
    if schedule.distilled_steps and steps != schedule.distilled_steps:
        found.append(f"{steps} steps; this bundle was distilled for {schedule.distilled_steps}")
    elif schedule.timestep_shift != 1 and steps != placed_for:
        found.append(f"{steps} steps; this bundle's are placed where {placed_for} do best")
    return found
