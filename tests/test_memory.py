"""Memory that was freed is used again."""

import subprocess
import sys

import pytest

# Four 64 MB arrays are made and dropped, over and over; how often did a page have to be fetched for the first time?
LOOP = """
import resource, sys
import numpy as np
from snapfusion.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's alone")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "default")
    }
    assert faults["keep"] * 10 < faults["default"]
