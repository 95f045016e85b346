"""Print versions, devices and memory, in a form to paste into an issue."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from afa import __version__
from afa.commands.arguments import CommandParser
from afa.data.parallel import usable_cores

_PACKAGES = (
    "torch", "torchvision", "timm", "mmcv-lite", "numpy", "opencv-python", "omegaconf", "tensorboard", "imageio",
    "Pillow", "safetensors", "huggingface_hub", "filelock",
)  # fmt: skip
_GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, look, print."""
    CommandParser(__doc__).read(arguments)
    for name, value in _facts():
        print(f"{name:<16}{value}", flush=True)
    return 0


def _facts() -> Iterator[tuple[str, str]]:
    """Name -> value; what needs PyTorch comes last."""
    folder = Path(__file__).resolve().parents[1]
    yield "afa", f"{__version__} in {folder}"
    yield "git", _git(folder)
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    yield "cores", f"{usable_cores()} of {os.cpu_count()} can be used"
    yield "memory", _memory()
    import torch

    from afa.device import mps_available

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield "CUDA", f"{torch.version.cuda or 'not built into torch'}, {count} devices"
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        yield f"  cuda:{index}", f"{facts.name}, {facts.total_memory / _GIB:.1f} GiB"
    yield "MPS", "available" if mps_available() else "not available"


def _git(folder: Path) -> str:
    """The commit of a checkout, and whether files were changed since."""
    if not (folder.parent / ".git").exists():
        return "no checkout"
    found = []
    for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown: git could not be asked"
        found.append(done.stdout.strip())
    return f"{found[0]}, {'files changed since' if found[1] else 'unchanged'}"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / _GIB:.1f} GiB"
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return "unknown"
