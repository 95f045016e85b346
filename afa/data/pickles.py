"""Dictionaries of arrays out of pickled files, without trusting the files.

Released label tables, and the activation maps that other programs save, are pickles in ``.npy`` files. A pickle is a
program that may call whatever it names. This module therefore carries it out itself and calls nothing of its choice:
the few names that such files need stand for functions below, which check shapes and sizes against the bytes that are
there and build plain values. Every other name is refused.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from afa.data.files import read_bytes
from afa.errors import UserError

MAX_PICKLE_BYTES = 2**30
"""Larger files are refused: they are read as a whole."""
_MOST_STEPS = 10_000_000
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
            raise _Refused("it is empty")
        machine = _Machine(content, start, _NAMES, _Budget(8 * len(content) + 2**20))
        value = machine.run()
        if isinstance(value, _Array):
            value = value.outermost()
        return _Plain(10**6 + 16 * len(content)).value(value)
    except _Refused as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, struct.error) as error:
        raise UserError(f"{what} {path} cannot be read: it is damaged ({error or type(error).__name__})") from error


class _Refused(Exception):
    """Why a file is not read."""


def _refuse(reason: str) -> NoReturn:
    raise _Refused(reason)


def _after_header(content: bytes) -> int:
    """Where the pickle begins: behind the header of a ``.npy`` file that holds one object, else at 0."""
    if not content.startswith(_NPY_MAGIC):
        return 0
    width, code = (2, "<H") if content[6:7] == b"\x01" else (4, "<I")
    begin = 8 + width
    (length,) = struct.unpack(code, content[8:begin])
    header = content[begin : begin + length]
    if length > 10_000 or len(header) != length:
        _refuse("its header is cut off or far too long")
    described = re.search(rb"['\"]descr['\"]: *['\"]\|?O['\"]", header)
    if not described or not re.search(rb"['\"]shape['\"]: *\( *\)", header):
        _refuse("it holds an array, not a dictionary or another single object")
    return begin + length


class _Budget:
    """Bytes that arrays may take: in proportion to the file."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            _refuse("its arrays are larger than the file")


@dataclass(frozen=True)
class _Name:
    """What a pickle calls ``module.name``; it stands for nothing but itself."""

    module: str
    name: str


class _DType:
    """A description of numbers: ``f4`` and the like, ``O`` for the outermost array, ``U3`` and ``S3`` for names."""

    def __init__(self, code: str) -> None:
        if code not in _ARRAY_KINDS and not re.fullmatch(r"O8?|O4|[US][0-9]{1,6}", code):
            _refuse(f"it asks for numbers of the type '{code}', which no table of arrays needs")
        self.kind = code[0]
        self.size = 0 if self.kind == "O" else int(code[1:]) * (4 if self.kind == "U" else 1)
        self.order = "="

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (8, 9):
            _refuse("the type of an array is malformed")
        order, nested, names, fields, size = state[1:6]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "=", "|") or any(part is not None for part in (nested, names, fields)):
            _refuse("an array has a compound type")
        if self.kind != "O" and size not in (-1, self.size):
            _refuse("the type of an array contradicts itself")
        self.order = "=" if order == "|" else order

    def numbers(self, data: bytes, shape: tuple[int, ...], order: Literal["C", "F"], budget: _Budget) -> np.ndarray:
        """The array of these bytes, in memory of its own."""
        if self.kind in "OUS":
            _refuse("an array holds objects or texts instead of numbers")
        count = math.prod(shape)
        if len(data) != count * self.size:
            _refuse(f"an array of the shape {shape} has {len(data)} bytes")
        budget.spend(len(data) + 64)
        if self.kind == "b":
            return np.frombuffer(data, np.uint8).reshape(shape, order=order) != 0
        found = np.frombuffer(data, f"{self.order}{self.kind}{self.size}") if count else np.zeros(0)
        return found.astype(f"={self.kind}{self.size}").reshape(shape, order=order)


class _Array:
    """An array that the pickle makes first and fills afterwards."""

    def __init__(self) -> None:
        self.filled: np.ndarray | None = None
        self._object: list[Any] = []

    def set_state(self, state: Any, budget: _Budget) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            _refuse("an array is malformed")
        shape, dtype, by_column, data = state[-4:]
        shape = _shape(shape)
        if not isinstance(dtype, _DType):
            _refuse("an array is malformed")
        if dtype.kind != "O":
            self.filled = dtype.numbers(_bytes(data), shape, "F" if by_column else "C", budget)
        elif shape == () and isinstance(data, list) and len(data) == 1:
            self._object = data
        else:
            _refuse("it holds an array of several objects")

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
            _refuse("it holds something else than names, numbers and arrays")
        if id(value) in self._known:
            known = self._known[id(value)]
            return known if known is not None else _refuse("a list or dictionary in it holds itself")
        if depth == _DEEPEST:
            _refuse("it is nested too deep")
        self._known[id(value)] = None
        items = value.values() if isinstance(value, dict) else value
        converted, count = [], 1
        for item in items:
            plain, inside = self._convert(item, depth + 1)
            converted.append(plain)
            count += inside
            if count > self._most:
                _refuse("its lists stand in each other again and again")
        result: Any = dict(zip(value, converted, strict=True)) if isinstance(value, dict) else type(value)(converted)
        self._known[id(value)] = result, count
        return result, count


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 32 or any(type(side) is not int or side < 0 for side in value):
        _refuse("an array has no proper shape")
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):  # as Python 2 pickled bytes
        return value.encode("latin1")
    return value if isinstance(value, bytes) else _refuse("an array is malformed")


