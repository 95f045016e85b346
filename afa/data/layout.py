"""Where the files of a data set lie, for the layouts voc, coco and folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from afa.data.classes import CLASS_NAMES_FILE, COCO_CLASS_NAMES, VOC_CLASS_NAMES, read_class_names
from afa.data.files import find_files
from afa.data.images import IMAGE_SUFFIXES
from afa.data.labels import LABEL_FILES
from afa.data.names import image_key
from afa.errors import UserError

if TYPE_CHECKING:
    from afa.config import DatasetConfig

LISTS = "ImageSets/Segmentation"
_KNOWN_NAMES = {"voc": VOC_CLASS_NAMES, "coco": COCO_CLASS_NAMES}
HOW_TO_PREPARE = {
    "voc": "tools/prepare_voc.py builds it",
    "coco": "tools/prepare_coco.py builds it",
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
        class_names: K names, background left out.
        by_split: Images and masks lie in one sub-folder per split (COCO).
        found: For own folders, whose images may have any suffix: image name -> path.
    """

    type: str
    root: Path
    images: Path
    masks: Path
    lists: Path
    labels: Path | None
    class_names: tuple[str, ...]
    by_split: bool = False
    found: Mapping[str, Path] | None = None

    @property
    def num_classes(self) -> int:
        """Number of foreground classes K."""
        return len(self.class_names)

    def image(self, name: str, split: str) -> Path:
        """The image of a name in the lists."""
        if self.found is not None:
            return self.found.get(name, self.images / f"{name}.jpg")
        return self.images / self._sub_folder(split) / f"{name}.jpg"

    def mask(self, name: str, split: str) -> Path:
        """The mask of a name in the lists."""
        return self.masks / self._sub_folder(split) / f"{name}.png"

    def split_masks(self, split: str) -> Path:
        """The folder in which a split's masks lie."""
        return self.masks / self._sub_folder(split)

    def has_masks(self, split: str) -> bool:
        """Whether there are masks for a split; own data may do without, and is then not scored.

        Raises:
            UserError: As :meth:`names`, for own folders, whose splits may share a folder of masks.
        """
        if not self.split_masks(split).is_dir():
            return False
        return self.found is None or any(self.mask(name, split).is_file() for name in self.names(split))

    def list_file(self, split: str) -> Path:
        """The list of a split."""
        return self.lists / f"{split}.txt"

    def names(self, split: str) -> list[str]:
        """The image names of a split, in the order of its list.

        An own folder without a list takes the images below ``images/SPLIT``, sorted.

        Raises:
            UserError: There is neither a list nor such a folder, or it is empty, or names an image twice.
        """
        path = self.list_file(split)
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise UserError(f"the list {path} is no text in UTF-8: write one image name per line") from error
            names = [image_key(line) for line in lines if line.strip()]
        elif self.found is not None and any(name.startswith(f"{split}/") for name in self.found):
            names = sorted(name for name in self.found if name.startswith(f"{split}/"))
        else:
            raise UserError(f"the list {path} of the split '{split}' is missing: {HOW_TO_PREPARE[self.type]}")
        if not names:
            raise UserError(f"the list {path} is empty: write one image name per line")
        if len(set(names)) != len(names):
            seen: set[str] = set()
            twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise UserError(f"the list {path} names the image '{twice}' twice")
        return names

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
        UserError: The root, its image folder, or the class names of an own folder are missing.
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
    return Layout(
        type=config.type,
        root=root,
        images=images,
        masks=_mask_folder(config, root),
        lists=lists,
        labels=_label_file(config, root, lists),
        class_names=find_class_names(config),
        by_split=config.type == "coco",
        found=find_files(images, IMAGE_SUFFIXES) if config.type == "folder" else None,
    )


def find_class_names(config: DatasetConfig) -> tuple[str, ...]:
    """The class names of a configured data set: its setting, else ``ROOT/classes.txt``, else the known ones.

    Raises:
        UserError: There is no such file, or an own folder has none.
    """
    root = Path(config.root)
    if config.class_names is not None:
        return read_class_names(_below(root, config.class_names))
    if (root / CLASS_NAMES_FILE).is_file():
        return read_class_names(root / CLASS_NAMES_FILE)
    if config.type not in _KNOWN_NAMES:
        raise UserError(f"{root / CLASS_NAMES_FILE} is missing: write one class name per line, background left out")
    return _KNOWN_NAMES[config.type]


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


def _label_file(config: DatasetConfig, root: Path, lists: Path) -> Path | None:
    if config.labels is not None:
        path = _below(root, config.labels)
        if not path.is_file():
            raise UserError(f"the labels file {path} (dataset.labels) is missing: tools/make_labels.py makes one")
        return path
    candidates = [folder / name for folder in (root, lists) for name in LABEL_FILES]
    return next((path for path in candidates if path.is_file()), None)
