from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from run_tool import RunTool, run_in_process

if TYPE_CHECKING:
    from golden import Agreement

# PyTorch is imported where it is needed: pytest-xdist's first process, which runs no test, does without.
pytest_plugins = ["processor_time"]


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> Iterator[None]:
    """None is ignored: a run leaves alone what was before, as under nohup or behind a shell's ``&``."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def agreement(record_property: Callable[[str, object], None]) -> Agreement:
    """Comparisons with the released program."""
    from golden import Agreement

    return Agreement(record_property)


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunTool:
    """Run a script of ``tools/`` in this process."""
    return lambda tool, *arguments: run_in_process(str(tool), arguments, monkeypatch, capsys)


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    # torch.manual_seed formats a traceback wherever there is no GPU, which takes as long as many a test.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
