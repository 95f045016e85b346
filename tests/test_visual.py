from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from afa.visual import (
    Cell,
    Row,
    ScoreScale,
    class_maps,
    colour_label,
    common_scale,
    contact_sheet,
    fitted_text,
    map_colours,
    overlay_label,
    overlay_scores,
    prediction_grid,
    scale_bar,
    with_legend,
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


def test_ignored_pixels_are_hatched() -> None:
    image, label = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60), np.uint8)
    label[:, 30:] = 255
    shown = overlay_label(image, label)
    assert (shown[:, :30] == 128).all()
    dark = shown[:, 30:].mean(axis=2) < 128
    # Each row and each column of the hatching has both stripes.
    assert all(set(line) == {True, False} for line in [*dark.tolist(), *dark.T.tolist()])


THRESHOLD = 0.35
SCORES = np.linspace(0, 1, 101, dtype=np.float16)[None, None].repeat(5, axis=1)


def is_grey(colours: np.ndarray) -> np.ndarray:
    return (colours == colours[..., :1]).all(axis=-1)


@pytest.mark.parametrize("over_image", [False, True])
def test_what_a_threshold_calls_background_is_grey_and_a_line_shows_where_it_ends(over_image: bool) -> None:
    above = (SCORES[0].astype(np.float32) > THRESHOLD)[2]
    if over_image:
        maps = class_maps(SCORES, THRESHOLD, [1])
        image = np.full((5, 101, 3), (200, 30, 30), np.uint8)
        shown = overlay_scores(image, maps.values[0], maps.above[0], common_scale([maps]))[2]
        first = np.flatnonzero(above)[0]
        assert (shown[first] == 255).all() and (shown[first - 1] < 255).all()
        shown[first - 1 : first + 2] = 0, 0, 0  # the line
        above[first - 1 : first + 2] = False
    else:
        shown = map_colours(SCORES, THRESHOLD)[0, 2]
    assert np.array_equal(~is_grey(shown), above)
    # A higher score is never a darker grey.
    greys = shown[: np.flatnonzero(above)[0] - 3, 0].astype(int)
    assert (np.diff(greys) >= 0).all() and greys[-1] > greys[0]


def test_the_colour_of_a_score_does_not_depend_on_the_other_scores() -> None:
    weak, strong = SCORES * np.float16(0.5), SCORES
    assert np.array_equal(map_colours(weak, 0.2)[0, 0, 100], map_colours(strong, 0.2)[0, 0, 50])
    assert is_grey(map_colours(np.full((1, 4, 4), 0.19), 0.2)).all()


def test_maps_with_a_background_are_coloured_where_their_class_is_the_label() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((4, 30, 40)).astype(np.float32)
    scores /= scores.sum(axis=0)
    label = scores.argmax(axis=0)
    colours = map_colours(scores[1:], scores[0])
    for index in range(3):
        assert np.array_equal(~is_grey(colours[index]), label == index + 1)
    # A walk leaves all shares close to a half: the scale is around it, and holds the highest.
    close = class_maps(0.5 + 0.02 * scores[1:], np.full((30, 40), 0.5, np.float32), [1, 2, 3])
    assert common_scale([close]) == (0.5, 0.4, 0.6)
    assert common_scale([close, class_maps(scores[1:] * 9, scores[0], [1, 2, 3])]) == (0.5, 0.0, 1.0)


def test_a_label_decides_where_scores_were_rounded() -> None:
    scores, label = np.ones((2, 2, 3), np.float16), np.array([[0, 1, 2], [0, 0, 255]])
    maps = class_maps(scores, 0.9999, [1, 2], label=label)
    assert maps.above.tolist() == [[[0, 1, 1], [0, 0, 1]], [[0, 1, 1], [0, 0, 1]]]


def test_maps_without_classes_or_background() -> None:
    assert map_colours(np.zeros((0, 4, 6), np.float16), 0.5).shape == (0, 4, 6, 3)
    assert not is_grey(map_colours(SCORES, None)).any()


def test_a_colour_bar_has_the_colours_of_its_scores() -> None:
    bar, shown = scale_bar(ScoreScale(0.355), 101, 3)[1], map_colours(SCORES, 0.355)[0, 0]
    assert np.abs(bar.astype(int) - shown).max() <= 3


