"""Dictionaries of arrays out of pickled files, without trusting the files.

Released label tables, and the activation maps that other programs save, are pickles in ``.npy`` files. A pickle is a
program that may call whatever it names. It is therefore carried out by :mod:`afa.data.pickle_machine`, which calls
nothing of its choice: the few names that such files need stand for functions below, which check shapes and sizes
against the bytes that are there and build plain values. Every other name is refused.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from afa.data.files import read_bytes
from afa.data.pickle_machine import Budget, Machine, Maker, Name, Refused, Unfinished, dictionary_key, refuse
from afa.errors import UserError

MAX_PICKLE_BYTES = 2**30
"""Larger files are refused: they are read as a whole."""
_DEEPEST = 32
_NPY_MAGIC = b"\x93NUMPY"
_ARRAY_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
# How torch begins a file of one storage: two little pickles, a number that it made up and its version 1001.
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
_TORCH_STORAGES = {
    "BoolStorage": "b1",
    "CharStorage": "i1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "ByteStorage": "u1",
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "BFloat16Storage": "bf",
}


def read_pickled(path: str | Path, what: str = "the file") -> Any:
    """Read what a pickle holds: bare, or as the one object in a ``.npy`` file, as ``np.save`` writes a dictionary.

    Pickle protocols 0 to 5 of Python 2 and 3, arrays of NumPy 1 and 2 and dense CPU tensors of PyTorch are understood.
    Nothing in the file is called, and memory stays in proportion to its size.

    Args:
        path: The file.
        what: What it is, for the error.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool, None and, within them, NumPy arrays and numbers (bool, int,
        unsigned or float in the machine's byte order). An OrderedDict becomes a dict, a tensor an array (bfloat16
        becomes float32).

    Raises:
        UserError: The file is missing, damaged, too large, or holds anything else; the message names it.
    """
    path = Path(path)
    content = read_bytes(path, what, largest=MAX_PICKLE_BYTES)
    try:
        start = _after_header(content)
        if not content:
            raise Refused("it is empty")
        machine = Machine(content, start, _NAMES, Budget(8 * len(content) + 2**20))
        value = machine.run()
        if isinstance(value, _Array):
            value = value.outermost()
        return _Plain(10**6 + 16 * len(content)).value(value)
    except Refused as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, struct.error) as error:
        raise UserError(f"{what} {path} cannot be read: it is damaged ({error or type(error).__name__})") from error


def _after_header(content: bytes) -> int:
    """Where the pickle begins: behind the header of a ``.npy`` file that holds one object, else at 0."""
    if not content.startswith(_NPY_MAGIC):
        return 0
    width, code = (2, "<H") if content[6:7] == b"\x01" else (4, "<I")
    begin = 8 + width
    (length,) = struct.unpack(code, content[8:begin])
    header = content[begin : begin + length]
    if length > 10_000 or len(header) != length:
        refuse("its header is cut off or far too long")
    described = re.search(rb"['\"]descr['\"]: *['\"]\|?O['\"]", header)
    if not described or not re.search(rb"['\"]shape['\"]: *\( *\)", header):
        refuse("it holds an array, not a dictionary or another single object")
    return begin + length


class _DType(Unfinished):
    """A description of numbers: ``f4`` and the like, ``O`` for the outermost array, ``U3`` and ``S3`` for names."""

    def __init__(self, code: str) -> None:
        if code not in _ARRAY_KINDS and not re.fullmatch(r"O8?|O4|[US][0-9]{1,6}", code):
            refuse(f"it asks for numbers of the type '{code}', which no table of arrays needs")
        self.kind = code[0]
        self.size = 0 if self.kind == "O" else int(code[1:]) * (4 if self.kind == "U" else 1)
        self.order = "="

    def set_state(self, state: Any, budget: Budget) -> None:
        if not isinstance(state, tuple) or len(state) not in (8, 9):
            refuse("the type of an array is malformed")
        order, nested, names, fields, size = state[1:6]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "=", "|") or any(part is not None for part in (nested, names, fields)):
            refuse("an array has a compound type")
        if self.kind != "O" and size not in (-1, self.size):
            refuse("the type of an array contradicts itself")
        self.order = "=" if order == "|" else order

    def numbers(self, data: bytes, shape: tuple[int, ...], order: Literal["C", "F"], budget: Budget) -> np.ndarray:
        """The array of these bytes, in memory of its own."""
        if self.kind in "OUS":
            refuse("an array holds objects or texts instead of numbers")
        count = math.prod(shape)
        if len(data) != count * self.size:
            refuse(f"an array of the shape {shape} has {len(data)} bytes")
        budget.spend(len(data) + 64)
        if self.kind == "b":
            return np.frombuffer(data, np.uint8).reshape(shape, order=order) != 0
        found = np.frombuffer(data, f"{self.order}{self.kind}{self.size}") if count else np.zeros(0)
        return found.astype(f"={self.kind}{self.size}").reshape(shape, order=order)


class _Array(Unfinished):
    """An array that the pickle makes first and fills afterwards."""

    def __init__(self) -> None:
        self.filled: np.ndarray | None = None
        self._object: list[Any] = []

    def set_state(self, state: Any, budget: Budget) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            refuse("an array is malformed")
        shape, dtype, by_column, data = state[-4:]
        shape = _shape(shape)
        if not isinstance(dtype, _DType):
            refuse("an array is malformed")
        if dtype.kind != "O":
            self.filled = dtype.numbers(_bytes(data), shape, "F" if by_column else "C", budget)
        elif shape == () and isinstance(data, list) and len(data) == 1:
            self._object = data
        else:
            refuse("it holds an array of several objects")

    def outermost(self) -> Any:
        return self._object[0] if self._object else self


@dataclass(frozen=True)
class _Storage:
    """The memory of a tensor: a flat array."""

    values: np.ndarray


class _Plain:
    """Puts arrays in the place of their stand-ins.

    Args:
        most: How many values there may be where those that stand in several places count as often: a small file can
            describe 10^30 of them, and whoever goes through them would never end.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[int, tuple[Any, int] | None] = {}

    def value(self, value: Any) -> Any:
        return self._convert(value, 0)[0]

    def _convert(self, value: Any, depth: int) -> tuple[Any, int]:
        """A plain value, and how many values it holds."""
        if isinstance(value, _Array) and value.filled is not None:
            return value.filled, 1
        if value is None or isinstance(value, (str, bytes, bool, int, float, np.ndarray, np.generic)):
            return value, 1
        if not isinstance(value, (dict, list, tuple)):
            refuse("it holds something else than names, numbers and arrays")
        if id(value) in self._known:
            known = self._known[id(value)]
            return known if known is not None else refuse("a list or dictionary in it holds itself")
        if depth == _DEEPEST:
            refuse("it is nested too deep")
        self._known[id(value)] = None
        items = value.values() if isinstance(value, dict) else value
        converted, count = [], 1
        for item in items:
            plain, inside = self._convert(item, depth + 1)
            converted.append(plain)
            count += inside
            if count > self._most:
                refuse("its lists stand in each other again and again")
        result: Any = dict(zip(value, converted, strict=True)) if isinstance(value, dict) else type(value)(converted)
        self._known[id(value)] = result, count
        return result, count


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 32 or any(type(side) is not int or side < 0 for side in value):
        refuse("an array has no proper shape")
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):  # as Python 2 pickled bytes
        return value.encode("latin1")
    return value if isinstance(value, bytes) else refuse("an array is malformed")


