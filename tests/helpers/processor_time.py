"""A pytest plugin: the processor time of the whole run, and which tests take most of it.

Processor time, user and system, says what a test costs on a busy machine, too; seconds on the wall do not. It counts
pytest's own processes (all of pytest-xdist's), and every process that a test starts, whether it is still alive or not.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHOWN = 10


class Processes:
    """This process and all that it starts."""

    def __init__(self) -> None:
        self.parents: dict[int, int] = {}

    def spent(self) -> tuple[float, float]:
        """User and system seconds up to now.

        ``os.times`` counts what has ended; a fork server, which lives as long as the tests, is read from ``/proc``.
        """
        times = os.times()
        user, system = times.user + times.children_user, times.system + times.children_system
        tick = os.sysconf("SC_CLK_TCK")
        for process in self.descendants():
            # Fields 14 to 17 of proc(5): itself in user and system mode, and its ended children.
            own_user, own_system, children_user, children_system = map(int, stat(process)[11:15] or [0] * 4)
            user += (own_user + children_user) / tick
            system += (own_system + children_system) / tick
        return user, system

    def descendants(self) -> set[int]:
        """The living ones; none where there is no ``/proc``. A process is asked for its parent only once."""
        living = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
        self.parents = {process: parent for process, parent in self.parents.items() if process in living}
        self.parents |= {new: int((stat(new)[1:2] or ["0"])[0]) for new in living - self.parents.keys()}
        found: set[int] = set()
        generation = {os.getpid()}
        while generation:
            generation = {process for process, parent in self.parents.items() if parent in generation}
            found |= generation
        return found


def stat(process: int) -> list[str]:
    """What ``/proc`` says of a process from its state on; nothing where it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class ProcessorTime:
    """Counts in every process of the run, and prints in the first."""

    def __init__(self) -> None:
        self.processes = Processes()
        self.before = sum(self.processes.spent())
        self.tests: dict[str, float] = defaultdict(float)
        self.workers: list[tuple[float, float]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[Any]:
        """Note what a test has taken, and what was set up for it and others."""
        report = yield
        if call.when == "teardown":
            now = sum(self.processes.spent())
            report.user_properties = [*report.user_properties, ("processor_time", now - self.before)]
            self.before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of all workers, in the first process."""
        self.tests[report.nodeid] += sum(
            seconds for name, seconds in report.user_properties if name == "processor_time"
        )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A worker hands over what it took."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["processor_time"] = self.processes.spent()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended; one that died has not said what it took."""
        if "processor_time" in getattr(node, "workeroutput", {}):
            self.workers.append(tuple(node.workeroutput["processor_time"]))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The sum, and the dearest tests."""
        # Workers have told theirs; the first process has them among its children too, without what they left behind.
        own = os.times()
        first = (own.user, own.system) if self.workers else self.processes.spent()
        user, system = (sum(column) for column in zip(*self.workers, first, strict=True))
        terminalreporter.section(f"processor time: {user + system:.1f} s ({user:.1f} s user, {system:.1f} s system)")
        for test, seconds in sorted(self.tests.items(), key=lambda item: -item[1])[:SHOWN]:
            terminalreporter.write_line(f"{seconds:6.1f} s {test}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessorTime())