def swatches(sheet: np.ndarray, class_id: int) -> bool:
    return bool((sheet == colour_label(np.array(class_id))).all(axis=2).any())


def test_contact_sheet_takes_any_sizes_and_empty_cells() -> None:
    rows = [Row([Cell(photo(40, 60)), Cell(photo(500, 20))]), Row([None, Cell(photo(3, 3), "caption")])]
    plain = contact_sheet(rows, ["image", "label"], cell=80)
    assert plain.dtype == np.uint8
    assert plain.shape[1] == 2 * 20 + 2 * 80 + 10
    full = contact_sheet(
        [replace(row, title=f"row {number}", detail="IoU 50.0 %") for number, row in enumerate(rows)],
        ["image", "a title that is far too long for its column"],
        heading="heading",
        notes=["a note", "a second one that is far too long for its sheet " * 9],
        bars=[("scores of something", ScoreScale(background)) for background in (None, 0.0, 0.02, 0.5, 1.0)],
        legend=[(f"class {index}", index) for index in range(30)] + [("x" * 500, 30)],
        cell=80,
    )
    assert full.shape[1] == plain.shape[1]
    assert full.shape[0] > plain.shape[0]
    # Every class of the legend has its swatch.
    assert all(swatches(full, index) for index in range(31))


@pytest.mark.parametrize("size", [(1, 1), (20, 3000), (3000, 20)])
def test_the_size_of_a_sheet_does_not_follow_its_images(size: tuple[int, int]) -> None:
    image, label = np.zeros((*size, 3), np.uint8), np.full(size, 2, np.uint8)
    scores = np.ones((9, *size), np.float16)
    names = [f"class {index}" for index in range(1, 10)]
    sheet = prediction_grid(image, {"cam": scores}, {"cam": 0.3}, range(1, 10), names, mask=label, cell=60)
    assert sheet.shape[1] == 2 * 20 + 3 * 60 + 2 * 10
    assert sheet.shape[0] < 6 * (1.25 * 60 + 40) + 250  # six of the nine classes


def test_an_overlay_names_its_classes() -> None:
    image = photo(40, 300)
    named = with_legend(image, [("disc", 1), ("ring", 5)])
    assert np.array_equal(named[:40], image) and named.shape[1] == 300
    assert swatches(named[40:], 1) and swatches(named[40:], 5) and not swatches(named[40:], 2)
    assert (with_legend(image, [("disk", 1), ("ring", 5)])[40:] != named[40:]).any()
    assert with_legend(image, []) is image
    assert with_legend(photo(1, 1), [("disc", 1)]).shape[1] > 100


def test_any_name_is_one_line_that_fits() -> None:
    accent, face = "e\N{COMBINING ACUTE ACCENT}", "\N{GRINNING FACE}"
    for name in ("a\nb\x1b[2J\u202e", "x" * 10_000, "", face * 50, "\ud800", accent):
        shown, font = fitted_text(name, 13, 150)
        assert font.getlength(shown) <= 150
        assert "\n" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert fitted_text("plain", 13, 150)[0] == "plain"


def test_letters_that_no_font_has_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError("no such font")

    built_in = ImageFont.load_default(17)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: built_in)
    monkeypatch.setattr(ImageFont, "truetype", none)
    text = "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CJK UNIFIED IDEOGRAPH-732B}"
    assert fitted_text(text, 17, 500)[0] == "cafe U+732B"


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


def test_the_grid_of_a_prediction() -> None:
    image, mask, names = photo(), np.zeros((40, 60), np.uint8), ("disc", "bar", "ring")
    mask[5:20, 5:30], mask[30:] = 3, 255
    maps = {"cam": np.zeros((2, 40, 60), np.float16), "propagated": np.ones((2, 40, 60), np.float16)}
    backgrounds = {"cam": 0.5, "propagated": np.zeros((40, 60), np.float16)}
    grid = prediction_grid(image, maps, backgrounds, (1, 3), names, mask=mask, cell=80)
    assert grid.dtype == np.uint8
    assert grid.shape[1] == 2 * 20 + 4 * 80 + 3 * 10  # image, two maps, mask
    assert swatches(grid, 3) and not swatches(grid, 2)
    alone = prediction_grid(image, {}, {}, (), names, mask=np.zeros_like(mask), cell=80)
    assert alone.shape[1] == 2 * 20 + 2 * 80 + 10
    assert len(alone) < len(grid)
