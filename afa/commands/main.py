"""Weakly supervised semantic segmentation: train networks that segment every pixel, from image-level labels only."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from afa import __version__
from afa.commands.arguments import program, program_name
from afa.commands.table import COMMANDS, Command
from afa.errors import UserError, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sub-command that the first argument names.

    Args:
        arguments: Default: those that this process was started with.

    Returns:
        Its exit code.

    Raises:
        UserError: There is no such sub-command.
    """
    texts = list(sys.argv[1:] if arguments is None else arguments)
    if texts[:1] == ["--version"]:
        print(f"afa {__version__}")
        return 0
    with program("afa"):
        return run_one(COMMANDS, texts, str(__doc__))


def run_one(commands: Mapping[str, Command], arguments: Sequence[str], purpose: str) -> int:
    """Run one of several commands: the one that the first argument names. Without any, or with ``--help``, list them.

    Args:
        commands: Name -> command.
        arguments: Name of the command, then its own arguments.
        purpose: What they are for, in one line.

    Returns:
        The command's exit code.

    Raises:
        UserError: There is no such command.
    """
    name, *others = arguments or ["--help"]
    group = program_name()
    if name in ("-h", "--help"):
        print(_listed(commands, group, purpose))
        return 0
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(commands)}"
        raise UserError(f"{group}: there is no command '{name}'; {hint} ('{group} --help' explains)")
    with program(f"{group} {name}"):
        return import_module(commands[name].module).main(others) or 0


def _listed(commands: Mapping[str, Command], group: str, purpose: str) -> str:
    width = max(map(len, commands)) + 2
    lines = [f"  {name:<{width}}{command.help}" for name, command in commands.items()]
    version = ", --version" if group == "afa" else ""
    return "\n".join(
        [
            f"usage: {group} COMMAND [argument ...]",
            "",
            purpose,
            "",
            *lines,
            "",
            f"'{group} COMMAND --help' shows the arguments of a command. Options here: --help{version}.",
        ]
    )


def run() -> NoReturn:
    """What the console script ``afa`` starts."""
    run_command(main)
