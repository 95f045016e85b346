#!/usr/bin/env python
"""Count what comes of every kind of fault, and print the table of docs/reliability.md.

    OMP_NUM_THREADS=1 python tests/engine/fault_table.py [--kills 60]

The counting functions are those of the tests; each ends with an error where something is lost.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import faults
import test_checkpoints
import test_kills
import test_mistakes
import test_processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = faults.make_data(folder / "data")
        for kind in ("undisturbed", "killed", "two", "mutated_checkpoints", "configs", "images"):
            (folder / kind).mkdir()
        row("fault", "times", "outcome")
        row("---", "---", "---")
        kills(data, folder, args.kills)
        for rank in (0, 1):
            killed_rank(data, folder / f"rank{rank}", rank)

        for step in (1, 2):
            store = test_checkpoints.CheckpointStore(folder / "two", keep=2)
            store.save(step, *test_checkpoints.network_and_optimiser(step), {"best_step": None})
        counts = test_checkpoints.damage_count(folder / "two", folder / "mutated_checkpoints", 100)
        for kind, times in sorted(counts.items()):
            row(f"checkpoint: {kind}", times, "noticed, the one before is restored whole, set aside with a warning")
        show(test_mistakes.config_count(data, folder / "configs", 200), "configuration")
        show(test_mistakes.image_count(data, folder / "images", 200), "picture")
        print()
        row("processes x images, against 1 x 4", "losses differ by at most", "gradients")
        row("---", "---", "---")
        for normalisation in ("global", "process"):
            differences = test_processes.world_size_differences(data, folder / normalisation, normalisation)
            for split, (losses, gradients) in differences.items():
                row(f"{split}, loss.normalisation={normalisation}", f"{losses:.1e}", f"{gradients:.1e}")


def kills(data: Path, folder: Path, count: int) -> None:
    config = faults.write_config(folder / "undisturbed" / "config.yaml", data, folder / "undisturbed" / "run")
    run = faults.Run(config, folder / "undisturbed" / "log")
    assert run.wait() == 0, run.text()
    config = faults.write_config(folder / "killed" / "config.yaml", data, folder / "killed" / "run")
    counts = test_kills.kill_until_done(
        config, folder / "killed" / "run", folder / "killed" / "log", count, random.Random(3)
    )
    assert faults.outcome(folder / "killed" / "run") == faults.outcome(folder / "undisturbed" / "run")
    same = "weights, optimiser state and records bit-identical to an undisturbed run"
    row("SIGKILL at a random moment", counts["kills"], same)
    row("- of these inside the writing of a checkpoint", counts["inside a checkpoint"], "")
    for name in sorted(counts):
        if name.startswith("newest checkpoint"):
            row(f"- of these with the {name.replace('  ', ' ')}", counts[name], "")
    row(
        "- whenever it was over: its newest checkpoints damaged",
        counts["set back after its end"],
        "goes on before them",
    )


def killed_rank(data: Path, folder: Path, rank: int) -> None:
    folder.mkdir()
    outcomes = []
    for name in ("undisturbed", "killed"):
        config = faults.write_config(folder / f"{name}.yaml", data, folder / name, train={"batch_size": 2})
        if name == "killed":
            code, text = test_processes.kill_a_rank(config, rank)
            assert code == 0, text
        else:
            assert [run.wait() for run in faults.start_group(config, folder / "log", 2)] == [0, 0]
        outcomes.append(faults.outcome(folder / name))
    assert outcomes[0] == outcomes[1]
    row(f"rank {rank} of 2 killed, torchrun --max-restarts", 1, "all come back; bit-identical")


def show(counts: Counter[str], what: str) -> None:
    for kind, times in sorted(counts.items()):
        fault, _, result = kind.partition(": ")
        row(f"{what}: {fault}", times, result)


def row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