def _whole(number: int) -> int:
    if not -(2**63) <= number < 2**64:
        _refuse("it holds a number of more than 64 bits")
    return number


def _key(value: Any) -> str | int:
    """A dictionary's key: a name, or a whole number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, str) or type(value) is int:
        return value
    return _refuse("a dictionary has a key that is neither a name nor a whole number")


# What the names stand for: functions of the arguments in the pickle and the budget.


def _make_array(arguments: tuple[Any, ...], budget: _Budget) -> _Array:
    if not arguments or arguments[0] != _Name("numpy", "ndarray"):
        _refuse("it asks for a kind of array that is not NumPy's plain one")
    return _Array()


def _make_dtype(arguments: tuple[Any, ...], budget: _Budget) -> _DType:
    code = arguments[0] if arguments else None
    if isinstance(code, bytes):
        code = code.decode("latin1")
    return _DType(code) if isinstance(code, str) else _refuse("the type of an array is malformed")


def _make_number(arguments: tuple[Any, ...], budget: _Budget) -> Any:
    dtype, data = arguments
    if not isinstance(dtype, _DType):
        _refuse("a number has no type")
    data = _bytes(data)
    if dtype.kind in "US":
        # NumPy's own strings: names of images, in tables whose maker read them by NumPy.
        codec = "latin1" if dtype.kind == "S" else "utf-32-be" if dtype.order == ">" else "utf-32-le"
        return data.decode(codec).rstrip("\0")
    return dtype.numbers(data, (), "C", budget)[()]


def _array_of_buffer(arguments: tuple[Any, ...], budget: _Budget) -> np.ndarray:
    data, dtype, shape, order, *axes = arguments
    shape = _shape(shape)
    if not isinstance(dtype, _DType) or order not in ("C", "F", "K"):
        _refuse("an array is malformed")
    array = dtype.numbers(_bytes(data), shape, "F" if order == "F" else "C", budget)
    if axes and axes[0] is not None:
        if len(axes) > 1 or sorted(_shape(axes[0])) != list(range(len(shape))):
            _refuse("an array is malformed")
        return np.ascontiguousarray(array.transpose(axes[0]))
    return array


def _make_dictionary(arguments: tuple[Any, ...], budget: _Budget) -> dict[Any, Any]:
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(pairs, list):
        _refuse("a dictionary is malformed")
    table = {_key(name): value for name, value in pairs}
    return table if len(table) == len(pairs) else _refuse("a dictionary names one thing twice")


def _encode(arguments: tuple[Any, ...], budget: _Budget) -> bytes:
    text, codec = arguments
    if codec not in ("latin1", "latin-1"):
        _refuse(f"it asks for the codec '{codec}', which no table of arrays needs")
    budget.spend(len(text))
    return _bytes(text)


def _no_bytes(arguments: tuple[Any, ...], budget: _Budget) -> bytes:
    return b"" if not arguments else _refuse("its bytes are written in an odd way")


def _make_tensor(arguments: tuple[Any, ...], budget: _Budget) -> np.ndarray:
    storage, offset, shape, strides = arguments[:4]
    shape, strides = _shape(shape), _shape(strides)
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0 or len(shape) != len(strides):
        _refuse("a tensor is malformed")
    count = math.prod(shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if count and last >= len(storage.values):
        _refuse("a tensor reaches beyond its memory")
    size = storage.values.itemsize
    budget.spend(count * size + 64)
    if not count:
        return np.zeros(shape, storage.values.dtype)
    part = storage.values[offset:]
    return np.array(np.lib.stride_tricks.as_strided(part, shape, tuple(stride * size for stride in strides)))


def _load_storage(arguments: tuple[Any, ...], budget: _Budget) -> _Storage:
    """A tensor's memory as ``torch.save`` writes it: some small pickles, then the numbers."""
    (content,) = arguments
    if not isinstance(content, bytes) or not content.startswith(_TORCH_MAGIC):
        _refuse("the memory of a tensor has an unknown form")
    places: list[Any] = []

    def note(place: Any) -> _Storage:
        places.append(place)
        return _Storage(np.zeros(0))

    system, start = _Machine(content, len(_TORCH_MAGIC), {}, budget).run_on()
    stored, start = _Machine(content, start, _TORCH_NAMES, budget, note).run_on()
    keys, start = _Machine(content, start, {}, budget).run_on()
    if not isinstance(stored, _Storage) or len(places) != 1 or not isinstance(places[0], tuple) or len(places[0]) < 5:
        _refuse("the memory of a tensor has an unknown form")
    tag, kind, key, _, count, *views = places[0]
    if tag != "storage" or not isinstance(kind, _Name) or keys != [key] or any(view is not None for view in views):
        _refuse("the memory of a tensor has an unknown form")
    code = _TORCH_STORAGES.get(kind.name)
    if code is None or type(count) is not int or struct.unpack_from("<q", content, start) != (count,):
        _refuse(f"it asks for {kind.module}.{kind.name}, which no table of arrays needs")
    data = content[start + 8 :]
    dtype = _DType("u2" if code == "bf" else code)
    dtype.order = "<" if not isinstance(system, dict) or system.get("little_endian", True) else ">"
    values = dtype.numbers(data, (count,), "C", budget)
    if code == "bf":  # The upper half of a float32.
        budget.spend(4 * count)
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return _Storage(values)


