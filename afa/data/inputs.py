"""What earlier stages or other programs made for the images of a list: pixel labels, maps, saliency."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from afa.data.files import beside_missing, missing_files
from afa.data.images import DamagedImage
from afa.data.labels import classes_in_mask
from afa.data.map_files import LABEL_FACTS
from afa.data.map_folders import MapFolder
from afa.data.saliency import read_saliency
from afa.errors import UserError
from afa.maps import IGNORE

if TYPE_CHECKING:
    from afa.config import DatasetConfig

CLASS_LABELS, PIXEL_LABELS, SALIENCY, MAPS = "class_labels", "pixel_labels", "saliency", "maps"


class Inputs:
    """The requested inputs of the images of a list.

    Args:
        config: Names the folders.
        wanted: ``pixel_labels``, ``saliency``, ``maps/OUTPUT``, or ``maps`` for a folder that holds one output.
            ``class_labels`` are no concern of this class.
        class_names: Of the K classes, without the background.

    Raises:
        UserError: A folder is not named or not there, holds no such output, or is of other classes.
    """

    def __init__(self, config: DatasetConfig, wanted: Sequence[str], class_names: Sequence[str]) -> None:
        self._ignore_index, self._num_classes = config.ignore_index, len(class_names)
        self._max_pixels = config.max_pixels
        self._labels: MapFolder | None = None
        self._saliency: Path | None = None
        self._maps: dict[str, tuple[MapFolder, str | None]] = {}
        for name in wanted:
            kind, output = setting_of(name), name.partition("/")[2]
            if kind == PIXEL_LABELS:
                self._labels = MapFolder(_folder(config.pixel_labels, PIXEL_LABELS))
            elif kind == SALIENCY:
                self._saliency = _folder(config.saliency, SALIENCY)
            elif kind == MAPS:
                self._maps[name] = opened = _open_maps(_folder(config.maps, MAPS), output)
                if opened[0].bits < 32:
                    raise UserError(
                        f"the maps in {opened[0].root} have {opened[0].bits} bits, which are for viewing "
                        "only: dataset.maps needs maps for thresholds; write them again without --maps-bits 8"
                    )
            elif kind != CLASS_LABELS:
                raise ValueError(f"there is no input '{name}'")
        for kind, folder in [(PIXEL_LABELS, self._labels), *((MAPS, folder) for folder, _ in self._maps.values())]:
            if folder is not None:
                folder.require_classes(class_names, f"name the folder of this data set as dataset.{kind}")

    def require(self, names: Sequence[str], split: str | None, class_labels: Mapping[str, Any]) -> None:
        """Refuse a folder that lacks files before a run spends hours.

        Args:
            names: Of the images.
            split: Their list, for messages; None: they are of no list.
            class_labels: Those that are known.

        Raises:
            UserError: Names how many are missing, and the first.
        """
        if self._labels is not None:
            self._labels.require_labels(names)
        if self._saliency is not None:
            of = "" if split is None else f" of '{split}'"
            paths = [self._saliency / f"{name}.png" for name in names]
            missing = missing_files(paths)
            if missing:
                raise UserError(
                    f"{len(missing)} of the {len(names)} images{of} have no saliency map, the first missing "
                    f"is {missing[0]}{beside_missing(missing, paths)}: put it there, "
                    "or name another folder as dataset.saliency"
                )
        for folder, output in self._maps.values():
            folder.require_maps(names, class_labels, output)

    def read(self, name: str, size: tuple[int, int], class_labels: np.ndarray | None) -> dict[str, Any]:
        """What belongs to an image.

        Args:
            name: Of the image.
            size: Its (H, W).
            class_labels: Its image-level labels [K], which folders of other programs are held against.

        Returns:
            By the names that were asked for: pixel labels and saliency uint8 [H, W], maps [1, c, h, w].

        Raises:
            UserError: A file cannot be read, or does not fit the image or the classes.
        """
        found: dict[str, Any] = {}
        if self._labels is not None:
            label = self._pixel_labels(name)
            _require_size(label, size, f"the pixel label of '{name}' in {self._labels.root}")
            found[PIXEL_LABELS] = label
        if self._saliency is not None:
            path = self._saliency / f"{name}.png"
            found[SALIENCY] = read_saliency(path, max_pixels=self._max_pixels)
            _require_size(found[SALIENCY], size, f"the saliency map {path}")
        for key, (folder, output) in self._maps.items():
            found[key] = maps = folder.read(name, class_labels, output, size=size)
            if int(maps.class_ids.max()) > self._num_classes:
                raise DamagedImage(
                    f"the maps {folder.maps_file(name, output)} are of the class {int(maps.class_ids.max())}, but the "
                    f"data set has {self._num_classes}: name the folder of this data set as dataset.maps"
                )
        return found

    @property
    def facts(self) -> Mapping[str, str]:
        """Input -> fingerprint of the folder that it is read from."""
        facts = {key: folder.fingerprint for key, (folder, _) in self._maps.items()}
        if self._labels is not None:
            facts[PIXEL_LABELS] = self._labels.fingerprint
        if self._saliency is not None:
            facts[SALIENCY] = _fingerprint(self._saliency)
        return facts

    def _pixel_labels(self, name: str) -> np.ndarray:
        assert self._labels is not None
        mask = self._labels.read_label(name)
        classes_in_mask(mask, self._num_classes, self._ignore_index, path=self._labels.root / f"{name}.png")
        if self._ignore_index != IGNORE:
            mask = np.where(mask == self._ignore_index, np.uint8(IGNORE), mask)
        return mask


def setting_of(name: str) -> str:
    """The setting that names the folder of an input; for ``maps/cam`` it is ``maps``."""
    return name.partition("/")[0]


def is_named(config: DatasetConfig, name: str) -> bool:
    """Whether the settings name the folder of an input; class labels have none."""
    return name != CLASS_LABELS and getattr(config, setting_of(name)) is not None


def _open_maps(root: Path, output: str) -> tuple[MapFolder, str | None]:
    """A folder of maps and the output in it; other programs keep a folder for each output."""
    if output and not (root / LABEL_FACTS).is_file() and (root / output).is_dir():
        return MapFolder(root / output), None
    return MapFolder(root), output or None


def _require_size(values: np.ndarray, size: tuple[int, int], what: str) -> None:
    if values.shape != size:
        raise DamagedImage(
            f"{what} has {values.shape[1]} x {values.shape[0]} pixels, its image {size[1]} x {size[0]}: the files must "
            "have their images' size"
        )


def _folder(setting: str | None, kind: str) -> Path:
    if setting is None:
        raise UserError(f"dataset.{kind} is not set: name the folder that an earlier stage, or you, have made")
    folder = Path(setting)
    if not folder.is_dir():
        raise UserError(f"dataset.{kind}: there is no folder {folder}")
    return folder


def _fingerprint(folder: Path) -> str:
    """Changes with the names and sizes of a folder's files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.png")):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()
