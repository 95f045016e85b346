"""The manifest of a prepared data set, and the published sizes of the known data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from afa.data.files import read_json
from afa.errors import UserError

LABEL_SOURCES = ("masks", "annotations")
"""What VOC's image-level labels can be made from."""

CROWD_CHOICES = ("class", "ignore")
"""What a crowd region of COCO can be in a mask: its class, or ignored."""

MANIFEST = "manifest.json"
UNFINISHED_MANIFEST = "manifest.unfinished.json"
"""In its place until everything is written."""

PUBLISHED_COUNTS: Mapping[str, Mapping[str, int]] = {
    "voc": {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582, "test": 1456},
    "coco": {"train": 82081, "val": 40137},
}


@dataclass(frozen=True)
class Prepared:
    """What a preparation found and wrote.

    Args:
        root: Folder of the data set, for ``dataset.root``.
        counts: Split -> number of images.
        notes: What the user should know, one line each.
    """

    root: Path
    counts: Mapping[str, int]
    notes: tuple[str, ...]


def read_counts(root: Path) -> dict[str, int]:
    """Split -> number of images as ``ROOT/manifest.json`` has it; empty where there is none."""
    if not (root / MANIFEST).exists():
        return {}
    try:
        content = read_json(root / MANIFEST)
    except UserError:
        return {}
    counts = content.get("counts") if isinstance(content, dict) else None
    if not isinstance(counts, dict):
        return {}
    return {split: count for split, count in counts.items() if type(count) is int and count >= 0}


def describe_counts(layout_type: str, counts: Mapping[str, int]) -> list[str]:
    """One line per split: its name, its number of images, and the published number where it differs."""
    published = PUBLISHED_COUNTS.get(layout_type, {})
    return [
        f"{split}: {count} images"
        + (f" (published: {published[split]})" if published.get(split, count) != count else "")
        for split, count in counts.items()
    ]