# What the names stand for: functions of the arguments in the pickle and the budget.


def _make_array(arguments: tuple[Any, ...], budget: Budget) -> _Array:
    if not arguments or arguments[0] != Name("numpy", "ndarray"):
        refuse("it needs a kind of array that is not NumPy's plain one")
    return _Array()


def _make_dtype(arguments: tuple[Any, ...], budget: Budget) -> _DType:
    code = arguments[0] if arguments else None
    if isinstance(code, bytes):
        code = code.decode("latin1")
    return _DType(code) if isinstance(code, str) else refuse("the type of an array is malformed")


def _make_number(arguments: tuple[Any, ...], budget: Budget) -> Any:
    dtype, data = arguments
    if not isinstance(dtype, _DType):
        refuse("a number has no type")
    data = _bytes(data)
    if dtype.kind in "US":
        # NumPy's own strings: names of images, in tables whose maker read them by NumPy.
        codec = "latin1" if dtype.kind == "S" else "utf-32-be" if dtype.order == ">" else "utf-32-le"
        return data.decode(codec).rstrip("\0")
    return dtype.numbers(data, (), "C", budget)[()]


def _array_of_buffer(arguments: tuple[Any, ...], budget: Budget) -> np.ndarray:
    data, dtype, shape, order, *axes = arguments
    shape = _shape(shape)
    if not isinstance(dtype, _DType) or order not in ("C", "F", "K"):
        refuse("an array is malformed")
    array = dtype.numbers(_bytes(data), shape, "F" if order == "F" else "C", budget)
    if axes and axes[0] is not None:
        if len(axes) > 1 or sorted(_shape(axes[0])) != list(range(len(shape))):
            refuse("an array is malformed")
        return np.ascontiguousarray(array.transpose(axes[0]))
    return array


