"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

from afa.errors import UserError


def expand_home(text: str) -> str:
    """A path whose leading ``~`` or ``~NAME`` became a home folder, as a shell does it where it sees one.

    Raises:
        UserError: There is no such home folder.
    """
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = text.split("/", 1)[0]
        raise UserError(f"{text}: there is no home folder of {user}; write ./{text} for a folder of that name")
    return expanded


def given_path(text: str) -> Path:
    """A path among a command's arguments; a type for :mod:`argparse`.

    Raises:
        UserError: As :func:`expand_home`.
    """
    return Path(expand_home(text))
