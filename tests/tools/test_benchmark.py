"""The benchmarks' command; the figures themselves are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/benchmark.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_figures_are_printed_and_written(tmp_path: Path) -> None:
    report = tmp_path / "crf.json"
    sizes = ("--size", 24, 32, "--classes", 4, "--present", 2, "--iterations", 2, "--repeats", 1, "--threads", 1)
    done = run("crf", *sizes, "--json", report)
    assert done.returncode == 0, done.stderr
    assert "all classes" in done.stdout
    assert json.loads(report.read_text())


def test_a_mistake_is_one_line() -> None:
    done = run("eval", "--repeats", 0)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
