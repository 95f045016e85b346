from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afa.visual import (
    colour_label,
    contact_sheet,
    heat_map,
    map_heat,
    overlay_label,
    prediction_strip,
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


def test_the_strongest_class_counts() -> None:
    cams = np.zeros((2, 40, 60), np.float32)
    cams[0, :10], cams[1, 30:] = 1, 0.5
    assert np.array_equal(map_heat(cams), cams.max(axis=0))
    assert np.array_equal(map_heat(cams[:0]), np.zeros((40, 60), np.float32))


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


def test_heat_of_maps_is_that_of_the_strongest_class() -> None:
    scores = np.array([[[0.2, 0.9]], [[0.5, 0.1]]], np.float16)
    assert np.allclose(map_heat(scores), [[0.5, 0.9]], atol=1e-3)
    # A background hides what it beats; the rest is shown in relation to its highest score.
    background = np.array([[0.6, 0.3]], np.float16)
    assert np.allclose(map_heat(scores, background), [[0, 1]])
    assert np.allclose(map_heat(scores, background / 6), [[0.5 / 0.9, 1]], atol=1e-3)
    assert not map_heat(scores, np.ones((1, 2), np.float16)).any()
    for empty in (map_heat(scores[:0]), map_heat(scores[:0], background)):
        assert empty.shape == (1, 2) and empty.dtype == np.float32 and not empty.any()


def test_strip_of_a_prediction() -> None:
    image, mask, names = photo(), np.zeros((40, 60), np.uint8), ("disc", "bar", "ring")
    mask[5:20, 5:30], mask[30:] = 3, 255
    maps = {"cam": np.zeros((2, 40, 60), np.float16), "propagated": np.ones((2, 40, 60), np.float16)}
    strip = prediction_strip(image, mask, maps, ("disc", "ring"), names, cell=80)
    assert strip.dtype == np.uint8
    assert strip.shape[1] == 2 * 20 + 6 * 80 + 5 * 10  # image, two maps of two classes, mask
    for class_id, is_shown in ((3, True), (255, True), (2, False)):
        swatch = (strip == colour_label(np.array(class_id))).all(axis=2)
        assert swatch.any() is np.bool_(is_shown), class_id
    alone = prediction_strip(image, np.zeros_like(mask), {}, (), names, cell=80)
    assert alone.shape[1] == 2 * 20 + 2 * 80 + 10
