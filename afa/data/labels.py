"""Image-level labels: which classes an image shows, as text, CSV, JSON or the released program's ``.npy``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afa.config.settings import IGNORE
from afa.data.classes import class_key, is_no_class
from afa.data.files import read_json, read_text, write_text
from afa.data.images import DamagedImage
from afa.data.names import image_key
from afa.data.pickles import read_pickled
from afa.errors import UserError

LABEL_FILES = ("class_labels.json", "class_labels.csv", "class_labels.txt", "cls_labels_onehot.npy")
_WHAT = "the labels file"
_HOW = "see docs/data.md, or make it with 'afa prepare labels'"
_SEPARATOR = ";"  # between the classes of one cell of a CSV file


def read_labels(path: Path, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read image-level labels.

    - ``.txt``: ``name class class ...`` per line, blanks in class names written as ``_``.
    - ``.csv``: first line ``image,CLASS,CLASS,...`` and 0 or 1 in each cell, or ``image,labels`` and the classes
      separated by ``;`` (or in further cells).
    - ``.json``: ``{"name": ["class", ...], ...}``.
    - ``.npy``: the released program's pickled dictionary of one-hot vectors; nothing in it is executed.

    A class is its name or its id, counted from 1; where class names are themselves numbers, only its name. An image is
    its name in the lists, see :func:`afa.data.names.image_key`.

    Args:
        path: File with one of the suffixes above.
        class_names: K names, without the background.

    Returns:
        Image name -> float32 [K] of 0 and 1.

    Raises:
        UserError: The file is missing, malformed, labels an image twice or names an unknown class.
    """
    if not path.exists():
        raise UserError(f"{_WHAT} {path} is missing: {_HOW}")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        rows = _read_released(path, len(class_names))
    elif suffix in _READERS:
        class_ids = _ClassIds(class_names)
        rows = ((place, name, one_hot(ids, len(class_names))) for place, name, ids in _READERS[suffix](path, class_ids))
    else:
        raise UserError(f"{path}: labels are read from .txt, .csv, .json or .npy files")
    labels: dict[str, np.ndarray] = {}
    spellings: dict[str, tuple[str, str]] = {}
    for place, name, vector in rows:
        key = image_key(name)
        if key in labels:
            first, where = spellings[key]
            how = f"twice, first in {where}" if first == name else f"twice, as '{first}' ({where}) and as '{name}'"
            raise UserError(f"{place}: the image '{key}' is labelled {how}: leave one of the two out")
        labels[key], spellings[key] = vector, (name, place)
    return labels


def write_labels(path: Path, labels: Mapping[str, Iterable[str]]) -> None:
    """Write labels as JSON or CSV (by the suffix), atomically, one image per line.

    Args:
        path: ``.json`` or ``.csv`` file.
        labels: Image name -> class names.

    Raises:
        UserError: CSV cannot hold a name; JSON can.
    """
    if path.suffix.lower() == ".csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["image", "labels"])
        for name, classes in labels.items():
            listed = list(classes)
            odd = [item for item in listed if _SEPARATOR in item or item != item.strip()]
            if odd:
                raise UserError(f"{path}: a cell of CSV cannot hold the class '{odd[0]}': write a .json file")
            writer.writerow([name, _SEPARATOR.join(listed)])
        write_text(path, buffer.getvalue())
        return
    lines = (
        f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(list(classes), ensure_ascii=False)}"
        for name, classes in labels.items()
    )
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n", surrogates="backslashreplace")


def one_hot(class_ids: Iterable[int], num_classes: int) -> np.ndarray:
    """Class ids, counted from 1, to a float32 vector [K] of 0 and 1.

    Raises:
        UserError: An id is no whole number from 1 to K.
    """
    vector = np.zeros(num_classes, np.float32)
    for class_id in class_ids:
        if not is_class_id(class_id, num_classes):
            raise UserError(f"{class_id!r} is no class id: ids are whole numbers from 1 to {num_classes}")
        vector[class_id - 1] = 1
    return vector


def is_class_id(value: object, num_classes: int) -> bool:
    """Whether a value that came from somewhere is a whole number from 1 to K."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 1 <= int(value) <= num_classes


def quoted(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: the first ones, and how many there are."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def classes_in_mask(mask: np.ndarray, num_classes: int, ignore_index: int = IGNORE, *, path: Path) -> list[int]:
    """The ids of the classes in a mask, ascending; background and ignored pixels do not count.

    Args:
        mask: uint8 [H, W].
        num_classes: K.
        ignore_index: Value of ignored pixels.
        path: Where the mask comes from, for the error.

    Raises:
        DamagedImage: The mask holds a value above K that is not ``ignore_index``.
    """
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    classes = [int(value) for value in values if value != 0 and value != ignore_index]
    if classes and classes[-1] > num_classes:
        raise DamagedImage(
            f"the mask {path}: the value {classes[-1]} is no class: there are {num_classes}, and {ignore_index} means "
            "ignore"
        )
    return classes


class _ClassIds:
    """Class names and ids, as label files have them, to ids.

    Args:
        class_names: K names, without the background.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._ids = {class_key(name): number for number, name in enumerate(class_names, 1)}
        # A class that is called "3" and has the id 4: who writes 3 means the name.
        self._names_only = any(key.isdecimal() for key in self._ids)

    def find(self, item: Any, place: str) -> int:
        """The id of a class.

        Raises:
            UserError: There is no such class.
        """
        key, highest = class_key(str(item)), len(self._ids)
        if key in self._ids and not (self._names_only and not isinstance(item, str)):
            return self._ids[key]
        if is_no_class(key) or (key == "0" and not self._names_only):
            raise UserError(
                f"{place}: '{item}' is no class: leave it out, also where an image has no other (classes are names, or "
                f"ids from 1 to {highest})"
            )
        if self._names_only:
            raise UserError(f"{place}: '{item}' is no class name; ids are not read where class names are numbers")
        if isinstance(item, (str, int)) and key.isdecimal() and len(key) < 5 and 1 <= int(key) <= highest:
            return int(key)
        raise UserError(f"{place}: '{item}' is neither a class name nor an id from 1 to {highest}")


