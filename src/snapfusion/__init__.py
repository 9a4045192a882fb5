"""SnapFusion: a Stable-Diffusion-style checkpoint made small and fast enough to draw on the device in front of you.

draw = snapfusion.open_bundle()
images = draw("a red fox, 3D render", seed=1)
"""

import sys
from typing import TYPE_CHECKING, Any, cast

# OpenVINO and NNCF tell Google Analytics of every import and conversion, unless there is no such package.
sys.modules.setdefault("openvino_telemetry", cast(Any, None))

if TYPE_CHECKING:
    from snapfusion.generate import open_bundle

__all__ = ["__version__", "open_bundle"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import only what is asked for: `snapfusion --help` needs neither NumPy nor an engine."""
    if name == "open_bundle":
        from snapfusion.generate import open_bundle

        return open_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
