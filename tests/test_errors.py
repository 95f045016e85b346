"""What reaches the user when something goes wrong: one line and an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from afa.errors import UserError, run_command


def outcome(main: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(raising(UserError("no\n  such thing")), capsys) == (2, "error: no such thing\n")


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nowhere" / "report.json"
    assert outcome(lambda: json.dump({}, path.open("w")), capsys) == (2, f"error: {path}: No such file or directory\n")


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(28, "No space left on device")
    assert outcome(raising(full), capsys) == (2, "error: No space left on device\n")


def test_an_interrupt_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (MemoryError(), "MemoryError"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            "you",
        ),
        (RuntimeError("Caught _ArrayMemoryError in DataLoader worker\nUnable to allocate 7 PiB"), "_ArrayMemoryError"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = outcome(raising(error), capsys)
    assert code == 2 and said.startswith("error: memory ran out: ") and shown in said and said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), OSError("a library's own")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command(raising(error))


@pytest.mark.parametrize("code", [None, 0, 3])
def test_exit_codes_pass_through(code: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(lambda: code, capsys) == (code or 0, "")
