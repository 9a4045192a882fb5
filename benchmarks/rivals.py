"""What can be installed to draw with Stable Diffusion on a CPU, each as one function; and once from a new process.

python benchmarks/rivals.py diffusers FOLDER STEPS GUIDANCE fp32|bf16
python benchmarks/rivals.py genai FOLDER STEPS GUIDANCE DDIM|LCM
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT, SEED = "a red fox, 3D render", 1
Draw = Callable[[int], bytes]
"""From a number of steps to a PNG file."""


class Clock:
    """Seconds that networks take, by the name of a bundle's part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def timed(self, part: str, network: Callable[..., Any]) -> Callable[..., Any]:
        """The same network, which adds what it takes."""

        def call(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            output = network(*args, **named)
            self.add(part, time.perf_counter() - start)
            return output

        return call


def diffusers(folder: Path, guidance: float, precision: str, clock: Clock) -> Draw:
    """diffusers' pipeline: as installed in float32, or in bfloat16 and channels_last."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if precision == "bf16":
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
    for part, network in (("text_encoder", pipeline.text_encoder), ("unet", pipeline.unet)):
        network.forward = clock.timed(part, network.forward)
    pipeline.vae.decode = clock.timed("vae_decoder", pipeline.vae.decode)

    def draw(steps: int) -> bytes:
        noise = torch.Generator().manual_seed(SEED)
        settings = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": noise}
        return png(pipeline(PROMPT, **settings).images[0])

    return draw


def genai(folder: Path, guidance: float, scheduler: str, clock: Clock) -> Draw:
    """OpenVINO GenAI's pipeline, shapes fixed, which is its fastest; all else is its own choice.

    A bundle's UNet is not told apart from an LCM's here: the same network, the steps of another scheduler.
    """
    import json

    import openvino_genai as ov
    from PIL import Image

    kind = getattr(ov.Scheduler.Type, scheduler)
    unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae_decoder"))
    side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    pipeline = ov.Text2ImagePipeline(folder)
    pipeline.set_scheduler(ov.Scheduler.from_config(folder / "scheduler" / "scheduler_config.json", kind))
    pipeline.reshape(1, side, side, guidance)
    pipeline.compile("CPU")

    def draw(steps: int) -> bytes:
        size = {"width": side, "height": side}
        image = pipeline.generate(PROMPT, **size, num_inference_steps=steps, guidance_scale=guidance, rng_seed=SEED)
        told = pipeline.get_performance_metrics()  # milliseconds
        text, decoder = sum(told.get_text_encoder_infer_duration().values()), told.get_vae_decoder_infer_duration()
        unet = told.get_inference_duration() - text - decoder
        for part, taken in (("text_encoder", text), ("unet", unet), ("vae_decoder", decoder)):
            clock.add(part, taken / 1000)
        return png(Image.fromarray(image.data[0]))

    return draw


def png(image: Any) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    pipeline_of = {"diffusers": diffusers, "genai": genai}[sys.argv[1]]
    pipeline_of(Path(sys.argv[2]), float(sys.argv[4]), sys.argv[5], Clock())(int(sys.argv[3]))
