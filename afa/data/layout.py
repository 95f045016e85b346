"""The folders of the files of a data set, for the layouts voc, coco and folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afa.data.class_folders import class_names_of, class_of, folders_of_split, known_classes, refuse_twins
from afa.data.classes import CLASS_NAMES_FILE, COCO_CLASS_NAMES, VOC_CLASS_NAMES, read_class_names
from afa.data.files import FilesBelow, files_below, missing_files
from afa.data.labels import LABEL_FILES, one_hot, read_labels
from afa.data.lists import read_list
from afa.data.names import IMAGE_SUFFIXES, MASK_SUFFIXES, passed_over
from afa.data.palette import MaskPalette, read_palette
from afa.errors import UserError

if TYPE_CHECKING:
    from afa.config import DatasetConfig

LISTS = "ImageSets/Segmentation"
_KNOWN_NAMES = {"voc": VOC_CLASS_NAMES, "coco": COCO_CLASS_NAMES}
HOW_TO_PREPARE = {
    "voc": "'afa prepare voc' builds that of VOC, 'afa prepare shapes' the built-in one",
    "coco": "'afa prepare coco' builds it",
    "folder": "docs/data.md shows the layout",
}


@dataclass(frozen=True)
class Layout:
    """The places of a data set's files.

    Args:
        type: ``voc``, ``coco`` or ``folder``.
        root: Folder of the data set.
        images: Folder of the images.
        masks: Folder of the masks.
        lists: Folder of the lists ``SPLIT.txt``.
        labels: File with the image-level labels; None where there is none.
        class_names: K names, without the background.
        by_split: Images and masks lie in one sub-folder per split (COCO).
        palette: For masks that are colour images: which colour is which class.
        train_split: Name of the training list.
        class_folders: Training images lie in a folder per class, and nothing else tells their classes: image name ->
            name of its folder. None: the labels file or masks tell them.
        notes: What the user should know of the files that were found so far.

    An image or mask of a name may have any suffix that is read, and spell the name in its own way, see
    :func:`afa.data.names.image_key`.
    """

    type: str
    root: Path
    images: Path
    masks: Path
    lists: Path
    labels: Path | None
    class_names: tuple[str, ...]
    by_split: bool = False
    palette: MaskPalette | None = None
    train_split: str = ""
    class_folders: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list, compare=False, repr=False)
    _files: dict[Path, FilesBelow] = field(default_factory=dict, compare=False, repr=False)
    _names: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of foreground classes K."""
        return len(self.class_names)

    @property
    def images_below(self) -> FilesBelow:
        """The images, of all splits."""
        return self._below(self.images, IMAGE_SUFFIXES)

    def is_listed(self, split: str) -> bool:
        """Whether a list names a split's images; else, in an own folder, they are those below ``images/SPLIT``."""
        return self.list_file(split).exists()

    @property
    def class_folders_parent(self) -> Path:
        """The folder of the class folders."""
        return self.images if self.is_listed(self.train_split) else self.images / self.train_split

    def classes_of_folders(self, split: str, names: Sequence[str]) -> dict[str, str] | None:
        """The class of each image by its folder, if nothing else gives the class; None if folders do not give it.

        Args:
            split: Name of the list. Of training images the folders count, of others only where they have no masks.
            names: Of its images.

        Raises:
            UserError: A training image lies in two class folders. Or some images of another split lie in folders of
                classes, others do not.
        """
        if self.class_folders is None:
            return None
        if split == self.train_split:
            classes = known_classes({name: self.class_folders[name] for name in names}, self.class_names)
            refuse_twins(classes, self.images_below)
            return classes
        if self.has_masks(split):
            return None
        where = None if self.is_listed(split) else split
        folders = {name: folder for name in names if (folder := class_of(name, where)) is not None}
        classes = known_classes(folders, self.class_names)
        without = [name for name in names if name not in classes]
        if classes and without:
            raise UserError(
                f"{self.image(without[0], split)} is in no class folder, unlike other images of '{split}': the "
                f"classes are the folders in {self.class_folders_parent}"
            )
        return classes or None

    def told_labels(self, split: str, names: Sequence[str]) -> Mapping[str, np.ndarray] | None:
        """The given image-level labels: in a labels file, or by folders with the names of the classes.

        Args:
            split: Name of the list.
            names: Its image names.

        Returns:
            Image name -> float32 [K]; a labels file may lack some, and hold others. None where nobody gave any.

        Raises:
            UserError: The file is not as it should be, or see :meth:`classes_of_folders`.
        """
        if self.labels is not None:
            return read_labels(self.labels, self.class_names)
        classes = self.classes_of_folders(split, names)
        if classes is None:
            return None
        ids = {name: number for number, name in enumerate(self.class_names, 1)}
        return {name: one_hot([ids[class_name]], self.num_classes) for name, class_name in classes.items()}

    def image(self, name: str, split: str) -> Path:
        """The image of a name in the lists; where it would be, if there is none.

        Raises:
            UserError: Two files have the name.
        """
        folder = self.images / self._sub_folder(split)
        return self._below(folder, IMAGE_SUFFIXES).path(name) or folder / f"{name}.jpg"

    def mask(self, name: str, split: str) -> Path:
        """The mask of a name in the lists; where it would be, if there is none.

        Raises:
            UserError: Two files have the name.
        """
        folder = self.split_masks(split)
        return self._below(folder, MASK_SUFFIXES).path(name) or folder / f"{name}.png"

    def split_masks(self, split: str) -> Path:
        """The folder of a split's masks."""
        return self.masks / self._sub_folder(split)

    def names_with_mask(self, names: Sequence[str], split: str) -> set[str]:
        """Those of a split's names that have a true mask."""
        masks = {name: self.mask(name, split) for name in names} if self.has_masks(split) else {}
        lost = set(missing_files(masks.values()))
        return {name for name, path in masks.items() if path not in lost}

    def has_masks(self, split: str) -> bool:
        """Whether there are masks for a split; own data may have none, and is then not scored.

        Raises:
            UserError: As :meth:`names`, for own folders, whose splits may share a folder of masks.
        """
        folder = self.split_masks(split)
        if self.type != "folder" or not folder.is_dir():
            return folder.is_dir()
        found = self._below(folder, MASK_SUFFIXES).found
        return any(name in found for name in self.names(split))

    def passed_over(self) -> str | None:
        """What to say of an own folder's images that are of a kind that is not read; None where there are none."""
        return passed_over(self._below(self.images, IMAGE_SUFFIXES).others) if self.type == "folder" else None

    def list_file(self, split: str) -> Path:
        """The list of a split."""
        return self.lists / f"{split}.txt"

    def names(self, split: str) -> list[str]:
        """The image names of a split, in the order of its list.

        An own folder without a list takes the images below ``images/SPLIT``, sorted.

        Raises:
            UserError: There is neither a list nor such a folder, or it is empty, names an image twice, or holds
                something else than :func:`afa.data.lists.read_list` reads.
        """
        if split not in self._names:
            self._names[split] = self._find_names(split)
        return list(self._names[split])

    def _find_names(self, split: str) -> list[str]:
        path, sub = self.list_file(split), self._sub_folder(split)
        images = self._below(self.images / sub, IMAGE_SUFFIXES)
        if path.exists():
            folders = (self.images.name, sub, f"{sub}2014") if self.by_split else (self.images.name,)
            return read_list(path, images=images, folders=folders, masks=self.masks.name, note=self.notes.append)
        names = sorted(name for name in images.found if name.startswith(f"{split}/")) if self.type == "folder" else []
        if not names:
            there = self._splits()
            if there:
                lack = f"the list {path} is missing"
                if self.type == "folder":
                    lack = f"{self.images / split} holds no images, and {lack}"
                raise UserError(f"there is no split '{split}': {lack}; there are: {', '.join(there)}")
            raise UserError(f"the list {path} of the split '{split}' is missing: {HOW_TO_PREPARE[self.type]}")
        return names

    def _splits(self) -> list[str]:
        """The splits that there are."""
        found = {path.stem for path in self.lists.glob("*.txt") if path.name not in (CLASS_NAMES_FILE, *LABEL_FILES)}
        if self.type == "folder":
            names = self._below(self.images, IMAGE_SUFFIXES).found
            found |= {name.split("/", 1)[0] for name in names if "/" in name}
        return sorted(found)

    def _below(self, folder: Path, suffixes: Sequence[str]) -> FilesBelow:
        """The files of a folder; it is searched once."""
        if folder not in self._files:
            self._files[folder] = files_below(folder, suffixes)
            if self.type == "folder":
                self._files[folder].checked()
        return self._files[folder]

    def _sub_folder(self, split: str) -> str:
        # "train_1250" and "val2014" are parts of the folders "train" and "val".
        return re.split(r"[\d_]", split, maxsplit=1)[0] if self.by_split else ""


