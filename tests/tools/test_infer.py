from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import SMALL_MODEL
from PIL import Image
from run_tool import RunTool
from scored import CLASS_NAMES, small_method

from afa.data.palette import voc_palette
from afa.methods import config_from_dict
from afa.prediction.images import find_pictures
from afa.prediction.inference import Inference
from afa.prediction.model import load
from afa.prediction.results import WantedResults
from afa.weights import pack_metadata, save_network

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_from_dict(
        {
            "model": SMALL_MODEL,
            "test": {"long_side": 96},
            "affinity": {"radius": 2},
            "augmentation": {"crop_size": 64},
            "par": {"iterations": 2, "dilations": [1, 2]},
        }
    )
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_network(small_method(config).network, path, pack_metadata(config, CLASS_NAMES, 7))
    return path


@pytest.fixture
def infer(run_tool: RunTool) -> RunTool:
    return partial(run_tool, "infer.py")


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height + width)
    blocks = rng.integers(0, 255, (-(-height // 8), -(-width // 8), channels), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def save(path: Path, height: int = 40, width: int = 56, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width)).save(path, **options)
    return path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_anything(checkpoint: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    Image.fromarray(noise(60, 80, 1)[:, :, 0]).save(pictures / "grey.png")
    Image.fromarray(noise(50, 70, 4), "RGBA").save(pictures / "transparent.png")
    save(pictures / "large.jpg", 450, 600, quality=60)
    save(pictures / "tiny.png", 20, 20)
    (pictures / "text.jpg").write_text("this is no image")
    (pictures / "empty").write_bytes(b"")
    (pictures / "notes.txt").write_text("not an image, and not said to be one")
    command = [sys.executable, "tools/infer.py", checkpoint, pictures, "--output", out]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "6 images: 4 done, 2 failed" in result.stdout
    assert "text.jpg" in result.stderr
    assert "empty" in result.stderr
    assert "notes.txt" not in result.stderr
    names = {"grey", "transparent", "large", "tiny"}
    assert files(out) == {"pictures.json"} | {
        f"{kind}/{name}.{suffix}"
        for name in names
        for kind, suffix in [("masks", "png"), ("cams", "npz"), ("overlays", "jpg"), ("cam_overlays", "jpg")]
    }
    sizes = {"grey": (60, 80), "transparent": (50, 70), "large": (450, 600), "tiny": (20, 20)}
    listed = json.loads((out / "pictures.json").read_text())
    assert set(listed) == names
    for name, size in sizes.items():
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert mask.mode == "P"
            assert mask.size == size[::-1]
            assert mask.getpalette() == voc_palette().flatten().tolist()
            assert np.array(mask).max() <= len(CLASS_NAMES)
        with np.load(out / "cams" / f"{name}.npz") as cams:
            assert cams["cams"].dtype == np.float16
            assert tuple(cams["size"]) == size
            # Those of a large image stay at the size at which they were computed: test.long_side.
            largest = min(max(size), 96)
            assert len(cams["cams"]) == len(cams["class_ids"]) and max(cams["cams"].shape[1:]) == largest
            assert [CLASS_NAMES[index - 1] for index in cams["class_ids"]] == cams["class_names"].tolist()
            assert cams["cams"].min() >= 0
            assert cams["cams"].max() <= 1
            assert list(listed[name]["classes"]) == cams["class_names"].tolist()
            assert len(cams["scores"]) == len(cams["class_ids"]) >= 1


def test_given_labels_and_pseudo_labels(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "JPEGImages", tmp_path / "out"
    for name in ("one", "two", "none", "unlabelled"):
        save(pictures / f"{name}.jpg", 48, 64)
    named = save(tmp_path / "named.jpg", 48, 64)
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"one": ["bar"], "two": ["disc", "ring"], "none": []}))
    kinds = ["plain", "refined", "propagated"]
    options = ("--labels", labels, "--output", out, "--no-overlays", "--pseudo-labels", *kinds)
    result = infer(checkpoint, pictures, named, *options)
    assert result.returncode == 1, "a file that was named itself is missed, one of a folder is not"
    assert "named.jpg is not in the labels file" in result.stderr and "unlabelled" not in result.stderr
    assert "5 images: 3 done, 1 failed, 1 without labels left out" in result.stdout
    allowed = {"one": {0, 2, 255}, "two": {0, 1, 3, 255}, "none": {0, 255}}
    expected = {f"pseudo_labels/{kind}/{name}.png" for kind in kinds for name in allowed}
    assert expected <= files(out)
    assert not (out / "overlays").exists()
    seen = set()
    for path in expected:
        values = set(np.unique(np.array(Image.open(out / path))).tolist())
        assert values <= allowed[Path(path).stem], path
        seen |= values
    assert seen & {1, 2, 3}
    with np.load(out / "cams/two.npz") as cams:
        assert cams["class_names"].tolist() == ["disc", "ring"]
    with np.load(out / "cams/none.npz") as cams:
        assert cams["cams"].shape == (0, 48, 64)
    result = infer(checkpoint, pictures / "one.jpg", "--labels", labels, "--output", tmp_path / "second", "--no-cams")
    assert result.returncode == 0
    assert "pseudo_labels/propagated/one.png" in files(tmp_path / "second")
    assert not (tmp_path / "second/cams").exists()


def test_pictures_of_one_size_run_together(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for number in range(5):
        save(pictures / f"frame{number}.png", 40, 64 if number == 3 else 56)
    (pictures / "frame1.png").write_bytes(b"damaged")
    done = {}
    for batch_size in (1, 3):
        out = tmp_path / f"out{batch_size}"
        options = ["--no-cams", "--no-overlays", "--pseudo-labels", "propagated", "--batch-size", str(batch_size)]
        result = infer(checkpoint, pictures, "--output", out, *options)
        assert result.returncode == 1
        assert "5 images: 4 done, 1 failed" in result.stdout
        done[batch_size] = out
    assert files(done[1]) == files(done[3])
    assert list(json.loads((done[3] / "pictures.json").read_text())) == ["frame0", "frame2", "frame3", "frame4"]
    for path in (path for path in files(done[1]) if path.endswith(".png")):
        alone, together = (np.array(Image.open(done[batch_size] / path)) for batch_size in (1, 3))
        assert (alone != together).mean() < 2e-3, path


def test_a_batch_that_is_too_large_runs_one_by_one(checkpoint: Path, tmp_path: Path) -> None:
    predictor = load(checkpoint, device="cpu", overrides=["test.batch_size=3"]).predictor()
    sizes = []
    predict_batch = predictor.predict_batch

    def little_memory(images: list[np.ndarray], *arguments: Any, **wanted: Any) -> object:
        sizes.append(len(images))
        if len(images) > 1 or images[0].shape[1] == 72:
            raise MemoryError
        return predict_batch(images, *arguments, **wanted)

    predictor.predict_batch = little_memory  # type: ignore[method-assign]
    for number in range(4):
        save(tmp_path / "pictures" / f"{number}.png", 40, 72 if number == 3 else 56)
    inference = Inference(predictor, tmp_path / "out", WantedResults(overlays=False))
    assert inference.run(find_pictures([tmp_path / "pictures"], without=tmp_path / "out").pictures) == 1
    assert sizes == [3, 1, 1, 1, 1]
    assert "3.png is too large for the memory" in inference.failures[0]
    assert set(inference.done) == {"0", "1", "2"}


def test_equal_names_do_not_overwrite_each_other(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    for path in (first / "a.png", first / "a.jpg", first / "sub/b.png", second / "a.png", second / "sub/b.png"):
        save(path)
    save(first / "alone.png")
    result = infer(checkpoint, first, second, first / "alone.png", "--output", out, "--no-cams", "--no-overlays")
    assert result.returncode == 0, result.stderr
    listed = json.loads((out / "pictures.json").read_text())
    assert len(listed) == 6  # a picture that was named twice is looked at once
    assert files(out) == {"pictures.json"} | {f"masks/{name}.png" for name in listed}
    assert "alone" in listed
    assert len({entry["picture"] for entry in listed.values()}) == 6


def test_results_inside_the_folder_are_not_looked_at(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for _ in range(2):
        result = infer(checkpoint, tmp_path, "--output", tmp_path / "results", "--no-cams")
        assert "1 images: 1 done" in result.stdout
    result = infer(checkpoint, tmp_path, "--output", tmp_path)
    assert result.returncode == 2 and "is the folder of the images" in result.stderr


def test_gif_in_the_order_of_the_frames(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    frames = tmp_path / "clip"
    for number in (1, 2, 10):
        image = np.full((40, 56, 3), number * 20, np.uint8)
        frames.mkdir(exist_ok=True)
        Image.fromarray(image).save(frames / f"frame{number}.png")
    other = tmp_path / "other" / "clip"
    other.mkdir(parents=True)
    shutil.copy(frames / "frame1.png", other / "only.png")
    options = ("--output", tmp_path / "out", "--gif", "--fps", "10", "--no-cams", "--no-overlays")
    result = infer(checkpoint, frames, other, *options)
    assert result.returncode == 0, result.stderr
    assert list(json.loads((tmp_path / "out/pictures.json").read_text())) == ["frame1", "frame2", "frame10", "only"]
    assert (tmp_path / "out/clip_2.gif").is_file()
    with Image.open(tmp_path / "out/clip.gif") as gif:
        assert gif.n_frames == 3
        assert gif.size == (56, 40)


def test_images_given_as_files_are_in_no_gif_and_that_is_said(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    alone, of_folder = save(tmp_path / "a.png"), save(tmp_path / "clip/b.png")
    options = ("--out", tmp_path / "out", "--no-cams", "--no-overlays", "--gif")
    said = infer(checkpoint, alone, *options).stderr.splitlines()
    assert "note: --gif makes a GIF of each folder; 1 of 1 images were given as files and are in no GIF" in said
    assert not list((tmp_path / "out").glob("*.gif"))
    said = infer(checkpoint, alone, of_folder.parent, *options).stderr.splitlines()
    assert "note: --gif makes a GIF of each folder; 1 of 2 images were given as files and are in no GIF" in said
    assert [path.name for path in (tmp_path / "out").glob("*.gif")] == ["clip.gif"]
    assert "GIF" not in infer(checkpoint, of_folder.parent, *options).stderr


def test_overlays_name_their_classes_and_maps_show_the_background(
    infer: RunTool, checkpoint: Path, tmp_path: Path
) -> None:
    path, out = save(tmp_path / "a.png", 200, 300), tmp_path / "out"
    assert infer(checkpoint, path, "--out", out, "cam.background=1").returncode == 0
    with Image.open(out / "masks/a.png") as mask, Image.open(out / "overlays/a.jpg") as overlay:
        assert set(np.unique(np.array(mask))) - {0}, "the mask shows a class"
        assert overlay.width == 300 and overlay.height > 200
    with Image.open(out / "cam_overlays/a.jpg") as shown:
        panels = np.array(shown).astype(int)
    # No CAM exceeds 1: below the title, the panel beside the image has no colour.
    panel = panels[60:300, 20 + 400 + 10 + 10 : 20 + 2 * 400]
    assert np.ptp(panel, axis=2).max() < 12  # JPEG rounds


@pytest.mark.parametrize("orientation", [1, 6, 8, 3])
def test_exif_orientation(infer: RunTool, checkpoint: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.jpg", 40, 80, exif=exif)
    turned = orientation in (6, 8)
    infer(checkpoint, path, "--output", tmp_path / "upright", "--no-cams")
    with Image.open(tmp_path / "upright/masks/photo.png") as mask:
        assert mask.size == ((40, 80) if turned else (80, 40))
    if turned:
        infer(checkpoint, path, "--output", tmp_path / "stored", "--no-cams", "--no-exif")
        with Image.open(tmp_path / "stored/masks/photo.png") as mask:
            assert mask.size == (80, 40)


def test_crf_scales_and_settings(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 40, 56)
    masks = {}
    for name, options in {
        "plain": [],
        "crf": ["--crf", "--crf-negligible", "0.01"],
        "single": ["--scales", "1", "--no-mirror", "--long-side", "64"],
        "set": ["test.scales=[1, 0.5]"],
    }.items():
        result = infer(checkpoint, path, "--output", tmp_path / name, "--no-cams", *options)
        assert result.returncode == 0, result.stderr
        masks[name] = (tmp_path / name / "masks/a.png").read_bytes()
    assert len(set(masks.values())) == 4
    # Pictures may follow the scales.
    assert infer(checkpoint, "--scales", "1", path, "--output", tmp_path / "after", "--no-cams").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg does not exist"),
        ([], "no image was named"),
        (["{empty}"], "no image in"),
        (["{picture}", "--device", "tpu"], "--device=tpu"),
        (["{picture}", "--scales", "2", "0.5"], "must contain 1"),
        (["{picture}", "model.depths=[1,1,1,1]"], "fixed by the checkpoint"),
        (["{picture}", "cam.backgroud=0.2"], "did you mean 'cam.background'"),
        (["{picture}", "--labels", "nowhere.json"], "nowhere.json is missing"),
        (["{picture}", "--fps", "0"], "--fps"),
        (["{folder}", "--labels", "{labels}"], "names none of the 1 images"),
        (["{picture}", "--crf", "--crf-negligible", "2"], "negligible"),
    ],
)
def test_mistakes_are_one_line(
    infer: RunTool, checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    picture = save(tmp_path / "pictures" / "a.png")
    (tmp_path / "labels.json").write_text('{"b": ["bar"]}')
    places = {
        "empty": tmp_path / "empty",
        "picture": picture,
        "folder": picture.parent,
        "labels": tmp_path / "labels.json",
    }
    filled = [argument.format(**places) for argument in arguments]
    result = infer(checkpoint, *filled, "--output", tmp_path / "out")
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_written(infer: RunTool, checkpoint: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file where the folder should be")
    result = infer(checkpoint, picture, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: results cannot be written to")


def test_maps_of_a_large_image_are_small_and_say_its_size(checkpoint: Path, tmp_path: Path, infer: RunTool) -> None:
    save(tmp_path / "wide.jpg", 40, 1600, quality=80)
    options = ("--no-overlays", "--scales", 1)
    for name, long_side, more, shape, kind in (
        ("usual", 1600, (), (25, 1024), np.float16),
        ("bits", 1600, ("--maps-bits", 8), (25, 1024), np.uint8),
        ("whole", 1600, ("--maps-size", 0), (40, 1600), np.float16),
        ("small", 1600, ("--maps-size", 160), (4, 160), np.float16),
        ("computed", 320, (), (7, 320), np.float16),  # of 25 x 1024, to which the photo is shrunk
    ):
        given = (*options, "--long-side", long_side, *more)
        assert infer(checkpoint, tmp_path / "wide.jpg", "--output", tmp_path / name, *given).returncode == 0
        with np.load(tmp_path / name / "cams/wide.npz") as found:
            assert found["cams"].shape == (len(found["class_ids"]), *shape) and found["cams"].dtype == kind
            assert found["size"].tolist() == [40, 1600]
            if kind == np.uint8:
                rounded = found["cams"] * found["scale"] + found["offset"]
                with np.load(tmp_path / "usual/cams/wide.npz") as usual:
                    assert (
                        np.abs(rounded - usual["cams"].astype(np.float32)).max() <= 1 / 400
                    )  # half a step, and what float16 rounds
