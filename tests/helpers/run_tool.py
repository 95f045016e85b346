"""The commands of ``tools/``, called in this process: without the seconds that a new one takes to import PyTorch."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest

from afa.errors import run_command

TOOLS = Path(__file__).parents[2] / "tools"


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


class RunTool(Protocol):
    def __call__(self, tool: object, *arguments: object) -> Result: ...


@cache
def tool_main(tool: str) -> Callable[[list[str]], int | None]:
    """The ``main(arguments)`` of a script: its file name in ``tools/``."""
    return runpy.run_path(str(TOOLS / tool))["main"]


def run_in_process(
    tool: str, arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Result:
    """What a command prints, and its exit code; what it asks of logging is taken back."""
    capsys.readouterr()
    root, package = logging.getLogger(), logging.getLogger("afa")
    handlers, levels = root.handlers[:], (root.level, package.level)
    root.handlers.clear()  # pytest's own, with which a command would have nothing to set up
    with monkeypatch.context() as context:
        context.setattr(sys, "argv", [tool])  # names the program in the help
        try:
            with pytest.raises(SystemExit) as stop:
                run_command(lambda: tool_main(tool)([str(argument) for argument in arguments]))
        finally:
            root.handlers[:] = handlers
            root.setLevel(levels[0])
            package.setLevel(levels[1])
    captured = capsys.readouterr()
    code = stop.value.code
    return Result(code if isinstance(code, int) else 0, captured.out, captured.err)
