"""The text log in a run's folder: the lines of the screen with their date, of all starts of the run."""

from __future__ import annotations

import logging
import os
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from afa.errors import UserError

LOG = "log.txt"


class RunLog(logging.Handler):
    """Keeps what is logged, and writes it into ``log.txt`` from the moment on when the folder is the run's own.

    A context manager, around everything that a run does: it listens to all loggers, and what ends the run is its last
    line. A run that ends before :meth:`open` leaves no file. Where the disk is full, lines wait for room.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._file: int | None = None
        self._waiting = b""

    def __enter__(self) -> RunLog:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        if error is not None:
            self.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, _last_words(error), None, None))
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.close()

    def open(self, output: Path) -> None:
        """Write from now on, after what earlier starts wrote; what was logged before is written first.

        Raises:
            UserError: The file cannot be written.
        """
        path = output / LOG
        try:
            # Nobody reads a pipe of this name: opening it must not wait.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
            self._file = os.open(path, flags, 0o666)
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if size and file.read() != b"\n":  # a kill left half a line
                    self._waiting = b"\n" + self._waiting
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        self._write(b"")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or keep it until that is possible."""
        self._write(f"{self.format(record)}\n".encode(errors="backslashreplace"))

    def _write(self, line: bytes) -> None:
        self._waiting += line
        with suppress(OSError):
            while self._file is not None and self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]


def _last_words(error: BaseException) -> str:
    """What ended a run, as the screen has it."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "".join(traceback.format_exception(error)).rstrip()
