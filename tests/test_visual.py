from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afa.visual import (
    colour_label,
    contact_sheet,
    heat_map,
    overlay_cams,
    overlay_label,
    picture_grids,
    write_gif,
    write_picture,
)


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)


def test_colours_are_those_of_voc() -> None:
    colours = colour_label(np.array([[0, 1, 2, 15, 20, 255]]))[0].tolist()
    assert colours == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]


def test_overlay_leaves_the_background_and_outlines_the_object() -> None:
    image, label = photo(), np.zeros((40, 60), np.int64)
    label[10:30, 20:50] = 3
    before = image.copy()
    shown = overlay_label(image, label)
    assert np.array_equal(image, before)
    assert np.array_equal(shown[label == 0], image[label == 0])
    assert shown[10, 35].tolist() == [128, 128, 0]
    inside = image[20, 35] * 0.5 + np.array([128, 128, 0]) * 0.5
    assert np.abs(shown[20, 35] - inside).max() <= 1


def test_heat_goes_from_blue_to_red() -> None:
    colours = heat_map(np.array([[0.0, 1.0, -3.0, 7.0]]))[0].astype(int)
    assert colours[0, 2] > colours[0, 0]
    assert colours[1, 0] > colours[1, 2]
    assert colours[2].tolist() == colours[0].tolist()
    assert colours[3].tolist() == colours[1].tolist()


def test_strongest_cam_counts() -> None:
    image = photo()
    cams = np.zeros((2, 40, 60), np.float32)
    cams[0, :10], cams[1, 30:] = 1, 1
    assert np.array_equal(overlay_cams(image, cams), overlay_cams(image, cams.max(axis=0)))
    nothing = overlay_cams(image, np.zeros((0, 40, 60), np.float32))
    assert np.array_equal(nothing, overlay_cams(image, np.zeros((40, 60))))


def test_contact_sheet_takes_any_sizes_and_empty_cells() -> None:
    rows = [[photo(40, 60), photo(500, 20)], [None, photo(3, 3)]]
    plain = contact_sheet(rows, ["image", "label"], cell=80)
    assert plain.dtype == np.uint8
    assert plain.shape[1] == 2 * 20 + 2 * 80 + 10
    full = contact_sheet(
        rows,
        ["image", "a title that is far too long for its column"],
        row_titles=["first", "second"],
        heading="heading",
        legend=[(f"class {index}", index) for index in range(30)],
        cell=80,
    )
    assert full.shape[1] == plain.shape[1]
    assert full.shape[0] > plain.shape[0]
    # Every class of the legend has its swatch.
    for index in range(30):
        assert (full == colour_label(np.array(index))).all(axis=2).any(), index


@pytest.mark.parametrize("name", ["picture.png", "deep/er/picture.jpg"])
def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    write_picture(tmp_path / name, photo())
    with Image.open(tmp_path / name) as image:
        assert image.size == (60, 40)
    with pytest.raises(ValueError):
        write_picture(tmp_path / "picture.unknown", photo())
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0]]


def test_gif_takes_frames_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "frames.gif"
    frames = (photo(*size) for size in [(400, 600), (60, 60), (600, 400)])
    assert write_gif(path, frames, frames_per_second=10, long_side=120) == 3
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (3, (120, 80))
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 100
        gif.seek(1)
        corner = gif.convert("RGB").getpixel((2, 2))
    assert max(corner) < 16  # a square frame stands between black bars


def test_gif_of_nothing_is_no_file(tmp_path: Path) -> None:
    assert write_gif(tmp_path / "frames.gif", []) == 0
    assert not list(tmp_path.iterdir())


def test_equal_frames_stay_apart(tmp_path: Path) -> None:
    frame = photo()
    write_gif(tmp_path / "still.gif", [frame, frame, frame])
    with Image.open(tmp_path / "still.gif") as gif:
        total = sum(_duration(gif, index) for index in range(gif.n_frames))
    assert total == pytest.approx(3 * 120, abs=30)


def _duration(gif: Image.Image, index: int) -> int:
    gif.seek(index)
    return gif.info["duration"]


def test_picture_grids_of_a_batch() -> None:
    batch, classes, side = 5, 3, 32
    label = torch.randint(0, classes + 1, (batch, side, side))
    label[:, :4] = 255
    grids = picture_grids(
        image=torch.rand(batch, 3, side, side) * 260 - 2,
        cams=torch.rand(batch, classes, side, side),
        class_labels=torch.tensor([[1.0, 0, 1]] * batch),
        initial_label=label,
        refined_label=label,
        propagated_label=label,
        prediction=label.clamp(max=classes),
        affinity=torch.rand(batch, 4, 4),
        token_grid=(2, 2),
        propagated_cams=torch.rand(batch, classes, 2, 2),
    )
    assert set(grids) == {"labels", "attention"}
    for grid in grids.values():
        assert grid.dtype == torch.uint8
        assert grid.ndim == 3
        assert len(grid) == 3
