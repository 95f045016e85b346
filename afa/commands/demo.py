"""Train AFA on a small built-in data set from image-level labels, evaluate it, and draw its results.

    afa demo
    afa demo --output work_dirs/demo2 train.seed=2

Everything is saved to the current folder: the data set to data/shapes (the setting dataset.root), the run to
work_dirs/demo. It takes some minutes and needs no GPU. If you run it again, it reuses existing results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from afa.commands import contact_sheet, eval, infer, make_shapes, report, train
from afa.commands.arguments import CommandParser
from afa.methods import load_config

RECIPE = "demo"
_SEGMENTED = 4  # images that the last step segments


_Step = tuple[Callable[[Sequence[str]], int], list[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, run the steps.

    Returns:
        Exit code: of the first step that fails, else 0.
    """
    parser = CommandParser(__doc__, settings=True)
    parser.add_argument("--output", metavar="FOLDER", help="folder of the run: the setting train.output")
    args = parser.read(arguments)
    settings = [*args.settings, *([] if args.output is None else [f"train.output={args.output}"])]
    config = load_config(RECIPE, settings)
    data, output = config.dataset.root, config.train.output
    trained, at = f"{output}/checkpoints/last", f"dataset.root={data}"
    steps: list[_Step] = [
        (make_shapes.main, ["--output", data]),
        (train.main, [RECIPE, *settings]),
        (eval.main, [trained, at, "--output", f"{output}/evaluation.json"]),
        (contact_sheet.main, [trained, at, "--output", f"{output}/contact_sheet.png"]),
    ]
    if code := _first_failure(steps):
        return code
    with (Path(data) / "ImageSets/Segmentation/val.txt").open(encoding="utf-8") as names:
        images = [f"{data}/JPEGImages/{name.strip()}.jpg" for name in islice(names, _SEGMENTED)]
    steps = [
        (infer.main, [trained, *images, "--output", f"{output}/inference"]),
        (report.main, [trained, at, "--output", f"{output}/report.html"]),
    ]
    if code := _first_failure(steps):
        return code
    print(f"\ntable        {output}/evaluation.json")
    print(f"report       {output}/report.html")
    print(f"sheet        {output}/contact_sheet.png")
    print(f"masks, CAMs  {output}/inference")
    print(f"checkpoints  {output}/checkpoints/last, {output}/checkpoints/best")
    print(f"curves       tensorboard --logdir {output}/tensorboard")
    return 0


def _first_failure(steps: Sequence[_Step]) -> int:
    """The exit code of the first step that fails, after which no other is begun; 0 where all succeed."""
    return next((code for command, words in steps if (code := command(words))), 0)
