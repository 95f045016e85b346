"""Measure speed and memory on this machine.

    afa benchmark step --crop 512 --batch-size 2 --output step.json

MEASUREMENT is one of these; 'afa benchmark step --help' shows the options of one:
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from afa.benchmarks import GPU_GROUPS, SERIES
from afa.commands.arguments import CommandParser, add_device_argument, add_run_argument
from afa.data.files import require_writable, write_json
from afa.errors import UserError
from afa.paths import expand_home, given_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, measure, print, write the figures."""
    args = parse(arguments)
    if args.output:
        require_writable(args.output, "--output")
    # PyTorch takes seconds: a mistake in the arguments is said before.
    figures = import_module(_BENCHMARKS[args.command].module).run(args)
    if args.output and _BENCHMARKS[args.command].file is None:
        write_json(args.output, figures)
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a measurement; its name is ``command``.

    Raises:
        UserError: A number is below the least that makes sense, or something else is wrong.
    """
    texts = list(sys.argv[1:] if arguments is None else arguments)
    if not texts or texts[0] not in _BENCHMARKS:
        lines = [f"  {name:<12}{_purpose(benchmark)}" for name, benchmark in _BENCHMARKS.items()]
        parser = CommandParser("\n".join([str(__doc__), *lines]))
        parser.add_argument("measurement", metavar="MEASUREMENT", help=", ".join(_BENCHMARKS))
        name = parser.read(texts[:1]).measurement
        near = difflib.get_close_matches(name, _BENCHMARKS, n=1)
        parser.error(f"'{name}' is no measurement" + (f"; did you mean '{near[0]}'?" if near else ""))
    name, benchmark = texts[0], _BENCHMARKS[texts[0]]
    parser = CommandParser(str(benchmark.add_arguments.__doc__), settings=benchmark.settings, name=name)
    benchmark.add_arguments(parser)
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="FILE",
        default=None if benchmark.file is None else Path(benchmark.file),
        help="also write the figures here (JSON)"
        if benchmark.file is None
        else "where the figures go (JSON); the table gets the same name with .md (default: %(default)s)",
    )
    args = parser.read(texts[1:])
    args.command = name
    return args


def _purpose(benchmark: _Benchmark) -> str:
    return str(benchmark.add_arguments.__doc__).partition("\n")[0]


def _step(parser: CommandParser) -> None:
    """A training step: its parts, and its time compared with the floor, the necessary arithmetic."""
    _add_training(parser)
    _add_stage(parser)


def _operators(parser: CommandParser) -> None:
    """A training step, operator by operator: why it is slower than its floor."""
    _step(parser)


def _growth(parser: CommandParser) -> None:
    """How time and memory of a training step grow with crop, classes, batch and backbone."""
    _step(parser)
    parser.add_argument(
        "--vary", nargs="+", choices=tuple(SERIES), default=list(SERIES), help="one table each (default: all)"
    )
    parser.add_argument(
        "--values", nargs="+", metavar="V", help="values of the quantity in --vary; default: a suitable series"
    )


def _regularised(parser: CommandParser) -> None:
    """The regularised loss: time that it adds to a training step."""
    _add_training(parser)
    parser.set_defaults(stage="all")


def _par(parser: CommandParser) -> None:
    """PAR alone, compared with a direct version that uses convolutions."""
    _add_number(parser, "--size", 256, "side of image and masks")
    _add_number(parser, "--channels", 3, "of the masks")
    _add_number(parser, "--batch-size", 2, "images")
    _add_number(parser, "--iterations", 10, "of the refinement")
    _add_runs(parser, repeats=7)
    add_device_argument(parser, "cpu")


def _data(parser: CommandParser) -> None:
    """Training images that one core prepares per second, and time of JPEG decoders."""
    parser.add_argument(
        "--images", type=given_path, help="folder of JPEG files; without it, images of VOC's size are made"
    )
    _add_number(parser, "--limit", 16, "number of images")
    _add_number(parser, "--rounds", 5, "rounds over the images")
    _add_number(parser, "--crop", 512, "side of the crop")


def _eval(parser: CommandParser) -> None:
    """Evaluation: images per second for each output, and time saved by shared passes."""
    parser.add_argument("--encoder", default="mit_b1", help="variant (default: %(default)s)")
    _add_number(parser, "--classes", 20, "foreground classes")
    _add_number(parser, "--present", 2, "classes in an image")
    _add_size(parser, minimum=16)
    _add_number(parser, "--long-side", 512, "of the released protocol's segmentation", minimum=16)
    _add_number(parser, "--limit", 4, "images per run")
    parser.earlier["--images"] = "--limit"
    _add_number(parser, "--batch-size", 1, "images that run together")
    _add_runs(parser)
    add_device_argument(parser, "auto")
    parser.add_argument("--crf", action="store_true", help="also measure DenseCRF, which runs after the network")


def _precision(parser: CommandParser) -> None:
    """Prediction in bf16 or tf32 compared with float32: labels that change, scores, mIoU, time."""
    add_run_argument(parser)
    add_device_argument(parser)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "tf32"), help="default: %(default)s")
    parser.add_argument("--split", help="list of images with masks; default: dataset.val_split")
    parser.add_argument(
        "--limit", type=_at_least(1, "--limit"), metavar="N", help="the first N images of the list only"
    )
    _add_number(parser, "--threads", 0, "CPU threads; 0: as torch chooses", minimum=0)


def _label(parser: CommandParser) -> None:
    """The label stage and evaluation, compared with the network's passes alone; two processes with one."""
    add_run_argument(parser)
    add_device_argument(parser)
    parser.add_argument("--split", help="list of images with masks; default: dataset.val_split")
    _add_number(parser, "--limit", 16, "images of the list, the first ones")
    parser.add_argument("--processes", action="store_true", help="also start one and two processes of one thread each")
    _add_runs(parser, repeats=3)


