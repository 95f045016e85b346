"""One measurement in a process of its own: a crash, a hang or a lack of memory costs that measurement alone.

A measurement is a generator function. It yields dictionaries of figures; each counts from the moment it is yielded, so
what was measured before a failure is kept. Imports no PyTorch: the process that waits needs none.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from afa.data.parallel import end_with_parent
from afa.errors import UserError, is_out_of_memory, one_line

Measurement = Callable[..., Iterator[dict[str, Any]]]
Message = tuple[Literal["figures", "remark", "skipped", "failed", "done"], Any]

_LONGEST_REASON = 300  # characters
_LEAVE = 5.0  # seconds that a process may take to end, once everything is said
_LAST_WORDS = 2000  # bytes of a crashed process's output that are looked at


class NotHere(Exception):
    """This machine cannot do what was to be measured; the message says why."""


@dataclass
class Outcome:
    """What came of a measurement.

    Attributes:
        status: ``done``; ``skipped``: not possible here, or no time was left; ``failed``: an error, a crash, or the
            time limit.
        reason: Why it is not done; None where it is.
        figures: All that was measured, also before a failure.
        remarks: Warnings that were logged meanwhile.
        seconds: How long it took, its process's start included.
    """

    status: Literal["done", "skipped", "failed"] = "failed"
    reason: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, message: Message) -> bool:
        """Note a message; returns whether it was the last one."""
        kind, content = message
        if kind == "figures":
            self.figures.update(content)
            return False
        if kind == "remark":
            self.remarks.append(content)
            return False
        self.status, self.reason = kind, content
        return True


def messages(measurement: Measurement, arguments: Sequence[Any]) -> Iterator[Message]:
    """Run a measurement and say what it says, one message after the other; the last one tells how it ended."""
    remarks: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: remarks.append(one_line(record.getMessage(), _LONGEST_REASON))  # type: ignore[method-assign]
    logging.getLogger("afa").addHandler(handler)
    last: Message = ("done", None)
    try:
        for figures in measurement(*arguments):
            yield "figures", figures
    except NotHere as error:
        last = ("skipped", one_line(str(error), _LONGEST_REASON))
    # Whatever goes wrong in one measurement, the others are made.
    except Exception as error:
        last = ("failed", _reason(error))
    finally:
        logging.getLogger("afa").removeHandler(handler)
    for remark in dict.fromkeys(remarks):
        yield "remark", remark
    yield last


def run_apart(
    measurement: Measurement, arguments: Sequence[Any], *, limit: float, folder: Path, preload: Sequence[str] = ()
) -> Outcome:
    """Run a measurement in a new process, which is ended with all that it started where it does not end by itself.

    Args:
        measurement: A function of a module.
        arguments: Its arguments; they are sent to the process.
        limit: Seconds that it may take.
        folder: For what the process prints and for compilers' caches; the caller removes it.
        preload: Modules that are imported once for all processes, where the system can fork. They must not touch a GPU.
    """
    start = time.monotonic()
    outcome = Outcome()
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(list(preload))
    ours, theirs = context.Pipe(duplex=False)
    said = folder / "said.txt"
    process = context.Process(target=_work, args=(theirs, measurement, tuple(arguments), folder))
    process.start()
    theirs.close()
    try:
        while True:
            left = start + limit - time.monotonic()
            ready = connection.wait([ours, process.sentinel], timeout=max(0.0, left))
            if not ready:
                outcome.reason = f"it was not finished after {limit:.0f} s, its limit"
                break
            # Its children may hold the other end of the pipe as well: the process's own end decides.
            try:
                message = ours.recv() if ours in ready or ours.poll() else None
            except (EOFError, OSError):
                message = None
            if message is not None:
                if outcome.take(message):
                    process.join(_LEAVE)  # It tidies up.
                    break
            elif process.sentinel in ready or not process.is_alive():
                process.join(_LEAVE)
                outcome.reason = _crash(process.exitcode, said)
                break
    finally:
        _end(process)
        ours.close()
    outcome.seconds = time.monotonic() - start
    return outcome


def _work(theirs: Any, measurement: Measurement, arguments: Sequence[Any], folder: Path) -> None:
    """The process: measure, send, wait to be ended."""
    end_with_parent()
    if hasattr(os, "setsid"):
        os.setsid()  # So that it can be ended with all its children; and an interrupt reaches the parent alone.
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "said.txt", "wb", buffering=0) as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    # Caches of their own: a second start measures compilation like the first one.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    for message in messages(measurement, arguments):
        theirs.send(message)


def _end(process: BaseProcess) -> None:
    """End a process and its children: those that it leaves behind would disturb what is measured next."""
    if process.is_alive() and process.pid is not None and hasattr(os, "killpg"):
        with suppress(OSError):  # It has had no time yet to make a group of its own.
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    if is_out_of_memory(error):
        return one_line(f"memory ran out: {first}" if first else "memory ran out", _LONGEST_REASON)
    return one_line(first if isinstance(error, UserError) else f"{type(error).__name__}: {first}", _LONGEST_REASON)


def _crash(exit_code: int | None, said: Path) -> str:
    try:
        words = said.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        words = []
    how = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    return one_line(f"its process ended by itself ({how})" + (f": {words[-1]}" if words else ""), _LONGEST_REASON)