_Rows = Iterator[tuple[str, str, list[int]]]
"""Where it stands, an image as it is spelled there, the ids of its classes."""


def _read_text(path: Path, class_ids: _ClassIds) -> _Rows:
    for number, line in enumerate(read_text(path, _WHAT).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            name, *classes = line.split("\t") if "\t" in line else line.split()
            place = f"{path}, line {number}"
            yield place, name, [class_ids.find(item, place) for part in classes for item in part.split()]


def _read_csv(path: Path, class_ids: _ClassIds) -> _Rows:
    rows = csv.reader(io.StringIO(read_text(path, _WHAT), newline=""))
    try:
        yield from _table_rows(path, rows, class_ids)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: it is no CSV file: {error}") from error


def _table_rows(path: Path, rows: Any, class_ids: _ClassIds) -> _Rows:
    header = [cell.strip() for cell in next(rows, [])]
    if len(header) < 2 or header[0].lower() not in ("image", "name", "file", "filename", "image_name"):
        raise UserError(f"{path}, line 1: a header 'image,labels' or 'image,CLASS,CLASS,...' is needed")
    listed = len(header) == 2 and header[1].lower() in ("label", "labels", "class", "classes")
    columns: dict[int, str] = {}
    for title in header[1:] if not listed else []:
        number = class_ids.find(title, f"{path}, line 1")
        if number in columns:
            raise UserError(f"{path}, line 1: the columns '{columns[number]}' and '{title}' are the same class")
        columns[number] = title
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        place, cells = f"{path}, line {rows.line_num}", [cell.strip() for cell in row[1:]]
        if listed:
            items = (item.strip() for cell in cells for item in cell.split(_SEPARATOR))
            yield place, row[0], [class_ids.find(item, place) for item in items if item]
            continue
        if len(row) != len(header) or any(cell not in ("0", "1", "0.0", "1.0", "") for cell in cells):
            raise UserError(f"{place}: {len(header) - 1} cells of 0 or 1 are needed, one per class of the first line")
        yield place, row[0], [number for number, cell in zip(columns, cells, strict=True) if cell in ("1", "1.0")]


def _read_json(path: Path, class_ids: _ClassIds) -> _Rows:
    content = read_json(path, _WHAT)
    if not isinstance(content, dict):
        raise UserError(f'{path}: an object {{"name": ["class", ...]}} is needed')
    for name, classes in content.items():
        if not isinstance(classes, list) or any(type(item) not in (str, int) for item in classes):
            raise UserError(f"{path}: the labels of '{name}' are not a list of class names or ids")
        place = f"{path}, image '{name}'"
        yield place, name, [class_ids.find(item, place) for item in classes]


_READERS = {".txt": _read_text, ".csv": _read_csv, ".json": _read_json}


def _read_released(path: Path, num_classes: int) -> Iterator[tuple[str, str, np.ndarray]]:
    table = read_pickled(path, _WHAT)
    if not isinstance(table, dict):
        raise UserError(f"{_WHAT} {path} holds no dictionary of image names")
    for name, vector in table.items():
        values = vector if isinstance(vector, np.ndarray) else _flat_array(vector)
        if values is None or values.shape != (num_classes,) or not ((values == 0) | (values == 1)).all():
            one_more = values is not None and values.shape == (num_classes + 1,)
            hint = "; there is one more: is the background among them?" if one_more else ""
            raise UserError(f"{path}: the labels of '{name}' are not {num_classes} zeros and ones{hint}")
        yield f"{path}, image '{name}'", _released_name(name), values.astype(np.float32)


def _flat_array(value: Any) -> np.ndarray | None:
    """The array of a list of numbers; None where it is something else."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, (int, float, np.generic)) for item in value):
        return None
    return np.array(value, np.float64)


def _released_name(name: str | int) -> str:
    """VOC's names were also kept as numbers: 2007000032 is 2007_000032."""
    digits = str(name)
    return f"{digits[:4]}_{digits[4:]}" if isinstance(name, int) and len(digits) == 10 else digits
