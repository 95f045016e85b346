"""What a run says: JSON lines, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

logger = logging.getLogger("afa")

METRICS = "metrics.jsonl"


class Records(Protocol):
    """Where a run's figures and pictures go."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One record."""
        ...

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Pictures, RGB uint8 [3, height, width]."""
        ...

    def position(self) -> int:
        """Bytes of the JSON lines so far, all of them on the disk."""
        ...

    def close(self) -> None:
        """Flush everything."""
        ...


class NullRecords:
    """For processes that write nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Drop them."""

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Drop them."""

    def position(self) -> int:
        """Nothing was written."""
        return 0

    def close(self) -> None:
        """Nothing to flush."""


class RunRecords:
    """JSON lines in ``metrics.jsonl`` and the same scalars in TensorBoard.

    A full disk costs the records, not the run.

    Args:
        output: Folder of the run.
        resume_step: First step to come.
        resume_position: Bytes of ``metrics.jsonl`` to keep: what came after the checkpoint is written again.
    """

    def __init__(self, output: Path, *, resume_step: int = 0, resume_position: int = 0) -> None:
        self._path = output / METRICS
        with self._path.open("ab") as file:
            file.truncate(min(resume_position, file.tell()))
        self._board: SummaryWriter | None = SummaryWriter(str(output / "tensorboard"), purge_step=resume_step + 1)
        self._complained = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record; values that are not finite become null, as JSON has no word for them."""
        line = {"step": step, **{key: value if math.isfinite(value) else None for key, value in values.items()}}
        try:
            with self._path.open("ab") as file:
                start = file.tell()
                try:
                    file.write((json.dumps(line) + "\n").encode())
                    file.flush()
                except OSError:
                    os.truncate(self._path, start)
                    raise
            if self._board is not None:
                for key, value in values.items():
                    self._board.add_scalar(key, value, step)
        except OSError as error:
            self._complain(error)

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Write pictures to TensorBoard."""
        try:
            if self._board is not None:
                for name, picture in pictures.items():
                    self._board.add_image(name, picture, step)
        except OSError as error:
            self._complain(error)

    def position(self) -> int:
        """Bytes of ``metrics.jsonl``, after they were forced to the disk."""
        try:
            with self._path.open("ab") as file:
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            self._complain(error)
            return 0

    def close(self) -> None:
        """Flush TensorBoard."""
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("records cannot be written, training goes on: %s", error)


class Meter:
    """Means of scalars since the last record, added up on the device in float64."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self.steps = 0

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Add one step's scalars; names may come and go between records, not within."""
        names = sorted(scalars)
        values = torch.stack([scalars[name].detach() for name in names]).double()
        if names != self._names:
            values, names = self._merge(names, values)
        self._sums = values if self._sums is None else self._sums + values
        self._names = names
        self.steps += 1

    def means(self, reduce: Any) -> dict[str, float]:
        """Name -> mean over the steps since the last call and, by ``reduce``, over processes; starts afresh."""
        if self._sums is None:
            return {}
        values = reduce(self._sums / self.steps).tolist()
        result = dict(zip(self._names, values, strict=True))
        self._names, self._sums, self.steps = [], None, 0
        return result

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"names": self._names, "sums": [] if self._sums is None else self._sums.tolist(), "steps": self.steps}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """From a checkpoint."""
        self._names, self.steps = list(state["names"]), int(state["steps"])
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device=device) if self._names else None

    def _merge(self, names: list[str], values: Tensor) -> tuple[Tensor, list[str]]:
        """Bring the sums so far and new values to one list of names; what a step lacks counts 0."""
        merged = sorted({*names, *self._names})
        if self._sums is not None:
            padded = torch.zeros(len(merged), dtype=torch.float64, device=values.device)
            padded[[merged.index(name) for name in self._names]] = self._sums
            self._sums = padded
        spread = torch.zeros(len(merged), dtype=torch.float64, device=values.device)
        spread[[merged.index(name) for name in names]] = values
        return spread, merged


class Progress:
    """A bar with loss, speed and time left on a terminal; plain lines otherwise.

    Args:
        first: Steps done before.
        steps: Steps in all.
        seconds_before: Time that earlier starts of this run took.
        enabled: False on processes that do not speak.
    """

    def __init__(self, first: int, steps: int, *, seconds_before: float, enabled: bool) -> None:
        self._first, self._steps = first, steps
        self._seconds_before = seconds_before
        self._start = time.monotonic()
        self._enabled = enabled
        self._bar = (
            tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, file=sys.stderr, smoothing=0.05)
            if enabled and sys.stderr.isatty()
            else None
        )

    def seconds(self) -> float:
        """Time this run took, earlier starts included."""
        return self._seconds_before + time.monotonic() - self._start

    def step(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def record(self, done: int, values: Mapping[str, float]) -> None:
        """Show a training record."""
        shown = " ".join(
            f"{name.removeprefix('loss/')} {value:.4f}" for name, value in values.items() if name.startswith("loss/")
        )
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif self._enabled:
            left = (time.monotonic() - self._start) / max(1, done - self._first) * (self._steps - done)
            logger.info("step %d/%d  %s  %s gone, %s left", done, self._steps, shown, clock(self.seconds()), clock(left))

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
