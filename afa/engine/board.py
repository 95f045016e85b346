"""TensorBoard's event files, written in the thread that asks for it.

PyTorch's own ``SummaryWriter`` writes in a thread of its own, which dies with a traceback when the disk is full and
never comes back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar


class EventFile:
    """One run's events; a new file after every start, and after every failure to write.

    Args:
        folder: Where TensorBoard looks for them.
        first_step: TensorBoard forgets what earlier starts wrote from this step on.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self._folder = folder
        self._first_step: int | None = first_step
        self._file: BinaryIO | None = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        self._write(step, [scalar(name, value) for name, value in values.items()])

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Write images, RGB uint8 [3, height, width].

        Raises:
            OSError: As :meth:`scalars`.
        """
        self._write(step, [image(name, picture, dataformats="CHW") for name, picture in pictures.items()])

    def close(self) -> None:
        """Leave the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, step: int, summaries: list[Summary]) -> None:
        try:
            if self._file is None:
                self._open()
            for summary in summaries:
                self._event(Event(step=step, wall_time=time.time(), summary=summary))
            assert self._file is not None
            self._file.flush()
        except OSError:
            # A file that ends in half an event cannot be read beyond it: what follows goes to a new one.
            self._abandon()
            raise

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        self._file = (self._folder / f"events.out.tfevents.{now // 10**9}.{now % 10**9:09d}.{os.getpid()}").open("xb")
        self._event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if self._first_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._event(Event(step=self._first_step, wall_time=time.time(), session_log=start))
            self._first_step = None

    def _event(self, event: Event) -> None:
        RecordWriter(self._file).write(event.SerializeToString())

    def _abandon(self) -> None:
        try:
            self.close()
        except OSError:
            self._file = None
