"""One run alone writes into a folder, as long as its process lives."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from afa.engine.output import locked
from afa.errors import UserError


def in_child(folder: Path, *, loader: bool) -> int:
    """A process that holds the lock, with a loader process of its own that outlives it a little."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder):
            if loader and os.fork() == 0:
                time.sleep(3)
                os._exit(0)
            os.write(writer, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return child


@pytest.mark.parametrize("loader", [False, True])
def test_a_killed_run_lets_go_of_its_folder(tmp_path: Path, loader: bool) -> None:
    folder = tmp_path / "a run"
    child = in_child(folder, loader=loader)
    try:
        with pytest.raises(UserError, match="another process trains in"), locked(folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with locked(folder):
        pass
    with locked(folder):  # and again, in one process
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"train\.output: .* cannot be written"), locked(tmp_path / "file" / "run"):
        pass
