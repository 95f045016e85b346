from __future__ import annotations

import pytest

from tests.evaluation.run_tool import RunTool, run_in_process


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunTool:
    return lambda tool, *arguments: run_in_process(str(tool), arguments, monkeypatch, capsys)
