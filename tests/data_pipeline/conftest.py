from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from data_sources import TOOL_VARIABLES
from forked import ForkedTool

RunTool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_tool() -> RunTool:
    """Run a real command; its exit code must be the expected one, and no traceback may be seen."""

    def run(tool: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = ForkedTool(tool, *arguments, variables=TOOL_VARIABLES).wait()
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run
