"""Carries out a pickle without Python's own machine: nothing is imported, and nothing called but what is handed in."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

_MOST_STEPS = 10_000_000


class Refused(Exception):
    """Why a file is not read."""


def refuse(reason: str) -> NoReturn:
    """Leave the file; for use within an expression, too."""
    raise Refused(reason)


class Budget:
    """Bytes that arrays may take: in proportion to the file."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, size: int) -> None:
        """Take some bytes.

        Raises:
            Refused: There are not so many left.
        """
        self._left -= size
        if self._left < 0:
            refuse("its arrays are larger than the file")


@dataclass(frozen=True)
class Name:
    """What a pickle calls ``module.name``; it stands for nothing but itself."""

    module: str
    name: str


class Unfinished:
    """What a pickle makes first and fills afterwards."""

    def set_state(self, state: Any, budget: Budget) -> None:
        """Fill it.

        Raises:
            Refused: With this it cannot be filled.
        """
        raise NotImplementedError


Maker = Callable[[tuple[Any, ...], Budget], Any]
"""Arguments in the pickle and the budget -> what a name that is called gives."""


def whole_number(number: int) -> int:
    """The number, where 64 bits hold it."""
    if not -(2**63) <= number < 2**64:
        refuse("it holds a number of more than 64 bits")
    return number


def dictionary_key(value: Any) -> str | int:
    """A dictionary's key: a name, or a whole number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, str) or type(value) is int:
        return value
    return refuse("a dictionary has a key that is neither a name nor a whole number")


class Machine:
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
        names: Mapping[Name, Maker | None],
        budget: Budget,
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
                refuse("it builds an object of its own, or is no pickle")
            operation(self)
        refuse("it has too many parts")

    # Reading.

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._content):
            refuse("it is cut off")
        taken = self._content[self._at : end]
        self._at = end
        return taken

    def _byte(self) -> int:
        at = self._at
        if at >= len(self._content):
            refuse("it is cut off")
        self._at = at + 1
        return self._content[at]

    def _skip(self, size: int) -> None:
        self._take(size)

    def _number(self, code: str) -> int:
        return int(struct.unpack(code, self._take(struct.calcsize(code)))[0])

    def _counted(self, code: str) -> bytes:
        """Bytes behind their number."""
        size = self._byte() if code == "<B" else self._number(code)
        return self._take(size) if size >= 0 else refuse("it is damaged")

    def _line(self) -> bytes:
        end = self._content.find(b"\n", self._at)
        return self._take(end - self._at + 1)[:-1] if end >= 0 else refuse("it is cut off")

    def _short_line(self) -> bytes:
        line = self._line()
        return line if len(line) <= 64 else refuse("it is damaged")

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            refuse("it is damaged")
        return self._stack.pop()

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            refuse("it is damaged")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            refuse("it is damaged")
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
            refuse("it is damaged")
        self._push(self._memo[place])

    def _put(self, place: int) -> None:
        if not 0 <= place < 2**32:
            refuse("it is damaged")
        self._memo[place] = self._top()

    def _tuple(self, size: int) -> None:
        if len(self._stack) - size < (self._marks[-1] if self._marks else 0):
            refuse("it is damaged")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            refuse("it is damaged")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            refuse("it is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            key = dictionary_key(key)
            if key in target:
                refuse(f"a dictionary names '{key}' twice")
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
            refuse("it is damaged")
        found = Name(module, name)
        if found not in self._names:
            refuse(f"it asks for {module}.{name}, which no table of arrays needs")
        self._push(found)

    def _global(self) -> None:
        module, name = self._line().decode("utf-8"), self._line().decode("utf-8")
        self._name(module, name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, name = self._pop(), self._pop()
        make = self._names.get(name) if isinstance(name, Name) else None
        if make is None or type(arguments) is not tuple:
            refuse("it calls what is no function, or is damaged")
        self._push(make(arguments, self._budget))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if not isinstance(target, Unfinished):
            refuse("it gives a state to what has none")
        target.set_state(state, self._budget)

    def _persistent_id(self) -> None:
        if self._persistent is None:
            refuse("it refers to something outside of itself")
        self._push(self._persistent(self._pop()))

    def _text_int(self) -> None:
        line = self._short_line()
        self._push(line == b"01" if line in (b"00", b"01") else whole_number(int(line)))

    def _text_string(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            refuse("it is damaged")
        self._push(line[1:-1].decode("unicode_escape"))

    def _long(self, code: str) -> None:
        digits = self._counted(code)
        self._push(whole_number(int.from_bytes(digits, "little", signed=True) if len(digits) <= 16 else 2**64))


# Opcodes of the pickle protocols 0 to 5 that plain values need. Texts of Python 2 are read as Latin-1.
_STOP = ord(".")
_BY_CODE: Mapping[bytes, Callable[[Machine], None]] = {
    b"\x80": lambda m: m._skip(1),
    b"\x95": lambda m: m._skip(8),  # a frame: how much follows
    b"(": lambda m: m._marks.append(len(m._stack)),
    b"0": Machine._pop_or_mark,
    b"1": lambda m: m._since_mark().clear(),
    b"2": lambda m: m._push(m._top()),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"I": Machine._text_int,
    b"L": lambda m: m._push(whole_number(int(m._short_line().rstrip(b"L")))),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._byte()),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": lambda m: m._long("<B"),
    b"\x8b": lambda m: m._long("<i"),
    b"F": lambda m: m._push(float(m._short_line())),
    b"G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    b"S": Machine._text_string,
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
    b"d": Machine._dictionary,
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"a": Machine._append_one,
    b"e": lambda m: m._append(m._since_mark()),
    b"s": Machine._set_one,
    b"u": lambda m: m._set(m._since_mark()),
    b"g": lambda m: m._get(int(m._short_line())),
    b"h": lambda m: m._get(m._byte()),
    b"j": lambda m: m._get(m._number("<I")),
    b"p": lambda m: m._put(int(m._short_line())),
    b"q": lambda m: m._put(m._byte()),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"c": Machine._global,
    b"\x93": Machine._stack_global,
    b"R": Machine._reduce,
    b"b": Machine._build,
    b"Q": Machine._persistent_id,
}
_OPERATIONS = {ord(code): operation for code, operation in _BY_CODE.items()}
