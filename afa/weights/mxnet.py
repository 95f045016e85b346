"""MXNet's parameter files (``.params``), in their three versions, read without MXNet.

Little endian: u64 0x112, u64 0, u64 count, the arrays, u64 count, the names. An array is a header, which tells the
versions apart, its device, its type and its numbers, row by row.
"""

from __future__ import annotations

import struct
from collections import Counter
from io import BufferedReader
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from afa.errors import UserError
from afa.weights.files import UnreadableError, shown

MXNET_BEGINNING = struct.pack("<2Q", 0x112, 0)
"""The first bytes of such a file."""

_VERSION_1, _VERSION_2, _VERSION_3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 1000
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.uint8, torch.int32, torch.int8, torch.int64,
)  # fmt: skip
_STORAGES = {0: "dense", 1: "sparse (by rows)", 2: "sparse (CSR)"}


def read_mxnet(path: Path, *, most_arrays: int) -> dict[str, Tensor]:
    """The arrays of a file by their names, such as ``arg:conv1a_weight``.

    Every number in it is checked against what is left of the file before it is used, so reading takes no more memory
    than the file has bytes.

    Args:
        path: Begins with :data:`MXNET_BEGINNING`.
        most_arrays: A file with more is refused.

    Raises:
        UserError: Damaged, of a newer version, with sparse arrays, or with other things than arrays of numbers.
        UnreadableError: It cannot be read now.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).arrays(most_arrays)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(
            f"{path} is damaged or no file of MXNet's parameters ({error}): fetch or copy it again"
        ) from error


class _Reader:
    """Reads a file from its beginning to its end; raises ValueError where it is not as it should be."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self.file = file
        self.left = size

    def arrays(self, most: int) -> dict[str, Tensor]:
        beginning = self._bytes(len(MXNET_BEGINNING))
        if beginning != MXNET_BEGINNING:
            raise ValueError("it begins otherwise")
        (count,) = self._numbers("Q")
        if not 1 <= count <= most:
            raise ValueError(f"it claims to hold {count} arrays")
        arrays = [self._array() for _ in range(count)]
        (named,) = self._numbers("Q")
        if named != count:
            raise ValueError(f"it holds {count} arrays and {named} names")
        names = [self._name() for _ in range(count)]
        if self.left:
            raise ValueError(f"{self.left} bytes follow its end")
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise ValueError(f"the name '{shown(twice[0])}' appears twice")
        return dict(zip(names, arrays, strict=True))

    def _array(self) -> Tensor:
        (head,) = self._numbers("I")
        if head == _VERSION_3:
            raise ValueError("its arrays are of version 3, which is not known here")
        if head == _VERSION_2:
            (storage,) = self._numbers("i")
            if storage != 0:
                raise ValueError(f"an array is {_STORAGES.get(storage, f'of the storage type {storage}')}, not dense")
        dimensions = self._numbers("I")[0] if head in (_VERSION_1, _VERSION_2) else head
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"an array has {dimensions} dimensions")
        shape = self._numbers(f"{dimensions}{'I' if head == dimensions else 'q'}")
        _, _, kind = self._numbers("3i")  # device and its number say where it was written
        if not 0 <= kind < len(_DTYPES):
            raise ValueError(f"an array has the type {kind}")
        if min(shape) < 1:
            raise ValueError(f"an array has a side of {min(shape)}")
        dtype = _DTYPES[kind]
        return torch.frombuffer(self._bytes(prod(shape) * dtype.itemsize), dtype=dtype).reshape(shape)

    def _name(self) -> str:
        (length,) = self._numbers("Q")
        if not 1 <= length <= _LONGEST_NAME:
            raise ValueError(f"a name has {length} bytes")
        return self._bytes(length).decode("utf-8")

    def _numbers(self, form: str) -> tuple[int, ...]:
        form = f"<{form}"
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _bytes(self, count: int) -> bytearray:
        if count > self.left:
            raise ValueError("it ends too early")
        data = bytearray(count)
        if self.file.readinto(data) != count:
            raise ValueError("it ends too early")
        self.left -= count
        return data
