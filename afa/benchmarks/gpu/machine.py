"""The machine that is measured, and whether others use it at the same time. No names of people or hosts."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import afa
from afa.benchmarks.gpu.setting import Setting
from afa.data.parallel import usable_cores
from afa.device import choose_device
from afa.engine.checkpoint import git_revision

_PACKAGES = ("torchvision", "timm", "mmcv-lite", "numpy", "opencv-python", "opencv-python-headless", "Pillow", "triton")
_STATE = {
    "driver": "driver_version",
    "memory_used_mib": "memory.used",
    "utilisation_percent": "utilization.gpu",
    "sm_clock_mhz": "clocks.sm",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
    "mig": "mig.mode.current",
}
_TEXTS = ("driver", "mig")
_PATIENCE = 10.0  # seconds for nvidia-smi


def measure_machine(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yields what the machine is made of and how its GPU is doing.

    ``gpu_state`` is None without nvidia-smi. ``gpu_processes`` counts processes on the GPU, this one included where
    nvidia-smi sees it: in a container it may see none, and ``memory_used_mib`` tells more.
    """
    device = choose_device(setting.device, "--device")
    packages = {"afa": afa.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    yield {
        "processor": _processor(),
        "cores": usable_cores(),
        "cores_of_machine": os.cpu_count(),
        "system": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "packages": packages,
        # Beside a package that was installed, .git would be a stranger's.
        "git": git_revision() if (Path(afa.__file__).resolve().parents[1] / ".git").exists() else None,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    if device.type != "cuda":
        return
    facts = torch.cuda.get_device_properties(device)
    torch.ones(1, device=device).add_(1).item()  # a GPU that is there and cannot be used fails here
    free, whole = torch.cuda.mem_get_info(device)
    yield {
        "gpu": facts.name,
        "gpu_memory_gb": facts.total_memory / 1e9,
        "gpu_memory_used_by_all_gb": (whole - free) / 1e9,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
    }
    state = _parsed(_finished(_ask(device)))
    yield {"gpu_state": state, "gpu_processes": _processes(device)}


class BusyReading:
    """What nvidia-smi says of a GPU while it works: start it, let the GPU work while :meth:`waits`, then ask for it."""

    def __init__(self, device: torch.device) -> None:
        self._process = _ask(device) if device.type == "cuda" else None
        self._end = time.monotonic() + _PATIENCE

    def waits(self) -> bool:
        """Whether nvidia-smi has not answered yet."""
        return self._process is not None and self._process.poll() is None and time.monotonic() < self._end

    def facts(self) -> dict[str, Any] | None:
        """The answer; None without one."""
        return _parsed(_finished(self._process))


def _ask(device: torch.device) -> subprocess.Popen[str] | None:
    query = ["nvidia-smi", f"--query-gpu={','.join(_STATE.values())}", "--format=csv,noheader,nounits", *_which(device)]
    try:
        return subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def _finished(process: subprocess.Popen[str] | None) -> str | None:
    if process is None:
        return None
    try:
        answer, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    return answer if process.returncode == 0 else None


def _parsed(answer: str | None) -> dict[str, Any] | None:
    """One line of comma-separated values; what the GPU does not tell is None."""
    values = [value.strip() for value in (answer or "").strip().split("\n")[0].split(",")]
    if len(values) != len(_STATE):
        return None
    return {name: _told(name, value) for name, value in zip(_STATE, values, strict=True)}


def _told(name: str, text: str) -> float | str | None:
    if not text or text.startswith("[") or text == "N/A":
        return None
    if name in _TEXTS:
        return text
    try:
        return float(text)
    except ValueError:
        return None


def _processes(device: torch.device) -> int | None:
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader", *_which(device)]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return len(done.stdout.split())


def _which(device: torch.device) -> list[str]:
    """The GPU by its own number: CUDA_VISIBLE_DEVICES gives PyTorch's numbers another meaning than nvidia-smi's."""
    identity = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return [] if identity is None else [f"--id=GPU-{identity}"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
