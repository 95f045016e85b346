"""The class mask of SBD's ``cls/NAME.mat`` files, and nothing else of MATLAB's format (level 5).

scipy.io.loadmat ends the whole process where a file nests cells deep enough, so these few fields are read here.
The format: "MAT-File Format", The MathWorks, chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_FILE_BYTES = 2**24  # SBD's files have less than a hundredth of it
_CONTENT_BYTES = 2**28
_MATRIX, _COMPRESSED = 14, 15
_CLASS_BITS, _COMPLEX_BIT = 0xFF, 0x800  # of a matrix's flags
_STRUCT = 2  # a matrix's class
# Data type -> numpy's; the same for a matrix's class, which says what the values are, whatever they are stored as.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)


def read_class_segmentation(path: Path) -> np.ndarray:
    """Read ``GTcls.Segmentation``.

    Args:
        path: MATLAB file, level 5, compressed or not.

    Returns:
        Array [H, W] of integers or floats, as stored.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, another kind of file, or holds no such array.
    """
    if not path.is_file():
        raise ValueError("it is missing, or no plain file")
    if path.stat().st_size > _FILE_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes; SBD's files are far smaller")
    content = path.read_bytes()
    if content[:4] == b"\x89HDF" or content.startswith(b"MATLAB 7.3"):
        raise ValueError("it is of MATLAB's version 7.3; SBD's files are of version 5")
    orders = {b"IM": "<", b"MI": ">"}
    if len(content) < 128 or content[126:128] not in orders:
        raise ValueError("it is no MATLAB file of version 5, or breaks off")
    order = orders[content[126:128]]
    try:
        for kind, data in _elements(memoryview(content)[128:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                data = memoryview(unpacker.decompress(data, _CONTENT_BYTES))
                if not unpacker.eof:
                    raise ValueError("its compressed content breaks off or is too large")
                kind, data = next(_elements(data, order))
            if kind == _MATRIX:
                flags, name, _, rest = _header(data, order)
                if name == b"GTcls" and flags & _CLASS_BITS == _STRUCT:
                    return _values(_field(rest, b"Segmentation", order), order)
    except (struct.error, zlib.error, StopIteration) as error:
        raise ValueError("its content is damaged") from error
    raise ValueError("it holds no structure 'GTcls'")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element. None is decoded before it is asked for."""
    position = 0
    while position < len(data):
        first, length = struct.unpack_from(f"{order}II", data, position)
        if first >> 16:  # up to four bytes are packed into the second half of the tag
            kind, length, start = first & 0xFFFF, first >> 16, position + 4
            position += 8
            if length > 4:
                raise ValueError("an element has a wrong length")
        else:
            kind, start = first, position + 8
            # Elements begin at multiples of 8 bytes, but after compressed ones.
            position = start + length + (0 if kind == _COMPRESSED else -length % 8)
        if start + length > len(data):
            raise ValueError("it breaks off")
        yield kind, data[start : start + length]


def _header(matrix: memoryview, order: str) -> tuple[int, bytes, tuple[int, ...], Iterator[tuple[int, memoryview]]]:
    """Flags, name and size of a matrix, and the elements that follow."""
    elements = _elements(matrix, order)
    (_, flags), (_, sizes), (_, name) = next(elements), next(elements), next(elements)
    (bits,) = struct.unpack_from(f"{order}I", flags)
    size = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    return bits, bytes(name), size, elements


def _field(elements: Iterator[tuple[int, memoryview]], wanted: bytes, order: str) -> memoryview:
    """A field of the structure whose elements after the header are given."""
    (_, length_of_names), (_, names) = next(elements), next(elements)
    (length,) = struct.unpack(f"{order}i", length_of_names)
    if not 1 <= length <= 64:
        raise ValueError("its field names have a wrong length")
    for start in range(0, len(names), length):
        kind, data = next(elements)
        if bytes(names[start : start + length]).split(b"\0")[0] == wanted:
            if kind != _MATRIX:
                raise ValueError("its field 'Segmentation' is no array")
            return data
    raise ValueError("its structure 'GTcls' has no field 'Segmentation'")


def _values(matrix: memoryview, order: str) -> np.ndarray:
    flags, _, size, elements = _header(matrix, order)
    kind, data = next(elements)
    if flags & _CLASS_BITS not in _NUMERIC_CLASSES or flags & _COMPLEX_BIT or kind not in _STORED:
        raise ValueError("its field 'Segmentation' holds no real numbers")
    values = np.frombuffer(data, np.dtype(f"{order}{_STORED[kind]}"))
    if len(size) != 2 or min(size) < 1 or math.prod(size) != len(values):
        raise ValueError(f"its Segmentation has the size {' x '.join(map(str, size[:8]))} and {len(values)} values")
    return values.reshape(size, order="F")