_Maker = Callable[[tuple[Any, ...], _Budget], Any]
_NUMPY_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and 2
_TORCH_NAMES: Mapping[_Name, _Maker | None] = {_Name("torch", name): None for name in _TORCH_STORAGES}
# None: a name that stands in arguments only.
_NAMES: Mapping[_Name, _Maker | None] = {
    _Name("numpy", "ndarray"): None,
    _Name("numpy", "dtype"): _make_dtype,
    **{_Name(f"{core}.multiarray", "_reconstruct"): _make_array for core in _NUMPY_CORES},
    **{_Name(f"{core}.multiarray", "scalar"): _make_number for core in _NUMPY_CORES},
    **{_Name(f"{core}.numeric", "_frombuffer"): _array_of_buffer for core in _NUMPY_CORES},
    _Name("_codecs", "encode"): _encode,
    _Name("__builtin__", "bytes"): _no_bytes,
    _Name("builtins", "bytes"): _no_bytes,
    _Name("collections", "OrderedDict"): _make_dictionary,
    _Name("torch._utils", "_rebuild_tensor"): _make_tensor,
    _Name("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    _Name("torch.storage", "_load_from_bytes"): _load_storage,
}


class _Machine:
    """Carries out one pickle.

    Args:
        content: Bytes that hold it.
        start: Where it begins.
        names: The names that it may use, and what they stand for.
        budget: What arrays may take.
        persistent: What a persistent id stands for; none is allowed by default.
    """

    def __init__(
        self,
        content: bytes,
        start: int,
        names: Mapping[_Name, _Maker | None],
        budget: _Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._content, self._at = content, start
        self._names, self._budget, self._persistent = names, budget, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle describes, stand-ins in it."""
        return self.run_on()[0]

    def run_on(self) -> tuple[Any, int]:
        """The value, and where the pickle ends."""
        for _ in range(_MOST_STEPS):
            code = self._byte()
            if code == _STOP:
                return self._pop(), self._at
            operation = _OPERATIONS.get(code)
            if operation is None:
                _refuse("it builds an object of its own, or is no pickle")
            operation(self)
        _refuse("it has too many parts")

    # Reading.

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._content):
            _refuse("it is cut off")
        taken = self._content[self._at : end]
        self._at = end
        return taken

    def _byte(self) -> int:
        at = self._at
        if at >= len(self._content):
            _refuse("it is cut off")
        self._at = at + 1
        return self._content[at]

    def _skip(self, size: int) -> None:
        self._take(size)

    def _number(self, code: str) -> int:
        return int(struct.unpack(code, self._take(struct.calcsize(code)))[0])

    def _counted(self, code: str) -> bytes:
        """Bytes behind their number."""
        size = self._byte() if code == "<B" else self._number(code)
        return self._take(size) if size >= 0 else _refuse("it is damaged")

    def _line(self) -> bytes:
        end = self._content.find(b"\n", self._at)
        return self._take(end - self._at + 1)[:-1] if end >= 0 else _refuse("it is cut off")

    def _short_line(self) -> bytes:
        line = self._line()
        return line if len(line) <= 64 else _refuse("it is damaged")

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            _refuse("it is damaged")
        return self._stack.pop()

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            _refuse("it is damaged")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            _refuse("it is damaged")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # Operations with more to them than one line.

    def _pop_or_mark(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _get(self, place: int) -> None:
        if not 0 <= place < 2**32 or place not in self._memo:
            _refuse("it is damaged")
        self._push(self._memo[place])

    def _put(self, place: int) -> None:
        if not 0 <= place < 2**32:
            _refuse("it is damaged")
        self._memo[place] = self._top()

    def _tuple(self, size: int) -> None:
        if len(self._stack) - size < (self._marks[-1] if self._marks else 0):
            _refuse("it is damaged")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            _refuse("it is damaged")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            _refuse("it is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            key = _key(key)
            if key in target:
                _refuse(f"a dictionary names '{key}' twice")
            target[key] = value

    def _dictionary(self) -> None:
        items = self._since_mark()
        self._push({})
        self._set(items)

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _append_one(self) -> None:
        self._append([self._pop()])

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            _refuse("it is damaged")
        found = _Name(module, name)
        if found not in self._names:
            _refuse(f"it asks for {module}.{name}, which no table of arrays needs")
        self._push(found)

    def _global(self) -> None:
        module, name = self._line().decode("utf-8"), self._line().decode("utf-8")
        self._name(module, name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, name = self._pop(), self._pop()
        make = self._names.get(name) if isinstance(name, _Name) else None
        if make is None or type(arguments) is not tuple:
            _refuse("it calls what is no function, or is damaged")
        self._push(make(arguments, self._budget))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, _DType):
            target.set_state(state)
        elif isinstance(target, _Array):
            target.set_state(state, self._budget)
        else:
            _refuse("it gives a state to what has none")

    def _persistent_id(self) -> None:
        if self._persistent is None:
            _refuse("it refers to something outside of itself")
        self._push(self._persistent(self._pop()))

    def _text_int(self) -> None:
        line = self._short_line()
        self._push(line == b"01" if line in (b"00", b"01") else _whole(int(line)))

    def _text_string(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            _refuse("it is damaged")
        self._push(line[1:-1].decode("unicode_escape"))

    def _long(self, code: str) -> None:
        digits = self._counted(code)
        self._push(_whole(int.from_bytes(digits, "little", signed=True) if len(digits) <= 16 else 2**64))


# Opcodes of the pickle protocols 0 to 5 that plain values need. Texts of Python 2 are read as Latin-1.
_STOP = ord(".")
_BY_CODE: Mapping[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda m: m._skip(1),
    b"\x95": lambda m: m._skip(8),  # a frame: how much follows
    b"(": lambda m: m._marks.append(len(m._stack)),
    b"0": _Machine._pop_or_mark,
    b"1": lambda m: m._since_mark().clear(),
    b"2": lambda m: m._push(m._top()),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"I": _Machine._text_int,
    b"L": lambda m: m._push(_whole(int(m._short_line().rstrip(b"L")))),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._byte()),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": lambda m: m._long("<B"),
    b"\x8b": lambda m: m._long("<i"),
    b"F": lambda m: m._push(float(m._short_line())),
    b"G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    b"S": _Machine._text_string,
    b"V": lambda m: m._push(m._line().decode("raw_unicode_escape")),
    b"T": lambda m: m._push(m._counted("<i").decode("latin1")),
    b"U": lambda m: m._push(m._counted("<B").decode("latin1")),
    b"X": lambda m: m._push(m._counted("<I").decode("utf-8", "surrogatepass")),
    b"\x8c": lambda m: m._push(m._counted("<B").decode("utf-8", "surrogatepass")),
    b"\x8d": lambda m: m._push(m._counted("<Q").decode("utf-8", "surrogatepass")),
    b"B": lambda m: m._push(m._counted("<I")),
    b"C": lambda m: m._push(m._counted("<B")),
    b"\x8e": lambda m: m._push(m._counted("<Q")),
    b"\x96": lambda m: m._push(m._counted("<Q")),
    b"]": lambda m: m._push([]),
    b")": lambda m: m._push(()),
    b"}": lambda m: m._push({}),
    b"l": lambda m: m._push(m._since_mark()),
    b"t": lambda m: m._push(tuple(m._since_mark())),
    b"d": _Machine._dictionary,
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"a": _Machine._append_one,
    b"e": lambda m: m._append(m._since_mark()),
    b"s": _Machine._set_one,
    b"u": lambda m: m._set(m._since_mark()),
    b"g": lambda m: m._get(int(m._short_line())),
    b"h": lambda m: m._get(m._byte()),
    b"j": lambda m: m._get(m._number("<I")),
    b"p": lambda m: m._put(int(m._short_line())),
    b"q": lambda m: m._put(m._byte()),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"c": _Machine._global,
    b"\x93": _Machine._stack_global,
    b"R": _Machine._reduce,
    b"b": _Machine._build,
    b"Q": _Machine._persistent_id,
}
_OPERATIONS = {ord(code): operation for code, operation in _BY_CODE.items()}
