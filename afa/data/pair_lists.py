"""Lists of pairs of images that have a class in common, in EDAM's form (sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afa.data.files import read_text
from afa.data.names import image_key
from afa.errors import UserError


def read_pairs(
    path: Path, names: Sequence[str], class_labels: np.ndarray, class_names: Sequence[str], split: str
) -> np.ndarray:
    """Read pairs in the order of their list: ``/JPEGImages/A.jpg /JPEGImages/B.jpg c`` in each line.

    The third field is the index of a class that both images show, counted from 0 without the background. Of a path the
    name is its longest end that the training list holds.

    Args:
        path: The list, a text file in UTF-8.
        names: Of the training images.
        class_labels: Their classes [images, K], above 0 means present.
        class_names: K names.
        split: Name of the training list, for messages.

    Returns:
        Numbers of the images in ``names``, int64 [pairs, 2].

    Raises:
        UserError: The list cannot be read or is empty, or a line has another form, names an image that is not trained
            on, or a class that one of its images does not show.
    """
    places = {name: number for number, name in enumerate(names)}
    found: dict[str, int] = {}  # the released list names every image some 25 times

    def place(field: str, where: str) -> int:
        if field not in found:
            parts = image_key(field).split("/")
            ends = ("/".join(parts[first:]) for first in range(len(parts)))
            number = next((places[end] for end in ends if end in places), None)
            if number is None:
                raise UserError(
                    f"{where}: '{field}' is no image of '{split}': pair images of the training list, or leave "
                    "dataset.pairs out"
                )
            found[field] = number
        return found[field]

    pairs = []
    for line_number, line in enumerate(read_text(path, "the list of pairs").split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {line_number}"
        if len(fields) != 3 or not (fields[2].isascii() and fields[2].isdigit()):
            raise UserError(f"{where}: write two images and the index of a class that both show, counted from 0")
        pair = [place(field, where) for field in fields[:2]]
        common = int(fields[2])
        if common >= len(class_names):
            raise UserError(f"{where}: there is no class {common}: the indices go from 0 to {len(class_names) - 1}")
        for field, number in zip(fields[:2], pair, strict=True):
            if not class_labels[number, common] > 0:
                raise UserError(
                    f"{where}: '{field}' does not show the class {common} ({class_names[common]}) by its image-level "
                    "labels: give a class of both images, or leave the line out"
                )
        pairs.append(pair)
    if not pairs:
        raise UserError(f"the list of pairs {path} is empty: write two images and a class index per line")
    return np.asarray(pairs, np.int64)
