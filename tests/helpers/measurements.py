"""Measurements of no worth, for the processes that run them. Imports no PyTorch: each process would, too."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afa.benchmarks.gpu.apart import Measurement, NotHere, Outcome, messages

WAITS = "import time; time.sleep(600)"


def run_here(measurement: Measurement, arguments: Any, **_: Any) -> Outcome:
    """What :func:`afa.benchmarks.gpu.apart.run_apart` gives, without a process."""
    outcome = Outcome()
    for message in messages(measurement, arguments):
        outcome.take(message)
    return outcome


def ends_well() -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    logging.getLogger("afa.somewhere").warning("a remark\nof two lines")
    yield {"second": 2}


def is_killed() -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    print("what it said last", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs_with_a_child(note: Path) -> Iterator[dict[str, Any]]:
    child = subprocess.Popen([sys.executable, "-S", "-c", WAITS])
    note.write_text(str(child.pid))
    yield {"first": 1}
    time.sleep(600)


def runs_out_of_memory() -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ...")


def is_not_possible() -> Iterator[dict[str, Any]]:
    raise NotHere("a GPU of 1999 has no bf16")
    yield {}
