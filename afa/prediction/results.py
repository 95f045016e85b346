"""The files in a folder of results. NAME is the name of the image without suffix:

- ``masks/NAME.png``: segmentation, palette PNG in VOC's colours, the indices are the class ids.
- ``cams/NAME.npz``: ``cams`` float16 [m, h, w] in 0..1, ``class_ids`` int64 [m] (1..K), ``class_names`` [m], ``scores``
  float32 [m], the classifier's probabilities (none where there is no classifier), and ``size`` [2], the image's height
  and width; only the m classes that count for the image. h x w is the image's size or, of a larger image, the size at
  which the maps were computed, with a long side of at most 1024 (--maps-size N; 0: no limit). With --maps-bits 8
  ``cams`` are uint8, and a score is ``cams * scale + offset``.
- ``overlays/NAME.jpg``: the mask over the image, at most 1024 pixels long, with the names of its classes below.
- ``cam_overlays/NAME.jpg``: each class's CAM over the image, with a colour bar: grey where the background wins. At most
  six classes, those with the highest scores.
- ``pseudo_labels/KIND/NAME.png``: as the masks, 255 where the label is left open.
- ``FOLDER.gif``: the overlays of a folder's frames, without names; images that were named one by one are in no GIF.
- ``pictures.json``: NAME -> the image's path and its classes with their scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afa.data.map_files import StoredForm


@dataclass(frozen=True)
class WantedResults:
    """Which results are wanted.

    Attributes:
        maps: The output whose maps count as CAMs; None: there are none, or they are not wanted.
        write_maps: Write them.
        maps_form: Their size and precision; None: as they are, in float16.
        overlays: Write overlays.
        pseudo_labels: KIND, the name of a folder -> the output whose labels go there.
        gif: An animated GIF per folder that was given.
        frames_per_second: Its speed.
        upright: Turn images as their EXIF orientation says.
    """

    maps: str | None = None
    write_maps: bool = True
    maps_form: StoredForm | None = None
    overlays: bool = True
    pseudo_labels: Mapping[str, str] = field(default_factory=dict)
    gif: bool = False
    frames_per_second: float = 8.0
    upright: bool = True
