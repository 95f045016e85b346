"""What a run says: JSON lines, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afa.data.files import replacing
from afa.engine.board import EventFile
from afa.engine.memory import peak_gpu_memory
from afa.engine.runtime import ProcessRuntime
from afa.errors import UserError
from afa.progress import Bar, clock, live_line

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"

# Beside the scalars of a step, the meter counts the steps themselves under this name.
_STEPS = "steps"

_SECONDS_BETWEEN_FIGURES = 2.0

# What a line of the log says beside losses and learning rate.
_FIGURES = {
    "gradient_norm": "gradient norm {:.3g}",
    "time/seconds_per_step": "{:.3g} s/step",
    "time/images_per_second": "{:.1f} images/s",
    "memory/gpu_peak_gb": "{:.1f} GB",
}


class RunRecords:
    """JSON lines in ``metrics.jsonl``, one per step, and the same scalars in TensorBoard.

    A full disk costs no line: those that could not be written are kept and written with the next that can. TensorBoard
    does without.

    Args:
        output: Folder of the run.
        first_step: The first step to be written. What earlier starts wrote from there on is forgotten, as the run
            goes through it again.

    Raises:
        UserError: The file cannot be written.
    """

    def __init__(self, output: Path, *, first_step: int = 1) -> None:
        self._path = output / METRICS
        self._unwritten: list[bytes] = []
        self._complained = False
        try:
            _keep_lines_before(first_step, self._path)
            self._path.open("ab").close()
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from error
        self._board = EventFile(output / "tensorboard", first_step=first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record; values that are not finite become null, as JSON has no word for them."""
        line = {"step": step, **{key: value if math.isfinite(value) else None for key, value in values.items()}}
        self._unwritten.append((json.dumps(line) + "\n").encode())
        self._write_lines()
        self._try(lambda: self._board.scalars(step, values))

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Write images to TensorBoard."""
        self._try(lambda: self._board.pictures(step, pictures))

    def flush(self) -> None:
        """Force the lines to the disk."""
        self._write_lines()
        self._try(self._sync)

    def close(self) -> None:
        """Flush everything and leave."""
        self.flush()
        self._try(self._board.close)

    def _write_lines(self) -> None:
        if self._unwritten and self._try(self._append):
            self._unwritten.clear()
            if self._complained:
                self._complained = False
                logger.warning("records can be written again, none is missing in %s", self._path)

    def _append(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            start = file.tell()
            data = b"".join(self._unwritten)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                os.truncate(self._path, start)
                raise

    def _sync(self) -> None:
        with self._path.open("ab") as file:
            os.fsync(file.fileno())

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger.warning("records cannot be written, training goes on: %s", error)
            return False
        return True


def _sum_type(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


class Meter:
    """Means of scalars since the last record, added up on the device in float64 (MPS, which has none: float32)."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None

    def add(self, scalars: Mapping[str, Tensor], *, left_out: Tensor) -> None:
        """Add one step's scalars.

        Args:
            scalars: Names may come and go between records, not within.
            left_out: 1 where the step does not count, because its figures are not finite; else 0. On the device.
        """
        names = [*sorted(scalars), _STEPS]
        step = torch.ones_like(left_out)
        values = torch.stack([*(scalars[name].detach() for name in names[:-1]), step])
        values = values.to(_sum_type(values.device))
        values = torch.where(left_out > 0, 0.0, values)
        if self._sums is None:
            self._names, self._sums = names, values
            return
        if names != self._names:
            names, self._sums, values = _merged(self._names, self._sums, names, values)
        self._names, self._sums = names, self._sums + values

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Name -> mean over the steps since the last call and, by ``reduce``, over processes; starts afresh."""
        if self._sums is None:
            return {}
        sums = reduce(self._sums)
        values = dict(zip(self._names, (sums / sums[self._names.index(_STEPS)]).tolist(), strict=True))
        del values[_STEPS]
        self._names, self._sums = [], None
        return values

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"names": self._names, "sums": [] if self._sums is None else self._sums.tolist()}

    def restore(self, states: Sequence[Mapping[str, Any]], runtime: ProcessRuntime) -> None:
        """From a checkpoint: the states of all processes. A different number of processes shares their mean."""
        self._names = list(states[0]["names"])
        if not self._names:
            self._sums = None
            return
        sums = torch.tensor([state["sums"] for state in states], dtype=_sum_type(runtime.device), device=runtime.device)
        self._sums = sums[runtime.rank] if len(states) == runtime.world_size else sums.mean(dim=0)


class Progress:
    """One live line on a terminal, and a log line for each record.

    Args:
        first: Steps done before.
        steps: Steps in all.
        seconds_before: Time that earlier starts of this run took.
        device: Whose memory is told, where it is a GPU.
        enabled: False on processes that do not speak.
    """

    def __init__(self, first: int, steps: int, *, seconds_before: float, device: torch.device, enabled: bool) -> None:
        self._first, self._steps = first, steps
        self._seconds_before = seconds_before
        self._start = self._shown = time.monotonic()
        self._device, self._enabled = device, enabled
        self._bar: Bar | None = None
        self._stack = ExitStack()

    def open(self) -> None:
        """Show the live line from now on."""
        self._bar = self._stack.enter_context(
            live_line(
                self._steps,
                "",
                "step",
                initial=self._first,
                seconds_before=self._seconds_before,
                per_item=True,
                stays=True,
                enabled=self._enabled,
            )
        )

    def seconds(self) -> float:
        """Time this run took, earlier starts included as far as their last checkpoint."""
        return self._seconds_before + time.monotonic() - self._start

    def step(self, losses: Mapping[str, Tensor]) -> None:
        """One step is done.

        Args:
            losses: Of the step, ``total`` among them, on the device. They are read every few seconds, because a GPU
                has to be waited for.
        """
        if self._bar is None or self._bar.disable:
            return
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_FIGURES:
            self._shown = now
            self._say({name: float(value) for name, value in losses.items()})
        self._on_bar(lambda bar: bar.update())

    def record(self, done: int, values: Mapping[str, float]) -> None:
        """Log a training record."""
        losses = {name.removeprefix("loss/"): value for name, value in values.items() if name.startswith("loss/")}
        self._say(losses)
        if not self._enabled:
            return
        total, others = _shown_losses(losses)
        figures = [f"{total} ({', '.join(others)})" if others else total]
        rates = [value for name, value in values.items() if name.startswith("lr/")]
        figures += [f"lr {rates[0]:.2g}"] if rates else []
        for name, form in _FIGURES.items():
            figures += [form.format(values[name])] if name in values else []
        now = time.monotonic()
        left = (now - self._start) / (done - self._first) * (self._steps - done) if done > self._first else None
        times = f"{clock(self.seconds())} elapsed, {clock(left)} remaining"
        logger.info("step %d/%d  %s", done, self._steps, "  ".join([*filter(None, figures), times]))

    def close(self) -> None:
        """Finish the line."""
        with suppress(OSError):
            self._stack.close()

    def _say(self, losses: Mapping[str, float]) -> None:
        total, others = _shown_losses(losses)
        gigabytes = peak_gpu_memory(self._device)
        memory = [] if gigabytes is None else [f"{gigabytes:.1f} GB"]
        self._on_bar(lambda bar: bar.say(total, [*memory, *others]))

    def _on_bar(self, act: Callable[[Bar], object]) -> None:
        try:
            if self._bar is not None:
                act(self._bar)
        except OSError:
            # The terminal is gone; the run is not.
            self._bar = None


def _shown_losses(losses: Mapping[str, float]) -> tuple[str, list[str]]:
    """The total loss, and the single ones, as texts."""
    total = f"loss {losses['total']:.4f}" if "total" in losses else ""
    return total, [f"{name} {value:.4f}" for name, value in losses.items() if name != "total"]


def _merged(
    names: list[str], values: Tensor, other_names: list[str], other_values: Tensor
) -> tuple[list[str], Tensor, Tensor]:
    """One list of names for two rows of values; what a row lacks counts 0."""
    merged = sorted({*names, *other_names})
    spread = values.new_zeros(2, len(merged))
    spread[0, [merged.index(name) for name in names]] = values
    spread[1, [merged.index(name) for name in other_names]] = other_values
    return merged, spread[0], spread[1]


def _keep_lines_before(first_step: int, path: Path) -> None:
    """Drop the records of later steps, and what a kill or a damaged disk left that is no record."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    kept: list[bytes] = []
    previous = 0
    for line in data.splitlines(keepends=True):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if previous < step < first_step and line.endswith(b"\n"):
            kept.append(line)
            previous = step
    remaining = b"".join(kept)
    if data.startswith(remaining):
        # Needs no room on the disk.
        os.truncate(path, len(remaining))
        return
    with replacing(path) as temporary:
        temporary.write_bytes(remaining)
