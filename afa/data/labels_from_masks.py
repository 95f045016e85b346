"""Image-level labels from masks, kept for the next time in ``ROOT/.class_labels_from_masks/SPLIT.json``."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from afa.data.files import read_json, write_json
from afa.data.images import read_mask
from afa.data.labels import classes_in_mask, is_class_id, one_hot
from afa.data.layout import Layout
from afa.errors import UserError

logger = logging.getLogger(__name__)


def labels_from_masks(
    layout: Layout, split: str, names: Sequence[str], ignore_index: int, max_pixels: int
) -> Mapping[str, np.ndarray]:
    """Which classes the masks of a split show, for every name as float32 [K]; read once, until a mask changes.

    Raises:
        UserError: A mask is missing or damaged, or holds something else than classes.
    """
    cache = layout.root / ".class_labels_from_masks" / f"{split}.json"
    folder = layout.split_masks(split)
    made_from = {
        "folder": str(folder.relative_to(layout.root) if folder.is_relative_to(layout.root) else folder.resolve()),
        "files": _fingerprint([layout.mask(name, split) for name in names]),
        "ignore_index": ignore_index,
        "num_classes": layout.num_classes,
        "colours": None if layout.palette is None else [list(pair) for pair in layout.palette.ids],
    }
    table = _cached(cache, made_from, layout.num_classes)
    if any(name not in table for name in names):
        logger.warning("no labels file in %s: taking the image-level labels of '%s' from its masks", layout.root, split)

        def read(name: str) -> list[int]:
            path = layout.mask(name, split)
            mask = read_mask(path, palette=layout.palette, max_pixels=max_pixels)
            return classes_in_mask(mask, layout.num_classes, ignore_index, path=path)

        with ThreadPoolExecutor() as pool:
            table = dict(zip(names, pool.map(read, names), strict=True))
        try:
            write_json(cache, {"made_from": made_from, "labels": table})
        except (OSError, UserError):
            logger.warning("%s cannot be written: the labels are taken from the masks again next time", cache)
    return {name: one_hot(table[name], layout.num_classes) for name in names}


def _cached(cache: Path, made_from: Mapping[str, Any], num_classes: int) -> dict[str, list[int]]:
    """Image name -> class ids of an earlier start; empty where there are none, or none of the same masks."""
    if not cache.exists():
        return {}
    try:
        content = read_json(cache)
        if not isinstance(content, dict) or content.get("made_from") != made_from:
            return {}
        table = content.get("labels")
        if not isinstance(table, dict) or not all(
            isinstance(ids, list) and all(is_class_id(class_id, num_classes) for class_id in ids)
            for ids in table.values()
        ):
            raise UserError(f"{cache} holds something else than class ids from 1 to {num_classes}")
    except UserError as error:
        logger.warning("%s: the labels are taken from the masks again", error)
        return {}
    return table


def _fingerprint(paths: Sequence[Path]) -> str:
    """Changes with the names, sizes and times of change of files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # reported by whoever reads it
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
