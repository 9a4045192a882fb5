"""How the process asks the system for memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next allocation; nothing happens where there is no glibc.

    By default every large tensor is mapped anew and handed back when it is freed, so that each step of a training on a
    CPU touches the same gigabytes for the first time again: see docs/log.md for what that costs.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
