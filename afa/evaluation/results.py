"""What lies in a folder of results, NAME being the picture's own name without suffix:

- ``masks/NAME.png``: segmentation, palette PNG in VOC's colours, the indices are the class ids.
- ``cams/NAME.npz``: ``cams`` float16 [m, H, W] in 0..1, ``class_ids`` int64 [m] (1..K), ``class_names`` [m] and
  ``scores`` float32 [m], the classifier's probabilities; only the m classes that count for the picture.
- ``overlays/NAME.jpg``, ``cam_overlays/NAME.jpg``: to look at, at most 1024 pixels long.
- ``pseudo_labels/KIND/NAME.png``: as the masks, 255 where the label is left open.
- ``FOLDER.gif``: the overlays of a folder's frames.
- ``pictures.json``: NAME -> the picture's path and its classes with their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PSEUDO_LABELS = ("plain", "refined", "propagated")


@dataclass(frozen=True)
class WantedResults:
    """Which results are wanted.

    Attributes:
        cams: CAMs.
        overlays: Pictures to look at.
        pseudo_labels: Kinds of :data:`PSEUDO_LABELS`.
        gif: An animated GIF per folder that was given.
        frames_per_second: Its speed.
        upright: Turn pictures as their EXIF orientation says.
    """

    cams: bool = True
    overlays: bool = True
    pseudo_labels: Sequence[str] = ()
    gif: bool = False
    frames_per_second: float = 8.0
    upright: bool = True
