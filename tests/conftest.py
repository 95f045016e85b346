from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import Agreement
from run_tool import RunTool, run_in_process

pytest_plugins = ["processor_time"]


@pytest.fixture
def agreement(record_property: Callable[[str, object], None]) -> Agreement:
    """Comparisons with the released program."""
    return Agreement(record_property)


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunTool:
    """Run a script of ``tools/`` in this process."""
    return lambda tool, *arguments: run_in_process(str(tool), arguments, monkeypatch, capsys)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
