"""``afa.load`` and ``Model.predict``: anything that is an image goes in, masks, maps and classes come out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scored import CLASS_NAMES, small_config, write_checkpoint

import afa
from afa.methods.afa.method import AFA


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = small_config(folder / "shapes")
    config.cam.scales, config.test.scales, config.test.mirror = [1.0], [1.0], False
    for seed, name in ((1, "best"), (2, "last")):
        write_checkpoint(folder / f"run/checkpoints/step_{seed:08d}", config, seed, step=seed)
        (folder / "run/checkpoints" / name).symlink_to(f"step_{seed:08d}")
    return folder / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> afa.Model:
    return afa.load(run, device="cpu")


def noise(height: int = 40, width: int = 56, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng((height, width)).integers(0, 256, (height, width, channels), np.uint8)
    return values[:, :, 0] if channels == 1 else values


def equal(first: afa.Prediction, second: afa.Prediction) -> bool:
    return first.class_ids == second.class_ids and bool((first.mask == second.mask).all())


def test_whatever_holds_a_network_is_opened(run: Path) -> None:
    best = run / "checkpoints/step_00000001"
    for source, step in ((run, 1), (str(run / "checkpoints/last"), 2), (best / "weights.safetensors", 1)):
        model = afa.load(source, device="cpu")
        assert (model.step, model.class_names, model.config.method) == (step, CLASS_NAMES, "afa")
        assert isinstance(model.method, AFA) and not model.method.network.training
        assert model.weights.name == "weights.safetensors" and str(model.device) == "cpu"
    model = afa.load(run, device="cpu", overrides=["test.long_side=48", "cam.background=0.3"])
    assert model.protocol.long_side == 48
    assert model.method.output("cam").threshold == 0.3


def test_one_image_of_every_kind(model: afa.Model, tmp_path: Path) -> None:
    image = noise()
    Image.fromarray(image).save(tmp_path / "a.png")
    seen = model.predict(image)
    assert isinstance(seen, afa.Prediction)
    assert seen.mask.shape == (40, 56) and seen.mask.dtype == np.uint8 and seen.mask.max() <= 3
    assert (seen.image == image).all()
    assert seen.class_names == tuple(CLASS_NAMES[class_id - 1] for class_id in seen.class_ids)
    assert seen.scores is not None and seen.scores.shape == (3,)
    assert set(seen.maps) == {"cam", "propagated_cam"} and set(seen.background) == {"propagated_cam"}
    assert seen.maps["cam"].shape == (len(seen.class_ids), 40, 56)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), Image.open(tmp_path / "a.png")):
        assert equal(model.predict(same), seen)
    grey = noise(40, 56, 1)
    expected = model.predict(grey[:, :, None].repeat(3, axis=2))
    for same in (grey, Image.fromarray(grey)):
        assert equal(model.predict(same), expected)
    # What is transparent is white, in a PIL image as in a file.
    clear = Image.fromarray(np.dstack([image, np.zeros((40, 56), np.uint8)]))
    clear.save(tmp_path / "clear.png")
    assert (model.predict(clear).image == 255).all() and (model.predict(tmp_path / "clear.png").image == 255).all()


def test_files_are_turned_upright_and_arrays_are_not(model: afa.Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise()).save(tmp_path / "turned.jpg", exif=exif)
    assert model.predict(tmp_path / "turned.jpg").mask.shape == (56, 40)
    with Image.open(tmp_path / "turned.jpg") as image:
        assert model.predict(image).mask.shape == (40, 56)


def test_lists_and_folders(model: afa.Model, tmp_path: Path) -> None:
    images = [noise(), noise(48, 40), noise(48, 40)[::-1].copy(), noise()]
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    alone = [model.predict(image) for image in images]
    for given in (images, folder, sorted(folder.glob("*.png")), [images[0], folder / "1.png", *images[2:]]):
        for batch_size in (1, 2):
            found = model.predict(given, batch_size=batch_size)
            assert isinstance(found, list) and len(found) == 4
            for one, other in zip(found, alone, strict=True):
                assert one.mask.shape == other.mask.shape and (one.mask != other.mask).mean() < 1e-2
    assert isinstance(model.predict([images[0]]), list) and model.predict([]) == []


def test_labels_by_name(model: afa.Model) -> None:
    seen = model.predict(noise(), labels=["ring", "disc"])
    assert (seen.class_ids, seen.class_names) == ((1, 3), ("disc", "ring"))
    assert seen.maps["cam"].shape == (2, 40, 56)
    none = model.predict(noise(), labels=[])
    assert none.class_ids == () and none.maps["cam"].shape == (0, 40, 56)
    several = model.predict([noise(), noise()], labels=[["bar"], ["disc", "bar"]])
    assert [found.class_names for found in several] == [("bar",), ("disc", "bar")]


def test_maps_and_crf_are_a_choice(model: afa.Model) -> None:
    assert model.predict(noise(), maps=[]).maps == {}
    seen = model.predict(noise(), labels=["bar"], maps=["segmentation", "cam"])
    assert set(seen.maps) == {"segmentation", "cam"}
    refined = model.predict(noise(), crf=True)
    assert refined.mask.shape == (40, 56) and (refined.mask != model.predict(noise()).mask).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: model.predict("nowhere.jpg"), "nowhere.jpg"),
        (lambda model: model.predict(5), "a int is no image: give a path, an array or a PIL image"),
        (lambda model: model.predict([noise(), None]), "a NoneType is no image"),
        (lambda model: model.predict(noise().astype(np.float32)), "an array of float32, (40, 56, 3), is no image"),
        (lambda model: model.predict(noise(channels=4)), "(40, 56, 4), is no image"),
        (lambda model: model.predict(np.zeros((0, 5, 3), np.uint8)), "(0, 5, 3), is no image"),
        (lambda model: model.predict(Image.new("I;16", (8, 8))), "a PIL image of mode I;16"),
        (lambda model: model.predict(Image.new("F", (8, 8))), "a PIL image of mode F"),
        (
            lambda model: model.predict(noise(), labels=["cat"]),
            "'cat' is none of the network's classes: disc, bar, ring",
        ),
        (lambda model: model.predict(noise(), labels="bar"), "give one list of class names for each of the 1 images"),
        (lambda model: model.predict([noise()], labels=["bar"]), "give one list of class names"),
        (lambda model: model.predict([noise()] * 2, labels=[["bar"]]), "for each of the 2 images"),
        (
            lambda model: model.predict(noise(), maps=["crf"]),
            "maps: 'crf' is none of cam, propagated_cam, ",
        ),
        (lambda model: model.predict(noise(), maps="cam"), "maps: give a list of names, such as ['cam']"),
        (lambda model: model.predict(noise(), maps=["affinity"]), "maps: 'affinity' is none of"),
        (lambda model: afa.load("nowhere"), "nowhere"),
        (lambda model: afa.load(model.weights, device="tpu"), "--device=tpu"),
        (
            lambda model: afa.load(model.weights, device="cpu", overrides=["loss.cls=0"]),
            "loss is fixed by the checkpoint",
        ),
        (
            lambda model: afa.load(model.weights, device="cpu", overrides=["test.scale=[1]"]),
            "did you mean 'test.scales'",
        ),
    ],
)
def test_mistakes_are_one_line(model: afa.Model, wrong: Callable[[afa.Model], Any], message: str) -> None:
    with pytest.raises(afa.UserError) as caught:
        wrong(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_of_too_many_pixels_is_refused(run: Path, tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    model = afa.load(run, device="cpu", overrides=["dataset.max_pixels=2000"])
    with pytest.raises(afa.UserError, match=r"more than dataset\.max_pixels=2000"):
        model.predict(tmp_path / "a.png")


def test_plot_shows_image_maps_and_mask(model: afa.Model, tmp_path: Path) -> None:
    seen = model.predict(noise(), labels=["disc", "ring"])
    image = seen.plot()
    assert image.mode == "RGB" and image.width == 2 * 20 + 4 * 320 + 3 * 10  # image, CAM, propagated CAM, mask
    image.save(tmp_path / "seen.png")
    assert model.predict(noise(), labels=[]).plot().height < image.height


def test_import_takes_no_pytorch() -> None:
    code = "import afa, sys; print(sorted(afa.__all__), 'torch' in sys.modules, set(afa.__all__) <= set(dir(afa)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = ["Model", "Prediction", "UserError", "__version__", "load", "register_method"]
    assert done.stdout.strip() == f"{expected} False True", done.stderr


def test_what_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        afa.nothing  # noqa: B018
