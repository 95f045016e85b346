"""Images of every kind that people have: the right values, or one line; nothing started, nothing waited for."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import bmp, png, png_chunk, tiff
from PIL import Image, features

from afa.config import DatasetConfig
from afa.data.check import check_data
from afa.data.images import DamagedImage, read_image
from afa.data.names import IMAGE_SUFFIXES
from afa.errors import UserError

SUBFILE, ORIENTATION, WHITE_IS_ZERO, SAMPLE_FORMAT = 254, 274, 262, 339
HAS_AVIF = ".avif" in Image.registered_extensions() and features.check("avif")

# What is in the file -> the file, and the red values of its two pixels.
READ = {
    "png-1": (png(2, 1, bits=1, rows=[b"\x40"]), [0, 255]),
    "png-2": (png(2, 1, bits=2, rows=[b"\x60"]), [85, 170]),
    "png-16": (png(2, 1, bits=16, rows=[b"\x12\xff\xff\0"]), [0x12, 0xFF]),
    "png-16-black": (png(2, 1, bits=16, rows=[bytes(4)]), [0, 0]),
    "png-16-rgb": (png(1, 2, bits=16, colour=2, rows=[b"\x12\xff" * 3, b"\xff\0" * 3]), [0x12, 0xFF]),
    # One value stands for transparent, which is shown on white.
    "png-1-transparent": (png(2, 1, bits=1, rows=[b"\x40"], more=png_chunk(b"tRNS", b"\0\0")), [255, 255]),
    "png-4-transparent": (png(2, 1, bits=4, rows=[b"\x1f"], more=png_chunk(b"tRNS", b"\0\1")), [255, 255]),
    "png-4-other-transparent": (png(2, 1, bits=4, rows=[b"\x1a"], more=png_chunk(b"tRNS", b"\0\2")), [17, 170]),
    "png-16-transparent": (png(2, 1, bits=16, rows=[b"\x12\0\x80\0"], more=png_chunk(b"tRNS", b"\x12\0")), [255, 128]),
    "tiff-12": (tiff(2, 1, b"\x12\x3f\xff", bits=12), [0x12, 0xFF]),
    "tiff-16-big": (tiff(2, 1, struct.pack(">2H", 0x1234, 0xFFFF), bits=16, order=">"), [0x12, 0xFF]),
    "tiff-from-white": (tiff(2, 1, b"\3\xff", tags={WHITE_IS_ZERO: 0}), [252, 0]),
    "bmp-4": (bmp(2, 1, b"\x12\0\0\0", bits=4, palette=[(5, 5, 5), (9, 1, 1), (7, 0, 0)]), [9, 7]),
}
REFUSED = {
    "12 bits in 16": (png(2, 1, bits=16, rows=[b"\x0f\xff\x01\0"]), "no value above 4095"),
    "8 bits in 16": (png(2, 1, bits=16, colour=2, rows=[b"\0\xff" * 6]), "no value above 4095"),
    "32 bits": (tiff(2, 1, struct.pack("<2I", 3, 2**31), bits=32), "32 bits"),
    "signed": (tiff(2, 1, struct.pack("<2h", 3, -5), bits=16, tags={SAMPLE_FORMAT: 2}), "signed"),
    "8 bits, signed": (tiff(2, 1, b"\3\xff", tags={SAMPLE_FORMAT: 2}), "signed"),
    "16 bits from white": (tiff(2, 1, struct.pack("<2H", 3, 60000), bits=16, tags={WHITE_IS_ZERO: 0}), "from white"),
    "floats": (tiff(2, 1, struct.pack("<2f", 0, 1), bits=32, tags={SAMPLE_FORMAT: 3}), "floating-point"),
    "16-bit transparent colour": (
        png(1, 1, bits=16, colour=2, rows=[b"\xff" * 6], more=png_chunk(b"tRNS", b"\xff" * 6)),
        "transparent colour",
    ),
    "8 bits said to be 1": (bmp(4, 1, b"\0\1\1\0", bits=8, palette=[(0, 0, 0), (255, 255, 255)]), "8 bits"),
    "no rows": (png(0, 1, bits=8), "no pixels|cannot be read"),
    "long text": (
        png(1, 1, bits=8, rows=[b"\0"], more=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**21)))),
        "texts or colour profile",
    ),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is PostScript"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC"),
    "HTML": (b"\n<!DOCTYPE html><title>404</title>", "it is HTML"),
    "Targa": (b"\0\0\2" + bytes(9) + b"\1\0\1\0\x18\0" + bytes(3), "not an image file"),
    "TIFF of another kind": (tiff(2, 1, bytes(16), bits=64), "not read"),
}


@pytest.mark.parametrize("kind", READ)
def test_values_are_scaled_by_the_depth_of_the_file(tmp_path: Path, kind: str) -> None:
    content, red = READ[kind]
    (tmp_path / "image").write_bytes(content)
    assert read_image(tmp_path / "image")[..., 0].flatten().tolist() == red


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_uncertain_or_another_kind_of_file_is_refused(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(DamagedImage, match=message) as caught:
        read_image(tmp_path / "photo.jpg")
    assert "photo.jpg" in str(caught.value)


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "photo.jpg").write_bytes(REFUSED["PostScript"][0])
    with pytest.raises(DamagedImage):
        read_image(tmp_path / "photo.jpg")
    assert not ran.exists()


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not HAS_AVIF:
        pytest.skip("this Pillow knows no AVIF")
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".mpo": "MPO"}
    Image.new("RGB", (8, 6), (200, 100, 50)).save(tmp_path / f"a{suffix}", kinds.get(suffix))
    image = read_image(tmp_path / f"a{suffix}")
    assert image.shape == (6, 8, 3)
    assert np.abs(image[3, 4].astype(int) - [200, 100, 50]).max() <= 6


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif", ".avif"])
def test_several_images_in_one_file_are_refused(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not HAS_AVIF:
        pytest.skip("this Pillow knows no AVIF")
    first, second = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second])
    with pytest.raises(DamagedImage, match=r"is animated|several pages"):
        read_image(tmp_path / f"a{suffix}")


def test_thumbnails_and_second_views_do_not_count(tmp_path: Path) -> None:
    image, small = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (4, 3), "blue")
    image.save(tmp_path / "a.tif", save_all=True, append_images=[small], tiffinfo={SUBFILE: 1})
    image.save(tmp_path / "a.mpo", save_all=True, append_images=[image])
    for name in ("a.tif", "a.mpo"):
        assert read_image(tmp_path / name).shape == (6, 8, 3)


def oriented(path: Path, orientation: int, size: tuple[int, int] = (8, 16)) -> np.ndarray:
    """Write a greyscale image that says how it is to be turned; returns its stored values."""
    stored = np.add.outer(np.arange(size[0]) * 8, np.arange(size[1]) * 8).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {".webp": {"lossless": True}, ".tif": {"compression": "tiff_lzw"}, ".jpg": {"quality": 100}}
    Image.fromarray(stored).save(path, exif=exif, **options.get(path.suffix, {}))
    return stored


UPRIGHT = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_pixels_are_given_as_stored_or_turned_once(tmp_path: Path, suffix: str) -> None:
    for orientation, turned in UPRIGHT.items():
        stored = oriented(tmp_path / f"a{suffix}", orientation).astype(int)
        near = 3 if suffix == ".jpg" else 0
        plain, upright = (read_image(tmp_path / f"a{suffix}", upright=upright)[..., 0] for upright in (False, True))
        assert plain.shape == stored.shape
        assert np.abs(plain - stored).max() <= near
        assert upright.shape == turned(stored).shape
        assert np.abs(upright - turned(stored)).max() <= near


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_check_data_names_what_is_turned(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/val").mkdir()
    Image.new("RGB", (16, 8)).save(tmp_path / "images/val/b.png")
    oriented(tmp_path / f"images/train/a{suffix}", 6)
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "class_labels.json").write_text('{"train/a": ["cat"]}')
    report = check_data(DatasetConfig(type="folder", root=str(tmp_path), train_split="train"))
    assert [problem.kind for problem in report.problems if problem.severity == "error"] == ["exif-rotation"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("photo.png")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=kind):
        read_image(path)
