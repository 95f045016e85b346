"""Maps as PSA and IRN write them: a ``.npy`` file for each image, which holds a pickled dictionary.

Key 0 is the first class in some files and the background in others. The image's labels tell which, and all files of a
folder must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from afa.data.classes import MAX_CLASSES
from afa.data.map_files import finite_float32, listed, nothing
from afa.data.pickles import read_pickled
from afa.errors import UserError
from afa.maps import Maps


class MapDictionaries:
    """Reads the files of one folder, and remembers what key 0 is in them."""

    def __init__(self) -> None:
        self._background: bool | None = None
        self._background_seen_in: Path | None = None

    def read(self, path: Path, class_labels: np.ndarray) -> Maps:
        """Read an image's maps; nothing in the file is executed.

        Args:
            path: A ``.npy`` file.
            class_labels: The image's labels, [K] of 0 and 1: they tell what key 0 is.

        Returns:
            float32 [1, c, h, w], finite: IRN's ``high_res`` where the file holds it, else its ``cam``. Of an image
            without classes it is one channel of zeros that does not count.

        Raises:
            UserError: The file is damaged or ill-shaped, or fits neither the labels nor the files before.
        """
        keys, scores = _dictionary_arrays(path, read_pickled(path, "the file of maps"))
        classes = [int(index) for index in np.flatnonzero(np.asarray(class_labels) > 0)]
        with_background = [0, *(index + 1 for index in classes)]
        if keys == with_background:
            background = True
        elif keys == classes:
            background = False
        else:
            raise UserError(
                f"{path} holds the keys {listed(keys)}; the image's labels ask for {listed(classes)} (key 0 is the "
                f"first class) or {listed(with_background)} (key 0 is the background)"
            )
        if keys:
            if self._background is None:
                self._background, self._background_seen_in = background, path
            elif background != self._background:
                meanings = ("the background", "the first class")
                here, there = meanings if background else meanings[::-1]
                raise UserError(f"key 0 is {here} in {path}, but {there} in {self._background_seen_in}")
        if not keys:
            return nothing((1, 1))
        ids = torch.tensor([keys if background else [key + 1 for key in keys]])
        return Maps(torch.from_numpy(scores)[None], ids, torch.ones_like(ids, dtype=torch.bool), background)


def _dictionary_arrays(path: Path, content: object) -> tuple[list[int], np.ndarray]:
    """Keys, rising, and maps float32 [m, h, w] of PSA's ``{key: map}`` or IRN's ``{"keys", "cam", "high_res"}``."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no dictionary of maps, as PSA and IRN write them")
    if "keys" in content:
        maps = content.get("high_res", content.get("cam"))
        if maps is None:
            raise UserError(f"{path} holds 'keys' but neither 'high_res' nor 'cam', as IRN's files do")
        return _in_order(path, _array(path, content["keys"]), _array(path, maps))
    numbers = [key for key in content if isinstance(key, (int, np.integer)) and not isinstance(key, bool)]
    if len(numbers) != len(content) or any(not 0 <= key <= MAX_CLASSES for key in numbers):
        raise UserError(
            f"{path} holds the keys {listed(content)}: class numbers from 0 (PSA) or 'keys' and 'cam' (IRN) are needed"
        )
    arrays = [_array(path, content[key]) for key in numbers]
    if len({array.shape for array in arrays}) > 1:
        shapes = listed(sorted({"x".join(map(str, array.shape)) for array in arrays}))
        raise UserError(f"{path} holds maps of different shapes: {shapes}")
    return _in_order(path, np.array(numbers, np.int64), np.stack(arrays) if arrays else np.zeros((0, 1, 1), np.float32))


def _array(path: Path, value: object) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds lists that are no array of numbers") from error


def _in_order(path: Path, keys: np.ndarray, maps: np.ndarray) -> tuple[list[int], np.ndarray]:
    if keys.ndim != 1 or (len(keys) and keys.dtype.kind not in "iu"):
        raise UserError(f"{path}: its keys are {keys.dtype} {list(keys.shape)}, a list of class numbers is needed")
    if maps.dtype.kind != "f" or maps.ndim != 3 or maps.shape[0] != len(keys) or 0 in maps.shape[1:]:
        raise UserError(
            f"{path}: its maps are {maps.dtype} {list(maps.shape)} for {len(keys)} keys; float [keys, height, width] "
            "is needed"
        )
    if len(set(keys.tolist())) != len(keys):
        raise UserError(f"{path} holds a key twice: {listed(keys.tolist())}")
    order = np.argsort(keys, kind="stable")
    return [int(key) for key in keys[order]], finite_float32(maps[order], path)
