"""One network at a time: the same picture, in the memory that the largest network takes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from snapfusion.bundle import EMBEDDED
from snapfusion.generate import Turns, open_bundle

START = """
import sys, numpy as np, snapfusion, tqdm
from snapfusion.bundle import read_bundle
from snapfusion.runtimes import openvino

def peak():
    lines = open("/proc/self/status").read().splitlines()  # ru_maxrss would begin at the parent's
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000

bundle = read_bundle()
interpreter = peak()
"""
LARGEST = """
C, h, w = bundle.latent_shape
width = openvino.CORE.read_model(bundle.folder / "unet" / "openvino_model.xml").inputs[2].partial_shape[2].get_length()
unet = bundle.open("unet", 2, 1)
states = np.zeros((2, bundle.length, width), np.float32)
unet(sample=np.zeros((2, C, h, w), np.float32), timestep=np.array([5]), encoder_hidden_states=states)
"""
WHOLE = """
draw = snapfusion.open_bundle(low_memory=sys.argv[1] == "low", threads=1)
draw("a red fox", seed=1, steps=2)
"""


def megabytes(code: str, *arguments: str) -> float:
    """What a process of its own needs at most for `code`, beyond the interpreter and its modules."""
    command = [sys.executable, "-c", f"{START}{code}\nprint(peak() - interpreter)", *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_network_goes_before_the_next_one_comes() -> None:
    here: list[str] = []

    class Here:
        def __init__(self, part: str, rows: int) -> None:
            self.part, self.rows = part, rows
            here.append(part)

        def __call__(self, **inputs: object) -> str:
            assert here == [self.part]
            return f"{self.part} {self.rows}"

        def __del__(self) -> None:
            here.remove(self.part)

    turns = Turns(Here)  # pyright: ignore[reportArgumentType]
    called = [("text_encoder", 2), ("unet", 2), ("unet", 2), ("unet", 1), ("vae_decoder", 1), ("text_encoder", 2)]
    answers = [turns.call(part, rows=np.zeros((rows, 3)), t=np.zeros(1)) for part, rows in called]  # pyright: ignore
    assert answers == [f"{part} {rows}" for part, rows in called]


def test_the_pictures_are_the_same(tiny_bundle: Path) -> None:
    opened = (open_bundle(tiny_bundle, low_memory=low) for low in (False, True))
    usual, low = (draw("a red fox", seed=1, n=2, steps=4, guidance_stop=0.5) for draw in opened)
    assert [image.tobytes() for image in low] == [image.tobytes() for image in usual]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_the_peak_is_that_of_the_largest_network() -> None:
    sizes = {part: (EMBEDDED / part / "openvino_model.bin").stat().st_size for part in ("text_encoder", "unet")}
    assert min(sizes.values()) > 10_000_000
    largest, low, usual = megabytes(LARGEST), megabytes(WHOLE, "low"), megabytes(WHOLE, "usual")
    assert low <= 1.2 * largest
    assert usual > 1.2 * largest  # else this test could not fail
