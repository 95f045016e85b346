"""Image-level labels: which classes an image shows, as text, CSV, JSON or the released program's ``.npy``."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afa.data.files import write_text
from afa.data.images import DamagedImage
from afa.data.names import image_key
from afa.errors import UserError

IGNORE = 255
"""Value of pixels that count for nothing, in the masks that this project writes and scores with."""
LABEL_FILES = ("class_labels.json", "class_labels.csv", "class_labels.txt", "cls_labels_onehot.npy")
_HOW = "see docs/data.md, or make it with tools/make_labels.py"


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 spell bytes; other codecs are refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec '{encoding}', which no table of labels needs")
    return text.encode("latin1")


# All that a pickled dictionary of numpy arrays needs.
_PICKLE_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    # Both are private: an array and a number say themselves how they are rebuilt.
    _PICKLE_GLOBALS[_module, "_reconstruct"] = np.empty(0).__reduce__()[0]
    _PICKLE_GLOBALS[_module, "scalar"] = np.float32(0).__reduce__()[0]


def read_labels(path: Path, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read image-level labels.

    - ``.txt``: ``name class class ...`` per line, blanks in class names written as ``_``.
    - ``.csv``: first line ``image,CLASS,CLASS,...`` and 0 or 1 in each cell, or ``image,labels`` and the classes
      separated by ``;`` (or in further cells).
    - ``.json``: ``{"name": ["class", ...], ...}``.
    - ``.npy``: the released program's pickled dictionary of one-hot vectors; nothing in it is executed.

    A class is its name or its id, counted from 1. An image is its name in the lists; a suffix such as .jpg is dropped.

    Args:
        path: File with one of the suffixes above.
        class_names: K names, background left out.

    Returns:
        Image name -> float32 [K] of 0 and 1.

    Raises:
        UserError: The file is missing, malformed or names an unknown class.
    """
    readers = {".txt": _read_text, ".csv": _read_csv, ".json": _read_json}
    if not path.is_file():
        raise UserError(f"the labels file {path} is missing: {_HOW}")
    if path.suffix == ".npy":
        return _read_released(path, len(class_names))
    if path.suffix not in readers:
        raise UserError(f"{path}: labels are read from .txt, .csv, .json or .npy files")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the labels file {path} cannot be read: {error}") from error
    ids = {name: number for number, name in enumerate(class_names, 1)}
    ids |= {name.replace(" ", "_"): number for name, number in ids.items()}
    labels: dict[str, np.ndarray] = {}
    for place, name, classes in readers[path.suffix](path, text):
        key = image_key(name)
        if key in labels:
            raise UserError(f"{place}: the image '{key}' is labelled twice")
        labels[key] = one_hot((_class_id(item, ids, place) for item in classes), len(class_names))
    return labels


def write_labels(path: Path, labels: Mapping[str, Iterable[str]]) -> None:
    """Write labels as JSON or CSV (by the suffix), atomically, one image per line.

    Args:
        path: ``.json`` or ``.csv`` file.
        labels: Image name -> class names.
    """
    if path.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["image", "labels"])
        writer.writerows([name, ";".join(classes)] for name, classes in labels.items())
        write_text(path, buffer.getvalue())
        return
    lines = (
        f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(list(classes), ensure_ascii=False)}"
        for name, classes in labels.items()
    )
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def one_hot(class_ids: Iterable[int], num_classes: int) -> np.ndarray:
    """Class ids, counted from 1, to a float32 vector [K] of 0 and 1."""
    vector = np.zeros(num_classes, np.float32)
    for class_id in class_ids:
        vector[class_id - 1] = 1
    return vector


def classes_in_mask(mask: np.ndarray, num_classes: int, ignore_index: int = IGNORE, *, path: Path) -> list[int]:
    """The ids of the classes in a mask, ascending; background and ignored pixels do not count.

    Args:
        mask: uint8 [H, W].
        num_classes: K.
        ignore_index: Value that counts for nothing.
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


def _class_id(item: Any, ids: Mapping[str, int], place: str) -> int:
    key = str(item).strip()
    if key in ids:
        return ids[key]
    highest = max(ids.values())
    if key.isdecimal() and 1 <= int(key) <= highest:
        return int(key)
    raise UserError(f"{place}: '{key}' is neither a class name nor an id from 1 to {highest}")


def _read_text(path: Path, text: str) -> Iterable[tuple[str, str, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            name, *classes = line.split("\t") if "\t" in line else line.split()
            yield f"{path}, line {number}", name, [item for part in classes for item in part.split()]


def _read_csv(path: Path, text: str) -> Iterable[tuple[str, str, list[str]]]:
    rows = csv.reader(io.StringIO(text))
    header = [cell.strip() for cell in next(rows, [])]
    if len(header) < 2 or header[0].lower() not in ("image", "name", "file", "filename", "image_name"):
        raise UserError(f"{path}, line 1: a header 'image,labels' or 'image,CLASS,CLASS,...' is needed")
    listed = len(header) == 2 and header[1].lower() in ("label", "labels", "class", "classes")
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        place, cells = f"{path}, line {rows.line_num}", [cell.strip() for cell in row[1:]]
        if listed:
            yield place, row[0], [item.strip() for cell in cells for item in cell.split(";") if item.strip()]
            continue
        if len(row) != len(header) or any(cell not in ("0", "1", "0.0", "1.0", "") for cell in cells):
            raise UserError(f"{place}: {len(header) - 1} cells of 0 or 1 are needed, one per class of the first line")
        yield place, row[0], [name for name, cell in zip(header[1:], cells, strict=True) if cell in ("1", "1.0")]


def _read_json(path: Path, text: str) -> Iterable[tuple[str, str, list[Any]]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: an object {{"name": ["class", ...]}} is needed')
    for name, classes in content.items():
        if not isinstance(classes, list) or any(isinstance(item, (list, dict, bool)) for item in classes):
            raise UserError(f"{path}: the labels of '{name}' are not a list of class names or ids")
        yield f"{path}, image '{name}'", name, classes


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries of numpy arrays and refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLE_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no table of labels needs") from None


def _read_released(path: Path, num_classes: int) -> dict[str, np.ndarray]:
    # latin1 is how Python 3 has to read the bytes of arrays that Python 2 pickled.
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            if shape != () or not dtype.hasobject:
                raise ValueError("it is an array, not a dictionary of image names")
            table = _ArrayUnpickler(file, encoding="latin1").load()
    except (OSError, EOFError, pickle.PickleError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the labels file {path} cannot be read: {error}") from error
    if isinstance(table, np.ndarray) and table.shape == ():
        table = table.item()
    if not isinstance(table, dict):
        raise UserError(f"the labels file {path} holds no dictionary of image names")
    labels: dict[str, np.ndarray] = {}
    for name, vector in table.items():
        values = np.asarray(vector)
        if values.shape != (num_classes,) or values.dtype.kind not in "fiub" or not np.isin(values, (0, 1)).all():
            raise UserError(f"{path}: the labels of '{name}' are not {num_classes} zeros and ones")
        labels[image_key(str(name))] = values.astype(np.float32)
    return labels
