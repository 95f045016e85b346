"""Being asked to stop: by a cluster (SIGTERM, SIGUSR1), by the keyboard (SIGINT), or by a lost terminal (SIGHUP)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from afa.errors import INTERRUPTED_EXIT_CODE

PREEMPTED_EXIT_CODE = 75
"""The run was asked to stop, has saved and wants to be started again (EX_TEMPFAIL)."""

# Windows has no SIGUSR1 and no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP") if hasattr(signal, name))


class StopSignals:
    """Notes SIGTERM, SIGUSR1, SIGHUP and the first SIGINT instead of dying of them. A second SIGINT interrupts at once.

    What the process was started to ignore, such as SIGHUP under nohup, it goes on ignoring. Use it as a context manager
    in the main thread; the handlers of before come back at the end.
    """

    def __init__(self) -> None:
        self.requested = False
        self.exit_code = PREEMPTED_EXIT_CODE

    def __enter__(self) -> StopSignals:
        heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def kept_from_children(self) -> Iterator[None]:
        """Processes that start inside never get these signals.

        A cluster signals a whole process group. A loader process that died of it would tear the run down in the midst
        of a step; as it is, it ends with the process it works for.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            # What came meanwhile is delivered now.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def asked(self) -> bool:
        """Whether a request has come, also one that :meth:`kept_from_children` still holds back."""
        return self.requested or not signal.sigpending().isdisjoint(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            self.exit_code = INTERRUPTED_EXIT_CODE
            signal.signal(signal.SIGINT, signal.default_int_handler)
