"""infer with every name that a file may have: one image's failure is its own, and the summary is always written."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from golden import SMALL_MODEL
from PIL import Image
from run_tool import RunTool
from scored import CLASS_NAMES, small_method

from afa.errors import UserError
from afa.methods import config_from_dict
from afa.prediction import inference
from afa.prediction.images import Found, find_pictures
from afa.prediction.inference import Inference
from afa.prediction.model import load
from afa.prediction.results import WantedResults
from afa.visual import Cell, Row, contact_sheet
from afa.weights import pack_metadata, save_network

NAMES = [
    b"plain.png",
    b"no utf-8 \xff\xe9.png",
    b"line\nbreak\ttab.png",
    b"'quotes\" $(and) `more`.png",
    b"-dash.png",
    b"trailing dot..png",
    b"trailing blank .png",
    b"a.jpg.png",
    b"con.png",
    b"dots.in.name.png",
    "e\N{COMBINING ACUTE ACCENT}.png".encode(),
    "\N{LATIN SMALL LETTER E WITH ACUTE}.png".encode(),
    "\N{PANDA FACE}.png".encode(),
    b"%s {0} \\n.png",
    b"x" * 251 + b".png",
    b"without suffix",
    b"y" * 255,
    b"z" * 255,
    b"z" * 254,
    b"CAPITALS.PNG",
    b"capitals.png",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    test = {"long_side": 64, "scales": [1.0]}
    config = config_from_dict({"model": SMALL_MODEL, "test": test, "cam": {"scales": [1.0]}})
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_network(small_method(config).network, path, pack_metadata(config, CLASS_NAMES, 7))
    return path


def save(path: Path | bytes, size: tuple[int, int] = (40, 32)) -> None:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(values).save(file, "PNG")


def results(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def run(checkpoint: Path, out: Path, found: Found, **wanted: bool) -> Inference:
    predictor = load(checkpoint, device="cpu").predictor()
    work = Inference(predictor, out, WantedResults(maps="cam", **{"write_maps": False, **wanted}))
    work.run(found.pictures)
    return work


def test_names_of_every_kind(checkpoint: Path, run_tool: RunTool, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        save(os.path.join(os.fsencode(folder), name))
    out = tmp_path / "out"
    result = run_tool("infer.py", checkpoint, folder, "--output", out, "--gif")
    assert result.returncode == 0, result.stderr
    assert f"{len(NAMES)} images: {len(NAMES)} done, 0 failed" in result.stdout
    listed = json.loads((out / "pictures.json").read_text())
    assert {os.fsencode(Path(entry["picture"]).name) for entry in listed.values()} == set(NAMES)
    kinds = {"masks": "png", "cams": "npz", "overlays": "jpg", "cam_overlays": "jpg"}
    expected = [f"{kind}/{name}.{suffix}" for name in listed for kind, suffix in kinds.items()]
    assert results(out) == sorted([*expected, "pictures.json", "images.gif"])
    # On a file system that knows neither case nor kinds of accents nothing is overwritten, either.
    assert len({unicodedata.normalize("NFC", name).casefold() for name in listed}) == len(NAMES)


def test_names_in_labels_are_those_of_the_lists(checkpoint: Path, run_tool: RunTool, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg.png", "e\N{COMBINING ACUTE ACCENT}.png"):
        save(folder / name)
    (tmp_path / "labels.json").write_text('{"a.jpg": ["bar"], "\N{LATIN SMALL LETTER E WITH ACUTE}": ["disc"]}')
    options = ("--labels", tmp_path / "labels.json", "--output", tmp_path / "out", "--pseudo-labels", "plain")
    result = run_tool("infer.py", checkpoint, folder, *options)
    assert "2 images: 2 done" in result.stdout, result.stderr


def test_what_is_passed_over_is_counted_and_named(checkpoint: Path, run_tool: RunTool, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.heic", "b.HEIC", "c.heic", "d.heic", "notes.txt", ".hidden.heic"):
        (folder / name).write_text("something")
    result = run_tool("infer.py", checkpoint, folder, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert "skipped: 4 .heic (a.heic, b.HEIC, c.heic, ...), 1 .txt (notes.txt)" in result.stderr
    Image.new("RGB", (40, 32)).save(folder / "e.gif")
    Image.new("RGB", (40, 32)).save(folder / "f.jfif", "JPEG")
    result = run_tool("infer.py", checkpoint, folder, "--output", tmp_path / "out", "--no-cams", "--no-overlays")
    assert result.returncode == 0
    assert "2 images: 2 done" in result.stdout
    assert "4 .heic (a.heic, b.HEIC, c.heic, ...), 1 .txt (notes.txt)" in result.stdout


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder / "a.png")
    for number in range(4):
        (folder / f"again{number}").symlink_to(folder)
    assert [picture.name for picture in find_pictures([folder], without=tmp_path / "out").pictures] == ["a"]


def test_pipes_and_large_images_are_failures_of_their_own(checkpoint: Path, run_tool: RunTool, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.txt")
    save(folder / "large.png", (60, 50))
    save(folder / "small.png")
    options = ("--output", tmp_path / "out", "--no-cams", "--no-overlays")
    result = run_tool("infer.py", checkpoint, folder, *options, "dataset.max_pixels=2000")
    assert result.returncode == 1
    assert "3 images: 1 done, 2 failed" in result.stdout
    assert "pipe.png is a named pipe" in result.stderr
    assert "large.png has 60 x 50 pixels, more than dataset.max_pixels=2000" in result.stderr
    result = run_tool("infer.py", checkpoint, folder, *options, "dataset.max_pixels=3000")
    assert "3 images: 2 done, 1 failed" in result.stdout


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_images_of_a_pixel_or_a_line(checkpoint: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    save(tmp_path / "a.png", size)
    work = run(
        checkpoint, tmp_path / "out", find_pictures([tmp_path / "a.png"], without=tmp_path / "out"), write_maps=True
    )
    assert work.failures == []
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.size == size


def test_a_result_that_cannot_be_written_is_its_own_failure(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks/b.png").mkdir(parents=True)
    (out / "images.gif").mkdir()
    (tmp_path / "images").mkdir()
    for name in "abc":
        save(tmp_path / f"images/{name}.png")
    work = run(checkpoint, out, find_pictures([tmp_path / "images"], without=out), gif=True)
    gif, picture = sorted(work.failures)
    assert "images.gif cannot be written" in gif
    assert "b.png cannot be written" in picture
    assert set(json.loads((out / "pictures.json").read_text())) == {"a", "c"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_the_summary_is_written_where_the_work_ends_early(
    checkpoint: Path, tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        save(tmp_path / f"images-{name}.png")
    write_picture = inference.write_picture

    def write(path: Path, picture: Image.Image) -> None:
        if "-b" in path.name:
            raise error
        write_picture(path, picture)

    monkeypatch.setattr(inference, "write_picture", write)
    found = find_pictures(sorted(tmp_path.glob("*.png")), without=tmp_path / "out")
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        run(checkpoint, tmp_path / "out", found)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert list(json.loads((tmp_path / "out/pictures.json").read_text())) == ["images-a"]


def test_titles_of_a_sheet_may_be_any_name() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    contact_sheet([Row([Cell(picture, "\r")], "no utf-8 \udcff\n")], ["line\nbreak"], heading="\0", cell=60)
