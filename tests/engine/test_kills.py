"""A run that is killed, stopped or left without a process ends like one that nothing happened to."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faults
import pytest
from forked import Forked

from afa.config import load_config
from afa.engine.training import train
from afa.evaluation import evaluate

SHORT_KILLS, LONG_KILLS = 20, 120


def kill_until_done(config: Path, output: Path, log: Path, kills: int, rng: random.Random) -> Counter[str]:
    """Kill a run again and again, every other time inside the writing of a checkpoint; then let it end.

    Each time it may come a few steps further, or is killed while it starts. It would be over long before the last
    kill: whenever it ends, it is set back by a few checkpoints.

    Returns:
        How many kills there were, of which kind, and how many at which newest checkpoint.
    """
    counts: Counter[str] = Counter()
    checkpoints = output / "checkpoints"
    while counts["kills"] < kills:
        target = newest_step(checkpoints) + rng.randint(0, 5)
        moment = rng.choice(["inside a checkpoint", "inside a checkpoint", "between steps", "while starting"])
        said = log.stat().st_size if log.exists() else 0
        run = faults.Run(config, log)

        def reached(
            moment: str = moment, target: int = target, said: int = said, aim: int = rng.randint(0, 400)
        ) -> bool:
            if moment == "inside a checkpoint":
                return any(int(path.name[-8:]) > target for path in checkpoints.glob(".part_step_*"))
            if log.stat().st_size < said + (aim if moment == "while starting" else 1):
                return False
            return moment == "while starting" or last_step(output) > target

        alive = run.until(lambda: log.exists() and reached())
        time.sleep(rng.uniform(0, 0.003 if moment == "inside a checkpoint" else 0.03))
        run.send(signal.SIGKILL)
        if alive and run.wait() == faults.KILLED:
            counts["kills"] += 1
            counts["inside a checkpoint"] += any(checkpoints.glob(".part_step_*"))
            counts[f"newest checkpoint {newest_step(checkpoints):2d}"] += 1
        else:
            assert run.wait() == 0, run.text()
            counts["set back after its end"] += 1
            set_back(output, rng)
    run = faults.Run(config, log)
    assert run.wait() == 0, run.text()
    return counts


def newest_step(checkpoints: Path) -> int:
    return max((int(path.name[5:]) for path in checkpoints.glob("step_*")), default=0)


def last_step(output: Path) -> int:
    """The step of the last whole record."""
    try:
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0


def set_back(output: Path, rng: random.Random) -> None:
    """Take the newest checkpoints away, as a damaged disk would."""
    (output / "result.json").unlink()
    kept = sorted((output / "checkpoints").glob("step_*"))
    for path in kept[rng.randrange(len(kept)) :]:
        (path / "weights.safetensors").write_bytes(b"")
    if not any((path / "weights.safetensors").stat().st_size for path in kept):
        for path in kept:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def check_kills(config: Path, tmp_path: Path, undisturbed: Path, kills: int, seed: int) -> Counter[str]:
    counts = kill_until_done(config, tmp_path / "run", tmp_path / "log", kills, random.Random(seed))
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not list((tmp_path / "run").rglob("*.part*")), "something half-written stayed"
    return counts


def test_killed_at_random_moments_ends_bit_identical(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    counts = check_kills(config, tmp_path, undisturbed, SHORT_KILLS, seed=1)
    assert counts["inside a checkpoint"] >= 3, counts
    assert sum(name.startswith("newest checkpoint") for name in counts) >= 3, counts


@pytest.mark.slow
def test_killed_many_times_with_loader_processes(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"workers": 2})
    counts = check_kills(config, tmp_path, undisturbed, LONG_KILLS, seed=2)
    assert counts["inside a checkpoint"] >= 20, counts


def test_every_step_is_recorded_once(undisturbed: Path) -> None:
    lines = faults.records(undisturbed)
    assert [line["step"] for line in lines] == faults.recorded_steps()
    validated = [line["step"] for line in lines if "validation/segmentation_miou" in line]
    assert validated == [7, 14]
    assert all("loss/total" in line for line in lines)


def test_the_real_command_goes_on_after_a_kill(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    first = subprocess.Popen(faults.command(config), env=faults.environment(), stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    for line in first.stderr:
        if line.startswith("step 6/"):
            break
    first.kill()
    assert first.wait() == faults.KILLED
    second = faults.Run(config, tmp_path / "second")
    assert second.wait() == 0, second.text()
    assert "going on from step" in second.text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)
    third = faults.Run(config, tmp_path / "third")
    assert third.wait() == 0, third.text()
    assert "already trained" in third.text()


def test_killed_in_the_last_validation_validates_again(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    run = faults.Run(config, tmp_path / "log")
    assert run.wait() == 0
    # What a kill between the last checkpoint and the end of the last validation leaves behind:
    (tmp_path / "run" / "result.json").unlink()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    again = faults.Run(config, tmp_path / "log")
    assert again.wait() == 0, again.text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == faults.STEPS


def test_elapsed_time_goes_on(config: Path, tmp_path: Path) -> None:
    run = faults.Run(config, tmp_path / "log", ["train.log_every=1"])
    run.until_says("step 9/")
    run.send(signal.SIGTERM)
    assert run.wait() == 75, run.text()
    before = faults.records(tmp_path / "run")
    (facts,) = (tmp_path / "run" / "checkpoints").glob("last/checkpoint.json")
    assert json.loads(facts.read_text())["seconds"] >= before[-1]["time/seconds"]
    again = faults.Run(config, tmp_path / "log", ["train.log_every=1"])
    assert again.wait() == 0, again.text()
    seconds = [line["time/seconds"] for line in faults.records(tmp_path / "run")]
    assert seconds == sorted(seconds)
    assert seconds[: len(before)] == [line["time/seconds"] for line in before]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 2)])
def test_a_signal_saves_and_asks_to_be_requeued(
    data: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals, workers: int
) -> None:
    config = faults.write_config(
        tmp_path / "config.yaml", data, tmp_path / "run", train={"workers": workers, "checkpoint_every": 1000}
    )
    run = faults.Run(config, tmp_path / "log")
    run.until_says("step 4/")
    run.send(number)
    assert run.wait() == 75, run.text()
    assert "asked to stop at step" in run.text()
    again = faults.Run(config, tmp_path / "log")
    assert again.wait() == 0, again.text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)
    assert "Traceback" not in run.text()


def test_a_signal_to_the_whole_process_group(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Clusters signal every process of a job, loader processes included."""
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"workers": 2})
    run = faults.Run(config, tmp_path / "log")
    run.until_says("step 4/")
    assert run.process.pid is not None
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait() == 75, run.text()
    assert "Traceback" not in run.text()
    again = faults.Run(config, tmp_path / "log")
    assert again.wait() == 0, again.text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def train_and_stop_in_validation(config: Path) -> None:
    predict_images = evaluate.predict_images

    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def asked(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return predict_images(*args, **kwargs)

    with patch.object(evaluate, "predict_images", asked):
        sys.exit(train(load_config(config)))


def test_a_signal_in_a_validation_does_not_wait_for_its_end(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    done = Forked(train_and_stop_in_validation, config).wait()
    assert done.returncode == 75, done.stderr
    assert "asked to stop at step 7; the same command goes on from there" in done.stderr
    assert newest_step(tmp_path / "run" / "checkpoints") == 7
    assert not any("validation/segmentation_miou" in line for line in faults.records(tmp_path / "run"))
    again = faults.Run(config, tmp_path / "log")
    assert again.wait() == 0, again.text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_an_interrupt_saves(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    run = faults.Run(config, tmp_path / "log")
    run.until_says("step 4/")
    run.send(signal.SIGINT)
    assert run.wait() == 130, run.text()
    again = faults.Run(config, tmp_path / "log")
    assert again.wait() == 0, again.text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_a_killed_loader_process_is_one_line(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"workers": 1})
    run = faults.Run(config, tmp_path / "log")
    run.until_says("step 4/")
    assert run.process.pid is not None
    for child in faults.children(run.process.pid):
        os.kill(child, signal.SIGKILL)
    assert run.wait() == 2, run.text()
    assert "error: a loader process was killed" in run.text()
    assert "Traceback" not in run.text()
    again = faults.Run(config, tmp_path / "log")
    assert again.wait() == 0, again.text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_two_runs_do_not_share_a_folder(config: Path, tmp_path: Path) -> None:
    run = faults.Run(config, tmp_path / "log", ["train.steps=2000"])
    run.until_says("step 2/")
    second = faults.Run(config, tmp_path / "second", ["train.steps=2000"])
    assert second.wait() == 2
    assert "another process trains in" in second.text()
    assert faults.is_one_line(second.text())
    run.send(signal.SIGKILL)
    run.wait()
