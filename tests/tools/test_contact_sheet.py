from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_tool import RunTool
from scored import CLASS_NAMES, small_config, small_method

from afa.weights import pack_metadata, save_network


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    config = small_config(tmp_path / "shapes")
    path = tmp_path / "weights.safetensors"
    save_network(small_method(config).network, path, pack_metadata(config, CLASS_NAMES, 7))
    return path


@pytest.fixture
def draw(run_tool: RunTool, weights: Path) -> RunTool:
    return partial(run_tool, "contact_sheet.py", weights)


def test_sheet(draw: RunTool, tmp_path: Path) -> None:
    heights = []
    for count in (2, 100):
        result = draw("--limit", count, "--cell", 60, "--output", tmp_path / "sheet.png")
        assert result.returncode == 0, result.stderr
        sheet = np.array(Image.open(tmp_path / "sheet.png"))
        assert sheet.shape[1] == 2 * 20 + 7 * 60 + 6 * 10
        heights.append(len(sheet))
    assert heights[1] > heights[0]
    assert "5 images" in result.stdout


def test_sheet_with_crf_has_one_column_more(draw: RunTool, tmp_path: Path) -> None:
    result = draw("--limit", 2, "--cell", 60, "--crf", "--output", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr
    assert np.array(Image.open(tmp_path / "sheet.png")).shape[1] == 2 * 20 + 8 * 60 + 7 * 10


def test_images_without_true_masks_are_shown_without(draw: RunTool, tmp_path: Path) -> None:
    widths = []
    for lost in ("image_1", "*"):
        for path in (tmp_path / "shapes/SegmentationClass").glob(f"{lost}.png"):
            path.unlink()
        result = draw("--cell", 60, "--output", tmp_path / "sheet.png")
        assert result.returncode == 0, result.stderr
        assert f"{1 if lost != '*' else 5} of the 5 images have no true mask" in result.stderr
        widths.append(Image.open(tmp_path / "sheet.png").width)
    assert widths[0] - widths[1] == 60 + 10  # no column for the truth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "sheet.gif"], ".png or .jpg"),
        (["--output", "sheet.png", "--limit", 0], "--limit 0"),
        (["--output", "sheet.png", "--split", "nothing"], "nothing.txt"),
        (["--output", "/proc/sheet.png"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    draw: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = draw(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "sheet.png").exists()
