from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


class RunTool(Protocol):
    def __call__(self, tool: object, *arguments: object) -> Result: ...


def run_in_process(
    tool: str, arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Result:
    """The script itself, without the seconds that a new process spends on importing PyTorch."""
    capsys.readouterr()
    with monkeypatch.context() as context:
        context.setattr(sys, "argv", [str(TOOLS / tool), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOLS / tool), run_name="__main__")
    captured = capsys.readouterr()
    code = stop.value.code
    return Result(code if isinstance(code, int) else 0, captured.out, captured.err)
