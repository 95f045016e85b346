"""One function over many files, in several processes, with a progress bar."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from afa.errors import UserError
from afa.progress import live_line

Job = TypeVar("Job")
Result = TypeVar("Result")

_WORTH_PROCESSES = 64  # Starting processes takes as long as some dozens of files.


def usable_cores() -> int:
    """Processor cores that this process may use: its job's share (SLURM, taskset), not all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_files(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, description: str
) -> Iterator[Result]:
    """Apply a function to every job and give the results in the jobs' order.

    A progress bar is shown on a terminal. The first error of a job ends the iteration.

    Args:
        function: Can be pickled: a function of a module, or a ``partial`` of one.
        jobs: Its arguments.
        workers: Number of processes; 1 works in this one.
        description: What the progress bar says.

    Raises:
        UserError: A worker was killed, or the function failed: libraries raise many kinds of errors for a bad file, and
            the message names the job.
        OSError: The function raised it, and the system gave the reason.
    """
    function = partial(_do, function, description)
    with live_line(len(jobs), description, "file", stays=True) as bar:
        if workers <= 1 or len(jobs) < _WORTH_PROCESSES:
            for job in jobs:
                yield function(job)
                bar.update()
            return
        # spawn: forking a process that already runs threads (torch, OpenCV) may hang.
        pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), end_with_parent)
        try:
            for result in pool.map(function, jobs, chunksize=min(16, -(-len(jobs) // workers))):
                yield result
                bar.update()
        except BrokenProcessPool as error:
            raise UserError(f"{description}: a worker process was killed (memory?): start again, it goes on") from error
        except (RecursionError, MemoryError) as error:  # on the way to a worker or back
            raise UserError(f"{description}: {_reason(error)}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _do(function: Callable[[Job], Result], description: str, job: Job) -> Result:
    try:
        return function(job)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror is not None:
            raise
        raise UserError(f"{description}: {_name(job)}: {_reason(error)}") from error


def _name(job: Any) -> str:
    """What a message calls a job: the paths, words and numbers in it, or its name."""
    if isinstance(job, tuple):
        return " ".join(str(part) for part in job if isinstance(part, (str, int, Path)))
    return str(job if isinstance(job, (str, int, Path)) else getattr(job, "name", type(job).__name__))


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"memory ran out ({error})" if str(error) else "memory ran out"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"{type(error).__name__}: {error}"


def end_with_parent() -> None:
    """Let this process end when the one that started it does: it might wait for ever otherwise."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
