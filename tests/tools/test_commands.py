"""Most commands are tested in warm processes: here they start as a user starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TOOLS = sorted(path.stem for path in (REPOSITORY / "tools").glob("*.py"))
NEEDS_PYTORCH = "benchmark"  # its arguments are those of all that it measures


@pytest.mark.parametrize("tool", sorted({*TOOLS} - {NEEDS_PYTORCH}))
def test_help_comes_without_waiting_for_pytorch(tool: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", REPOSITORY / "tools" / f"{tool}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "afa.errors" in imported and "torch" not in imported
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_of_the_others(tmp_path: Path) -> None:
    command = [sys.executable, REPOSITORY / "tools" / f"{NEEDS_PYTORCH}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
