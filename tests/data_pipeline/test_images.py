from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sources import write_image
from PIL import Image

from afa.data.images import DamagedImage, read_image, read_mask
from afa.data.palette import palette_image, voc_palette


def gradient(size: tuple[int, int] = (5, 7)) -> np.ndarray:
    return np.arange(size[0] * size[1], dtype=np.uint8).reshape(size) * 3


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png"), image)


def test_greyscale_is_replicated(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert image.shape == (5, 7, 3) and image.dtype == np.uint8
    assert all(np.array_equal(image[..., channel], gradient()) for channel in range(3))


def test_16_bit_keeps_the_high_byte(tmp_path: Path) -> None:
    deep = gradient().astype(np.uint16) * 256 + 200
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 1], gradient())


def test_palette_and_one_bit(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 21]], np.uint8)
    palette_image(indices).save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), voc_palette()[indices])
    Image.fromarray(indices > 0).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[..., 0], np.where(indices > 0, 255, 0))


def test_transparency_is_blended_with_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3] = (255, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert image[0, 0].tolist() == [200, 0, 0] and image[0, 1].tolist() == [255, 255, 255]
    assert np.abs(image[0, 2].astype(int) - [244, 204, 204]).max() <= 1


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red, green, blue = read_image(tmp_path / "print.jpg")[4, 4]
    assert red > 200 and green < 60 and blue < 60


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "turned.jpg", (20, 40), exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 40, 3)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "folder", "no_pixels"])
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.jpg"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no picture")
    elif kind == "truncated":
        write_image(path, (200, 200))
        path.write_bytes(path.read_bytes()[:-800])
    elif kind == "folder":
        path.mkdir()
    elif kind == "no_pixels":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    with pytest.raises(DamagedImage, match=f"{kind}.jpg") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_masks_give_indices_not_colours(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 255], [7, 20, 0]], np.uint8)
    palette_image(mask).save(tmp_path / "palette.png")
    Image.fromarray(mask).save(tmp_path / "grey.png")
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("palette", "grey", "deep"):
        read = read_mask(tmp_path / f"{name}.png")
        assert read.dtype == np.uint8 and np.array_equal(read, mask)


def test_masks_with_colours_or_large_values_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(DamagedImage, match=r"colour\.png has 4 channels"):
        read_mask(tmp_path / "colour.png")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DamagedImage, match="300"):
        read_mask(tmp_path / "deep.png")


def test_palette_is_that_of_the_development_kit() -> None:
    palette = voc_palette()
    assert palette[[1, 2, 3, 8, 15, 20, 255]].tolist() == [
        [128, 0, 0], [0, 128, 0], [128, 128, 0], [64, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
