"""Finding files, and writing them so that nothing half-written stays behind."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afa.errors import UserError

_UNFINISHED = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that takes the place of ``path`` when the block ends without an error.

    Args:
        path: The file to write; its folder is made if needed.

    Yields:
        The temporary path, with the same suffix; the file exists and is empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f"{_UNFINISHED}{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files below a folder, hidden ones left out.

    Args:
        folder: Its sub-folders are searched too.
        suffixes: In lower case, with their dots.

    Returns:
        Path below the folder without suffix, separated by ``/`` -> the file.

    Raises:
        UserError: Two files differ in their suffixes alone.
    """
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in sorted(files):
            path = Path(parent, file)
            if path.suffix.lower() not in suffixes or file.startswith("."):
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UserError(f"{path} and {found[name]} have the same name without their suffixes: rename one")
            found[name] = path
    return found


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


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of :func:`replacing` in a folder."""
    for path in folder.glob(f".*{_UNFINISHED}.*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file atomically, one item per line."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; equal content gives equal bytes."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
