"""Each measurement in a process of its own: what goes wrong in it costs it alone."""

from __future__ import annotations

import time
from pathlib import Path

import measurements
import pytest

from afa.benchmarks.gpu.apart import run_apart

LONG = 300.0


def test_figures_and_remarks_arrive(tmp_path: Path) -> None:
    outcome = run_apart(measurements.ends_well, (), limit=LONG, folder=tmp_path)
    assert (outcome.status, outcome.reason) == ("done", None)
    assert outcome.figures == {"first": 1, "second": 2} and outcome.remarks == ["a remark of two lines"]
    assert 0 < outcome.seconds < LONG


def test_a_killed_process_keeps_what_it_had_measured_and_tells_its_last_words(tmp_path: Path) -> None:
    outcome = run_apart(measurements.is_killed, (), limit=LONG, folder=tmp_path)
    assert outcome.status == "failed" and outcome.figures == {"first": 1}
    assert outcome.reason == "its process ended by itself (signal 9): what it said last"


def test_a_measurement_that_hangs_ends_at_its_limit_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    limit = 1.0
    while True:  # until the limit is long enough for it to begin
        outcome = run_apart(measurements.hangs_with_a_child, (note,), limit=limit, folder=tmp_path)
        assert outcome.status == "failed" and outcome.reason == f"it was not finished after {limit:.0f} s, its limit"
        if outcome.figures:
            break
        limit *= 2
    give_up = time.monotonic() + LONG
    while not is_gone(int(note.read_text())):  # it was killed, and is on its way
        assert time.monotonic() < give_up
        time.sleep(0.01)


def is_gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # nobody has asked for its end yet


@pytest.mark.parametrize(
    ("measurement", "status", "reason"),
    [
        (measurements.runs_out_of_memory, "failed", "memory ran out: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (measurements.is_not_possible, "skipped", "a GPU of 1999 has no bf16"),
    ],
)
def test_the_reason_is_one_line(measurement: measurements.Measurement, status: str, reason: str) -> None:
    outcome = measurements.run_here(measurement, ())
    assert (outcome.status, outcome.reason) == (status, reason)
