"""How every command reads its arguments: one grammar, one line for a mistake. Imports no PyTorch, which takes seconds.

Inputs need no option, results are saved to ``--output``, and ``key=value`` is a setting, unless a file or folder has
that name. Options of earlier versions still work, but no help shows them.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

from afa.data.parallel import usable_cores
from afa.errors import UserError
from afa.paths import expand_home

# Earlier word -> today's, in every command that has today's.
_EARLIER = {
    "--out": "--output",
    "--json": "--output",
    "--count": "--limit",
    "--flip": "--mirror",
    "--no-flip": "--no-mirror",
    "--classes": "--class-names",
    "--batch": "--batch-size",
}
_EARLIER_SETTINGS = "--set"  # stood before settings
_REQUIRED = "the following arguments are required: "  # how argparse begins
_SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*=", re.ASCII)

_program: ContextVar[str | None] = ContextVar("program", default=None)


@contextmanager
def program(name: str) -> Iterator[None]:
    """Inside, help and mistakes call the program so, such as ``afa train``; else by the name of its file."""
    token = _program.set(name)
    try:
        yield
    finally:
        _program.reset(token)


def program_name() -> str:
    """How the running command is called."""
    return _program.get() or os.path.basename(sys.argv[0])


def is_setting(text: str) -> bool:
    """Whether an argument is a setting ``key=value``: it looks like one, and no file or folder has that name."""
    return bool(_SETTING.match(text)) and not os.path.lexists(text)


class CommandParser(argparse.ArgumentParser):
    """Reads a command's arguments, in any order.

    Args:
        description: Its first line says what the command does; shown as it stands.
        settings: Whether the command takes settings ``key=value``; they arrive as ``args.settings``, a list.
        name: Of one of several programs under one name, such as ``step`` of ``afa benchmark``.
        epilog: What the help ends with.

    Attributes:
        earlier: Option of an earlier version -> today's, for those that this command has.
    """

    def __init__(
        self, description: str | None, *, settings: bool = False, name: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=program_name() if name is None else f"{program_name()} {name}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.takes_settings = settings
        self.earlier = dict(_EARLIER)
        self._absent: list[str] = []  # required options that were not given

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the arguments.

        Args:
            arguments: Default: those that this process was started with.

        Raises:
            UserError: Something is missing, too much, or not what it must be.
            SystemExit: After ``--help``.
        """
        texts = list(sys.argv[1:] if arguments is None else arguments)
        if self.takes_settings:
            self.add_argument(
                "settings",
                nargs="*",
                default=[],
                metavar="key=value",
                help="settings, such as dataset.root=data/mine; 'afa train --settings' lists them",
            )
        kept, settings = self._sorted(texts)
        args, others = self._parsed(kept)
        if others:
            self.error(f"'{others[0]}' is one argument too many")
        if self.takes_settings:
            for text in args.settings:
                self.error(f"'{text}' is one argument too many: {_no_setting(text)}")
            args.settings = settings
        return args

    def error(self, message: str) -> NoReturn:
        """Raise a mistake as one line."""
        if message.startswith(_REQUIRED):
            message = ", ".join([message, *self._absent])
        raise UserError(f"{message} ('{self.prog} --help' explains)")

    def _parsed(self, kept: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse; one message names all that is missing, inputs and options (argparse asks for the options first)."""
        required = [action for action in self._actions if action.option_strings and action.required]
        words = {text.partition("=")[0] for text in kept}
        self._absent = [action.option_strings[0] for action in required if words.isdisjoint(action.option_strings)]
        for action in required:
            action.required = False
        try:
            args, others = self.parse_known_intermixed_args(kept)
        finally:
            for action in required:
                action.required = True
        absent = [action.option_strings[0] for action in required if getattr(args, action.dest) is None]
        if absent:
            self._absent = []
            self.error(f"{_REQUIRED}{', '.join(absent)}")
        return args, others

    def _sorted(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """The arguments in today's words without the settings, and the settings."""
        kept: list[str] = []
        settings: list[str] = []
        values = 0  # that the last option still takes, whatever they look like
        options = True
        for text in texts:
            if values:
                values -= 1
            elif options and text == "--":
                options = False
            elif options and len(text) > 1 and text.startswith("-"):
                text = self._today(text)
                if text == _EARLIER_SETTINGS:
                    continue
                if text.startswith(f"{_EARLIER_SETTINGS}="):
                    settings.append(text.partition("=")[2])
                    continue
                name = text.partition("=")[0]
                if name not in self._option_string_actions and not _is_number(text):
                    self.error(self._unknown(text))
                values = self._values_of(text)
            elif self.takes_settings and is_setting(text):
                settings.append(text)
                continue
            kept.append(text)
        return kept, settings

    def _today(self, text: str) -> str:
        """An option of an earlier version in today's word, where this command has that one."""
        name, equals, value = text.partition("=")
        options = self._option_string_actions
        if name == _EARLIER_SETTINGS and not self.takes_settings:
            return text
        today = self.earlier.get(name, name)
        return f"{today}{equals}{value}" if name not in options and today in options else text

    def _values_of(self, text: str) -> int:
        """How many arguments behind an option are its values for sure."""
        action = self._option_string_actions.get(text)
        if action is None:
            return 0
        return 1 if action.nargs is None else action.nargs if isinstance(action.nargs, int) else 0

    def _unknown(self, text: str) -> str:
        if os.path.lexists(text):
            return f"{text} is no option: write ./{text} for the file of that name"
        name = text.partition("=")[0]
        shown = [option for option in self._option_string_actions if option not in ("-h", "--help")]
        near = difflib.get_close_matches(name, shown, n=1)
        return f"{name} is no option" + (f"; did you mean {near[0]}?" if near else "")


def _no_setting(text: str) -> str:
    if _SETTING.match(text):
        return "there is a file or folder of that name, so it is no setting"
    return "settings have the form key=value, for example dataset.root=data/mine"


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add the trained network that is used: ``args.checkpoint``."""
    parser.add_argument(
        "checkpoint", type=expand_home, metavar="RUN", help="a run's output folder, a checkpoint or its weights"
    )
    parser.add_argument(
        "--config",
        type=expand_home,
        metavar="FILE",
        help="configuration (a YAML file or a recipe) instead of the one that came with the weights",
    )


def add_device_argument(parser: argparse.ArgumentParser, default: str = "auto") -> None:
    """Add where the network runs."""
    parser.add_argument("--device", default=default, help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    """Add the number format in which the network computes."""
    parser.add_argument(
        "--precision",
        metavar="P",
        help="float32, bf16, or tf32 (some GPUs): number format of the network; default: test.precision",
    )


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and what concerns prediction."""
    add_run_argument(parser)
    add_device_argument(parser)
    add_precision_argument(parser)
    parser.add_argument("--scales", nargs="+", metavar="S", help="scales of the segmentation; default: test.scales")
    parser.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction, help="average with the mirror image; default: test.mirror"
    )
    parser.add_argument(
        "--long-side", type=int, metavar="N", help="resize to this long side first, 0: native; default: test.long_side"
    )


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    """Add how many images run together, for tools that look at many."""
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images of one size that run together, for a GPU; default: test.batch_size",
    )


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which images of a list are read, and by how many processes."""
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images of the list only")
    add_workers_argument(parser, min(4, usable_cores()))


def add_workers_argument(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Add how many processes read and write files; default: one for each usable core."""
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores() if default is None else default,
        metavar="N",
        help="processes that read files; 0: only this one (default: %(default)s)",
    )


