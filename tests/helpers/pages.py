"""Pages that ``afa report`` wrote, read back without a browser; and small data sets of somebody's own."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script works with."""
    (text,) = _DATA.findall(page.read_text(encoding="utf-8"))
    return json.loads(text)


def values_of(uri: str) -> np.ndarray:
    """The grey values of an image within a page."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return np.array(Image.open(BytesIO(base64.b64decode(content))).convert("RGB"))[:, :, 0]


def miou(truth: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: int) -> float:
    """Mean IoU over the classes that the truth shows, written out."""
    true, seen = (np.concatenate([one.ravel() for one in masks]) for masks in (truth, found))
    true, seen = true[true != 255], seen[true != 255]
    values = [
        ((true == index) & (seen == index)).sum() / ((true == index) | (seen == index)).sum()
        for index in range(classes)
        if (true == index).any()
    ]
    return float(np.mean(values))


class OwnData:
    """A data set of layout ``folder``, and masks that another program made of its images."""

    def __init__(self, root: Path, masks: Path, classes: Sequence[str] = ("cat", "dog")) -> None:
        self.root, self.masks = root, masks
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        masks.mkdir()
        self.names: list[str] = []
        self.name_classes(classes)

    def name_classes(self, names: Sequence[str]) -> None:
        """The names of the classes."""
        (self.root / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")

    def add(
        self, name: str, truth: np.ndarray | None, found: np.ndarray | None, size: Sequence[int] = (20, 30)
    ) -> None:
        """An image with its true mask, and the other program's."""
        self.names.append(name)
        if max(size) > 2000:  # quickly made
            image = Image.new("L", (size[1], size[0]), 90)
        else:
            cells = np.random.default_rng(len(self.names)).integers(0, 255, (4, 6, 3), np.uint8)
            image = Image.fromarray(cells).resize((size[1], size[0]), Image.Resampling.NEAREST)
        image.save(self.root / "images" / f"{name}.png", compress_level=1)
        for folder, mask in ((self.root / "masks", truth), (self.masks, found)):
            if mask is not None:
                Image.fromarray(mask).save(folder / f"{name}.png", compress_level=1)
        (self.root / "val.txt").write_text("".join(f"{name}\n" for name in self.names), encoding="utf-8")

    @property
    def arguments(self) -> list[str]:
        """The masks, and where the images are."""
        return [str(self.masks), "dataset.type=folder", f"dataset.root={self.root}"]
