"""A run whose images do not come: it says which, saves what it has, and ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import pytest

from afa.data import dataset
from afa.engine.signals import PREEMPTED_EXIT_CODE, StopSignals

Hang = Callable[..., None]


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hang]:
    """Let one image be on a drive that does not answer, and this process get signals when it is asked for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    training = os.getpid()
    read = dataset.read_image

    def install(name: str, *numbers: signal.Signals) -> None:
        def read_image(path: Path, **settings: Any) -> Any:
            if path.stem == name:
                for number in numbers:
                    os.kill(training, number)
                os.close(os.open(pipe, os.O_RDONLY))
            return read(path, **settings)

        monkeypatch.setattr(dataset, "read_image", read_image)

    yield install
    os.close(os.open(pipe, os.O_RDWR))


def image_of_step(config: Path, step: int) -> str:
    """The first image of a step of the tiny run."""
    import numpy as np

    from afa.data.layout import find_layout
    from afa.methods import load_config

    dataset = load_config(config).dataset
    names = find_layout(dataset).names(dataset.train_split)
    epoch, place = divmod(4 * step, len(names))
    return names[np.random.default_rng((1, epoch, 1)).permutation(len(names))[place]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_says_which_image_does_not_come_and_goes_on_when_it_does(
    config: Path, tmp_path: Path, undisturbed: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    name = image_of_step(config, 2)
    hang(name)
    done = faults.run_here(config, f"train.workers={workers}", "dataset.read_timeout=2")
    assert done.code == 2
    last = done.text.strip().splitlines()[-1]
    assert f"{name}.jpg could not be read in 2 s" in last
    assert "stopped after step 2; the same command goes on from there" in last
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    if workers:
        assert faults.run_here(config).code == 0
        assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


@pytest.mark.parametrize(
    ("number", "workers", "code"), [(signal.SIGTERM, 0, 75), (signal.SIGHUP, 1, 75), (signal.SIGINT, 1, 130)]
)
def test_a_run_that_waits_for_an_image_can_be_stopped(
    config: Path, hang: Hang, number: signal.Signals, workers: int, code: int
) -> None:
    hang(image_of_step(config, 1), number)
    done = faults.run_here(config, f"train.workers={workers}")
    assert done.code == code, done.text
    assert "asked to stop at step" in done.text
    assert not multiprocessing.active_children()


def test_a_first_image_that_does_not_come(config: Path, tmp_path: Path, hang: Hang) -> None:
    hang(image_of_step(config, 0), signal.SIGTERM)
    assert faults.run_here(config, "train.workers=1").code == 75


def test_a_validation_that_waits_for_an_image_can_be_stopped_and_says_which(config: Path, hang: Hang) -> None:
    overrides = ["validation.every=1", "train.workers=1", "dataset.read_timeout=2"]
    hang("val_00002", signal.SIGTERM)
    done = faults.run_here(config, *overrides)
    assert done.code == 75
    assert "asked to stop at step 1" in done.text
    assert not multiprocessing.active_children()
    hang("val_00002")
    done = faults.run_here(config, *overrides)
    assert done.code == 2
    assert "val_00002.jpg or " in done.text.strip().splitlines()[-1]


def test_a_lost_terminal_is_a_request_to_stop_unless_it_was_ignored_before() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked()
        assert stop.exit_code == PREEMPTED_EXIT_CODE
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
