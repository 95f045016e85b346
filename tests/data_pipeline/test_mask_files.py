"""Class ids are those in the file, whatever depth, mode, byte order and orientation it has - or there is one line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import bmp, png, png_chunk, tiff
from PIL import Image

from afa.config import DatasetConfig
from afa.data.check import check_data
from afa.data.dataset import EvaluationImages
from afa.data.images import ColourMask, DamagedImage, read_mask
from afa.data.make_labels import write_label_file
from afa.data.palette import MaskPalette, palette_image, read_palette
from afa.errors import UserError

WHITE_IS_ZERO, SAMPLE_FORMAT, EXTRA, ORIENTATION, COMPRESSION = 262, 339, 338, 274, 259
SIGNED, FLOAT = {SAMPLE_FORMAT: 2}, {SAMPLE_FORMAT: 3}
COLOURS = [(9, 8, 7), (1, 1, 1), (0, 0, 0), (255, 255, 255)]

# What is in the file -> the file, and the ids of its two pixels.
READ = {
    "png-1": (png(2, 1, bits=1, rows=[b"\x40"]), [0, 1]),
    "png-2": (png(2, 1, bits=2, rows=[b"\x60"]), [1, 2]),
    "png-4": (png(2, 1, bits=4, rows=[b"\x1f"]), [1, 15]),
    "png-8": (png(2, 1, bits=8, rows=[b"\x01\xff"]), [1, 255]),
    "png-16": (png(2, 1, bits=16, rows=[b"\0\x01\0\xff"]), [1, 255]),
    "png-1-transparent": (png(2, 1, bits=1, rows=[b"\x40"], more=png_chunk(b"tRNS", b"\0\1")), [0, 1]),
    "png-4-transparent": (png(2, 1, bits=4, rows=[b"\x1f"], more=png_chunk(b"tRNS", b"\0\1")), [1, 15]),
    "png-8-gamma-and-significant-bits": (
        png(2, 1, bits=8, rows=[b"\1\5"], more=png_chunk(b"gAMA", struct.pack(">I", 9)) + png_chunk(b"sBIT", b"\3")),
        [1, 5],
    ),
    "png-palette-2": (png(2, 1, bits=2, colour=3, rows=[b"\x60"], more=png_chunk(b"PLTE", bytes(range(12)))), [1, 2]),
    "png-palette-4-transparent": (
        png(
            2, 1, bits=4, colour=3, rows=[b"\x12"],
            more=png_chunk(b"PLTE", bytes(range(9))) + png_chunk(b"tRNS", b"\0\0\0"),
        ),
        [1, 2],
    ),
    "png-grey-and-opaque-alpha": (png(2, 1, bits=8, colour=4, rows=[b"\1\xff\2\xff"]), [1, 2]),
    "tiff-4": (tiff(2, 1, b"\x1f", bits=4), [1, 15]),
    "tiff-8": (tiff(2, 1, b"\1\xff"), [1, 255]),
    "tiff-12": (tiff(2, 1, b"\x00\x30\xff", bits=12), [3, 255]),
    "tiff-16-little": (tiff(2, 1, struct.pack("<2H", 3, 255), bits=16), [3, 255]),
    "tiff-16-big": (tiff(2, 1, struct.pack(">2H", 3, 255), bits=16, order=">"), [3, 255]),
    "tiff-16-signed": (tiff(2, 1, struct.pack("<2h", 3, 5), bits=16, tags=SIGNED), [3, 5]),
    "tiff-32": (tiff(2, 1, struct.pack("<2I", 3, 5), bits=32), [3, 5]),
    "tiff-32-float": (tiff(2, 1, struct.pack("<2f", 3, 255), bits=32, tags=FLOAT), [3, 255]),
    "tiff-turned-round": (tiff(2, 1, b"\3\5", tags={ORIENTATION: 3}), [3, 5]),
    "bmp-1-white-first": (bmp(2, 1, b"\x40\0\0\0", bits=1, palette=COLOURS[:1:-1]), [0, 1]),
    "bmp-4": (bmp(2, 1, b"\x12\0\0\0", bits=4, palette=COLOURS), [1, 2]),
    "bmp-8": (bmp(2, 1, b"\3\1\0\0", bits=8, palette=COLOURS), [3, 1]),
}  # fmt: skip
# What is in the file -> the file, and what is said of it.
REFUSED = {
    "png-16-large": (png(2, 1, bits=16, rows=[b"\1\x2c\0\1"]), "holds the value 300"),
    "png-grey-and-alpha": (png(2, 1, bits=8, colour=4, rows=[b"\1\xff\2\x10"]), "transparent pixels"),
    "png-rgb": (png(1, 1, bits=8, colour=2, rows=[b"\1\1\1"]), r"3 channels \(RGB\).*mask_palette"),
    "tiff-8-negative": (tiff(2, 1, b"\3\xff", tags=SIGNED), "holds the value -1"),
    "tiff-16-negative": (tiff(2, 1, struct.pack("<2h", 3, -1), bits=16, tags=SIGNED), "holds the value -1"),
    "tiff-32-huge": (tiff(2, 1, struct.pack("<2I", 3, 2**31 + 1), bits=32), "holds the value"),
    "tiff-32-big": (tiff(2, 1, struct.pack(">2I", 3, 5), bits=32, order=">"), "not read"),
    "tiff-fraction": (tiff(2, 1, struct.pack("<2f", 3, 0.5), bits=32, tags=FLOAT), r"holds the value 0\.5"),
    "tiff-nan": (tiff(2, 1, struct.pack("<2f", 3, float("nan")), bits=32, tags=FLOAT), "holds the value nan"),
    "tiff-from-white": (tiff(2, 1, b"\3\5", tags={WHITE_IS_ZERO: 0}), "WhiteIsZero"),
    "tiff-16-from-white": (tiff(2, 1, struct.pack("<2H", 3, 5), bits=16, tags={WHITE_IS_ZERO: 0}), "WhiteIsZero"),
    # Older Pillow versions do not open it at all.
    "tiff-two-channels": (tiff(2, 1, b"\3\0\5\0", bits=(8, 8), tags={EXTRA: 0}), "2 channels|not read"),
    # Pillow would take these 8 and 4 bits for 1 and 8.
    "bmp-8-black-and-white": (bmp(4, 1, b"\0\1\1\0", bits=8, palette=[(0, 0, 0), (255, 255, 255)]), "8 bits"),
    "bmp-4-greys": (bmp(8, 1, b"\x12\x34\x56\x78", bits=4, palette=[(i, i, i) for i in range(16)]), "4 bits"),
}


@pytest.mark.parametrize("kind", READ)
def test_class_ids_are_those_in_the_file(tmp_path: Path, kind: str) -> None:
    content, ids = READ[kind]
    (tmp_path / "mask").write_bytes(content)
    mask = read_mask(tmp_path / "mask")
    assert mask.dtype == np.uint8
    assert mask.tolist() == [ids]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_uncertain_is_refused(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    (tmp_path / "mask").write_bytes(content)
    with pytest.raises(DamagedImage, match=message):
        read_mask(tmp_path / "mask")


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {}), ("a.webp", {}), ("a.tif", {"compression": "jpeg"}), ("a.gif", {})],
)
def test_formats_that_may_change_values_are_refused(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    Image.new("L", (8, 8), 1).save(tmp_path / name, **options)
    with pytest.raises(DamagedImage, match=r"losses|masks are read from"):
        read_mask(tmp_path / name)


def test_values_stay_through_every_lossless_compression(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 255, (9, 11)).astype(np.uint8)
    for compression in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"):
        palette_image(mask).save(tmp_path / "mask.tif", compression=compression)
        assert np.array_equal(read_mask(tmp_path / "mask.tif"), mask)


def test_large_masks_are_converted_in_bands_without_a_seam(tmp_path: Path) -> None:
    mask = np.zeros((2100, 2100), np.uint16)
    mask[::7, ::3] = np.arange(700) % 256
    Image.fromarray(mask).save(tmp_path / "mask.tif")
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), mask)


@pytest.fixture
def palette(tmp_path: Path) -> MaskPalette:
    path = tmp_path / "labelmap.txt"
    path.write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred panda:128,0,0::\n\n0 128 0 cat\nvoid:9,9,9\n"
    )
    return read_palette(path, ["cat", "red panda"], ignore_index=250)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_looked_up(tmp_path: Path, palette: MaskPalette, mode: str) -> None:
    colours = np.array([[[0, 0, 0], [128, 0, 0], [0, 128, 0], [9, 9, 9]]], np.uint8)
    image = Image.fromarray(colours)
    (image.quantize(8) if mode == "P" else image.convert(mode)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", palette=palette).tolist() == [[0, 2, 1, 250]]
    Image.fromarray(colours).save(tmp_path / "mask.webp", lossless=True)
    assert read_mask(tmp_path / "mask.webp", palette=palette).tolist() == [[0, 2, 1, 250]]


def test_a_palette_leaves_greyscale_masks_as_they_are(tmp_path: Path, palette: MaskPalette) -> None:
    Image.fromarray(np.array([[0, 2]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", palette=palette).tolist() == [[0, 2]]


def test_unknown_colours_are_refused(tmp_path: Path, palette: MaskPalette) -> None:
    Image.new("RGB", (2, 2), (128, 0, 1)).save(tmp_path / "mask.png")
    with pytest.raises(DamagedImage, match=r"the colour 128,0,1, which .*labelmap\.txt does not list"):
        read_mask(tmp_path / "mask.png", palette=palette)
    (tmp_path / "deep.png").write_bytes(png(1, 1, bits=16, colour=2, rows=[bytes(6)]))
    with pytest.raises(DamagedImage, match="16 bits"):
        read_mask(tmp_path / "deep.png", palette=palette)
    Image.new("RGBA", (2, 2), (0, 0, 0, 9)).save(tmp_path / "clear.png")
    with pytest.raises(ColourMask, match="transparent"):
        read_mask(tmp_path / "clear.png", palette=palette)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat:1,2", "line 1: 'name:red,green,blue'"),
        ("cat:1,2,256", "exceeds 255"),
        ("cat:1,2,9999", "is needed"),
        ("dog:1,2,3", "'dog' is no class"),
        ("cat:1,2,3\n1,2,3 red panda", "line 2: another class"),
        ("# nothing\n", "lists no colour"),
    ],
)
def test_mistakes_in_a_palette_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "palette.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_palette(tmp_path / "palette.txt", ["cat", "red panda"])
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        read_palette(tmp_path / "nowhere.txt", ["cat"])


def test_colour_masks_serve_evaluation_labels_and_check(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.new("RGB", (8, 6), (len(split), 0, 0)).save(tmp_path / f"images/{split}/a.png")
        Image.new("RGB", (8, 6), (128, 0, 0)).save(tmp_path / f"masks/{split}/a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "colours.txt").write_text("dog:128,0,0\nbackground:0,0,0\n")
    config = DatasetConfig(type="folder", root=str(tmp_path), train_split="train", mask_palette="colours.txt")
    assert (EvaluationImages(config)[0].label == 2).all()
    assert {problem.kind for problem in check_data(config).problems} == {"unseen-class"}
    output = tmp_path / "class_labels.json"
    write_label_file(output, masks=tmp_path / "masks", mask_palette=tmp_path / "colours.txt")
    assert output.read_text().count('["dog"]') == 2
    config.mask_palette = None
    assert "mask-channels" in {problem.kind for problem in check_data(config).problems}
