"""The true masks that results are scored with: of a configured data set, or of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afa.data.classes import read_class_names
from afa.data.files import beside_missing, find_files, missing_files
from afa.data.images import read_mask
from afa.data.labels import IGNORE, classes_in_mask, one_hot, read_labels
from afa.data.layout import Layout, find_layout
from afa.data.names import two_of_each
from afa.errors import UserError

if TYPE_CHECKING:
    from afa.config import DatasetConfig


@dataclass(frozen=True)
class TrueMasks:
    """Images with true masks.

    Attributes:
        names: Of the images.
        class_names: K names, without the background.
        where: What the truth is, for people.
        paths: Name -> its mask.
        ignore_index: Mask value of ignored pixels.
        labels_file: File of image-level labels; None: the masks tell.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    where: str
    paths: Mapping[str, Path]
    ignore_index: int = IGNORE
    labels_file: Path | None = None

    @classmethod
    def of_split(cls, config: DatasetConfig, split: str | None = None, list_file: Path | None = None) -> TrueMasks:
        """The masks of a configured data set.

        Args:
            config: The data set.
            split: Name of the list; default: the validation list.
            list_file: List of images to take in place of the split's.

        Raises:
            UserError: The data set, the list or a mask is missing.
        """
        layout = find_layout(config)
        split = split or config.val_split
        names = layout.names(split) if list_file is None else read_list(list_file)
        paths = {name: layout.mask(name, split) for name in names}
        _require(paths)
        return cls(
            names=tuple(names),
            class_names=layout.class_names,
            where=f"'{list_file or split}' of {layout.root}",
            paths=paths,
            ignore_index=config.ignore_index,
            labels_file=layout.labels,
        )

    @classmethod
    def of_folder(cls, folder: Path, classes: Path, list_file: Path | None = None) -> TrueMasks:
        """The masks of a folder, in which 255 is ignored.

        Args:
            folder: It holds NAME.png; sub-folders are searched, too.
            classes: File with one class name per line, without the background.
            list_file: List of the images to take; default: all masks of the folder.

        Raises:
            UserError: The folder, a file or a mask is missing.
        """
        if not folder.is_dir():
            raise UserError(f"the folder of true masks {folder} does not exist")
        found = find_files(folder, (".png",))
        names = sorted(found) if list_file is None else read_list(list_file)
        if not names:
            raise UserError(f"the folder of true masks {folder} holds no .png file")
        paths = {name: found.get(name, folder / f"{name}.png") for name in names}
        _require(paths)
        where = str(folder) if list_file is None else f"'{list_file}' of {folder}"
        return cls(names=tuple(names), class_names=read_class_names(classes), where=where, paths=paths)

    def read(self, name: str) -> np.ndarray:
        """The true label of an image.

        Returns:
            uint8 [H, W]: 0 background, 1 to K, 255 ignored, whatever the file's own value for it is.

        Raises:
            UserError: The mask is damaged, or holds a value that is no class.
        """
        mask = read_mask(self.paths[name])
        classes_in_mask(mask, len(self.class_names), self.ignore_index, path=self.paths[name])
        return mask if self.ignore_index == IGNORE else np.where(mask == self.ignore_index, np.uint8(IGNORE), mask)

    def class_labels(self, file: Path | None = None) -> dict[str, np.ndarray]:
        """Image-level labels: of a file, else of the data set's labels file, else of the masks.

        Args:
            file: As :func:`afa.data.labels.read_labels` reads it.

        Returns:
            Name -> float32 [K] of 0 and 1, for every image.

        Raises:
            UserError: The file has no labels for an image, or a mask is damaged.
        """
        file = file or self.labels_file
        if file is None:
            num_classes = len(self.class_names)
            return {
                name: one_hot(classes_in_mask(self.read(name), num_classes, path=self.paths[name]), num_classes)
                for name in self.names
            }
        labels = read_labels(file, self.class_names)
        missing = [name for name in self.names if name not in labels]
        if missing:
            wanted = set(self.names)
            raise UserError(
                f"the labels file {file} has no labels for {len(missing)} of the {len(self.names)} images, the first "
                f"is '{missing[0]}'{two_of_each(missing, (name for name in labels if name not in wanted))}"
            )
        return {name: labels[name] for name in self.names}


def read_list(path: Path) -> list[str]:
    """The image names of a list, in its order.

    Raises:
        UserError: It is missing, no ``.txt`` file, empty, or names an image twice.
    """
    if path.suffix != ".txt" or not path.is_file():
        raise UserError(f"the list {path} is {'missing' if path.suffix == '.txt' else 'not a .txt file'}")
    folder = path.parent
    layout = Layout(type="folder", root=folder, images=folder, masks=folder, lists=folder, labels=None, class_names=())
    return layout.names(path.stem)


def _require(paths: Mapping[str, Path]) -> None:
    missing = missing_files(paths.values())
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} true masks are missing, the first is {missing[0]}"
            f"{beside_missing(missing, paths.values())}"
        )