def _make_dictionary(arguments: tuple[Any, ...], budget: Budget) -> dict[Any, Any]:
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(pairs, list):
        refuse("a dictionary is malformed")
    table = {dictionary_key(name): value for name, value in pairs}
    return table if len(table) == len(pairs) else refuse("a dictionary names one thing twice")


def _encode(arguments: tuple[Any, ...], budget: Budget) -> bytes:
    text, codec = arguments
    if codec not in ("latin1", "latin-1"):
        refuse(f"it asks for the codec '{codec}', which no table of arrays needs")
    budget.spend(len(text))
    return _bytes(text)


def _no_bytes(arguments: tuple[Any, ...], budget: Budget) -> bytes:
    return b"" if not arguments else refuse("its bytes are written in an odd way")


def _make_tensor(arguments: tuple[Any, ...], budget: Budget) -> np.ndarray:
    storage, offset, shape, strides = arguments[:4]
    shape, strides = _shape(shape), _shape(strides)
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0 or len(shape) != len(strides):
        refuse("a tensor is malformed")
    count = math.prod(shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if count and last >= len(storage.values):
        refuse("a tensor reaches beyond its memory")
    size = storage.values.itemsize
    budget.spend(count * size + 64)
    if not count:
        return np.zeros(shape, storage.values.dtype)
    part = storage.values[offset:]
    return np.array(np.lib.stride_tricks.as_strided(part, shape, tuple(stride * size for stride in strides)))


def _load_storage(arguments: tuple[Any, ...], budget: Budget) -> _Storage:
    """A tensor's memory as ``torch.save`` writes it: some small pickles, then the numbers."""
    (content,) = arguments
    if not isinstance(content, bytes) or not content.startswith(_TORCH_MAGIC):
        refuse("the memory of a tensor has an unknown form")
    places: list[Any] = []

    def note(place: Any) -> _Storage:
        places.append(place)
        return _Storage(np.zeros(0))

    system, start = Machine(content, len(_TORCH_MAGIC), {}, budget).run_on()
    stored, start = Machine(content, start, _TORCH_NAMES, budget, note).run_on()
    keys, start = Machine(content, start, {}, budget).run_on()
    if not isinstance(stored, _Storage) or len(places) != 1 or not isinstance(places[0], tuple) or len(places[0]) < 5:
        refuse("the memory of a tensor has an unknown form")
    tag, kind, key, _, count, *views = places[0]
    if tag != "storage" or not isinstance(kind, Name) or keys != [key] or any(view is not None for view in views):
        refuse("the memory of a tensor has an unknown form")
    code = _TORCH_STORAGES.get(kind.name)
    if code is None or type(count) is not int or struct.unpack_from("<q", content, start) != (count,):
        refuse(f"it asks for {kind.module}.{kind.name}, which no table of arrays needs")
    data = content[start + 8 :]
    dtype = _DType("u2" if code == "bf" else code)
    dtype.order = "<" if not isinstance(system, dict) or system.get("little_endian", True) else ">"
    values = dtype.numbers(data, (count,), "C", budget)
    if code == "bf":  # The upper half of a float32.
        budget.spend(4 * count)
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return _Storage(values)


_NUMPY_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and 2
_TORCH_NAMES: Mapping[Name, Maker | None] = {Name("torch", name): None for name in _TORCH_STORAGES}
# None: a name that stands in arguments only.
_NAMES: Mapping[Name, Maker | None] = {
    Name("numpy", "ndarray"): None,
    Name("numpy", "dtype"): _make_dtype,
    **{Name(f"{core}.multiarray", "_reconstruct"): _make_array for core in _NUMPY_CORES},
    **{Name(f"{core}.multiarray", "scalar"): _make_number for core in _NUMPY_CORES},
    **{Name(f"{core}.numeric", "_frombuffer"): _array_of_buffer for core in _NUMPY_CORES},
    Name("_codecs", "encode"): _encode,
    Name("__builtin__", "bytes"): _no_bytes,
    Name("builtins", "bytes"): _no_bytes,
    Name("collections", "OrderedDict"): _make_dictionary,
    Name("torch._utils", "_rebuild_tensor"): _make_tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    Name("torch.storage", "_load_from_bytes"): _load_storage,
}
