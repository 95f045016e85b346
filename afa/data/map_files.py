"""A label folder's files: maps and labels of images, as one stage writes them and the next reads them.

A label folder holds ``label.json`` (what made it), ``maps/OUTPUT/NAME.npz`` and ``labels/OUTPUT/NAME.png``, and
``manifest.json``, which is written last. NAME is the image's name in the lists and may hold ``/``. A file of maps holds
``scores`` float [m, h, w], ``class_ids`` [m] (0 background, 1..K classes, rising) and ``size`` [2], the (H, W) of its
image. The maps may be smaller than their image: who reads them resizes them. Of maps of 8 bits, which are for looking,
``scores`` are uint8, and the file holds ``scale`` and ``offset`` as well: a score is ``scores * scale + offset``.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from afa.data.classes import MAX_CLASSES
from afa.data.files import read_bytes, replacing
from afa.errors import UserError
from afa.maps import Maps
from afa.ops.cam import long_side_size

LABEL_FACTS = "label.json"
LABEL_MANIFEST = "manifest.json"
MAPS_SUFFIX = ".npz"
MAPS_FOLDER, LABELS_FOLDER = "maps", "labels"

_MOST_VALUES = 2**28
"""Scores in one file: 1 GiB. A small file may unpack to any size."""
_LONGEST_SIDE = 2**20
# What zip, zlib and numpy's header reader say about broken bytes.
_BROKEN = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_MOST_SHOWN = 12


class StoredMaps(NamedTuple):
    """What a file of maps holds.

    Attributes:
        maps: float32 [1, c, h, w], finite.
        size: (H, W) of the image.
    """

    maps: Maps
    size: tuple[int, int]


def maps_path(root: Path, output: str, name: str) -> Path:
    """Where a label folder keeps an image's maps.

    Raises:
        UserError: The name would lead out of the folder.
    """
    return root / MAPS_FOLDER / output / f"{inside(name)}{MAPS_SUFFIX}"


def label_path(root: Path, output: str, name: str) -> Path:
    """Where a label folder keeps an image's label.

    Raises:
        UserError: The name would lead out of the folder.
    """
    return root / LABELS_FOLDER / output / f"{inside(name)}.png"


class StoredForm(NamedTuple):
    """How maps are stored.

    Attributes:
        long_side: Larger maps are shrunk to this long side (the mean of the area); 0: they stay as they are.
        bits: 32: as float32, which a threshold may meet. 8: rounded to 256 steps between the least score (0 at most)
            and the highest (1 at least), for looking.
    """

    long_side: int = 0
    bits: int = 32


AS_THEY_ARE = StoredForm()


def write_maps(path: Path, maps: Maps, size: Sequence[int], *, compress: bool, form: StoredForm = AS_THEY_ARE) -> None:
    """Write the maps of one image, at once or not at all. Equal maps give equal bytes.

    Args:
        path: File with the suffix ``.npz``; its folder is made if needed.
        maps: [1, c, h, w], on any device; channels that do not count are left out. Scores are written as float32: a
            threshold may lie closer to 1 than float16 can tell.
        size: (H, W) of the image, whatever size the maps have.
        compress: Whether to deflate: smaller, and slower to write and read.
        form: Size and precision.

    Raises:
        UserError: A score is not finite.
        ValueError: These are the maps of several images.
    """
    if len(maps.scores) != 1:
        raise ValueError(f"a file holds the maps of one image, not of {len(maps.scores)}")
    counted = maps.counted[0].cpu()
    scores = maps.scores[0].detach().float().cpu()[counted]
    if not torch.isfinite(scores).all():
        raise UserError(f"the scores for {path} are not finite: the network that gave them is broken")
    save = np.savez_compressed if compress else np.savez
    with replacing(path) as temporary:
        save(
            temporary,
            **stored_scores(scores.numpy(), form),  # type: ignore[arg-type]
            class_ids=maps.class_ids[0].cpu()[counted].numpy(),
            size=np.array(size, np.int64),
        )


def stored_scores(scores: np.ndarray, form: StoredForm) -> dict[str, np.ndarray]:
    """Scores [m, h, w], finite, as a file holds them: ``scores``, and for 8 bits ``scale`` and ``offset``."""
    height, width = scores.shape[1:]
    if form.long_side and max(height, width) > form.long_side:
        smaller = long_side_size((height, width), form.long_side)
        whole = torch.from_numpy(np.ascontiguousarray(scores, np.float32))[None]
        if len(scores):
            scores = F.interpolate(whole, size=smaller, mode="area")[0].numpy()
        else:  # an image without classes: PyTorch resizes no empty tensor
            scores = scores[:, : smaller[0], : smaller[1]]
    if form.bits == 32:
        return {"scores": scores}
    low, high = np.float32(min(0.0, scores.min(initial=0))), np.float32(max(1.0, scores.max(initial=1)))
    scale = (high - low) / np.float32(255)
    return {
        "scores": np.rint((scores.astype(np.float32) - low) / scale).clip(0, 255).astype(np.uint8),
        "scale": np.array(scale, np.float32),
        "offset": np.array(low, np.float32),
    }


def read_maps(path: Path) -> StoredMaps:
    """Read the maps of one image. Nothing in the file is executed, and its size is checked before it is unpacked.

    Args:
        path: As :func:`write_maps` writes it.

    Returns:
        The maps. Of an image without classes it is one channel of zeros that does not count.

    Raises:
        UserError: The file is missing or damaged, or is no such file.
    """
    content = read_bytes(path, "the file of maps", largest=5 * _MOST_VALUES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            scores, class_ids, size = (_read_array(archive, key) for key in ("scores", "class_ids", "size"))
            if scores.dtype == np.uint8:
                scale, offset = (_read_array(archive, key) for key in ("scale", "offset"))
                if scale.shape or offset.shape or scale.dtype.kind != "f" or offset.dtype.kind != "f":
                    raise ValueError("scale and offset are not one number each")
                scores = scores * scale.astype(np.float32) + offset.astype(np.float32)
    except _BROKEN as error:
        reason = f"it holds no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(f"the file of maps {path} cannot be read: {reason}") from error
    return StoredMaps(*_checked(scores, class_ids, size, path))


def inside(name: str) -> str:
    """A name that stays below the folder that it is put into."""
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"the image name '{name}' would lead out of the folder: rename it in the list")
    return name


def _read_array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as file:
        shape, fortran, dtype = _read_header(file)
        count = math.prod(shape)
        if dtype.kind not in "fiu" or any(side > _LONGEST_SIDE for side in shape) or count > _MOST_VALUES:
            raise ValueError(f"{key} is {dtype} of {shape}, which no maps are")
        content = file.read(count * dtype.itemsize + 1)
    if len(content) != count * dtype.itemsize:
        raise ValueError(f"{key} is not as long as it says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"arrays of version {version} are not read")


def _checked(scores: np.ndarray, class_ids: np.ndarray, size: np.ndarray, path: Path) -> tuple[Maps, tuple[int, int]]:
    def refuse(what: str) -> UserError:
        return UserError(f"the file of maps {path}: {what}")

    if scores.dtype.kind != "f" or scores.ndim != 3 or 0 in scores.shape[1:]:
        raise refuse(f"scores are {scores.dtype} {list(scores.shape)}, float [classes, height, width] is needed")
    if class_ids.dtype.kind not in "iu" or class_ids.shape != scores.shape[:1]:
        raise refuse(f"class_ids are {class_ids.dtype} {list(class_ids.shape)} for {len(scores)} maps")
    ids = [int(number) for number in class_ids]
    if ids != sorted(set(ids)) or (ids and not 0 <= ids[0] <= ids[-1] <= MAX_CLASSES):
        raise refuse(f"class_ids are {listed(ids)}: each once, rising, 0 to {MAX_CLASSES} are needed")
    if size.dtype.kind not in "iu" or size.shape != (2,) or int(size.min()) < 1:
        raise refuse("size is not the height and width of an image")
    image_size = (int(size[0]), int(size[1]))
    if not ids:
        return nothing((scores.shape[1], scores.shape[2])), image_size
    numbers = finite_float32(scores, path)
    index = torch.tensor([ids])
    maps = Maps(torch.from_numpy(numbers)[None], index, torch.ones_like(index, dtype=torch.bool), ids[0] == 0)
    return maps, image_size


def nothing(size: tuple[int, int]) -> Maps:
    """The maps of an image without classes."""
    return Maps(torch.zeros(1, 1, *size), torch.tensor([[1]]), torch.tensor([[False]]), has_background=False)


def finite_float32(scores: np.ndarray, path: Path) -> np.ndarray:
    """The scores of a file as float32.

    Raises:
        UserError: One is not finite.
    """
    with np.errstate(over="ignore"):
        numbers = np.array(scores, np.float32)
    if not np.isfinite(numbers).all():
        raise UserError(f"{path} holds scores that are not finite")
    return numbers


def listed(items: Iterable[object]) -> str:
    """The first twelve items, for a message."""
    texts = [str(item) for item in items]
    return (" ".join(texts[:_MOST_SHOWN]) + (" ..." if len(texts) > _MOST_SHOWN else "")) if texts else "no key"
