"""docs/tour.ipynb: its cells run from top to bottom, and what they show is what the text says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"
SIZES = "images, steps = 400, 600"


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def run(names: dict[str, Any]) -> None:
    """The cells of code, with few images and steps."""
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    assert sum(SIZES in source for source in sources) == 1
    for number, source in enumerate(sources):
        exec(compile(source.replace(SIZES, "images, steps = 8, 6"), f"cell {number}", "exec"), names)


def test_the_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run(names)
    assert [path.name for path in tmp_path.iterdir()] == ["tour"]
    printed = capsys.readouterr().out
    assert "mIoU" in printed and "'loss/cls'" in printed and printed.count("does not occur") < 6
    model, found = names["model"], names["found"]
    assert model.step == 6 and len(found) == 8
    assert all(one.mask.shape == (64, 64) and "cam" in one.maps for one in found)
    values, affinity = names["values"], names["affinity"]
    near = [
        abs(torch.arange(count) - place) <= 5
        for count, place in zip(affinity.grid, (names["row"], names["column"]), strict=True)
    ]
    window = near[0][:, None] & near[1]
    assert values.shape == (1, *affinity.grid) and not values[0][~window].any()
    assert bool((values[0][window] > 0).all()) and values.max() <= 1
    assert (names["marked"] != names["shown"].image).any()


def test_it_is_kept_without_results_and_as_jupyter_reads_it() -> None:
    found = cells()
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in found if "outputs" in cell)
    assert len({cell["id"] for cell in found}) == len(found)
    assert {cell["cell_type"] for cell in found} == {"code", "markdown"}
