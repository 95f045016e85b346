"""docs/fidelity.md: its code runs, its table is that of the comparisons."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs/fidelity.md"
DATA = ROOT / "tests/data"

# How closely each file's values are to be met, by the part of the agreement that asks for less.
TOLERANCES: dict[str, dict[str, float]] = {
    "model_gmp": {},
    "model_gap": {},
    "multi_scale_cam": {},
    "par": {"": 1e-5},
    "pseudo_label": {" label": 1e-3},
    "train_trajectory": {"": 1e-3},
    "test_time": {},
    "metrics": {"": 1e-9},
    "dense_energy": {"": 1e-3},
    "dense_crf": {"": 1e-2},
    "psa_narrow": {" of pairs": 0.0, "": 2e-5},
    "mxnet_params": {"": 0.0},
    "psa_data": {"": 1e-6},
    "psa_labels": {"CRF": 5e-3, "label": 0.0, "pairs": 0.0, "": 1e-5},
    "psa_random_walk": {"label": 0.0},
    "psa_train_cls": {"rates": 0.0, "moved": 2e-5, "": 1e-6},
    "edam_labels": {"scores": 1e-5, "CRF": 1e-2, "label": 0.0, "IoU": 1e-6},
    "psa_train_aff": {"rates": 0.0, "loss": 1e-4, "": 2e-5},
    "edam_narrow": {"": 2e-5},
    "edam_pairs": {"targets": 0.0, "": 1e-6},
    "edam_train": {"rates": 1e-15, "loss": 1e-4, "": 2e-5},
}


def blocks() -> list[str]:
    """The code of the section "From Python": the lines that all need, then a block for each file."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("## From Python")[2]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("name", TOLERANCES)
def test_the_document_s_block_of_a_file_meets_its_values(name: str) -> None:
    first, *others = blocks()
    of_several = "model_" if name.startswith("model_") else "psa_train_" if name.startswith("psa_train_") else None
    (block,) = [
        one for one in others if f'load("{name}")' in one or ("load(name)" in one and of_several and of_several in one)
    ]
    names: dict[str, Any] = {"folder": DATA, "name": name}
    exec(first, names)
    exec(block, names)
    assert names["agreement"]
    for part, difference in names["agreement"].items():
        tolerance = next((value for words, value in TOLERANCES[name].items() if words in part), 1e-4)
        assert difference <= tolerance, part


def rows(text: str) -> set[tuple[str, str, str]]:
    """Part, tolerance and test of every row; what was measured may differ from machine to machine."""
    cells = [line.strip("|\n").split(" | ") for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return {(row[0].strip(), row[2], row[3].strip()) for row in cells if len(row) == 4 and "test_reference" in row[3]}


def test_table_of_the_document_names_every_comparison() -> None:
    found = {
        f"`{path.relative_to(ROOT / 'tests').as_posix()} {name}`"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_reference_\w+)\([^)]*agreement", path.read_text())
    }
    assert found == {test for _, _, test in rows(DOCUMENT.read_text())}, "run: python tools/fidelity.py --write"


@pytest.mark.slow
def test_table_of_the_document_is_what_the_command_writes() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/fidelity.py")], capture_output=True, text=True, timeout=1800
    )
    assert result.returncode == 0, result.stderr
    printed = rows(result.stdout)
    assert len(printed) > 40
    assert rows(DOCUMENT.read_text()) == printed, "run: python tools/fidelity.py --write"
