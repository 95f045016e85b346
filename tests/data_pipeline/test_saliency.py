"""Saliency maps: right grey values or one line, and what check_data says of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sources import make_folder_source
from image_files import png, png_chunk
from PIL import Image

from afa.config import DatasetConfig
from afa.data.check import check_data
from afa.data.images import DamagedImage, TooManyPixels, read_image
from afa.data.inputs import Inputs
from afa.data.layout import find_layout
from afa.data.saliency import read_saliency

# What is in the file -> the file, and its two grey values.
READ = {
    "grey-8": (png(2, 1, bits=8, rows=[b"\x14\xff"]), [20, 255]),
    "grey-1": (png(2, 1, bits=1, rows=[b"\x40"]), [0, 255]),
    "grey-4": (png(2, 1, bits=4, rows=[b"\x0f"]), [0, 255]),
    "grey-16": (png(2, 1, bits=16, rows=[b"\x14\xff\xff\x00"]), [20, 255]),
    "rgb-of-equal-channels": (png(2, 1, bits=8, colour=2, rows=[b"\x14\x14\x14\xff\xff\xff"]), [20, 255]),
    "palette-of-greys": (
        png(2, 1, bits=8, colour=3, rows=[b"\0\1"], more=png_chunk(b"PLTE", b"\x14\x14\x14\xff\xff\xff")),
        [20, 255],
    ),
    "opaque-alpha": (png(2, 1, bits=8, colour=4, rows=[b"\x14\xff\xff\xff"]), [20, 255]),
}
# What is in the file -> the file, and what is said of it.
REFUSED = {
    "colours": (png(2, 1, bits=8, colour=2, rows=[b"\1\2\3\1\2\3"]), "has colours"),
    "palette-of-colours": (
        png(2, 1, bits=8, colour=3, rows=[b"\0\1"], more=png_chunk(b"PLTE", b"\0\0\0\x80\0\0")),
        "has colours",
    ),
    "transparent": (png(2, 1, bits=8, colour=4, rows=[b"\x14\xff\xff\0"]), "has transparent pixels"),
    "transparent-grey": (
        png(2, 1, bits=8, rows=[b"\x14\xff"], more=png_chunk(b"tRNS", struct.pack(">H", 20))),
        "has transparent pixels",
    ),
    "16-bits-of-small-values": (png(2, 1, bits=16, rows=[b"\x00\x14\x00\xff"]), "save it with 8 bits"),
    "no-image": (b"salient", "saliency map"),
    "empty": (b"", "is an empty file"),
}


@pytest.mark.parametrize("name", READ)
def test_grey_values_are_read_as_they_are_stored(tmp_path: Path, name: str) -> None:
    content, values = READ[name]
    (tmp_path / "map.png").write_bytes(content)
    found = read_saliency(tmp_path / "map.png")
    assert found.dtype == np.uint8 and found.tolist() == [values]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_certain_grey_value_is_one_line(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    (tmp_path / "map.png").write_bytes(content)
    with pytest.raises(DamagedImage, match=said) as caught:
        read_saliency(tmp_path / "map.png")
    assert "map.png" in str(caught.value) and "\n" not in str(caught.value)


def test_large_maps_follow_the_setting_of_large_images(tmp_path: Path) -> None:
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    inputs = Inputs(DatasetConfig(saliency=str(tmp_path), max_pixels=199), ["saliency"], ["thing"])
    with pytest.raises(TooManyPixels, match=r"has 20 x 10 pixels, more than dataset\.max_pixels=199"):
        inputs.read("a", (10, 20), None)


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    """A data set with maps from black to white."""
    root = make_folder_source(tmp_path / "mine")
    config = DatasetConfig(type="folder", root=str(root), train_split="train", saliency=str(tmp_path / "saliency"))
    save_maps(config, lambda size: np.linspace(0, 255, size[1]).astype(np.uint8)[None].repeat(size[0], 0))
    return config


def save_maps(config: DatasetConfig, values: Callable[[tuple[int, int]], np.ndarray]) -> list[Path]:
    layout, paths = find_layout(config), []
    for name in layout.names("train"):
        path = Path(str(config.saliency)) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values(read_image(layout.image(name, "train")).shape[:2])).save(path)
        paths.append(path)
    return paths


def problems(config: DatasetConfig) -> list[tuple[str, str]]:
    return [
        (problem.kind, problem.message) for problem in check_data(config).problems if problem.kind != "unseen-class"
    ]


def test_check_data_says_range_and_size(config: DatasetConfig) -> None:
    report = check_data(config)
    assert report.ok and report.saliency is not None
    count = report.counts["train"]
    assert f"saliency: {count} maps, grey values 0 to 255, " in report.as_text()
    assert report.saliency.as_text().endswith(" pixels") and report.as_dict()["saliency"]["maps"] == count
    without = check_data(DatasetConfig(type="folder", root=config.root, train_split="train"))
    assert without.saliency is None and "saliency" not in without.as_text()


@pytest.mark.parametrize(
    ("white", "said"),
    [
        (1, "zeros and ones, which need edam.saliency_maximum=1"),
        (100, "no grey value is above 100: if they are percentages, edam.saliency_maximum=100"),
        (0, "every grey value is 0"),
        (101, None),
    ],
)
def test_check_data_says_what_a_narrow_range_means(config: DatasetConfig, white: int, said: str | None) -> None:
    def values(size: tuple[int, int]) -> np.ndarray:
        grey = np.zeros(size, np.uint8)
        grey[:, size[1] // 2 :] = white
        return grey

    save_maps(config, values)
    assert check_data(config).ok, "a range is odd, not wrong"
    found = problems(config)
    if said is None:
        assert not found
    else:
        ((kind, message),) = found
        assert kind == "saliency-range" and said in message


def test_check_data_names_maps_that_are_missing_or_of_another_size(config: DatasetConfig) -> None:
    paths = save_maps(config, lambda size: np.zeros((size[0], size[1] + 1), np.uint8))
    found = problems(config)
    assert {kind for kind, _ in found} == {"input"} and len(found) == len(paths)
    assert str(paths[0]) in found[0][1] and "must have their images' size" in found[0][1]
    paths[0].unlink()
    ((kind, message),) = problems(config)
    assert kind == "input" and f"the first missing is {paths[0]}" in message
