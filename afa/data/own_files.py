"""What a preparation wrote itself: it writes over nothing else, and through no link that leaves the data set.

Small files (lists, labels) are known by their checksums in the manifest. A mask says in its own PNG file who made it,
from what, and of which pixels, so that one that was edited or exchanged is noticed.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from afa.data.files import read_json, replacing, write_json, write_text
from afa.data.images import DamagedImage, read_mask
from afa.data.labels import write_labels
from afa.data.manifest import MANIFEST, UNFINISHED_MANIFEST
from afa.data.palette import palette_image
from afa.errors import UserError

_NOTE = "afa"  # key of the text in the PNG file
_NOTE_FORM = re.compile(r"(\w+) pixels=([0-9a-f]{16}) source=([0-9a-f]{16}|none)")
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


def leads_out(root: Path, path: Path) -> bool:
    """Whether a link on the way takes a path, which need not exist, out of the folder ``root``."""
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return True


def check_inside(root: Path, path: Path) -> None:
    """Refuse to write where a link leads out of the data set.

    Raises:
        UserError: It does.
    """
    if leads_out(root, path):
        raise UserError(
            f"{path} leads out of {root} through a link, and this command writes only inside it: "
            "put a folder of its own there"
        )


def is_free(path: Path) -> bool:
    """Whether a path is unused, or holds an empty file, as after a loss of power."""
    if path.is_symlink() or not path.exists():
        return not path.is_symlink()
    return path.is_file() and path.stat().st_size == 0


class Preparation:
    """The manifest and the small files of one preparation, from its beginning to its end.

    Until :meth:`finish`, ``manifest.unfinished.json`` stands in the place of ``manifest.json``.

    Args:
        root: Folder of the data set.
        made_by: Name of the preparation.
        settings: What the manifest says besides.

    Raises:
        UserError: The manifest is damaged, or another program's.
    """

    def __init__(self, root: Path, made_by: str, settings: Mapping[str, Any]) -> None:
        self.root = root
        self.made_by = made_by
        self._facts = {"made_by": made_by, **settings}
        self._known: dict[str, list[str]] = {}
        for name in (MANIFEST, UNFINISHED_MANIFEST):
            for file, sums in self._read(root / name).items():
                self._known[file] = sorted({*self._known.get(file, ()), *sums})

    def begin(self) -> None:
        """Note that the data set is not whole from now on."""
        self._write_marker()
        (self.root / MANIFEST).unlink(missing_ok=True)

    def check(self, files: Mapping[str, str]) -> None:
        """Raise what :meth:`write` would raise; nothing is written."""
        for name, text in files.items():
            if not self._holds(name, text):
                self._check_own(name)

    def write(self, files: Mapping[str, str]) -> None:
        """Write small text files. Files that hold the text already are not changed, no matter where they come from.

        Args:
            files: Path below the root -> text.

        Raises:
            UserError: A file is there with other content and was not made by this preparation, or lies behind a link
                that leads out. Nothing is written then.
        """
        self.check(files)
        wanted = {name: text for name, text in files.items() if not self._holds(name, text)}
        for name, text in files.items():
            self._known[name] = sorted({*self._known.get(name, ()), _checksum(text.encode("utf-8"))})
        self._write_marker()  # Before the files: killed between the two, the next start knows them.
        for name, text in wanted.items():
            write_text(self.root / name, text)
        self._known |= {name: [_checksum(text.encode("utf-8"))] for name, text in files.items()}

    def finish(self, counts: Mapping[str, int]) -> None:
        """Write the manifest: all is there.

        Args:
            counts: Split -> number of images.
        """
        write_json(self.root / MANIFEST, {**self._facts, "counts": dict(counts), "files": self._known})
        (self.root / UNFINISHED_MANIFEST).unlink()

    def _check_own(self, name: str) -> None:
        path = self.root / name
        check_inside(self.root, path.parent)
        if not is_free(path):
            plain = path.is_file() and not path.is_symlink()
            if not plain or _checksum(path.read_bytes()) not in self._known.get(name, ()):
                raise UserError(
                    f"{path} is there with other content and was not made by this command (or was changed since): "
                    "move it away"
                )

    def _holds(self, name: str, text: str) -> bool:
        path = self.root / name
        try:
            return path.is_file() and path.read_bytes() == text.encode("utf-8")
        except OSError:
            return False

    def _write_marker(self) -> None:
        write_json(self.root / UNFINISHED_MANIFEST, {**self._facts, "files": self._known})

    def _read(self, path: Path) -> dict[str, list[str]]:
        """The checksums that a manifest of this preparation holds; empty where there is none."""
        if not (path.exists() or path.is_symlink()):
            return {}
        content = read_json(path)
        if not isinstance(content, dict) or content.get("made_by") != self.made_by:
            raise UserError(f"{path} was not made by this command: move it away, or choose another folder")
        files = content.get("files", {})
        if not isinstance(files, dict) or not all(isinstance(sums, list) for sums in files.values()):
            raise UserError(f"{path} is damaged: delete it, then start again")
        return {name: [str(item) for item in sums] for name, sums in files.items()}


class MaskNote(NamedTuple):
    """The note in a mask file about its origin.

    Args:
        made_by: Name of the preparation.
        pixels: Checksum of the pixels.
        source: Checksum of what it was made from, or ``none``.
    """

    made_by: str
    pixels: str
    source: str


def read_note(path: Path) -> MaskNote | None:
    """The note in a mask file; None where there is no file, or none with a note."""
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG",)) as image:
                found = _NOTE_FORM.fullmatch(str(image.info.get(_NOTE, "")))
    except Exception:  # Pillow names no exceptions: damaged files give many kinds
        return None
    return MaskNote(*found.groups()) if found else None


def pixel_sum(mask: np.ndarray) -> str:
    """A checksum of a mask's size and pixels."""
    return _checksum(repr(mask.shape).encode() + np.ascontiguousarray(mask).tobytes())


