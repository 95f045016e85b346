"""Export results and networks for other programs.

    afa export voc RUN --split test --output results.tgz dataset.root=data/VOC2012
    afa export mmseg LABELS --output DIR dataset.root=data/VOC2012       and deeplab, psa, irn
    afa export onnx RUN --output model.onnx

voc: an archive for VOC's test server. mmseg, deeplab, psa, irn: pseudo labels (and maps) of a label folder in the
layout that these programs read. onnx: the segmentation network; a JSON file describes its pre- and postprocessing.
'afa export KIND --help' explains one of them.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afa.commands.arguments import CommandParser, add_device_argument
from afa.data.files import require_writable
from afa.errors import UserError
from afa.paths import expand_home, given_path

if TYPE_CHECKING:
    from afa.config import DatasetConfig
    from afa.data.layout import Layout
    from afa.data.voc_submission import SubmittedMask

_KINDS = ("voc", "mmseg", "deeplab", "psa", "irn", "onnx")
_SIDES = (16, 8192)
_WIDTH = 100  # characters of a line of help


def main(arguments: Sequence[str] | None = None) -> int:
    """Read what is wanted, and write it.

    Raises:
        UserError: Something is missing or does not fit.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = CommandParser(__doc__)
    parser.add_argument("kind", metavar="KIND", choices=_KINDS, help=", ".join(_KINDS))
    kind = parser.read(given[:1]).kind
    work: Callable[[list[str]], int] = {"voc": _voc, "onnx": _onnx}.get(kind, lambda rest: _layout(kind, rest))
    return work(given[1:])


def _parser(kind: str, source: str, help_of_source: str, text: str) -> CommandParser:
    parser = CommandParser("\n".join(textwrap.wrap(text, _WIDTH)), settings=True, name=kind)
    parser.add_argument("source", type=given_path, metavar=source, help=help_of_source)
    return parser


def _dataset(config: Path | None, overrides: Sequence[str]) -> DatasetConfig:
    from afa.methods import config_from_dict, load_config

    if config is None and not any(override.startswith("dataset.root=") for override in overrides):
        raise UserError("the folder of the images is missing: give dataset.root=FOLDER, or --config FILE")
    found: DatasetConfig = (
        config_from_dict({}, overrides=overrides) if config is None else load_config(config, overrides)
    ).dataset
    return found


def _voc(arguments: list[str]) -> int:
    from afa.data.voc_submission import COMPETITIONS, SUFFIXES

    parser = _parser(
        "voc",
        "RUN_OR_FOLDER",
        "a run's output folder, a checkpoint or weights; or a folder of masks",
        "Write the archive that VOC's test server takes: masks of the list's images, 0 to 20, under "
        "results/VOC2012/Segmentation/comp6_test_cls. Masks of a network follow the test protocol (test.scales, "
        "test.mirror, test.long_side). The archive is read again before it is kept.",
    )
    parser.add_argument("--output", type=given_path, required=True, metavar="FILE", help=f"{' or '.join(SUFFIXES)}")
    parser.add_argument("--split", default="test", help="list of images (default: %(default)s)")
    parser.add_argument(
        "--competition",
        choices=COMPETITIONS,
        default="comp6",
        help="comp5: trained on VOC's own data only; comp6: on other data, too, as ImageNet (default: %(default)s)",
    )
    parser.add_argument("--crf", action="store_true", help="refine a network's masks with DenseCRF")
    parser.add_argument("--config", type=expand_home, metavar="FILE", help="configuration in place of the run's")
    add_device_argument(parser)
    parser.add_argument("--outputs", metavar="NAME", help="of a label folder: which output's labels")
    args = parser.read(arguments)
    if not args.output.name.lower().endswith(SUFFIXES):
        raise UserError(f"--output {args.output}: give a file that ends in {' or '.join(SUFFIXES)}")
    require_writable(args.output, "--output")

    from afa.data.voc_submission import write_submission

    if _is_run(args.source):
        if args.outputs is not None:
            raise UserError("--outputs is for a label folder: of a run it is the last output that is a segmentation")
        masks = _predicted(args)
    else:
        if args.crf:
            raise UserError("--crf refines what a network predicts, and these are masks: leave it out")
        masks = _stored(args)
    try:
        count = write_submission(args.output, args.competition, masks)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be written: {error.strerror or error}") from error
    print(f"{count} masks of '{args.split}' in {args.output}: values 0 to 20, of their images' sizes, read again")
    return 0


