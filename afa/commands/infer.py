"""Segment anyone's pictures: tools/infer.py work_dirs/voc photos/ cat.jpg --out results

Exit code 1 if a picture could not be read; the others are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from afa.commands.arguments import (
    add_batch_argument,
    add_crf_arguments,
    add_network_arguments,
    prediction_overrides,
    split_scales,
)
from afa.errors import UserError, one_line
from afa.paths import given_path
from afa.prediction import results
from afa.prediction.images import describe_files, find_pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, predict, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=results.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_network_arguments(parser)
    add_batch_argument(parser)
    parser.add_argument(
        "pictures", nargs="*", type=given_path, metavar="IMAGE_OR_FOLDER", help="folders with sub-folders"
    )
    parser.add_argument("--out", type=given_path, required=True, help="folder of the results")
    parser.add_argument(
        "--labels",
        type=given_path,
        metavar="FILE",
        help="image-level labels (.txt .csv .json .npy) in place of predicted ones; folders may hold pictures without",
    )
    parser.add_argument(
        "--pseudo-labels",
        nargs="+",
        metavar="KIND",
        help="labels of the method's outputs, as label folders hold them; of AFA: plain, refined, propagated; "
        "default: propagated with --labels, where the method has that, else none",
    )
    parser.add_argument("--gif", action="store_true", help="an animated GIF for each folder of frames")
    parser.add_argument("--fps", type=float, default=8.0, help="its frames per second (default: %(default)s)")
    parser.add_argument("--cams", action=argparse.BooleanOptionalAction, default=True, help="write CAMs")
    parser.add_argument("--overlays", action=argparse.BooleanOptionalAction, default=True, help="write overlays")
    parser.add_argument(
        "--exif",
        action=argparse.BooleanOptionalAction,
        help="turn pictures as their EXIF orientation says; default: yes, but not with --labels, whose masks must fit "
        "the stored pixels",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings: cam.background=0.4")
    add_crf_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    args.pictures += [given_path(text) for text in split_scales(args)]
    args.set += prediction_overrides(args)

    if not args.pictures:
        raise UserError("no picture was named: give image files or folders after the checkpoint")
    if not 0.01 <= args.fps <= 100:
        raise UserError(f"--fps {args.fps}: a GIF shows from 0.01 to 100 frames per second")
    pictures, passed_over = find_pictures(args.pictures, without=args.out)

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.labels import read_labels
    from afa.methods.base import label_output
    from afa.prediction.inference import Inference
    from afa.prediction.model import build_crf, load

    model = load(args.checkpoint, config=args.config, device=args.device, overrides=args.set)
    labels = None if args.labels is None else read_labels(args.labels, model.class_names)
    kinds = args.pseudo_labels or []
    if args.pseudo_labels is None and labels is not None:
        kinds = ["propagated"] if label_output(model.method, "propagated") is not None else []
    pseudo_labels = {}
    for kind in kinds:
        output = label_output(model.method, kind)
        if output is None:
            offered = ", ".join(output.name for output in model.method.outputs if output.kind != "affinity")
            raise UserError(f"--pseudo-labels {kind}: the method '{model.method.name}' offers {offered}")
        pseudo_labels[kind] = output.name
    maps = [output.name for output in model.method.outputs if output.kind == "maps" and not output.logits]
    wanted = results.WantedResults(
        maps=maps[0] if maps and (args.cams or args.overlays) else None,
        write_maps=args.cams,
        overlays=args.overlays,
        pseudo_labels=pseudo_labels,
        gif=args.gif,
        frames_per_second=args.fps,
        upright=labels is None if args.exif is None else args.exif,
    )
    crf = build_crf(model.config.test, args.crf_negligible) if args.crf else None
    predictor = model.predictor(crf)
    work = Inference(predictor, args.out, wanted, labels)
    failed = work.run(pictures)
    left_out = f", {work.left_out} without labels left out" if work.left_out else ""
    place = one_line(str(args.out))
    print(f"{len(pictures)} images: {len(work.done)} done, {failed} failed{left_out}; saved to {place}")
    if passed_over:
        print(f"passed over, as no images that can be read: {describe_files(passed_over)}")
    for message in work.failures:
        print(f"  failed: {message}", file=sys.stderr)
    return 1 if failed else 0
