"""The real commands in processes forked from a warm one: as they are, without the seconds that imports take.

Everything but the start of the interpreter is what a user gets: a process of its own, its arguments, environment,
working directory, output and exit code. One test of each command starts it the usual way.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

REPOSITORY = Path(__file__).parents[2]


def start_process(function: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Start a process forked from one that has imported everything and done nothing else (``warm.py``)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    # The server knows only the environment's path, and passes over what it cannot import.
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])):
        forkserver.ensure_running()
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


class Forked:
    """A function that runs in a process of its own, as a command would.

    Args:
        function: Of a module.
        arguments: Its arguments.
        cwd: Its working directory.
        variables: Of its environment, beside this process's.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: object,
        cwd: Path = REPOSITORY,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.args = arguments
        self._folder = tempfile.TemporaryDirectory()
        self._process = start_process(_call, function, arguments, Path(self._folder.name), cwd, dict(variables or {}))

    def wait(self, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """What came out; a code below 0 where it took too long and was killed."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        assert code is not None
        stdout, stderr = ((Path(self._folder.name) / name).read_text() for name in ("stdout", "stderr"))
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.args, code, stdout, stderr)


class ForkedTool(Forked):
    """A running script: its file name in ``tools/``, or its path, and its arguments."""

    def __init__(self, tool: str | Path, *arguments: object, **settings: Any) -> None:
        super().__init__(_run_script, [str(REPOSITORY / "tools" / tool), *map(str, arguments)], **settings)


def enter(stdout: Path, stderr: Path, variables: Mapping[str, str]) -> None:
    """Give this process an environment of its own, and files for what it prints; they may be the same."""
    assert "warm" in sys.modules, "the fork server could not import it: every process imports all by itself"
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.environ.update(variables)
    # Processes that it starts, such as a loader's, are started as Python does by default, not as it was itself.
    multiprocessing.set_start_method(None, force=True)


def _call(
    function: Callable[..., object], arguments: Sequence[object], folder: Path, cwd: Path, variables: dict[str, str]
) -> None:
    enter(folder / "stdout", folder / "stderr", variables)
    os.chdir(cwd)
    function(*arguments)


def _run_script(arguments: list[str]) -> None:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
