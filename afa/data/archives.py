"""Taking files out of archives so that an interrupted extraction can go on."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from afa.data.files import replacing
from afa.data.own_files import check_inside, is_free
from afa.errors import UserError
from afa.progress import live_line

MEMBER_BYTES = 2**26
"""Larger members are refused: no file of VOC or SBD has a tenth of it."""
ARCHIVE_BYTES = 2**33
"""No more is read from an archive, unpacked: a small file may claim to hold any amount."""
_COPIED_AT_ONCE = 2**20
_COMPRESSIONS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
)
_DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError, RecursionError)


def extract(archive: Path, destination: Callable[[str], Path | None], *, root: Path) -> int:
    """Write members of a tar archive, each atomically; those that are there with their full size are left.

    Only plain files are taken: links, devices and whatever else an archive may hold are passed over.

    Args:
        archive: ``.tar``, ``.tar.gz`` or ``.tgz`` (or compressed by bzip2 or xz).
        destination: Member name -> where to write it, None to leave it out. Only plain files are asked for.
        root: Nothing is written outside this folder, through links neither.

    Returns:
        Number of members that are in place now.

    Raises:
        UserError: The archive is damaged, incomplete, or larger than VOC and SBD can be; another file is in a member's
            place, or a link leads out of ``root``.
    """
    count = 0
    with _open(archive) as file, live_line(None, archive.name, "file", stays=True) as bar:
        for name, size, content in _members(archive, file):
            path = destination(name)
            if path is None:
                continue
            count += 1
            bar.update()
            if path.is_file() and path.stat().st_size == size:
                continue
            check_inside(root, path.parent)
            if not is_free(path):
                raise UserError(
                    f"{path} is there, but is not the file that {archive} holds ({size} bytes): "
                    "move it away; or move the archive away, if the file is what you want"
                )
            _copy(archive, content(), path, size)
    return count


def below(pattern: str, folder: Path) -> Callable[[str], Path | None]:
    """A ``destination`` for :func:`extract`.

    Args:
        pattern: Regular expression that must match a member's whole name; its first group is the path below ``folder``.
        folder: Where the members go.
    """
    expression = re.compile(pattern)

    def destination(name: str) -> Path | None:
        match = expression.fullmatch(name.removeprefix("./"))
        if match is None or ".." in Path(match[1]).parts or not match[1].isprintable():
            return None
        return folder / match[1]

    return destination


class _Bounded:
    """A file for tarfile that takes no claimed length on trust, and remembers what was read last."""

    def __init__(self, file: IO[bytes], *, compressed: bool) -> None:
        self._file = file
        self._empty_reads = 0
        self.compressed = compressed
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MEMBER_BYTES:
            raise tarfile.ReadError(f"it asks for {size} bytes at once")
        self.last = content = self._file.read(size)
        # Some of tarfile's loops wait for data that never come.
        self._empty_reads = 0 if content or not size else self._empty_reads + 1
        if self._empty_reads > 2:
            raise EOFError("it breaks off")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        if not 0 <= offset <= ARCHIVE_BYTES:
            raise tarfile.ReadError(f"it claims to have {offset} bytes")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


@contextmanager
def _open(archive: Path) -> Iterator[_Bounded]:
    if not archive.is_file():
        raise UserError(
            f"{archive} is no plain file (a pipe, a device?)" if archive.exists() else f"{archive} is missing"
        )
    with _as_user_error(archive):
        with archive.open("rb") as file:
            start = file.read(8)
        opener = next((opener for magic, opener in _COMPRESSIONS if start.startswith(magic)), None)
        opened = archive.open("rb") if opener is None else opener(archive)
    with opened:
        yield _Bounded(opened, compressed=opener is not None)


def _members(archive: Path, file: _Bounded) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, size and content of every plain file in an archive."""
    with _as_user_error(archive):
        tar = tarfile.TarFile(fileobj=file)  # type: ignore[arg-type]
    while True:
        with _as_user_error(archive):
            member = tar.next()
            if member is None:
                break
            if not 0 <= member.size <= MEMBER_BYTES:
                raise tarfile.ReadError(f"the member '{member.name[:80]}' claims to have {member.size} bytes")
            tar.members.clear()  # type: ignore[attr-defined]  # It keeps all that it has seen.
        # A sparse file would say what size it has, without having it.
        if member.isreg() and not member.issparse():
            yield member.name, member.size, partial(_content, tar, member)
    # A whole archive ends in a block of zeros. A damaged header is no error to tarfile but an end, and an uncompressed
    # archive may break off between two files (of a compressed one the decompression says so).
    if file.last != bytes(tarfile.BLOCKSIZE) and not (file.compressed and not file.last):
        with _as_user_error(archive):
            raise EOFError("it breaks off")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    source = tar.extractfile(member)
    assert source is not None  # It is a plain file.
    return source


def _copy(archive: Path, source: IO[bytes], path: Path, size: int) -> None:
    # Errors of the archive and of the disk need different words: the one is fetched again, the other is not.
    with replacing(path) as temporary, temporary.open("wb") as target:
        left = size
        while left:
            with _as_user_error(archive):
                part = source.read(min(left, _COPIED_AT_ONCE))
                if not part:
                    raise EOFError("it breaks off")
            target.write(part)
            left -= len(part)


@contextmanager
def _as_user_error(archive: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise UserError(f"{archive} cannot be unpacked: it needs more memory than there is") from error
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{archive} cannot be unpacked ({reason}): fetch it again, then start again") from error
