"""A folder for the launch scripts that looks installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from launching import INSTALLED_FROM, REPOSITORY, STAND_INS


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks installed, with stand-ins where programs would be."""
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch")
    for name in INSTALLED_FROM:
        shutil.copy(REPOSITORY / name, tmp_path / name)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    files = b"".join((tmp_path / name).read_bytes() for name in INSTALLED_FROM)
    stamp = subprocess.run(["cksum"], input=files, capture_output=True, check=True).stdout
    for name in ("installed", "installed_onnx"):
        (tmp_path / ".venv" / name).write_text(f"{stamp.decode().strip()} {tmp_path}\n")
    return tmp_path
