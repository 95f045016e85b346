"""What was found in an image, as images side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from afa.visual.overlays import overlay_heat, overlay_label
from afa.visual.sheets import contact_sheet


def map_heat(scores: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
    """The strongest class at each pixel as heat.

    Maps with a background are shown where a class beats it, relative to the highest score; what would be labelled
    background stays cold, whatever its scores are.

    Args:
        scores: Floats in 0..1, [m, H, W]; m may be 0.
        background: Floats [H, W], of maps that have one.

    Returns:
        float32 [H, W] in 0..1.
    """
    if not len(scores):
        return np.zeros(scores.shape[1:], np.float32)
    strongest = scores.max(axis=0).astype(np.float32)
    if background is None:
        return strongest
    shown = np.where(strongest > background, strongest, 0)
    return shown / max(float(shown.max()), 1e-6)


def prediction_strip(
    image: np.ndarray,
    mask: np.ndarray,
    maps: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    all_class_names: Sequence[str],
    *,
    cell: int = 320,
) -> np.ndarray:
    """An image, each class's maps and the mask in one row.

    Args:
        image: uint8 RGB [H, W, 3].
        mask: uint8 [H, W] of class ids, 255 ignored.
        maps: Name -> floats [m, H, W] in 0..1.
        class_names: Of the m classes.
        all_class_names: Of the K classes, for the legend.
        cell: Width of an image in pixels.

    Returns:
        uint8 RGB [*, *, 3].
    """
    columns: list[tuple[str, np.ndarray]] = [("image", image)]
    for name, scores in maps.items():
        for class_name, values in zip(class_names, scores, strict=True):
            columns.append((f"{name}: {class_name}", overlay_heat(image, values.astype(np.float32))))
    columns.append(("mask", overlay_label(image, mask)))
    names = dict(enumerate(all_class_names, 1)) | {255: "ignored"}
    legend = [(names[class_id], class_id) for class_id in np.unique(mask).tolist() if class_id in names]
    titles, cells = zip(*columns, strict=True)
    return contact_sheet([list(cells)], titles, legend=legend, cell=cell)
