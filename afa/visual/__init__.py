"""Images for people: coloured labels, heat maps, contact sheets, GIFs."""

from __future__ import annotations

from afa.visual.animation import write_gif
from afa.visual.outputs import map_heat, prediction_strip
from afa.visual.overlays import colour_label, heat_map, overlay_heat, overlay_label
from afa.visual.sheets import contact_sheet, write_picture

__all__ = [
    "colour_label",
    "contact_sheet",
    "heat_map",
    "map_heat",
    "overlay_heat",
    "overlay_label",
    "prediction_strip",
    "write_gif",
    "write_picture",
]
