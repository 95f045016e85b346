"""Write one HTML page about a run, a label folder or a folder of masks: scores, curves, images. It works offline.

    afa report work_dirs/voc dataset.root=data/VOC2012
    afa report work_dirs/voc work_dirs/voc2 --output both.html
    afa report masks/ --config voc --split val --output masks.html

For a run, the last checkpoint is used; to use another, name it: work_dirs/voc/checkpoints/best. A folder is a label
folder of 'afa label', or holds masks (.png) or maps (.npy) of any program; its images are those of --config, of
dataset.root=FOLDER, or of the run beside it. Two inputs are shown side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afa.commands.arguments import CommandParser, add_device_argument
from afa.data.files import require_writable
from afa.errors import UserError, one_line
from afa.paths import expand_home, given_path

if TYPE_CHECKING:
    from afa.config import DatasetConfig
    from afa.report.sources import Source

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".params", ".ckpt", ".tar")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, look at the images, write the page."""
    parser = CommandParser(__doc__, settings=True)
    parser.add_argument(
        "sources",
        nargs="+",
        type=given_path,
        metavar="RUN_OR_FOLDER",
        help="one input, or two that are shown side by side",
    )
    parser.add_argument(
        "--output", type=given_path, metavar="FILE", help=".html; default: report.html in the folder of a single run"
    )
    parser.add_argument(
        "--config",
        type=expand_home,
        metavar="FILE",
        help="configuration (a YAML file or a recipe) whose data set a folder is of; of a run: in place of its own",
    )
    parser.add_argument("--split", help="list of images; default: dataset.val_split, or that of a label folder")
    parser.add_argument("--images", type=int, default=48, metavar="N", help="images in the page (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N images of the list")
    parser.add_argument("--outputs", nargs="+", metavar="NAME", help="outputs that are shown; default: all")
    parser.add_argument(
        "--affinity", action=argparse.BooleanOptionalAction, default=True, help="store affinities, the largest part"
    )
    add_device_argument(parser)
    args = parser.read(arguments)
    settings, places = args.settings, args.sources
    if not 1 <= len(places) <= 2:
        said = one_line(", ".join(map(str, places)), 200) or "none"
        raise UserError(f"give one run or folder, or two that are shown side by side; these are {len(places)}: {said}")
    for name in ("images", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: at least 1 image is needed")
    path = args.output or _default_output(places)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {path}: give a .html file")
    require_writable(path, "--output" if args.output else "without --output,")

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.report.page import write_report

    sources = _open(places, args, settings)
    for note in dict.fromkeys(note for source in sources for note in source.notes):
        print(f"note: {note}", file=sys.stderr)
    written = write_report(path, sources, most_images=args.images)
    print(
        f"{written.images} images, {written.shown} of them shown, {written.bytes / 1e6:.1f} MB in {one_line(str(path))}"
    )
    return 0


def _default_output(places: Sequence[Path]) -> Path:
    if len(places) == 1 and (places[0] / "checkpoints").is_dir():
        return places[0] / "report.html"
    raise UserError("give --output FILE.html: without it, the page goes into the folder of a single run")


def _is_folder_of_results(place: Path) -> bool:
    """Whether it holds results; else it is a run, a checkpoint or weights."""
    from afa.data.map_files import LABEL_FACTS

    if not place.is_dir():
        return False
    if (place / LABEL_FACTS).is_file():
        return True
    return not (place / "checkpoints").is_dir() and not any(
        path.suffix in _WEIGHTS for path in place.iterdir() if path.is_file()
    )


def _open(places: Sequence[Path], args: argparse.Namespace, settings: Sequence[str]) -> list[Source]:
    """The sources, runs first opened: a folder beside a run is of the same data set."""
    from afa.prediction.model import load
    from afa.report.sources import FolderSource, RunSource
    from afa.weights import last_checkpoint

    opened: dict[int, Source] = {}
    dataset: DatasetConfig | None = None
    split: str | None = args.split
    for number, place in enumerate(places):
        if _is_folder_of_results(place):
            continue
        model = load(last_checkpoint(place), config=args.config, device=args.device, overrides=settings)
        run = RunSource(model, place, split=split, outputs=args.outputs, affinity=args.affinity, limit=args.limit)
        opened[number] = run
        if dataset is None:
            dataset, split = run.images.config, run.images.split
    for number, place in enumerate(places):
        if number not in opened:
            own = dataset or _dataset_of(place, args.config, settings)
            opened[number] = FolderSource(place, own, split=split, outputs=args.outputs, limit=args.limit)
            dataset, split = opened[number].images.config, opened[number].images.split
    return [opened[number] for number in range(len(places))]


def _dataset_of(place: Path, config: str | None, settings: Sequence[str]) -> DatasetConfig:
    """The data set that a folder is of."""
    from afa.config import RunConfig
    from afa.data.map_files import LABEL_FACTS
    from afa.methods import config_from_dict, load_config
    from afa.report.sources import label_facts

    if config is not None:
        found: RunConfig = load_config(config, settings)
        return found.dataset
    if not any(setting.startswith("dataset.root=") for setting in settings):
        raise UserError(
            f"{place}: which images does it belong to? Give --config FILE, or dataset.root=FOLDER (and dataset.type)"
        )
    known = label_facts(place).get("config")
    tree = {"dataset": known["dataset"]} if isinstance(known, dict) and isinstance(known.get("dataset"), dict) else {}
    found = config_from_dict(tree, source=f"{place}: {LABEL_FACTS}", overrides=settings)
    return found.dataset