def _is_run(source: Path) -> bool:
    """Whether it is a network's, and not a folder of masks."""
    from afa.data.map_files import LABEL_FACTS
    from afa.weights.facts import CHECKPOINTS_FOLDER, FACTS_FILE

    if not source.is_dir():
        return True
    if (source / LABEL_FACTS).is_file():
        return False
    if (source / CHECKPOINTS_FOLDER).is_dir() or (source / FACTS_FILE).is_file():
        return True
    return next(source.rglob("*.png"), None) is None


def _names(layout: Layout, split: str) -> list[str]:
    from afa.data.voc_submission import check_name, require_voc_classes

    require_voc_classes(layout.class_names, str(layout.root))
    names = layout.names(split)
    for name in names:
        check_name(name)
    return names


def _stored(args: argparse.Namespace) -> Iterator[SubmittedMask]:
    """Masks of a folder."""
    from PIL import Image

    from afa.data.layout import find_layout
    from afa.data.map_folders import MapFolder
    from afa.data.voc_submission import SubmittedMask

    layout = find_layout(_dataset(args.config, args.settings))
    names = _names(layout, args.split)
    folder = MapFolder(args.source)
    folder.require_classes(layout.class_names, "set dataset.root to the data set that it was made for")
    folder.require_labels(names, args.outputs)
    for name in _tracked(names):
        path = layout.image(name, args.split)
        try:
            with Image.open(path) as image:
                size = (image.height, image.width)
        except OSError as error:
            raise UserError(f"the image {path} cannot be read: {error.strerror or error}") from error
        yield SubmittedMask(name, folder.read_label(name, args.outputs), size)


def _predicted(args: argparse.Namespace) -> Iterator[SubmittedMask]:
    """Masks of a network."""
    import numpy as np
    import torch

    from afa.data.dataset import Split
    from afa.data.loader import split_loader
    from afa.data.voc_submission import SubmittedMask, require_voc_classes
    from afa.prediction.batching import by_size
    from afa.prediction.model import build_crf, load

    model = load(args.source, config=args.config, device=args.device, overrides=args.settings)
    require_voc_classes(model.class_names, "the network")
    output = next((output for output in reversed(model.method.outputs) if output.logits), None)
    if output is None:
        raise UserError(
            f"the method '{model.method.name}' gives no segmentation: export a run of one that does, or a label folder"
        )
    images = Split(model.config.dataset, args.split)
    names = _names(images.layout, args.split)
    crf = build_crf(model.config.test) if args.crf else None
    samples = split_loader(images, names)
    with torch.no_grad():
        for group in by_size(
            _tracked(names, samples), model.config.test.batch_size, size=lambda sample: sample.image.shape[:2]
        ):
            for sample, found in zip(group, model.method.predict(group, [output.name], model.protocol), strict=True):
                size, seen = sample.image.shape[:2], found.outputs[output.name]
                if crf is None:
                    label = output.label(seen, size)
                else:
                    pixels = torch.from_numpy(sample.image).permute(2, 0, 1).contiguous().to(model.device)
                    label = crf(pixels, output.probabilities(seen, size))[0].argmax(dim=0)
                yield SubmittedMask(sample.name, label.to(torch.uint8).cpu().numpy().astype(np.uint8), size)


def _tracked(names: Sequence[str], items: Iterable | None = None) -> Iterable:
    from afa.progress import track

    return track(names if items is None else items, len(names), "exporting")


