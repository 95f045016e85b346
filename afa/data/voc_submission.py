"""An archive for VOC's test server: palette PNG masks under the names and in the folders that it wants."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from afa.data.classes import VOC_CLASS_NAMES
from afa.data.files import replacing
from afa.data.palette import palette_image
from afa.errors import UserError

COMPETITIONS = ("comp5", "comp6")
SUFFIXES = (".tgz", ".tar.gz")


class SubmittedMask(NamedTuple):
    """A mask for the server.

    Attributes:
        name: Of the image, as in the list.
        mask: uint8 [H, W], 0 background, 1 to 20.
        size: (H, W) of the image.
    """

    name: str
    mask: np.ndarray
    size: tuple[int, int]


def write_submission(path: Path, competition: str, masks: Iterable[SubmittedMask]) -> int:
    """Write the archive, at once or not at all, and read it again before it takes its place.

    Args:
        path: The archive, ``.tgz`` or ``.tar.gz``.
        competition: ``comp5``: trained on VOC's own data alone; ``comp6``: on others, too, such as ImageNet.
        masks: Each image once.

    Returns:
        How many masks it holds.

    Raises:
        UserError: The server would refuse a mask.
        OSError: The archive cannot be written.
    """
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
    written: dict[str, tuple[int, int]] = {}
    with replacing(path) as temporary:
        with (
            open(temporary, "wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
        ):
            for submitted in masks:
                content = _png(submitted)
                entry = tarfile.TarInfo(f"{folder}/{submitted.name}.png")
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
                written[submitted.name] = submitted.size
        _check(temporary, folder, written)
    return len(written)


def _png(submitted: SubmittedMask) -> bytes:
    name, mask, size = submitted
    check_name(name)
    if mask.shape != size:
        raise UserError(
            f"the mask of '{name}' has {mask.shape[1]} x {mask.shape[0]} pixels, its image {size[1]} x {size[0]}: the "
            "server wants masks of the images' size"
        )
    highest = int(mask.max(initial=0))
    if highest == 255:
        raise UserError(f"the mask of '{name}' leaves pixels open (255): the server wants a class for every pixel")
    if highest > len(VOC_CLASS_NAMES):
        raise UserError(f"the mask of '{name}' holds {highest}: VOC's classes are 0 to {len(VOC_CLASS_NAMES)}")
    buffer = io.BytesIO()
    palette_image(mask).save(buffer, "PNG")
    return buffer.getvalue()


def check_name(name: str) -> None:
    """Refuse a name that is none of VOC's.

    Raises:
        UserError: It is not one plain word.
    """
    if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
        raise UserError(f"'{name}' is no name of a VOC image, such as 2008_000006: the server accepts only such names")


def require_voc_classes(class_names: Iterable[str], what: str) -> None:
    """Refuse other classes than VOC's.

    Raises:
        UserError: There are others.
    """
    names = tuple(class_names)
    if names != VOC_CLASS_NAMES:
        shown = ", ".join(names[:3])
        raise UserError(
            f"{what} has {len(names)} classes ({shown}{', ...' if len(names) > 3 else ''}), and the server wants VOC's "
            f"{len(VOC_CLASS_NAMES)} in their order ({', '.join(VOC_CLASS_NAMES[:3])}, ...)"
        )


def _check(path: Path, folder: str, expected: Mapping[str, tuple[int, int]]) -> None:
    """Read the archive again.

    Raises:
        UserError: A mask is missing or changed: the disk, or the memory, is at fault.
    """
    left = dict(expected)
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            name = entry.name.removeprefix(f"{folder}/").removesuffix(".png")
            file = archive.extractfile(entry)
            if name not in left or file is None:
                raise UserError(f"the archive {path} holds {entry.name}, which was not put there")
            with Image.open(io.BytesIO(file.read())) as image:
                values = np.asarray(image)
                good = image.mode == "P" and values.shape == left.pop(name) and values.max() <= len(VOC_CLASS_NAMES)
            if not good:
                raise UserError(f"the archive {path} holds a damaged mask of '{name}': write it again")
    if left:
        raise UserError(f"the archive {path} lacks {len(left)} masks, the first is '{next(iter(left))}'")
