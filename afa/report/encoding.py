"""Images, labels, maps and affinities as small files within a page (``data:`` URIs).

Labels, maps and affinities are grey WebP without loss: the page reads the values back and colours them itself.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from afa.maps import Maps
from afa.ops.cam import long_side_size
from afa.ops.random_walk import PairAffinity, TokenAffinity
from afa.ops.token_pairs import around, reach_of

IMAGE_LONG_SIDE = 512
"""Longest side of an image within a page, in pixels."""
MAP_LONG_SIDE = 128
"""Longest side of a map within a page."""
MOST_TOKENS = 768
"""Positions of an affinity's grid up to which all pairs are kept: 24 x 32, an image of VOC at stride 16."""

_QUALITY = 78
AFFINITY_LEVELS = 63
"""Grey value of affinity 1. Finer steps cannot be told apart, and take a third more room."""

_LONGEST_WEBP = 16383  # side in pixels
_SYMMETRIC = 1e-4  # rounding


def shown_size(size: Sequence[int], long_side: int = IMAGE_LONG_SIDE) -> tuple[int, int]:
    """(h, w) of an image within a page: its own, or shrunk to a long side."""
    return long_side_size(size, min(long_side, max(size)))


def photo_uri(image: np.ndarray) -> str:
    """An image, uint8 RGB [H, W, 3], for display."""
    height, width = shown_size(image.shape[:2])
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return _webp(Image.fromarray(image), quality=_QUALITY, method=4)


def label_uri(label: Tensor) -> str:
    """Class ids [H, W] of 0..255, at the size of the image within the page."""
    values = label.to(torch.uint8).numpy()
    height, width = shown_size(values.shape)
    if (height, width) != values.shape:
        values = cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)
    return _grey(values)


def maps_entry(maps: Maps, class_ids: Sequence[int], *, logits: bool) -> dict[str, Any] | None:
    """Scores of some classes, one below the other in one image.

    Args:
        maps: Of one image, [1, c, h, w].
        logits: Whether the softmax of the scores gives probabilities, which are shown then.
        class_ids: Those that are wanted; others are left out, and those that the maps lack.

    Returns:
        ``ids``, ``size`` [h, w], ``low`` and ``high`` (the scores of grey 0 and 255; 0 and 1 where all scores lie
        between them) and ``uri``; None where no class is left.
    """
    ids = maps.class_ids[0].tolist()
    chosen = [
        index for index, counted in enumerate(maps.counted[0].tolist()) if counted and ids[index] in set(class_ids)
    ]
    if not chosen:
        return None
    all_scores = maps.scores[0].float()
    scores = (all_scores.softmax(dim=0) if logits else all_scores)[chosen].numpy()
    size = shown_size(maps.size, MAP_LONG_SIDE)
    if size != maps.size:
        scores = np.stack([cv2.resize(one, (size[1], size[0]), interpolation=cv2.INTER_AREA) for one in scores])
    low, high = min(0.0, float(scores.min())), max(1.0, float(scores.max()))
    if high <= 1.001:  # rounding
        high = 1.0
    grey = np.rint((scores - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    return {
        "ids": [ids[index] for index in chosen],
        "size": list(size),
        "low": round(low, 6),
        "high": round(high, 6),
        "uri": _grey(grey.reshape(-1, size[1])),
    }


def affinity_entry(affinity: TokenAffinity | PairAffinity) -> dict[str, Any] | None:
    """An affinity as grey values, :data:`AFFINITY_LEVELS` being 1.

    Returns:
        ``grid`` [h, w]; ``values``, uint8; ``shrunk``, whether the grid is coarser than the method's; and ``radius``.
        Where that is None, ``values`` [N, N] has a row for each position of the grid (row-major) with its affinity to
        all; ``half`` then says that those before itself are left out, as the affinity is symmetric. Else ``values`` is
        [h (2 r + 1), w (2 r + 1)], a tile for each position with what lies around it. None: it is too large for a page.
    """
    if isinstance(affinity, PairAffinity):
        height, width = affinity.grid
        side = 2 * max(reach_of(affinity.values)) + 1
        if side * max(height, width) > _LONGEST_WEBP:
            return None
        tiles = _windows(affinity).transpose(2, 0, 3, 1).reshape(height * side, width * side)
        return {
            "grid": [height, width], "shrunk": False, "half": False, "radius": side // 2, "values": tiles
        }  # fmt: skip
    exact, grid = _bounded(affinity)
    half = bool(np.abs(exact - exact.T).max() <= _SYMMETRIC)
    values = np.rint(exact * AFFINITY_LEVELS).astype(np.uint8)
    return {
        "grid": list(grid), "shrunk": grid != affinity.grid, "half": half, "radius": None,
        "values": np.triu(values) if half else values,
    }  # fmt: skip


def packed_affinity(entry: dict[str, Any]) -> dict[str, Any]:
    """What :func:`affinity_entry` gave, with ``uri`` in place of ``values``."""
    return {**{key: value for key, value in entry.items() if key != "values"}, "uri": _grey(entry["values"])}


def _windows(affinity: PairAffinity) -> np.ndarray:
    """Grey values [side, side, h, w] of what lies around each position; 0 beyond the grid and the pairs."""
    m, n = reach_of(affinity.values)
    wide, high = max(0, m - n), max(0, n - m)
    found = F.pad(around(affinity.values.float().cpu())[0], (0, 0, 0, 0, wide, wide, high, high))
    return np.rint(found.clamp(0, 1).numpy() * AFFINITY_LEVELS).astype(np.uint8)


def _bounded(affinity: TokenAffinity) -> tuple[np.ndarray, tuple[int, int]]:
    """Affinity [N, N] in 0..1, and its grid: the mean over cells of a coarser grid where there are too many tokens."""
    height, width = affinity.grid
    values = affinity.values[0].float().cpu().clamp(0, 1)
    if height * width <= MOST_TOKENS:
        return values.numpy(), (height, width)
    factor = (MOST_TOKENS / (height * width)) ** 0.5
    coarse = (max(1, int(height * factor)), max(1, int(width * factor)))
    for _ in range(2):  # of all positions to coarse ones, then from all to coarse ones
        rows = F.adaptive_avg_pool2d(values.view(-1, 1, height, width), coarse)
        values = rows.flatten(1).t().contiguous()
    return values.numpy(), coarse


def _grey(values: np.ndarray) -> str:
    return _webp(Image.fromarray(np.ascontiguousarray(values)), lossless=True, quality=80, method=4)


def _webp(image: Image.Image, **options: Any) -> str:
    content = BytesIO()
    image.save(content, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
