"""Taking files out of archives so that an interrupted extraction can go on."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from afa.data.files import replacing
from afa.errors import UserError


def extract(archive: Path, destination: Callable[[str], Path | None]) -> int:
    """Write members of a tar archive, each atomically; those that are there with their full size are left.

    Args:
        archive: ``.tar``, ``.tar.gz`` or ``.tgz``.
        destination: Member name -> where to write it, None to leave it out. Only plain files are asked for.

    Returns:
        Number of members that are in place now.

    Raises:
        UserError: The archive is damaged or incomplete.
    """
    count = 0
    try:
        with tarfile.open(archive) as tar, tqdm(desc=archive.name, unit="file", disable=None) as bar:
            for member in tar:
                path = destination(member.name) if member.isfile() else None
                if path is None:
                    continue
                count += 1
                bar.update()
                if path.is_file() and path.stat().st_size == member.size:
                    continue
                source = tar.extractfile(member)
                assert source is not None  # It is a plain file.
                with replacing(path) as temporary, temporary.open("wb") as target:
                    shutil.copyfileobj(source, target)
            # An uncompressed archive may break off between two files; a whole one ends in a block of zeros.
            if archive.suffix == ".tar":
                with archive.open("rb") as file:
                    file.seek(tar.offset)
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise EOFError("it breaks off")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}): fetch it again, then start again") from error
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
        if match is None or ".." in Path(match[1]).parts:
            return None
        return folder / match[1]

    return destination
