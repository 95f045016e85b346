"""Images for people: coloured labels, maps, contact sheets, GIFs."""

from __future__ import annotations

from afa.data.palette import voc_palette
from afa.visual.animation import write_gif
from afa.visual.outputs import class_legend, label_cell, map_cells, prediction_grid, scale_title
from afa.visual.overlays import colour_label, hatching, overlay_label
from afa.visual.scores import (
    ClassMaps,
    ScoreScale,
    class_maps,
    common_scale,
    map_colours,
    overlay_scores,
    scale_bar,
    score_colours,
    strongest_classes,
)
from afa.visual.sheets import (
    Cell,
    Row,
    cell_size,
    contact_sheet,
    fitted_image,
    fitted_label,
    stacked_rows,
    with_legend,
    write_picture,
)
from afa.visual.text import fitted_text

__all__ = [
    "Cell",
    "ClassMaps",
    "Row",
    "ScoreScale",
    "cell_size",
    "class_legend",
    "class_maps",
    "colour_label",
    "common_scale",
    "contact_sheet",
    "fitted_image",
    "fitted_label",
    "fitted_text",
    "hatching",
    "label_cell",
    "map_cells",
    "map_colours",
    "overlay_label",
    "overlay_scores",
    "prediction_grid",
    "scale_bar",
    "scale_title",
    "score_colours",
    "stacked_rows",
    "strongest_classes",
    "voc_palette",
    "with_legend",
    "write_gif",
    "write_picture",
]
