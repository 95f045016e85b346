from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from data_sources import tool_command, tool_environment

RunTool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_tool() -> RunTool:
    """Run a real command; its exit code must be the expected one, and no traceback may be seen."""

    def run(tool: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            tool_command(tool, *arguments), capture_output=True, text=True, env=tool_environment(), timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run