def _layout(kind: str, arguments: list[str]) -> int:
    parser = _parser(
        kind,
        "LABELS",
        "a label folder of 'afa label', or a folder of masks",
        {
            "mmseg": "img_dir/SPLIT, ann_dir/SPLIT, splits/SPLIT.txt, and dataset.py for a configuration.",
            "deeplab": "JPEGImages, SegmentationClassAug, and list/SPLIT.txt with a line /IMAGE /MASK for each image.",
            "psa": "OUTPUT/NAME.npy: {key: float32 [H, W]}, key 0 the first class, or the background where there is "
            "one; OUTPUT/NAME.png: labels. Where an output has both: OUTPUT_maps and OUTPUT_labels.",
            "irn": "OUTPUT/NAME.npy: keys, cam (every fourth pixel) and high_res, as IRN's cam folder; "
            "OUTPUT/NAME.png: labels as its ir_label and sem_seg. Where an output has both: OUTPUT_maps and "
            "OUTPUT_labels.",
        }[kind]
        + " Masks are grey PNG files of class ids, 255 where a label is left open.",
    )
    parser.add_argument("--output", type=given_path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--split", help="list of images; default: the label folder's, else dataset.train_split")
    parser.add_argument("--outputs", nargs="+", metavar="NAME", help="outputs of the label folder")
    parser.add_argument("--config", type=expand_home, metavar="FILE", help="configuration of the data set")
    if kind in ("mmseg", "deeplab"):
        parser.add_argument("--copy", action="store_true", help="copy the images; default: links to them")
    args = parser.read(arguments)
    require_writable(args.output, "--output", folder=True)
    if args.source.resolve() in args.output.resolve().parents:
        raise UserError(f"--output {args.output} lies in {args.source}, which is exported: name a folder outside of it")

    from afa.data.other_layouts import export_layout, find_source

    dataset = _dataset(args.config, args.settings)
    source = find_source(args.source, dataset, args.split, kind, args.outputs)
    written = export_layout(source, kind, args.output, copy_images=getattr(args, "copy", False), track=_tracked)
    print(f"{len(source.names)} images of '{source.split}', {written} files now, in {args.output}")
    return 0


def _onnx(arguments: list[str]) -> int:
    parser = _parser(
        "onnx",
        "RUN",
        "a run's output folder (its last checkpoint), a checkpoint or weights",
        "Write the segmentation network as ONNX, opset 17, for images of any size and number, and MODEL.json with its "
        "pre- and postprocessing. The file is kept only if onnxruntime and PyTorch give the same results.",
    )
    parser.add_argument("--output", type=given_path, required=True, metavar="FILE", help=".onnx")
    parser.add_argument(
        "--size", nargs=2, metavar=("HEIGHT", "WIDTH"), help="only for images of this size; default: any size"
    )
    parser.add_argument("--config", type=expand_home, metavar="FILE", help="configuration in place of the run's")
    args = parser.read(arguments)
    if args.output.suffix.lower() != ".onnx":
        raise UserError(f"--output {args.output}: give a file that ends in .onnx")
    for path in (args.output, args.output.with_suffix(".json")):
        require_writable(path, "--output")
    size = None if args.size is None else [_side(text) for text in args.size]

    from afa.prediction.model import load
    from afa.prediction.onnx_export import LARGEST_DIFFERENCE, export_onnx, require_onnx, require_segmenter
    from afa.weights import last_checkpoint

    require_onnx()
    model = load(last_checkpoint(args.source), config=args.config, device="cpu", overrides=args.settings)
    require_segmenter(model)
    found = export_onnx(model, args.output, size=size)
    sizes = "any size" if found.any_size else f"{size[0]} x {size[1]} pixels" if size else ""
    print(
        f"{args.output}: images of {sizes}; onnxruntime differs from PyTorch by {found.difference:.1e} of the largest "
        f"logit at most ({LARGEST_DIFFERENCE:.0e} is allowed)"
    )
    print(f"written to {', '.join(map(str, found.files))}", file=sys.stderr)
    return 0


def _side(text: str) -> int:
    if not text.isdecimal() or not _SIDES[0] <= int(text) <= _SIDES[1]:
        raise UserError(f"--size {text}: give height and width in pixels, {_SIDES[0]} to {_SIDES[1]}")
    return int(text)
