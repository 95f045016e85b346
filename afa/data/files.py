"""Finding and reading files, and writing them so that nothing half-written stays behind."""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from afa.data.names import two_of_each
from afa.errors import UserError

MAX_TEXT_BYTES = 2**28
"""Text and JSON files above this size are refused unless the reader says otherwise: they are something else."""
_UNFINISHED = ".part"
# Only these can stand for a number that a float cannot hold.
_HUGE_NUMBER = re.compile(r"[eE]\+?\d{3}|\d{309}")
# No text in JSON holds a line break: what has one between brackets is a list.
_NUMBERS = re.compile(r"\[\n([-+0-9.eE,\s]+)\]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that takes the place of ``path`` when the block ends without an error.

    Its permissions are those that ``open(path, "w")`` would give: of a new file what the umask leaves, of one that is
    there what it has. So what is private stays private. Where the file system knows no permissions, it goes without.

    Args:
        path: The file to write; its folder is made if needed.

    Yields:
        The temporary path, with the same suffix; the file exists and is empty.

    Raises:
        OSError: The folder or file cannot be written, or ``path`` is a folder, a device or a pipe.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _permissions(path)
    temporary = _create_beside(path, 0o666 if before is None else before | 0o600)
    wanted = stat.S_IMODE(temporary.stat().st_mode) if before is None else before
    try:
        yield temporary
        # Some writers (safetensors) put a file of their own in its place.
        if stat.S_IMODE(temporary.stat().st_mode) != wanted:
            with suppress(OSError):
                temporary.chmod(wanted)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _permissions(path: Path) -> int | None:
    """The permissions of the file that will be replaced; None where there is none."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"It is {_kind(mode)}, which no file may replace", str(path))
    return stat.S_IMODE(mode) & 0o777


def _create_beside(path: Path, mode: int) -> Path:
    """Create an empty hidden file. Its name is short, so that it fits wherever the name of ``path`` does."""
    while True:
        temporary = path.with_name(f".{secrets.token_hex(4)}{_UNFINISHED}{path.suffix}")
        try:
            # The system takes the umask away from the mode: no chmod, which some file systems refuse, is needed.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        except FileExistsError:
            continue
        return temporary


@dataclass(frozen=True)
class FilesBelow:
    """The files of some kinds below a folder, by the names of their images.

    Args:
        folder: The folder.
        found: Image name, see :func:`afa.data.names.image_key` -> path below the folder.
        doubles: Image name -> two files that have it.
        others: The files of other kinds, as paths below the folder.
    """

    folder: Path
    found: Mapping[str, str]
    doubles: Mapping[str, tuple[str, str]]
    others: tuple[str, ...]

    def path(self, key: str) -> Path | None:
        """The file of a name; None where there is none.

        Raises:
            UserError: Two files have the name.
        """
        if key in self.doubles:
            first, second = (self.folder / file for file in self.doubles[key])
            raise UserError(
                f"{second} and {first} have the same name without their suffixes (blanks around it, and how an accent "
                "is spelled, do not count): rename one"
            )
        return self.folder / self.found[key] if key in self.found else None

    def checked(self) -> FilesBelow:
        """These files.

        Raises:
            UserError: Two of them have one name.
        """
        for key in self.doubles:
            self.path(key)
        return self


def files_below(folder: Path, suffixes: Sequence[str]) -> FilesBelow:
    """The files below a folder, without hidden ones.

    Args:
        folder: Its sub-folders are searched too, and those that links lead to; it need not exist.
        suffixes: Of the wanted files, in lower case, with their dots.

    Raises:
        OSError: A folder cannot be read.
    """
    # images, which knows the suffixes that names leave out, imports this module.
    from afa.data.names import image_key

    found: dict[str, str] = {}
    doubles: dict[str, tuple[str, str]] = {}
    others = []
    for file in _walk(folder, "", ()) if folder.is_dir() else ():
        if os.path.splitext(file)[1].lower() not in suffixes:
            others.append(file)
            continue
        key = image_key(file)
        if key in found:
            doubles.setdefault(key, (found[key], file))
        found[key] = file
    return FilesBelow(folder, found, doubles, tuple(others))


def _walk(folder: Path, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """The files below a folder in the order of their names; a link to a folder above it is not followed."""
    status = os.stat(folder / below)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder / below) as entries:
        listed = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    yield from (f"{below}{name}" for name, is_folder in listed if not is_folder)
    for name, is_folder in listed:
        if is_folder:
            yield from _walk(folder, f"{below}{name}/", (*above, here))


def find_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files below a folder by the names of their images, see :func:`files_below`.

    Raises:
        UserError: Two files have one name.
        OSError: A folder cannot be read.
    """
    files = files_below(folder, suffixes).checked()
    return {name: folder / file for name, file in files.found.items()}


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that lead nowhere. Each folder is listed once: quicker than to ask for every file."""
    listed: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in listed[path.parent] and not path.exists():
            missing.append(path)
    return missing


def beside_missing(missing: Sequence[Path], wanted: Iterable[Path]) -> str:
    """As :func:`afa.data.names.two_of_each`, of files: the others are those of the first missing file's folder.

    Args:
        missing: As :func:`missing_files` gives them, at least one.
        wanted: All that were looked for.
    """
    folder, suffix = missing[0].parent, missing[0].suffix
    known = {path.name for path in wanted}
    there = os.listdir(folder) if folder.is_dir() else []
    others = sorted(name for name in there if name not in known and Path(name).suffix == suffix)
    return two_of_each((path.name for path in missing), others)


def require_writable(path: Path, what: str, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written, before the work whose results it is to hold. Nothing is made there.

    Args:
        path: A file, or with ``folder`` a folder; it and its folders may still have to be made.
        what: Names it in the message, for example ``--output``.
        folder: Whether it is a folder.

    Raises:
        UserError: It cannot be written.
    """
    try:
        if not folder:
            _permissions(path)  # a folder, a device or a pipe stands there
        places = [*([path.absolute()] if folder else []), *path.absolute().parents]
        with tempfile.TemporaryFile(dir=next(place for place in places if os.path.lexists(place))):
            pass
    except OSError as error:
        raise UserError(f"{what} {path} cannot be written: {error.strerror or error}") from error


def confusion_place(path: Path) -> Path:
    """Where the confusion matrices that belong to a CSV file of scores lie: ``NAME_confusion.csv``."""
    return path.with_name(f"{path.stem}_confusion{path.suffix}")


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of :func:`replacing` that a killed process left in a folder."""
    for path in folder.glob(f".*{_UNFINISHED}.*"):
        path.unlink(missing_ok=True)


def read_bytes(path: Path, what: str = "the file", *, largest: int = MAX_TEXT_BYTES) -> bytes:
    """Read a whole file. A pipe or a device, on which reading could wait for ever, is refused at once.

    Args:
        path: The file.
        what: What it is, for the error, such as ``the labels file``.
        largest: Bytes above which it is refused.

    Raises:
        UserError: It is missing, no plain file, too large, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{what} {path} is {_kind(mode)}, not a file")
        # Not to wait, should a pipe take its place meanwhile.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            content = file.read(min(largest, os.fstat(handle).st_size) + 1)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} is missing") from error
    except PermissionError as error:
        raise UserError(f"{what} {path} may not be read (permissions)") from error
    except (OSError, ValueError) as error:  # ValueError: no path, it holds a NUL
        raise UserError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > largest:
        raise UserError(f"{what} {path} is too large: at most {largest:,} bytes are read")
    return content


def read_text(path: Path, what: str = "the file", *, largest: int = MAX_TEXT_BYTES) -> str:
    """Read a text file in UTF-8, with or without a byte order mark; every line ends in ``\\n``.

    Args:
        path: The file.
        what: What it is, for the error.
        largest: Bytes above which it is refused.

    Raises:
        UserError: As for :func:`read_bytes`, or it is not UTF-8, or no text.
    """
    content = read_bytes(path, what, largest=largest)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{what} {path} is text in UTF-16: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is no text in UTF-8 (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{what} {path} is no text: it holds NUL characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, what: str = "the file", *, largest: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: The file, in UTF-8.
        what: What it is, for the error.
        largest: Bytes above which it is refused.

    Raises:
        UserError: As for :func:`read_text`; or it is not JSON, holds NaN, an infinity or a number too large for a
            float, a key twice in one object, or is nested too deep.
    """
    text = read_text(path, what, largest=largest)
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite if _HUGE_NUMBER.search(text) else None,
        )
    except RecursionError as error:
        raise UserError(f"{what} {path} is nested too deep") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from error
    except ValueError as error:
        raise UserError(f"{what} {path} cannot be right: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice}' appears twice in one object")
    return table


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it holds a number that is too large")
    return number


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def write_text(path: Path, text: str, *, surrogates: str = "strict") -> None:
    """Write a UTF-8 text file atomically.

    Args:
        path: The file.
        text: Its content.
        surrogates: How :meth:`str.encode` treats what UTF-8 cannot hold: names of files in another encoding.

    Raises:
        UserError: The text holds such a name, and ``surrogates`` does not say what to do with it.
    """
    try:
        content = text.encode("utf-8", surrogates)
    except UnicodeEncodeError as error:
        line = text[text.rfind("\n", 0, error.start) + 1 :].split("\n", 1)[0]
        raise UserError(f"{path} cannot hold a name that is not UTF-8: rename the file of '{line}'") from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file atomically, one item per line.

    Raises:
        UserError: An item has a line break in it.
    """
    for line in lines:
        if "\n" in line or "\r" in line:
            raise UserError(f"{path} cannot hold the name {line!r}, because it has a line break: rename it")
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; equal content gives equal bytes.

    Names that are not UTF-8 are escaped, as JSON allows; they are read as they were. A list of numbers takes one line.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(path, text + "\n", surrogates="backslashreplace")


def open_plain(path: str | Path) -> BinaryIO:
    """Open a plain file for reading; a named pipe, which may never have a writer, is not waited for.

    Args:
        path: The file.

    Returns:
        The file, opened in binary mode.

    Raises:
        OSError: As of ``open``; a folder is an ``IsADirectoryError``.
        UserError: It is a named pipe, a socket or a device; the message begins with the path.
    """
    require_plain_file(path)
    # Not to wait, should a pipe take its place meanwhile.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_plain(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def require_plain_file(path: str | Path) -> None:
    """Refuse what is no plain file before it is opened: opening a named pipe waits for a writer, maybe for ever.

    Raises:
        OSError: There is no such file; or, as an ``IsADirectoryError``, it is a folder.
        UserError: It is a named pipe, a socket or a device; the message begins with the path.
    """
    _require_plain(os.stat(path).st_mode, path)


def _require_plain(mode: int, path: str | Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_kind(mode)}, not a file")
