"""Most commands are tested in warm processes: here they start as a user starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_tool import TOOLS, RunTool


def read_help(tool: str, folder: Path, *options: str) -> str:
    """What Python says on stderr while a command prints its help."""
    command = [sys.executable, *options, TOOLS / f"{tool}.py", "--help"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert list(folder.iterdir()) == []
    return done.stderr


@pytest.mark.parametrize("tool", sorted({path.stem for path in TOOLS.glob("*.py")}))
def test_help_comes_without_waiting_for_pytorch(tool: str, tmp_path: Path) -> None:
    log = read_help(tool, tmp_path, "-X", "importtime")
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines()}
    assert "afa.errors" in imported and "torch" not in imported


@pytest.mark.parametrize(
    "command",
    [
        ("benchmark.py", "par", "--json", "PLACE.json"),
        ("check_data.py", "nowhere.yaml", "--json", "PLACE.json"),
        ("contact_sheet.py", "nowhere", "--output", "PLACE.png"),
        ("convert_weights.py", "nowhere", "PLACE.safetensors", "--format", "afa"),
        ("convert_weights.py", "nowhere", "PLACE", "--format", "huggingface"),
        ("eval.py", "nowhere", "--output", "PLACE.json"),
        ("eval.py", "PLACE"),
        ("label.py", "nowhere", "--output", "PLACE"),
        ("make_labels.py", "PLACE.json", "--masks", "nowhere"),
        ("make_saliency.py", "nowhere", "--output", "PLACE"),
        ("report.py", "nowhere", "--output", "PLACE.html"),
        ("score.py", "masks", "nowhere", "--config", "nowhere.yaml", "--output", "PLACE.json"),
        ("score.py", "maps", "nowhere", "--config", "nowhere.yaml", "--csv", "PLACE.csv"),
        ("score.py", "maps", "nowhere", "--config", "nowhere.yaml", "--plot", "PLACE.svg"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_the_work(
    command: tuple[str, ...], tmp_path: Path, run_tool: RunTool
) -> None:
    """Even the work's inputs, which are not there, have not been looked for."""
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file" / "result", tmp_path / "file" / "new" / "result", Path("/proc/result")):
        done = run_tool(*(word.replace("PLACE", str(place)) for word in command))
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert str(place.parent) in done.stderr and "cannot be written: " in done.stderr