def _crf(parser: CommandParser) -> None:
    """DenseCRF: time, memory and agreement, compared with pydensecrf on the same machine in the same run."""
    _add_number(parser, "--classes", 21, "number of classes")
    _add_number(parser, "--present", 3, "classes that the image shows")
    _add_size(parser)
    parser.add_argument(
        "--image", type=given_path, metavar="FILE", help="image to use; default: cloudy noise and discs"
    )
    _add_number(parser, "--iterations", 10, "mean-field iterations")
    parser.add_argument(
        "--negligible", type=float, default=0.005, help="threshold of the merged run (default: %(default)s)"
    )
    _add_runs(parser, repeats=9)


def _photo(parser: CommandParser) -> None:
    """Prediction of a large photo: time of the network's passes, and of everything else."""
    _add_number(parser, "--megapixels", 12, "of the photo, 4:3")
    _add_number(parser, "--classes", 21, "with background", minimum=2)
    _add_number(parser, "--present", 2, "classes in the photo")
    _add_runs(parser, repeats=3)


def _gpu(parser: CommandParser) -> None:
    """All that a GPU should be asked, within 8 minutes: speed, memory, profile, and whether its values are right."""
    _add_number(parser, "--budget", 480, "seconds that all measurements may take together")
    parser.add_argument(
        "--only", nargs="+", choices=GPU_GROUPS, metavar="GROUP", help=f"only some: {', '.join(GPU_GROUPS)}"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny network, few steps: tries the command, no GPU needed"
    )
    add_device_argument(parser, "cuda")


class _Benchmark(NamedTuple):
    add_arguments: Callable[[CommandParser], None]
    module: str
    settings: bool = False  # whether it takes key=value
    file: str | None = None  # where its figures go by default; it writes them itself, piece by piece


_BENCHMARKS = {
    "step": _Benchmark(_step, "afa.benchmarks.step", settings=True),
    "operators": _Benchmark(_operators, "afa.benchmarks.operators", settings=True),
    "gpu": _Benchmark(_gpu, "afa.benchmarks.gpu.plan", file="afa_gpu.json"),
    "growth": _Benchmark(_growth, "afa.benchmarks.growth", settings=True),
    "par": _Benchmark(_par, "afa.benchmarks.par"),
    "data": _Benchmark(_data, "afa.benchmarks.data"),
    "eval": _Benchmark(_eval, "afa.benchmarks.eval"),
    "precision": _Benchmark(_precision, "afa.benchmarks.precision", settings=True),
    "label": _Benchmark(_label, "afa.benchmarks.label", settings=True),
    "photo": _Benchmark(_photo, "afa.benchmarks.photo"),
    "crf": _Benchmark(_crf, "afa.benchmarks.crf"),
    "reg": _Benchmark(_regularised, "afa.benchmarks.regularised", settings=True),
}


def _add_training(parser: CommandParser) -> None:
    """Add what :mod:`afa.benchmarks.training_step` reads."""
    parser.add_argument(
        "--config",
        type=expand_home,
        metavar="FILE",
        help="a YAML file or a recipe to start from; default: those of VOC",
    )
    parser.add_argument("--encoder", help="MiT variant; default: the configuration's")
    parser.add_argument("--crop", type=int, help="in pixels; default: the configuration's")
    parser.add_argument("--batch-size", type=int, help="images in a step; default: the configuration's")
    _add_number(parser, "--classes", 21, "with background", minimum=2)
    _add_number(parser, "--present", 2, "classes in an image, at most")
    parser.add_argument("--precision", help="float32, tf32, bf16 or fp16; default: the configuration's")
    _add_runs(parser)
    add_device_argument(parser, "cpu")


def _add_stage(parser: CommandParser) -> None:
    parser.add_argument(
        "--stage",
        choices=("all", "classification"),
        default="all",
        help="steps with all labels, or with classification only (default: %(default)s)",
    )


def _add_size(parser: CommandParser, *, minimum: int = 1) -> None:
    parser.add_argument(
        "--size",
        type=_at_least(minimum, "--size"),
        nargs=2,
        default=[375, 500],
        metavar=("H", "W"),
        help="in pixels (default: 375 500)",
    )


def _add_runs(parser: CommandParser, *, repeats: int = 5) -> None:
    _add_number(parser, "--repeats", repeats, "runs that count")
    _add_number(parser, "--threads", 0, "CPU threads; 0: as torch chooses", minimum=0)


def _add_number(parser: CommandParser, flag: str, default: int, meaning: str, *, minimum: int = 1) -> None:
    parser.add_argument(flag, type=_at_least(minimum, flag), default=default, help=f"{meaning} (default: %(default)s)")


def _at_least(minimum: int, flag: str) -> Callable[[str], int]:
    """A whole number from ``minimum`` on."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise UserError(f"{flag} {text}: a whole number is needed") from None
        if value < minimum:
            raise UserError(f"{flag} {value}: at least {minimum} is needed")
        return value

    return convert
