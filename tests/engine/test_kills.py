"""A run that is killed, stopped or left without a process ends like one that nothing happened to."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faults
import pytest

from afa.methods.afa.method import AFA

STREWN_KILLS, STREWN_KILLS_WITH_LOADERS = 20, 120


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


def test_killed_at_the_moments_that_differ_ends_bit_identical(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    """One run, killed seven times; what the newest checkpoint is after each tells whether it was at that moment."""
    kills = (
        (("before a record", 2), 0),  # before there is any checkpoint
        (("in the midst of a checkpoint", 3), 0),
        (("before a checkpoint has its name", 6), 3),
        (("before a record", 6), 6),
        (("in a validation", 7), 7),
        (("before a checkpoint has its name", 14), 12),
        (("after a validation", 14), 14),
    )
    for dies, newest in kills:
        run = faults.Run(config, tmp_path / "log", dies=dies)
        assert run.wait() == faults.KILLED, (dies, run.text())
        assert newest_step(tmp_path / "run" / "checkpoints") == newest, dies
    last = faults.run_here(config)
    assert last.code == 0 and "going on from step 14" in last.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not list((tmp_path / "run").rglob("*.part*")), "something half-written stayed"


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(0, STREWN_KILLS), (2, STREWN_KILLS_WITH_LOADERS)])
def test_killed_at_random_moments_ends_bit_identical(
    data: Path, tmp_path: Path, undisturbed: Path, workers: int, kills: int
) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"workers": workers})
    counts = kill_until_done(config, tmp_path / "run", tmp_path / "log", kills, random.Random(workers))
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not list((tmp_path / "run").rglob("*.part*")), "something half-written stayed"
    assert counts["inside a checkpoint"] >= kills // 7, counts
    assert sum(name.startswith("newest checkpoint") for name in counts) >= 3, counts


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
    second = faults.run_here(config)
    assert second.code == 0, second.text
    assert "going on from step" in second.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_what_is_done_is_not_done_again(config: Path, copied_run: Path) -> None:
    before = {path: path.read_bytes() for path in copied_run.rglob("*") if path.is_file()}
    again = faults.run_here(config)
    assert again.code == 0 and "already trained: 14 steps are done" in again.text
    assert {path: path.read_bytes() for path in copied_run.rglob("*") if path.is_file()} == before


def test_killed_in_the_last_record_validates_again(config: Path, copied_run: Path, undisturbed: Path) -> None:
    # What a kill between the last checkpoint and the end of the last record leaves behind:
    (copied_run / "result.json").unlink()
    lines = (copied_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied_run / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert faults.outcome(copied_run) == faults.outcome(undisturbed)
    assert json.loads((copied_run / "result.json").read_text())["step"] == faults.STEPS


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=str
)
def test_a_signal_saves_what_the_same_command_goes_on_from(
    config: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals, code: int
) -> None:
    stopped = faults.run_here(config, "train.checkpoint_every=1000", when={"step 4/": faults.stop_with(number)})
    assert stopped.code == code, stopped.text
    assert "asked to stop at step 4; the same command goes on from there" in stopped.text
    assert newest_step(tmp_path / "run" / "checkpoints") == 4
    if number == signal.SIGTERM:
        before = faults.records(tmp_path / "run")
        facts = json.loads((tmp_path / "run" / "checkpoints" / "last" / "checkpoint.json").read_text())
        assert facts["seconds"] >= before[-1]["time/seconds"]
        again = faults.run_here(config)
        assert again.code == 0 and "going on from step 4" in again.text
        assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)
        seconds = [line["time/seconds"] for line in faults.records(tmp_path / "run")]
        assert seconds == sorted(seconds) and seconds[: len(before)] == [line["time/seconds"] for line in before]


def test_a_signal_to_the_whole_process_group(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Clusters signal every process of a job, loader processes included."""
    config = faults.write_config(
        tmp_path / "config.yaml", data, tmp_path / "run", train={"workers": 2, "checkpoint_every": 1000}
    )
    run = faults.Run(config, tmp_path / "log")
    run.until_says("step 4/")
    assert run.process.pid is not None
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait() == 75, run.text()
    assert "Traceback" not in run.text()
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_a_signal_in_a_validation_does_not_wait_for_its_end(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    predict = AFA.predict

    def asked(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return predict(*args, **kwargs)

    with patch.object(AFA, "predict", asked):
        stopped = faults.run_here(config)
    assert stopped.code == 75, stopped.text
    assert "asked to stop at step 7; the same command goes on from there" in stopped.text
    assert newest_step(tmp_path / "run" / "checkpoints") == 7
    assert not any("validation/segmentation_miou" in line for line in faults.records(tmp_path / "run"))
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_a_killed_loader_process_is_one_line(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"workers": 1})

    def kill_loaders() -> None:
        for child in multiprocessing.active_children():
            child.kill()

    run = faults.run_here(config, when={"step 4/": kill_loaders})
    assert run.code == 2, run.text
    assert "error: a loader process was killed" in run.text
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_two_runs_do_not_share_a_folder(config: Path, tmp_path: Path) -> None:
    run = faults.Run(config, tmp_path / "log", ["train.steps=2000"])
    run.until_says("step 2/")
    second = faults.run_here(config, "train.steps=2000")
    assert second.code == 2
    assert "another process trains in" in second.text
    assert faults.is_one_line(second.text)
    run.send(signal.SIGKILL)
    run.wait()
