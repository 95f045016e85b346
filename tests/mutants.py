#!/usr/bin/env python
"""Plant small mistakes in the package, one at a time, and see whether the tests notice.

    python tests/mutants.py                       all of them
    python tests/mutants.py sampler losses        those whose place or text holds one of these words
    python tests/mutants.py --tree ../other       those of another working tree, with its tests

Each mistake is planted in a copy; the tree itself is left alone. The test files that should notice run first, and stop
at the first failure; a mistake that they miss meets the whole suite. Exit code 1 where a mistake survives.

They are listed in mutants.yaml. A change of the package may move a text: the script names the entry, which is mended
there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

REPOSITORY = Path(__file__).parents[1]
# A mistake may make the package wait for ever; no run of sound tests comes near this.
SECONDS = 3600


class Mutant(NamedTuple):
    """A small mistake.

    Attributes:
        file: Where it is planted.
        old: Occurs there exactly once.
        new: Takes its place.
        tests: Files below ``tests/`` that should notice.
    """

    file: str
    old: str
    new: str
    tests: str


def listed_mutants() -> list[Mutant]:
    """Those of mutants.yaml."""
    entries = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return [Mutant(**entry) for entry in entries]


def copy_tree(source: Path, target: Path) -> None:
    """Everything that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def dies(tree: Path, tests: list[str]) -> bool:
    """Whether one of the tests fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # two mistakes of one length within a second would share it
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1, 2):  # 2: the tests could not even be imported
        raise SystemExit(f"error: pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode != 0


def main() -> int:
    """Plant all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mistakes whose file or text holds one of these")
    parser.add_argument("--tree", type=Path, default=REPOSITORY, help="working tree (default: this one)")
    args = parser.parse_args()
    chosen = [
        mutant for mutant in listed_mutants() if not args.words or any(word in f"{mutant}" for word in args.words)
    ]
    survivors, misplaced = 0, 0
    print("| file | mistake | noticed by |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_tree(args.tree.resolve(), tree)
        for mutant in chosen:
            path = tree / mutant.file
            sound = path.read_text(encoding="utf-8") if path.is_file() else ""
            if sound.count(mutant.old) != 1:
                misplaced += 1
                print(
                    f"| {mutant.file} | `{mutant.old}` occurs {sound.count(mutant.old)} times, not once | - |",
                    flush=True,
                )
                continue
            path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
            own = [f"tests/{name}" for name in mutant.tests.split() if (tree / "tests" / name).is_file()]
            if dies(tree, own):
                noticed = "its tests"
            elif dies(tree, ["tests"]):
                noticed = "the whole suite alone"
            else:
                noticed, survivors = "**nobody**", survivors + 1
            path.write_text(sound, encoding="utf-8")
            print(f"| {mutant.file} | `{mutant.old}` -> `{mutant.new}` | {noticed} |", flush=True)
    print(f"\n{len(chosen) - survivors - misplaced} of {len(chosen)} are noticed")
    return 1 if survivors or misplaced else 0


if __name__ == "__main__":
    sys.exit(main())