def find_layout(config: DatasetConfig) -> Layout:
    """Find the files of a configured data set.

    Args:
        config: The ``dataset`` part of a configuration.

    Returns:
        Its layout.

    Raises:
        UserError: The root, its image folder, or the class names of an own folder are missing; two images of an own
            folder have one name; or ``ignore_index`` is a class.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(
            f"the data set folder {root} does not exist: {_how(config)}, or set dataset.root to where it is"
        )
    images = root / ("images" if config.type == "folder" else "JPEGImages")
    if not images.is_dir():
        raise UserError(f"the image folder {images} does not exist: {_how(config)}")
    lists = root if config.type == "folder" else root / LISTS
    if config.name_list_dir is not None:
        lists = _below(root, config.name_list_dir)
    labels, others = _label_files(config, root, lists)
    layout = Layout(
        type=config.type,
        root=root,
        images=images,
        masks=_mask_folder(config, root),
        lists=lists,
        labels=labels,
        class_names=_named_classes(config) or (),
        by_split=config.type == "coco",
        train_split=config.train_split,
        _files={images: files_below(images, IMAGE_SUFFIXES).checked()} if config.type == "folder" else {},
    )
    if config.type == "folder":
        layout = _with_class_folders(layout)
    class_names = layout.class_names
    if 1 <= config.ignore_index <= len(class_names):
        raise UserError(
            f"dataset.ignore_index={config.ignore_index} is the id of the class "
            f"'{class_names[config.ignore_index - 1]}': take a value above {len(class_names)}, or 0"
        )
    if config.mask_palette is not None:
        palette = read_palette(_below(root, config.mask_palette), class_names, config.ignore_index)
        layout = dataclasses.replace(layout, palette=palette)
    if others:
        unread = ", ".join(map(str, others))
        layout.notes.append(
            f"there are several labels files: {labels} is taken, {unread} is not (dataset.labels names another)"
        )
    return layout


def find_class_names(config: DatasetConfig) -> tuple[str, ...]:
    """The class names of a data set: its setting's, else ``ROOT/classes.txt``, else known ones, else class folders'.

    Raises:
        UserError: There is no such file, or an own folder has none of these.
    """
    return _named_classes(config) or find_layout(config).class_names


def _named_classes(config: DatasetConfig) -> tuple[str, ...] | None:
    """The class names that a file or the kind of the data set tells; None where neither does."""
    root = Path(config.root)
    if config.class_names is not None:
        return read_class_names(_below(root, config.class_names))
    if (root / CLASS_NAMES_FILE).is_file():
        return read_class_names(root / CLASS_NAMES_FILE)
    return _KNOWN_NAMES.get(config.type)


def _with_class_folders(layout: Layout) -> Layout:
    """The layout of an own folder with the classes that its class folders tell, where nothing else tells them.

    Raises:
        UserError: There are no class names, and class folders do not give them: there are none, or it is uncertain what
            they mean.
    """
    split, named = layout.train_split, bool(layout.class_names)
    needed = UserError(
        f"{layout.root / CLASS_NAMES_FILE} is missing: write one class name per line, without the background; or, "
        "without such a file, "
        f"put the training images into one folder per class: {layout.images / split / 'CLASS' / '1.jpg'}"
    )
    if layout.labels is not None:
        if named:
            return layout
        raise UserError(
            f"{layout.root / CLASS_NAMES_FILE} is missing, and {layout.labels} is there: write the class names, "
            "one per line, without the background; or, if the folders should give the classes, remove the labels file"
        )
    try:
        names = layout.names(split)
    except UserError as error:
        if named:
            return layout  # reported by whoever wants the split
        raise (error if layout.is_listed(split) else needed) from None
    if named and layout.has_masks(split):
        return layout
    files, listed = layout.images_below, layout.is_listed(split)
    if named:  # Other folders than those of classes are allowed, but tell nothing.
        own = {name: folder for name in names if (folder := class_of(name, None if listed else split)) is not None}
        known = len(known_classes(own, layout.class_names)) == len(names)
        return dataclasses.replace(layout, class_folders=own) if known else layout
    folders = folders_of_split(files, names, split, listed=listed)
    if folders is None:
        raise needed
    class_names = class_names_of(folders, layout.class_folders_parent)
    classes = {name: class_names[folder] for name, folder in folders.items()}
    return dataclasses.replace(layout, class_names=tuple(class_names.values()), class_folders=classes)


def _how(config: DatasetConfig) -> str:
    return HOW_TO_PREPARE[config.type]


def _below(root: Path, setting: str) -> Path:
    """A path of the settings: below the root, or as it is where there is nothing of that name."""
    path = Path(setting)
    return path if path.exists() and not (root / path).exists() else root / path


def _mask_folder(config: DatasetConfig, root: Path) -> Path:
    if config.mask_dir is not None:
        return _below(root, config.mask_dir)
    if config.type == "folder":
        return root / "masks"
    augmented = root / "SegmentationClassAug"
    return augmented if config.type == "voc" and augmented.is_dir() else root / "SegmentationClass"


def _label_files(config: DatasetConfig, root: Path, lists: Path) -> tuple[Path | None, list[Path]]:
    """The labels file, None where there is none, and those that are not taken."""
    if config.labels is not None:
        path = _below(root, config.labels)
        if not path.exists():
            raise UserError(f"the labels file {path} (dataset.labels) is missing: 'afa prepare labels' makes one")
        return path, []
    found = [folder / name for folder in dict.fromkeys((root, lists)) for name in LABEL_FILES]
    found = [path for path in found if path.exists()]
    return (found[0], found[1:]) if found else (None, [])
