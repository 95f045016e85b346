"""Most commands are tested in warm processes: here they start as a user starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_tool import TOOLS


def read_help(tool: str, folder: Path, *options: str) -> str:
    """What Python says on stderr while a command prints its help."""
    command = [sys.executable, *options, TOOLS / f"{tool}.py", "--help"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert list(folder.iterdir()) == []
    return done.stderr


@pytest.mark.parametrize("tool", sorted({path.stem for path in TOOLS.glob("*.py")}))
def test_help_comes_without_waiting_for_pytorch(tool: str, tmp_path: Path) -> None:
    log = read_help(tool, tmp_path, "-X", "importtime")
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines()}
    assert "afa.errors" in imported and "torch" not in imported
