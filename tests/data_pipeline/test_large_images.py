"""Images of many pixels: refused before they are decoded, read where the setting allows, in bounded memory."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from data_sources import training_images
from image_files import png, tiff
from PIL import Image

from afa.config.settings import MAX_PIXELS, DatasetConfig
from afa.data.dataset import EvaluationImages
from afa.data.images import DamagedImage, TooManyPixels, read_image, read_mask

# More pixels than allowed, in files that hold hardly any.
HUGE = {
    "png": png(9000, 9000, bits=1),
    "png, much more than Pillow allows": png(60000, 60000, bits=8),
    "tiff": tiff(60000, 60000, b""),
    "gif": b"GIF89a" + b"\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\4\1\0;",
    "bmp": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\x30\x75\0\0" * 2 + b"\1\0\x18\0" + bytes(24),
}


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_they_are_refused_before_they_are_decoded(tmp_path: Path, kind: str, read: object) -> None:
    (tmp_path / "large").write_bytes(HUGE[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TooManyPixels, match=f"dataset.max_pixels={MAX_PIXELS}") as caught:
            read(tmp_path / "large")
    assert "attack" not in str(caught.value)


def test_a_webp_file_too(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "WEBP", lossless=True)
    content = bytearray(buffer.getvalue())
    content[21:25] = (9000 | 9000 << 14).to_bytes(4, "little")  # width and height less one
    (tmp_path / "large.webp").write_bytes(content)
    with pytest.raises(TooManyPixels):
        read_image(tmp_path / "large.webp")


def test_the_setting_holds_in_every_reader(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "masks" / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / f"images/{split}/a.png")
        Image.new("L", (40, 30), 1).save(tmp_path / f"masks/{split}/a.png")
    (tmp_path / "classes.txt").write_text("cat\n")
    config = DatasetConfig(type="folder", root=str(tmp_path), train_split="train", max_pixels=1199)
    with pytest.raises(TooManyPixels, match="the mask"):
        training_images(config)
    (tmp_path / "class_labels.json").write_text('{"train/a": ["cat"]}')
    with pytest.raises(DamagedImage, match="max_pixels=1199"):
        training_images(config)[0, 0]
    with pytest.raises(TooManyPixels, match="the image"):
        EvaluationImages(config)[0]
    config.max_pixels = 1200
    assert EvaluationImages(config)[0].label.shape == (30, 40)


def test_larger_images_are_read_where_the_setting_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    values = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", max_pixels=3000), values)


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16"])
def test_conversion_in_bands_leaves_no_seam(tmp_path: Path, mode: str) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (3, 2100, 4), np.uint8)
    values = np.ascontiguousarray(np.broadcast_to(tile[None], (700, 3, 2100, 4)).reshape(2100, 2100, 4))
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        image = image.convert("RGB").convert("P", dither=Image.Dither.NONE)
    image.save(tmp_path / "a.tif")
    whole = read_image(tmp_path / "a.tif")
    image.crop((0, 0, 2100, 3)).save(tmp_path / "b.tif")
    assert np.array_equal(whole, np.tile(read_image(tmp_path / "b.tif"), (700, 1, 1)))


def test_a_jpeg_that_passes_over_its_pixels_again_and_again_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 99).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "again.jpg").write_bytes(content[:-2] + last * 2000 + b"\xff\xd9")
    with pytest.raises(DamagedImage, match="scans"):
        read_image(tmp_path / "again.jpg")
    # A phone's film behind the image is no part of it.
    (tmp_path / "film.jpg").write_bytes(content + b"\xff\xda" * 2000)
    assert read_image(tmp_path / "film.jpg").shape == (64, 64, 3)
