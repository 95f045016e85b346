"""Folders that one stage hands to the next: label folders of ours (:mod:`afa.data.map_files`), and those of others.

Other programs' folders: PSA's and IRN's ``NAME.npy`` dictionaries, and plain masks ``NAME.png``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from afa.data.files import beside_missing, find_files, missing_files, read_json
from afa.data.images import read_mask
from afa.data.map_dictionaries import MapDictionaries
from afa.data.map_files import (
    LABEL_FACTS,
    LABEL_MANIFEST,
    LABELS_FOLDER,
    MAPS_FOLDER,
    inside,
    label_path,
    listed,
    maps_path,
    read_maps,
)
from afa.data.names import image_key, two_of_each
from afa.errors import UserError
from afa.maps import Maps

_MOST_SHOWN = 12


class MapFolder:
    """A folder of maps or labels that some stage made, opened once; what it is is found out by looking.

    Args:
        root: A label folder of ours (it holds ``label.json``), a folder of ``.npy`` dictionaries, or one of ``.png``
            masks. Of the last two, sub-folders are searched, too.

    Attributes:
        root: The folder.
        kind: Which of these it is.
        map_outputs: What it holds maps of. Other programs' folders hold one output, called as the folder.
        label_outputs: What it holds labels of.

    Raises:
        UserError: There is no such folder, it is none of these, or it could be several.
    """

    root: Path
    kind: Literal["label folder", "dictionaries", "masks"]
    map_outputs: tuple[str, ...] = ()
    label_outputs: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: Mapping[str, Path] = {}
        self._dictionaries = MapDictionaries()
        if not root.is_dir():
            raise UserError(f"the folder {root} does not exist" if not root.exists() else f"{root} is not a folder")
        if (root / LABEL_FACTS).is_file():
            self.kind = "label folder"
            self.map_outputs, self.label_outputs = _sub_folders(root / MAPS_FOLDER), _sub_folders(root / LABELS_FOLDER)
            if not self.map_outputs and not self.label_outputs:
                raise UserError(f"the label folder {root} holds neither maps nor labels: has its stage run?")
            return
        dictionaries, masks = find_files(root, (".npy",)), find_files(root, (".png",))
        if dictionaries and masks:
            raise UserError(
                f"{root} holds .npy files ({_first(dictionaries)}) and .png files ({_first(masks)}): name the folder "
                "of one kind"
            )
        if not dictionaries and not masks:
            raise UserError(f"{root} holds no {LABEL_FACTS}, no .npy and no .png file{_instead(root)}")
        self._files = _by_key(dictionaries or masks)
        name = root.resolve().name
        if dictionaries:
            self.kind, self.map_outputs = "dictionaries", (name,)
        else:
            self.kind, self.label_outputs = "masks", (name,)

    @property
    def fingerprint(self) -> str:
        """A fingerprint of the folder's content, 32 hexadecimal digits; it does not depend on the path.

        Of a label folder it is what made it, ``label.json``. Of other folders it is the names, sizes and times of
        change of the files.
        """
        digest = hashlib.blake2b(digest_size=16)
        if self.kind == "label folder":
            digest.update(json.dumps(read_json(self.root / LABEL_FACTS, "the file"), sort_keys=True).encode("ascii"))
        for name, path in sorted(self._files.items()):
            status = path.stat()
            digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode("ascii"))
        return digest.hexdigest()

    @property
    def _facts(self) -> dict[str, Any]:
        """What a label folder says of itself; nothing of others."""
        facts = read_json(self.root / LABEL_FACTS, "the file") if self.kind == "label folder" else None
        return facts if isinstance(facts, dict) else {}

    @property
    def split(self) -> str | None:
        """The list whose images a label folder is of, where it says so."""
        split = self._facts.get("split")
        return split if isinstance(split, str) else None

    def require_classes(self, class_names: Sequence[str], mend: str) -> None:
        """Refuse a label folder that was made for other classes, where it says so.

        Args:
            class_names: Of the K classes, background left out.
            mend: What to do about it, for the message.

        Raises:
            UserError: It is of other classes, or of these in another order.
        """
        theirs = self._facts.get("class_names")
        if isinstance(theirs, list) and theirs != list(class_names):
            raise UserError(
                f"{self.root} is of the classes {listed(theirs)}, the data set's are {listed(class_names)}: {mend}"
            )

    @property
    def bits(self) -> int:
        """Bits of the scores in its maps: 8 if they were written for viewing only, else 32."""
        form = self._facts.get("maps")
        return 8 if isinstance(form, dict) and form.get("bits") == 8 else 32

    @property
    def needs_class_labels(self) -> bool:
        """Whether maps cannot be read without the images' labels."""
        return self.kind == "dictionaries"

    @property
    def names(self) -> tuple[str, ...]:
        """The images that another program's folder has files of, sorted; empty for our own folders."""
        return tuple(sorted(self._files))

    def require_maps(
        self, names: Sequence[str], class_labels: Mapping[str, np.ndarray] | None = None, output: str | None = None
    ) -> None:
        """Refuse missing files before the work starts, and find out what key 0 is.

        After it, every process that this object is handed to reads dictionaries in the same way.

        Args:
            names: Of the images whose maps will be read.
            class_labels: Name -> labels [K] of 0 and 1, for dictionaries.
            output: See :meth:`read`.

        Raises:
            UserError: Files are missing; or as :meth:`read`, of the first image that has a class.
        """
        self._require("maps", names, [self.maps_file(name, output) for name in names])
        if self.needs_class_labels and class_labels is not None:
            telling = next((name for name in names if name in class_labels and class_labels[name].any()), None)
            if telling is not None:
                self.read(telling, class_labels[telling])

    def require_labels(self, names: Sequence[str], output: str | None = None) -> None:
        """Refuse missing files before the work starts.

        Raises:
            UserError: Files are missing, or there is no such output.
        """
        self._require("labels", names, [self.label_file(name, output) for name in names])

    def maps_file(self, name: str, output: str | None = None) -> Path:
        """Where an image's maps are, or would be.

        Raises:
            UserError: There is no such output, or there are several and none is named.
        """
        return self._file(name, self._output(output, self.map_outputs, "maps"), maps_path)

    def label_file(self, name: str, output: str | None = None) -> Path:
        """Where an image's label is, or would be.

        Raises:
            UserError: As :meth:`maps_file`.
        """
        return self._file(name, self._output(output, self.label_outputs, "labels"), label_path)

    def read(
        self,
        name: str,
        class_labels: np.ndarray | None = None,
        output: str | None = None,
        *,
        size: Sequence[int] | None = None,
    ) -> Maps:
        """Read an image's maps.

        Args:
            name: Of the image, as in the lists.
            class_labels: The image's labels, [K] of 0 and 1. Dictionaries cannot be read without.
            output: One of :attr:`map_outputs`; not needed where there is only one.
            size: (H, W) of the image where it is known: maps that say they are of an image of another size are refused.

        Returns:
            float32 [1, c, h, w], finite, in the size of the file: IRN's ``high_res`` where the file holds it, else its
            ``cam``. Of an image without classes it is one channel of zeros that does not count, of 1 x 1 where the
            file tells no size.

        Raises:
            UserError: The file is missing, damaged, ill-shaped, or does not fit the image's labels.
        """
        path = self.maps_file(name, output)
        if self.kind == "label folder":
            maps, stored_size = read_maps(path)
            if size is not None and stored_size != tuple(size):
                raise UserError(
                    f"the maps {path} are of an image of {stored_size[1]} x {stored_size[0]} pixels, "
                    f"'{name}' has {size[1]} x {size[0]}"
                )
            return maps
        if class_labels is None:
            raise UserError(f"{path} can only be read with the image's labels: what key 0 means depends on them")
        maps = self._dictionaries.read(path, class_labels)
        height, width = maps.size
        # IRN's maps may be smaller than their image, their sides rounded.
        if size is not None and maps.counted.any() and abs(height * size[1] - width * size[0]) > sum(size):
            raise UserError(
                f"the maps {path} have {width} x {height} positions, which is no shape of an image of {size[1]} x "
                f"{size[0]} pixels, as '{name}' is: they must be of this image"
            )
        return maps

    def read_label(self, name: str, output: str | None = None) -> np.ndarray:
        """Read an image's label.

        Args:
            name: Of the image, as in the lists.
            output: One of :attr:`label_outputs`; not needed where there is only one.

        Returns:
            uint8 [H, W], as stored: class ids, or palette indices; 255 is open.

        Raises:
            UserError: The file is missing or damaged, or holds colours.
        """
        return read_mask(self.label_file(name, output))

    def _output(self, wanted: str | None, outputs: tuple[str, ...], what: str) -> str:
        if not outputs:
            other = "masks" if self.label_outputs else "maps"
            raise UserError(f"{self.root} holds no {what}, only {other}")
        if wanted is None:
            if len(outputs) > 1:
                raise UserError(f"{self.root} holds {what} of several outputs: name one of {', '.join(outputs)}")
            return outputs[0]
        if wanted not in outputs:
            raise UserError(f"{self.root} holds no {what} of '{wanted}', only of {', '.join(outputs)}")
        return wanted

    def _file(self, name: str, output: str, own: Callable[[Path, str, str], Path]) -> Path:
        if self.kind == "label folder":
            return own(self.root, output, name)
        suffix = ".npy" if self.kind == "dictionaries" else ".png"
        return self._files.get(name) or self._files.get(image_key(name)) or self.root / f"{inside(name)}{suffix}"

    def _require(self, what: str, names: Sequence[str], paths: list[Path]) -> None:
        missing = missing_files(paths)
        if not missing:
            return
        hint = ""
        if self.kind == "label folder" and not (self.root / LABEL_MANIFEST).is_file():
            hint = ": its stage has not finished, start it again"
        elif self._files:
            wanted, lost = set(names), set(missing)
            others = (name for name in self.names if name not in wanted)
            hint = two_of_each((name for name, path in zip(names, paths, strict=True) if path in lost), others)
        else:
            hint = beside_missing(missing, paths)
        raise UserError(f"{len(missing)} of the {len(names)} {what} are missing, the first is {missing[0]}{hint}")


def _sub_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _first(found: Mapping[str, Path]) -> Path:
    return found[min(found)]


def _instead(root: Path) -> str:
    """What to say of a folder that is of no known kind."""
    if any((parent / LABEL_FACTS).is_file() for parent in root.resolve().parents[:2]):
        return f": name the folder that holds {LABEL_FACTS}"
    suffixes = sorted({path.suffix for path in root.iterdir() if path.is_file() and path.suffix})
    return f", only {' '.join(suffixes[:_MOST_SHOWN])}" if suffixes else ""


def _by_key(found: Mapping[str, Path]) -> dict[str, Path]:
    """The files by the image's name: ``a.jpg.npy`` belongs to the image ``a``, too."""
    files: dict[str, Path] = {}
    for name, path in found.items():
        key = image_key(name[: -len(".npy")] if name.lower().endswith(".npy") else name)
        if key in files:
            raise UserError(f"{path} and {files[key]} both belong to the image '{key}': take one away")
        files[key] = path
    return files
