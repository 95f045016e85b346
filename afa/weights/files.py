"""What every reader of weights needs: whole ordinary files, bounded JSON, and names that are safe to show."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afa.errors import UserError

_SHOWN_CHARACTERS = 80
_DEEPEST = 32
_LARGEST_INTEGER = 2**64
_NOT_THERE = (FileNotFoundError, NotADirectoryError)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnreadableError(UserError):
    """A file is there, but the system does not hand it out now: no sign that it is damaged."""


def file_mode(path: Path) -> int | None:
    """What a path leads to, as ``st_mode`` says it; None where there is nothing.

    Raises:
        UnreadableError: The system does not say.
    """
    try:
        return os.stat(path).st_mode
    except (*_NOT_THERE, ValueError):  # a name with a zero byte
        return None
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error


def require_source(source: str | Path) -> None:
    """Refuse a place for weights where there is nothing, before anything slow begins.

    Args:
        source: A file or folder; ``FILE#ENTRY`` names one of several networks in a file.

    Raises:
        UserError: Nothing there.
        UnreadableError: The system does not say.
    """
    path = Path(source)
    if file_mode(path) is None and file_mode(Path(str(source).rpartition("#")[0] or path)) is None:
        reason = "the link leads nowhere" if path.is_symlink() else "no such file or folder"
        raise UserError(f"{path}: {reason}; pretrained/README.md says where to get weights")


def require_file(path: Path) -> None:
    """Refuse what is no ordinary file before it is opened: to open a named pipe waits for ever.

    Raises:
        UserError: Nothing there, or a folder, pipe, socket or device.
    """
    mode = file_mode(path)
    if mode is None:
        leads_nowhere = ": the link leads nowhere" if path.is_symlink() else ": no such file"
        raise UserError(f"{path}{leads_nowhere}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")


def read_file(path: Path) -> bytes:
    """All of an ordinary file.

    Raises:
        UnreadableError: It is there and cannot be read now.
        UserError: As :func:`require_file`.
    """
    require_file(path)
    try:
        return path.read_bytes()
    except _NOT_THERE as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(text: bytes | str, *, finite: bool = True) -> Any:
    """JSON out of a file that somebody else may have written.

    Args:
        text: UTF-8.
        finite: Refuse ``NaN`` and infinities, which are no JSON.

    Raises:
        ValueError: Not JSON, a key twice in one object, nested too deep, or a number beyond 64 bits.
    """
    try:
        content = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_without_doubles,
            parse_int=_bounded_integer,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    level = [content]
    for _ in range(_DEEPEST):
        level = [item for node in level for item in _children(node)]
        if not level:
            return content
    raise ValueError("nested too deep")


def shown(text: str) -> str:
    """A name out of a file as it may stand in a message: control characters escaped, not endless."""
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]}..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _children(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return node if isinstance(node, list) else []


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def _bounded_integer(text: str) -> int:
    value = int(text)
    if abs(value) >= _LARGEST_INTEGER:
        raise ValueError("a number beyond 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
