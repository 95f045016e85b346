"""Pictures for people: coloured labels, heat maps, contact sheets, GIFs."""

from __future__ import annotations

from afa.visual.animation import write_gif
from afa.visual.grids import picture_grids
from afa.visual.overlays import colour_label, heat_map, overlay_cams, overlay_label
from afa.visual.sheets import contact_sheet, write_picture

__all__ = [
    "colour_label",
    "contact_sheet",
    "heat_map",
    "overlay_cams",
    "overlay_label",
    "picture_grids",
    "write_gif",
    "write_picture",
]
