"""Measurements of speed and memory, each beside what it is compared with."""

from __future__ import annotations

from typing import Any

SERIES: dict[str, tuple[Any, ...]] = {
    "crop": (256, 384, 512, 768, 1024),
    "classes": (21, 81),
    "batch": (1, 2, 4),
    "encoder": ("mit_b0", "mit_b1", "mit_b2"),
}
"""What ``growth`` varies, and the values that it takes."""

GPU_GROUPS = ("values", "train", "loading", "labelling", "profile", "compile", "graphs")
"""What ``gpu`` measures, in groups."""
