"""How far a bundle may be from torch: by part, by precision, in pictures."""

import numpy as np
import pytest

from snapfusion.stages.export.parity import Comparison, check

GOOD = {part: {"psnr_db": 60.0, "relative_error": 0.001} for part in ("text_encoder", "unet", "vae_decoder")}
GOOD_PICTURES = {"median_psnr_db": 45.0, "n": 16}


@pytest.mark.parametrize(
    ("part", "db", "weights", "message"),
    [
        ("unet", 34.9, "fp16", "got a unet 34.9 dB from torch's, expected at least 35 dB"),
        (
            "unet",
            27.9,
            "int8",
            "got a unet 27.9 dB from torch's, expected at least 28 dB; store its weights in more bits",
        ),
        ("vae_decoder", 34.9, "fp16", "got a vae_decoder 34.9 dB"),
        ("text_encoder", 27.9, "int8", "got a text_encoder 27.9 dB"),
    ],
)
def test_each_part_has_its_floor(part: str, db: float, weights: str, message: str) -> None:
    stored = {**dict.fromkeys(GOOD, "fp16"), part: weights}
    check({**GOOD, "pictures": GOOD_PICTURES}, stored)
    with pytest.raises(ValueError, match=message):
        check({**GOOD, part: {"psnr_db": db}, "pictures": GOOD_PICTURES}, stored)


@pytest.mark.parametrize("rounding", [{"unet": "w8a8"}, {"unet": "int4"}, {"text_encoder": "int4-words"}])
def test_pictures_have_their_floor(rounding: dict[str, str]) -> None:
    stored = dict.fromkeys(GOOD, "int8")
    with pytest.raises(ValueError, match=r"got pictures 29\.9 dB from torch's, expected at least 30 dB"):
        check({**GOOD, "pictures": {"median_psnr_db": 29.9, "n": 16}}, stored)
    rounded = {**stored, **rounding}
    check({**GOOD, "pictures": {"median_psnr_db": 29.9, "n": 16}}, rounded)
    with pytest.raises(ValueError, match=r"got pictures 19\.9 dB from torch's, expected at least 20 dB"):
        check({**GOOD, "pictures": {"median_psnr_db": 19.9, "n": 16}}, rounded)


def test_a_comparison_adds_up_over_calls() -> None:
    rights = iter([np.array([0.0, 3.0], np.float32), np.array([-1.0, 4.0], np.float32)])
    ours = iter([np.array([0.0, 3.5], np.float32), np.array([-1.0, 3.5], np.float32)])
    pair = Comparison(lambda **_: next(ours), lambda **_: next(rights))
    assert pair(sample=np.zeros(1)).tolist() == [0.0, 3.0]  # the right one goes on
    pair(sample=np.zeros(1))
    assert pair.relative_error == pytest.approx((0.5 / 26) ** 0.5)  # errors 0.5, -0.5; right 9 + 1 + 16
    assert pair.psnr == pytest.approx(10 * np.log10(5**2 / 0.125))  # range -1..4, mean square 0.5 / 4
