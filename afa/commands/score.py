"""Score a folder of masks, or of maps over a range of background thresholds.

    afa score masks FOLDER dataset.root=data/VOC2012 --split val
    afa score masks FOLDER --config coco --split val2014
    afa score maps FOLDER --truth masks/ --class-names classes.txt --plot sweep.svg

FOLDER is a label folder of 'afa label', or made elsewhere: palette or grey PNG masks (the indices count, not the
colours), or .npy dictionaries of maps as PSA and IRN write them. 255 in a mask is a pixel without a class, which counts
as a miss; 255 in a true mask is ignored. Maps are resized to the size of the true mask; masks must have this size.
Under torchrun the processes share the images; the scores are the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from afa.commands.arguments import CommandParser
from afa.data.files import confusion_place, require_writable
from afa.errors import UserError
from afa.paths import expand_home, given_path

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from afa.data.map_folders import MapFolder
    from afa.data.true_masks import TrueMasks
    from afa.engine.runtime import ProcessRuntime
    from afa.evaluation.metrics import ConfusionMatrix, Counts, ImageCounts
    from afa.evaluation.sweep import ThresholdSweep
    from afa.maps import Maps

_THRESHOLDS = (0.0, 1.0, 0.01)
_MOST_LINES = 21


class _Counted(NamedTuple):
    """Output -> its confusion matrix, or its sweep over thresholds, and each image's counts where a file will hold
    them."""

    matrices: dict[str, ConfusionMatrix]
    sweeps: dict[str, ThresholdSweep]
    per_image: dict[str, ImageCounts]


class _Scored(NamedTuple):
    """Output -> its scores, each image's counts where a file will hold them, and the confusion matrix [C, C + 1]."""

    rows: dict[str, Any]
    per_image: dict[str, ImageCounts]
    confusion: dict[str, Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """Score what the arguments name.

    Args:
        arguments: Of the command line; default: this process's.

    Returns:
        Exit code 0.

    Raises:
        UserError: Something is missing or does not fit.
    """
    args = _read_arguments(arguments)
    from afa.data.map_folders import MapFolder
    from afa.data.true_masks import TrueMasks

    if args.truth is not None:
        truth = TrueMasks.of_folder(args.truth, args.class_names, args.list)
    else:
        from afa.methods import config_from_dict, load_config

        settings = args.settings
        config = config_from_dict({}, overrides=settings) if args.config is None else load_config(args.config, settings)
        truth = TrueMasks.of_split(config.dataset, args.split, args.list)
    folder = MapFolder(args.folder)
    folder.require_classes(truth.class_names, "score it with the true masks of the data set that it was made for")
    held, others = folder.label_outputs, folder.map_outputs
    if args.kind == "maps":
        held, others = others, held
    if not held:
        other = "maps" if args.kind == "masks" else "masks"
        raise UserError(f"{folder.root} holds no {args.kind}" + (f", only {other}: score {other}" if others else ""))
    outputs = list(dict.fromkeys(args.outputs or [])) or list(held)
    unknown = [output for output in outputs if output not in held]
    if unknown:
        raise UserError(f"--outputs {unknown[0]}: {folder.root} holds {args.kind} of {', '.join(held)}")
    from afa.engine.runtime import shared_work

    with shared_work("cpu") as runtime:
        count = _count_masks if args.kind == "masks" else _count_maps
        counted = _joined(runtime.gather(count(args, folder, outputs, truth, runtime)), truth)

        def finish() -> None:
            found = _score(args, outputs, truth, counted)
            for note in _notes(args.kind, folder, truth, found.rows):
                print(f"note: {note}", file=sys.stderr)
            _write(args, truth, found)

        runtime.on_main(finish)
    return 0


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(__doc__, settings=True)
    parser.add_argument("kind", metavar="masks|maps", choices=("masks", "maps"), help="what is scored")
    parser.add_argument("folder", metavar="FOLDER", type=given_path, help="the folder of the files")
    parser.add_argument(
        "--config",
        type=expand_home,
        metavar="FILE",
        help="configuration (a YAML file or a recipe) whose data set has the true masks",
    )
    parser.add_argument("--split", help="list of images of that data set; default: dataset.val_split")
    parser.add_argument("--truth", type=given_path, metavar="FOLDER", help="true masks NAME.png, in place of --config")
    parser.add_argument("--class-names", type=given_path, metavar="FILE", help="with --truth: one name per line")
    parser.add_argument(
        "--list", type=given_path, metavar="FILE", help="names of the images to score, one per line (.txt)"
    )
    parser.add_argument("--outputs", nargs="+", metavar="NAME", help="which outputs of a label folder; default: all")
    parser.add_argument(
        "--absent-class",
        choices=("skip", "zero"),
        default="skip",
        help="a class that no true mask shows is left out of the means, or counts as 0 (default: %(default)s)",
    )
    parser.add_argument("--output", type=given_path, metavar="FILE", help=".json for the scores")
    parser.add_argument(
        "--csv",
        type=given_path,
        metavar="FILE",
        help=".csv for each class's and image's IoU; confusion matrix beside it",
    )
    maps = parser.add_argument_group("for maps")
    maps.add_argument(
        "--thresholds",
        nargs=3,
        type=float,
        metavar=("START", "STOP", "STEP"),
        help="background thresholds (default: {:g} {:g} {:g})".format(*_THRESHOLDS),
    )
    maps.add_argument("--plot", type=given_path, metavar="FILE", help=".svg for the curves over the thresholds")
    maps.add_argument(
        "--labels",
        type=given_path,
        metavar="FILE",
        help="image-level labels, for .npy maps; default: the data set's, or masks",
    )
    args = parser.read(arguments)
    if args.config is None and args.truth is None and not args.settings:
        raise UserError(
            "the true masks are missing: give dataset.root=FOLDER (a VOC data set, or with dataset.type another), "
            "--config FILE, or --truth FOLDER --class-names FILE"
        )
    if args.truth is not None and args.config is not None:
        raise UserError("--truth and --config both name the true masks: give one of them")
    if args.truth is not None and args.class_names is None:
        raise UserError("--truth needs --class-names FILE, class names one per line, without the background")
    if args.split is not None and args.truth is not None:
        raise UserError("--split belongs to a data set, not to --truth")
    if args.class_names is not None and args.truth is None:
        raise UserError("--class-names belongs to --truth")
    if args.settings and args.truth is not None:
        raise UserError(f"'{args.settings[0]}': settings are of a data set, and --truth names the true masks")
    for name in ("thresholds", "plot", "labels"):
        if getattr(args, name) is not None and args.kind == "masks":
            raise UserError(f"--{name} is for maps, not for masks")
    for name, suffix in (("output", ".json"), ("csv", ".csv"), ("plot", ".svg")):
        path = getattr(args, name)
        if path is not None:
            if path.suffix.lower() != suffix:
                raise UserError(f"--{name} {path}: give a {suffix} file")
            for place in (path, confusion_place(path)) if name == "csv" else (path,):
                require_writable(place, f"--{name}")
    return args


def _count_masks(
    args: argparse.Namespace, folder: MapFolder, outputs: Sequence[str], truth: TrueMasks, runtime: ProcessRuntime
) -> _Counted:
    """Count the labels of this process's images."""
    import torch

    from afa.data.images import DamagedImage
    from afa.data.labels import classes_in_mask
    from afa.evaluation.metrics import ConfusionMatrix, ImageCounts

    for output in outputs:
        folder.require_labels(truth.names, output)
    matrices = {output: ConfusionMatrix(len(truth.class_names) + 1) for output in outputs}
    per_image = {output: ImageCounts() for output in outputs}
    for name in _own(truth.names, runtime):
        true = truth.read(name)
        for output in outputs:
            path, mask = folder.label_file(name, output), folder.read_label(name, output)
            if mask.shape != true.shape:
                raise DamagedImage(
                    f"the mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, the true one {true.shape[1]} x "
                    f"{true.shape[0]}: only masks of the same size can be compared"
                )
            classes_in_mask(mask, len(truth.class_names), path=path)
            counts = matrices[output].update(torch.from_numpy(true), torch.from_numpy(mask))
            if _keeps_images(args):
                per_image[output].add(name, counts)
    return _Counted(matrices, {}, per_image)


def _count_maps(
    args: argparse.Namespace, folder: MapFolder, outputs: Sequence[str], truth: TrueMasks, runtime: ProcessRuntime
) -> _Counted:
    """Count the maps of this process's images, over thresholds where they have no background of their own."""
    import torch

    from afa.evaluation.metrics import ConfusionMatrix, ImageCounts
    from afa.evaluation.sweep import ThresholdSweep, threshold_range

    classes = len(truth.class_names) + 1
    thresholds = threshold_range(*(args.thresholds or _THRESHOLDS))
    if args.labels is not None and not folder.needs_class_labels:
        raise UserError(f"--labels is for .npy maps; the files in {folder.root} name their classes")
    from_file = folder.needs_class_labels and (args.labels is not None or truth.labels_file is not None)
    for output in outputs:
        folder.require_maps(truth.names, None, output)
    reader = _Reader(folder, truth, truth.class_labels(args.labels) if from_file else None)
    with_background = runtime.on_main(lambda: {output: reader.has_background(output) for output in outputs})
    if all(with_background.values()):
        for option in ("thresholds", "plot"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option}: the maps in {folder.root} have a background, and so no threshold")

    matrices = {output: ConfusionMatrix(classes) for output in outputs if with_background[output]}
    sweeps = {
        output: ThresholdSweep(classes, thresholds, per_image=_keeps_images(args))
        for output in outputs
        if not with_background[output]
    }
    per_image = {output: ImageCounts() for output in matrices}
    for name in _own(truth.names, runtime):
        mask = reader.true_mask(name)
        true = torch.from_numpy(mask)
        for output in outputs:
            maps = reader.read(name, output, mask, with_background[output])
            if output in sweeps:
                sweeps[output].add(name, true, maps)
                continue
            label = maps.label(true.shape)[0] if maps.has_background else torch.zeros_like(true)
            counts = matrices[output].update(true, label)
            if _keeps_images(args):
                per_image[output].add(name, counts)
    return _Counted(matrices, sweeps, per_image)


def _joined(parts: Sequence[_Counted], truth: TrueMasks) -> _Counted:
    """What several processes counted, together; images in the order of the list."""
    from afa.evaluation.metrics import ImageCounts

    first, *others = parts
    for other in others:
        for output, matrix in other.matrices.items():
            first.matrices[output].add(matrix)
        for output, sweep in other.sweeps.items():
            first.sweeps[output].join(sweep)
    per_image = {
        output: ImageCounts.joined(part.per_image[output] for part in parts).in_order(truth.names)
        for output in first.per_image
    }
    return first._replace(per_image=per_image)


def _score(args: argparse.Namespace, outputs: Sequence[str], truth: TrueMasks, counted: _Counted) -> _Scored:
    """Make scores of counts, and print the tables."""
    from afa.evaluation.tables import format_table

    names = ("background", *truth.class_names)
    rows: dict[str, Any] = {}
    confusion = {output: matrix.counts for output, matrix in counted.matrices.items()}
    per_image = dict(counted.per_image)
    table: dict[str, Any] = {}
    titles: dict[str, str] = {}
    for output in outputs:
        if output in counted.matrices:
            rows[output] = table[output] = counted.matrices[output].scores(names, absent=args.absent_class)
            continue
        sweep = counted.sweeps[output]
        rows[output] = sweep.scores(names, absent=args.absent_class)
        table[output] = rows[output]["best"]
        titles[output] = f"{output} > {rows[output]['best']['threshold']:g}"
        print("\n".join([*_sweep_table(output, rows[output]), ""]))
        best = sweep.thresholds.index(rows[output]["best"]["threshold"])
        confusion[output] = sweep.confusion_at(best)
        if _keeps_images(args):
            per_image[output] = sweep.images_at(best).in_order(truth.names)
    first = outputs[0]
    of_classes = (
        counted.matrices[first].class_counts() if first in counted.matrices else counted.sweeps[first].counts()[0]
    )
    _note_empty_truth(truth, of_classes)
    print(format_table({**table, "images": len(truth.names)}, titles, rates=True))
    return _Scored(rows, {output: per_image[output] for output in outputs if output in per_image}, confusion)


def _keeps_images(args: argparse.Namespace) -> bool:
    """Whether a file will hold what each image scored."""
    return args.csv is not None or args.output is not None


class _Reader:
    """Reads true masks and maps that must fit them, and each other: every file once.

    Args:
        folder: Of the maps.
        truth: The true masks.
        labels: Name -> image-level labels [K], for folders that need them; None: the true mask tells.
    """

    def __init__(self, folder: MapFolder, truth: TrueMasks, labels: Mapping[str, np.ndarray] | None) -> None:
        self.folder, self.truth, self.labels = folder, truth, labels
        # What was read to look at it, and is still to be scored.
        self._masks: dict[str, np.ndarray] = {}
        self._maps: dict[tuple[str, str], Maps] = {}

    def has_background(self, output: str) -> bool:
        """Whether the maps have a background, by the first image with a class."""
        for name in self.truth.names:
            mask = self._masks[name] = self.true_mask(name)
            maps = self._maps[name, output] = self._read(name, output, mask)
            if maps.counted.any():
                return maps.has_background
        return False

    def true_mask(self, name: str) -> np.ndarray:
        """The true label, uint8 [H, W]."""
        mask = self._masks.pop(name, None)
        return self.truth.read(name) if mask is None else mask

    def read(self, name: str, output: str, mask: np.ndarray, with_background: bool) -> Maps:
        """Maps that fit the true label ``mask``."""
        maps = self._maps.pop((name, output), None)
        if maps is None:
            maps = self._read(name, output, mask)
        highest = int(maps.class_ids.max())
        if highest > len(self.truth.class_names):
            path = self.folder.maps_file(name, output)
            raise UserError(f"the maps {path} are of the class {highest}, but there are {len(self.truth.class_names)}")
        if maps.counted.any() and maps.has_background != with_background:
            path = self.folder.maps_file(name, output)
            raise UserError(
                f"the maps {path} have {'a' if maps.has_background else 'no'} background, unlike those before: the "
                "files of one output must agree"
            )
        return maps

    def _read(self, name: str, output: str, mask: np.ndarray) -> Maps:
        labels = None
        if self.labels is not None:
            labels = self.labels.get(name)
        elif self.folder.needs_class_labels:
            labels = self._shown_in(name, mask)
        return self.folder.read(name, labels, output, size=(mask.shape[0], mask.shape[1]))

    def _shown_in(self, name: str, mask: np.ndarray) -> np.ndarray:
        from afa.data.labels import classes_in_mask, one_hot

        count = len(self.truth.class_names)
        return one_hot(classes_in_mask(mask, count, path=self.truth.paths[name]), count)


def _sweep_table(output: str, row: Mapping[str, Any]) -> list[str]:
    """The scores over the thresholds, some of them where they are many; the best is marked."""
    from afa.evaluation.tables import aligned

    thresholds, best = row["thresholds"], row["thresholds"].index(row["best"]["threshold"])
    every = -(-(len(thresholds) - 1) // (_MOST_LINES - 1)) or 1
    shown = sorted({*range(0, len(thresholds), every), best})
    lines = [["threshold", "mIoU", "false positives", "false negatives", ""]]
    for index in shown:
        values = [f"{100 * row[key][index]:.1f}" for key in ("miou", "fp_rate", "fn_rate")]
        lines.append([f"{thresholds[index]:g}", *values, "best" if index == best else ""])
    count = f" ({len(shown)} of {len(thresholds)} thresholds)" if len(shown) < len(thresholds) else ""
    heading = f"{output}: in %, a pixel above the threshold is foreground{count}"
    return [heading, *(line.rstrip() for line in aligned(lines))]


def _note_empty_truth(truth: TrueMasks, counts: Counts) -> None:
    """Say where a score says nothing of classes."""
    if not counts.labelled[1:].any():
        print(f"note: {truth.where} shows no class: only the background is scored", file=sys.stderr)


def _notes(kind: str, folder: MapFolder, truth: TrueMasks, rows: Mapping[str, Any]) -> Iterable[str]:
    """What the scores alone do not say."""
    for output, row in rows.items():
        scores = row.get("best", row)
        thresholds = row.get("thresholds", ())
        if len(thresholds) > 1 and scores["threshold"] in (thresholds[0], thresholds[-1]):
            yield f"{output}: the best threshold is an end of the range: --thresholds may find a better one beyond"
    if kind == "maps" and folder.bits < 32:
        yield (
            f"the maps in {folder.root} have {folder.bits} bits: a score is off by up to half a step of 1/255, and "
            "labels by a threshold may differ from those of 32 bits"
        )
    unscored = len(set(folder.names) - set(truth.names))
    if unscored:
        yield f"{unscored} further files in {folder.root} are not of {truth.where}, and were not scored"


def _own(names: Sequence[str], runtime: ProcessRuntime) -> Iterable[str]:
    """The names that this process counts; the main one shows how far it is."""
    from afa.progress import track

    mine = names[runtime.rank :: runtime.world_size]
    return track(mine, len(mine), "scoring") if runtime.is_main else mine


def _write(args: argparse.Namespace, truth: TrueMasks, found: _Scored) -> None:
    """Write the files that were asked for, and name them."""
    from afa.data.files import write_json, write_text
    from afa.evaluation.tables import confusion_rows, image_iou, write_csv
    from afa.visual.line_chart import Curve, Panel, line_chart_svg

    names = ("background", *truth.class_names)
    written = []
    if args.output is not None:
        content = {
            "kind": args.kind,
            "folder": str(args.folder),
            "truth": truth.where,
            "images": len(truth.names),
            "absent_class": args.absent_class,
            "rows": found.rows,
            "confusion": {output: confusion_rows(matrix) for output, matrix in found.confusion.items()},
            "image_iou": {output: image_iou(images, names) for output, images in found.per_image.items()},
        }
        write_json(args.output, content)
        written.append(args.output)
    if args.csv is not None:
        totals = {output: row.get("best", row) for output, row in found.rows.items()}
        written += write_csv(args.csv, found.per_image, totals, found.confusion)
    if args.plot is not None:
        panels = [
            Panel(
                title=f"{name}, {len(truth.names)} images",
                x=row["thresholds"],
                curves=[
                    Curve("mIoU", row["miou"]),
                    Curve("false positives", row["fp_rate"]),
                    Curve("false negatives", row["fn_rate"]),
                ],
                marked=row["thresholds"].index(row["best"]["threshold"]),
                mark_text=f"best: mIoU {100 * row['best']['miou']:.1f} at {row['best']['threshold']:g}",
            )
            for name, row in found.rows.items()
            if "thresholds" in row
        ]
        write_text(args.plot, line_chart_svg(panels, x_label="background threshold", y_label="percent"))
        written.append(args.plot)
    if written:
        print(f"written to {', '.join(map(str, written))}", file=sys.stderr)