def check_workers(args: argparse.Namespace) -> None:
    """Refuse less than no processes.

    Raises:
        UserError: There are.
    """
    if args.workers < 0:
        raise UserError(f"--workers {args.workers} is below 0")


def check_loading(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: No image is left, or there are less than no processes.
    """
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1 image is needed")
    check_workers(args)


def add_map_arguments(parser: argparse.ArgumentParser, *, size: int, bits: int) -> None:
    """Add how maps are stored.

    Args:
        parser: Of the command.
        size, bits: What is stored unless something else is asked for.
    """
    default = f"{size}" if size else "as the method gives them"
    parser.add_argument(
        "--maps-size",
        type=int,
        default=size,
        metavar="N",
        help=f"shrink larger maps to this long side, 0: as they are (default: {default})",
    )
    parser.add_argument(
        "--maps-bits",
        type=int,
        default=bits,
        choices=(8, bits),
        help="bits per score; 8 makes small files for viewing only, not for thresholds (default: %(default)s)",
    )


def check_map_arguments(args: argparse.Namespace) -> None:
    """Refuse sizes that make no sense.

    Raises:
        UserError: The size is negative.
    """
    if args.maps_size < 0:
        raise UserError(f"--maps-size {args.maps_size}: give a long side in pixels, or 0")


def add_crf_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DenseCRF."""
    parser.add_argument("--crf", action="store_true", help="refine the segmentation with DenseCRF")
    parser.add_argument(
        "--crf-negligible",
        type=float,
        metavar="P",
        help="DenseCRF: join the classes whose probability stays below P everywhere; faster with many classes",
    )


def split_scales(args: argparse.Namespace) -> list[str]:
    """Keep the numbers in ``args.scales`` and return what else came after ``--scales``: it was meant for elsewhere."""
    others = [text for text in args.scales or [] if not _is_number(text)]
    if args.scales is not None:
        args.scales = [text for text in args.scales if _is_number(text)]
        if not args.scales:
            raise UserError("--scales needs numbers, for example --scales 1 0.5 0.75")
    return others


def check_scales(args: argparse.Namespace) -> None:
    """Refuse what is no number behind ``--scales``.

    Raises:
        UserError: There is something.
    """
    for text in split_scales(args):
        raise UserError(f"--scales {text}: that is no number; name files before --scales")


def prediction_settings(args: argparse.Namespace) -> list[str]:
    """The ``test`` settings among the options as ``key=value``, after :func:`split_scales`."""
    # Not every command takes each of them.
    given = {name: getattr(args, name, None) for name in ("scales", "mirror", "long_side", "batch_size", "precision")}
    if given["scales"] is not None:
        given["scales"] = f"[{', '.join(given['scales'])}]"
    if given["mirror"] is not None:
        given["mirror"] = str(given["mirror"]).lower()
    return [f"test.{name}={value}" for name, value in given.items() if value is not None]


def one_output(given: str | None, earlier: str | None, parser: CommandParser, what: str) -> str:
    """``--output``, or the same as a second input, as it was given in earlier versions.

    Raises:
        UserError: There is neither, or there are both.
    """
    if given is not None and earlier is not None:
        parser.error(f"'{earlier}' is one argument too many")
    if given is None and earlier is None:
        parser.error(f"the following arguments are required: --output {what}")
    return str(given if earlier is None else earlier)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
