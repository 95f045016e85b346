from __future__ import annotations

from collections.abc import Callable

import pytest
from run_tool import Result, RunTool

CheckedTool = Callable[..., Result]


@pytest.fixture
def run_tool(run_tool: RunTool) -> CheckedTool:
    """Call a command; its exit code must be the expected one."""

    def run(tool: str, *arguments: object, code: int = 0) -> Result:
        done = run_tool(tool, *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run
