"""What was found in an image, as cells of a sheet: a panel per class and map, labels with their classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from afa.config.settings import IGNORE
from afa.visual.overlays import overlay_label
from afa.visual.scores import ClassMaps, ScoreScale, class_maps, common_scale, overlay_scores, strongest_classes
from afa.visual.sheets import Cell, cell_size, contact_sheet, fitted_image, fitted_label, stacked_rows

MOST_CLASSES = 6
"""Whose maps are shown of an image that is shown alone."""


def class_legend(class_ids: Collection[int], class_names: Sequence[str]) -> list[tuple[str, int]]:
    """The classes among some ids with their names, as sheets take them.

    Args:
        class_ids: Values of labels: 0 background, which is left out, 1..K, 255.
        class_names: K names.
    """
    names = dict(enumerate(class_names, 1)) | {IGNORE: "ignored"}
    return [(names[class_id], class_id) for class_id in sorted(class_ids) if class_id in names]


def label_cell(image: np.ndarray, label: np.ndarray, cell: int, caption: str = "") -> Cell:
    """A label over its image, drawn at the size at which a sheet shows it.

    Args:
        image: uint8 RGB [H, W, 3].
        label: Integers [H, W].
        cell: Width of the sheet's cells.
        caption: Below it.
    """
    size = cell_size(image.shape, cell)
    return Cell(overlay_label(fitted_image(image, size), fitted_label(label, size)), caption)


def map_cells(image: np.ndarray, maps: ClassMaps, scale: ScoreScale, class_names: Sequence[str]) -> list[Cell]:
    """A panel for each class, with its name.

    Args:
        image: uint8 RGB of any size.
        maps: [m, h, w].
        scale: Of the colours.
        class_names: K names.

    Returns:
        One cell per class, of h x w; of an image without classes one, which is all background.
    """
    small = fitted_image(image, (maps.above.shape[1], maps.above.shape[2]))
    if not maps.class_ids:
        nothing = np.zeros(small.shape[:2], np.float32)
        return [Cell(overlay_scores(small, nothing, nothing > 0, ScoreScale(0.5)), "no class")]
    return [
        Cell(overlay_scores(small, values, above, scale), class_names[class_id - 1])
        for class_id, values, above in zip(maps.class_ids, maps.values, maps.above, strict=True)
    ]


def scale_title(title: str, maps: ClassMaps) -> str:
    """What a colour bar says it is.

    Args:
        title: Of the maps.
        maps: Any of those that it is of.
    """
    if maps.is_share:
        return f"{title}: score / (score + highest other score); grey up to 0.5: not this class"
    return f"{title}: score" + ("" if maps.background is None else f"; grey up to {maps.background:g}: background")


def prediction_grid(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    backgrounds: Mapping[str, np.ndarray | float],
    class_ids: Sequence[int],
    class_names: Sequence[str],
    *,
    mask: np.ndarray | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    cell: int = 320,
) -> np.ndarray:
    """An image, its maps and the mask side by side; the classes' maps stand one below the other.

    Args:
        image: uint8 RGB [H, W, 3].
        maps: Name -> floats [m, H, W].
        backgrounds: Name -> the background's map [H, W] or the background score; some may have none.
        class_ids: Of the m classes. Of many, those with the highest scores are shown, and how many are not is said.
        class_names: Of the K classes.
        mask: uint8 [H, W] of class ids, 255 ignored; None leaves it out.
        labels: Name -> the label [H, W] made of those maps, where it is known.
        cell: Width of an image in pixels.

    Returns:
        uint8 RGB [*, *, 3].
    """
    size = cell_size(image.shape, cell)
    titles, columns, bars, notes = ["image"], [[Cell(fitted_image(image, size))]], [], []
    kept = strongest_classes(next(iter(maps.values())), MOST_CLASSES) if maps else []
    if maps and len(kept) < len(class_ids):
        notes.append(f"maps of {len(kept)} classes, +{len(class_ids) - len(kept)} more")
    for name, scores in maps.items():
        label = (labels or {}).get(name)
        own = class_maps(scores, backgrounds.get(name), class_ids, size=size, label=label, kept=kept)
        scale = common_scale([own])
        titles.append(name)
        columns.append(map_cells(image, own, scale, class_names))
        bars.append((scale_title(name, own), scale))
    if mask is not None:
        titles.append("mask")
        columns.append([label_cell(image, mask, cell)])
    legend = [] if mask is None else class_legend(np.unique(mask).tolist(), class_names)
    return contact_sheet(stacked_rows(columns), titles, notes=notes, bars=bars, legend=legend, cell=cell)
