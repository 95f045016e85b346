"""Maps as colours that agree with the label: greys where a class does not beat the background, viridis where it does.

Maps without a background are shown as they are, in 0..1; the background score is the threshold of their label. Where
maps have a background, arg max makes the label, and what a class must beat differs from pixel to pixel: they are shown
as the share ``score / (score + highest other score)``, which is 0.5 where the two are equal.

Shapes: m classes of an image, H x W pixels of the image, h x w of what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

_DARKEST, _LIGHTEST = 24, 120  # greys of the lowest score and of the background score
_FIRST_COLOUR = 0.2  # viridis begins so dark that it looks like a grey
_IMAGE_ABOVE, _IMAGE_BELOW = 0.25, 0.45  # shares of the image under the colours
_OUTLINE = (255, 255, 255)
_OUTLINE_SHARE = 1 / 400


class ScoreScale(NamedTuple):
    """Which score has which colour.

    Attributes:
        background: Up to this score a pixel is not of the class; None: there is no such score, all have colours.
        low: The lowest score that is told from lower ones.
        high: The highest score that is told from higher ones.
    """

    background: float | None = None
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class ClassMaps:
    """Maps of some classes of an image against the background.

    Attributes:
        class_ids: m ids, 1..K.
        values: float32 [m, h, w], scores, or shares where the maps have a background.
        above: bool [m, h, w], where the class beats the background; of shares, where it beats the other classes, too.
        background: Of the values, see :class:`ScoreScale`.
        is_share: Whether the values are shares.
    """

    class_ids: tuple[int, ...]
    values: np.ndarray
    above: np.ndarray
    background: float | None
    is_share: bool


def strongest_classes(scores: np.ndarray, most: int) -> list[int]:
    """Indices of the classes whose scores are highest in the mean, rising.

    Args:
        scores: Floats [m, H, W].
        most: At most so many.
    """
    if len(scores) <= most:
        return list(range(len(scores)))
    return sorted(sorted(range(len(scores)), key=lambda index: -float(scores[index].mean(dtype=np.float64)))[:most])


def class_maps(
    scores: np.ndarray,
    background: np.ndarray | float | None,
    class_ids: Sequence[int],
    *,
    size: tuple[int, int] | None = None,
    label: np.ndarray | None = None,
    kept: Sequence[int] | None = None,
) -> ClassMaps:
    """Compare maps with the background.

    Args:
        scores: Floats, at least 0, [m, H, W].
        background: Background's map [H, W], or the threshold of the label, or None.
        class_ids: Of the m classes.
        size: (h, w) of what is drawn; default: (H, W).
        label: The label [H, W] that is made of these maps: where scores were rounded, it decides.
        kept: Indices of the classes that are kept, as :func:`strongest_classes` gives them; default: all.
    """
    size = size or (scores.shape[1], scores.shape[2])
    shown = np.zeros((len(scores), *size), np.float32)
    for index, channel in enumerate(scores):
        shown[index] = _resized(channel, size)
    chosen = list(range(len(scores)) if kept is None else kept)
    values, ids = shown[chosen], tuple(class_ids[index] for index in chosen)
    is_share = isinstance(background, np.ndarray)
    if background is None:
        level, above = None, np.ones(values.shape, bool)
    elif isinstance(background, np.ndarray):
        level, rivals = 0.5, _highest_others(np.concatenate([_resized(background, size)[None], shown]))[1:][chosen]
        above, total = values > rivals, values + rivals
        values = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    else:
        level, above = float(background), values > background
    if label is not None:
        own = cv2.resize(label.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)[None]
        wins = own == np.array(ids, np.uint8)[:, None, None]
        above = wins if is_share else wins | (above & (own != 0))
    return ClassMaps(ids, values, above, level, is_share)


def common_scale(maps: Sequence[ClassMaps]) -> ScoreScale:
    """One scale for maps of one output.

    Scores have 0..1. Shares have a range around 0.5 that holds the highest one, in tenths: a walk over probabilities
    leaves all shares close to 0.5.
    """
    if not maps:
        return ScoreScale()
    if not maps[0].is_share:
        return ScoreScale(maps[0].background)
    highest = max((float(one.values.max()) for one in maps if one.values.size), default=0.5)
    high = min(1.0, max(0.6, math.ceil(10 * highest - 1e-3) / 10))
    return ScoreScale(0.5, round(1 - high, 1), high)


def score_colours(values: np.ndarray, above: np.ndarray, scale: ScoreScale) -> np.ndarray:
    """Values as colours: pure greys where they are not above the background.

    Args:
        values: Floats [h, w].
        above: bool [h, w], where the value beats the background.
        scale: Whose ends bound the values.

    Returns:
        uint8 RGB [h, w, 3].
    """
    middle = scale.low if scale.background is None else scale.background
    first = 0.0 if scale.background is None else _FIRST_COLOUR
    beyond = ((values - middle) / max(scale.high - middle, 1e-6)).clip(0, 1)
    below = ((values - scale.low) / max(middle - scale.low, 1e-6)).clip(0, 1)
    levels = np.round(255 * (first + (1 - first) * beyond)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    greys = np.round(_DARKEST + (_LIGHTEST - _DARKEST) * below).astype(np.uint8)
    return np.where(above[:, :, None], colours, greys[:, :, None])


def map_colours(scores: np.ndarray, background: np.ndarray | float | None) -> np.ndarray:
    """Each class's map as colours on one scale, without the image.

    Args:
        scores: Floats [m, H, W].
        background: Background's map [H, W], or the threshold of the label, or None.

    Returns:
        uint8 RGB [m, H, W, 3].
    """
    maps = class_maps(scores, background, range(1, len(scores) + 1))
    scale = common_scale([maps])
    colours = [score_colours(values, above, scale) for values, above in zip(maps.values, maps.above, strict=True)]
    return np.stack(colours) if colours else np.zeros((0, *scores.shape[1:], 3), np.uint8)


def overlay_scores(image: np.ndarray, values: np.ndarray, above: np.ndarray, scale: ScoreScale) -> np.ndarray:
    """A map's colours over the image, which is grey under them; a white line runs where the background begins.

    Args:
        image: uint8 RGB [h, w, 3].
        values: Floats [h, w].
        above: bool [h, w], where the value beats the background.
        scale: Whose ends bound the values.

    Returns:
        uint8 RGB [h, w, 3]; pixels that do not beat the background are pure greys.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    share = np.where(above[:, :, None], np.float32(_IMAGE_ABOVE), np.float32(_IMAGE_BELOW))
    shown = (share * grey + (1 - share) * score_colours(values, above, scale)).astype(np.uint8)
    if scale.background is not None:
        width = max(1, round(max(above.shape) * _OUTLINE_SHARE))
        inside = above.astype(np.uint8)
        eroded = cv2.erode(inside, np.ones((2 * width + 1, 2 * width + 1), np.uint8))
        shown[(inside != eroded)] = _OUTLINE
    return shown


def scale_bar(scale: ScoreScale, width: int, height: int) -> np.ndarray:
    """The colours of a scale from its low to its high end, uint8 RGB [height, width, 3]."""
    values = np.linspace(scale.low, scale.high, width, dtype=np.float32)[None].repeat(height, axis=0)
    above = np.ones_like(values, bool) if scale.background is None else values > scale.background
    return score_colours(values, above, scale)


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    values = values.astype(np.float32)
    if values.shape == size:
        return values
    shrinks = size[0] * size[1] < values.shape[0] * values.shape[1]
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _highest_others(scores: np.ndarray) -> np.ndarray:
    """For each channel of [c, h, w] the highest score of the other channels; 0 where there is none."""
    first, second = np.zeros_like(scores[0]), np.zeros_like(scores[0])
    for channel in scores:
        second = np.maximum(second, np.minimum(first, channel))
        first = np.maximum(first, channel)
    return np.where(scores == first, second, first)