def source_sum(content: bytes) -> str:
    """A checksum of what a mask is made from."""
    return _checksum(content)


def place_mask(
    root: Path, path: Path, mask: np.ndarray, *, made_by: str, source: str = "none", advice: str = ""
) -> None:
    """Put a mask into its place, unless a file with the same pixels exists, no matter where it comes from.

    Args:
        root: Folder of the data set.
        path: Where the mask belongs.
        mask: uint8 [H, W].
        made_by: Name of the preparation.
        source: :func:`source_sum` of what it was made from.
        advice: What else the error says.

    Raises:
        UserError: There is another mask, which this preparation did not make or which was edited since, or the place
            lies behind a link that leads out of the data set.
    """
    if not is_free(path):
        stored = _stored(path)
        if stored is not None and np.array_equal(stored, mask):
            return
        if not is_own(path, made_by, stored):
            raise UserError(
                f"{path} differs from the mask that belongs there and was not made by this command (or was edited "
                f"since): move or rename the folder {path.parent.name}{advice}"
            )
    check_inside(root, path.parent)
    text = PngInfo()
    text.add_text(_NOTE, f"{made_by} pixels={pixel_sum(mask)} source={source}")
    with replacing(path) as temporary:
        palette_image(mask).save(temporary, pnginfo=text)


def is_own(path: Path, made_by: str, mask: np.ndarray | None) -> bool:
    """Whether a mask file was written by a preparation and not changed since.

    Args:
        path: The file.
        made_by: Name of the preparation.
        mask: What the file holds; None where it cannot be read.
    """
    if mask is None or path.is_symlink():
        return False
    note = read_note(path)
    return note is not None and note.made_by == made_by and note.pixels == pixel_sum(mask)


def own_masks(root: Path, paths: Iterable[Path], made_by: str) -> list[Path]:
    """Those of the masks that a preparation made, that nobody changed since, and that no link leads to.

    Args:
        root: Folder of the data set.
        paths: The masks.
        made_by: Name of the preparation.
    """
    return [path for path in paths if not leads_out(root, path.parent) and is_own(path, made_by, _stored(path))]


def labels_text(labels: Mapping[str, Iterable[str]]) -> str:
    """What :func:`afa.data.labels.write_labels` writes into a JSON file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "labels.json")
        write_labels(path, labels)
        return path.read_text(encoding="utf-8")


def lines_text(lines: Iterable[str]) -> str:
    """One item per line."""
    return "".join(f"{line}\n" for line in lines)


def check_size(path: Path, mask_size: tuple[int, int], described: Callable[[], str]) -> None:
    """Compare an image file's size with that of its mask. Only the file's first bytes are read.

    Args:
        path: The image.
        mask_size: Height and width.
        described: Gives the words for what has that size, for the error.

    Raises:
        UserError: They differ, or the file is no image.
    """
    if not path.is_file():
        raise UserError(f"the image {path} is missing, or no plain file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: they are not decoded here
            with Image.open(path, formats=_IMAGE_FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"the image {path} has more pixels than Pillow opens: shrink it") from error
    except Exception as error:  # Pillow names no exceptions: damaged files give many kinds
        raise DamagedImage(f"the image {path} cannot be read: it is damaged or no image file") from error
    if (height, width) != mask_size:
        raise UserError(
            f"{described()}: {mask_size[0]} x {mask_size[1]} pixels (height x width), but the image {path} has "
            f"{height} x {width}: take images and masks from one release"
        )


def _stored(path: Path) -> np.ndarray | None:
    """The mask in a file; None where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return read_mask(path)
    except DamagedImage:
        return None


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
