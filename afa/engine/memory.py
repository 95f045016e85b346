"""The process's memory."""

from __future__ import annotations

import ctypes
import sys

import torch

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors have freed, for the next ones.

    The C library by default hands every large block back to the system as soon as it is freed, and the next tensor of
    that size pays for fresh pages, one page fault for every 4 KiB: more than a third of a training step's time. Peak
    memory grows by what fragmentation costs.

    Returns:
        Whether it took effect: only glibc offers it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1 switches trimming off.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def peak_gpu_memory(device: torch.device) -> float | None:
    """The most that tensors of this process took on a GPU so far, in GB (10^9 bytes); None on other devices."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
