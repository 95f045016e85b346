"""Outputs that need more than an image: with it they are shown, without it one line says what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_tool import RunTool
from scored import CLASS_NAMES, SIZES, write_data_set
from torch import Tensor, nn

import afa
from afa.config import RunConfig
from afa.data.samples import Sample
from afa.engine.training import train
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import config_from_dict, register_method
from afa.methods.base import (
    Batch,
    Found,
    Method,
    Output,
    ParameterGroup,
    Runtime,
    SegmentationProtocol,
    SingleProcess,
    StepOutput,
    Transform,
)
from afa.prediction.predictor import Predictor
from afa.weights import pack_metadata, save_network


@dataclass
class GuidedConfig(RunConfig):
    """Nothing beside what every run has."""


class Guided(Method):
    """Its CAM is the image's brightness; the other outputs are what it was given."""

    name, config_class = "guided", GuidedConfig
    needs = ("class_labels", "saliency")

    def __init__(self, config: GuidedConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        self.network = nn.Linear(1, 1)
        self.outputs = (
            Output("cam", "CAM", "maps", threshold=0.5),
            Output("walked", "walked CAM", "maps", inputs=("maps/cam",)),
            Output("cut", "cut-out", "label", inputs=("saliency",)),
        )

    def transform(self) -> Transform:
        return first_pixel

    def parameter_groups(self) -> list[ParameterGroup]:
        parameters = list(self.network.parameters())
        return [ParameterGroup(name="all", params=parameters, base_lr=0.1, weight_decay=0.0)]

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        return StepOutput({"all": network(batch["value"]).mean()}, {"all": 1.0})

    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        self.seen = samples
        return [Found({name: self.say(name, sample) for name in wanted}, (1,)) for sample in samples]

    @staticmethod
    def say(name: str, sample: Sample) -> Maps | Tensor:
        if name == "cut":
            return torch.from_numpy(sample.inputs["saliency"] > 127).long()
        if name == "walked":
            return sample.inputs["maps/cam"].with_background(0.5)
        brightness = torch.from_numpy(sample.image).float().mean(dim=-1) / 255
        return Maps(brightness[None, None], torch.tensor([[1]]), torch.tensor([[True]]), has_background=False)


class Blind(Guided):
    """Without maps it says nothing."""

    name = "blind"
    needs = ("saliency",)

    def __init__(self, config: GuidedConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        self.outputs = self.outputs[1:2]


def first_pixel(sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
    return {"value": torch.tensor([float(sample.image[0, 0, 0])])}


register_method(Guided)
register_method(Blind)

NAMES = [f"image_{number}" for number in range(len(SIZES))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set, and saliency maps: the left half of each image."""
    root = write_data_set(tmp_path_factory.mktemp("data") / "set")
    (root / "saliency").mkdir()
    for name, (height, width) in zip(NAMES, SIZES, strict=True):
        Image.fromarray(left_half(height, width)).save(root / "saliency" / f"{name}.png")
    return root


def left_half(height: int, width: int) -> np.ndarray:
    saliency = np.zeros((height, width), np.uint8)
    saliency[:, : width // 2] = 255
    return saliency


def weights(folder: Path, method: type[Method], data: Path, **dataset: str) -> Path:
    """A file of weights, whose configuration names no other folders than it is told."""
    config = config_from_dict({"method": method.name, "dataset": {"root": str(data), **dataset}})
    network = method(config, CLASS_NAMES, SingleProcess()).network
    path = folder / f"{method.name}.safetensors"
    save_network(network, path, pack_metadata(config, CLASS_NAMES, 1))
    return path


def test_a_predictor_offers_what_its_inputs_allow() -> None:
    method = Guided(GuidedConfig(), CLASS_NAMES, SingleProcess())
    for inputs, names in (((), ["cam"]), (("saliency",), ["cam", "cut"]), (("maps/cam",), ["cam", "walked"])):
        predictor = Predictor(method, method.config, inputs=inputs)
        assert [output.name for output in predictor.outputs] == names
        assert predictor.mask_output.name == names[-1]


def test_inputs_are_shrunk_with_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afa.prediction.predictor.DETAIL_LONG_SIDE", 512)
    method = Guided(GuidedConfig(), CLASS_NAMES, SingleProcess())
    predictor = Predictor(method, method.config, inputs=("maps/cam", "saliency"))
    image, ramp = np.zeros((600, 1200, 3), np.uint8), torch.linspace(0, 1, 1200).expand(1, 1, 600, 1200)
    maps = Maps(ramp, torch.tensor([[1]]), torch.tensor([[True]]), has_background=False)
    tokens = maps.with_scores(torch.full((1, 1, 3, 6), 0.7))
    inputs = [{"maps/cam": given, "saliency": left_half(600, 1200)} for given in (maps, tokens)]
    whole, coarse = predictor.predict_batch([image, image], inputs=inputs, maps=["walked"], labels=["walked", "cut"])
    assert [sample.inputs["maps/cam"].size for sample in method.seen] == [(256, 512), (3, 6)]
    for seen in (whole, coarse):
        assert (seen.mask == (left_half(600, 1200) > 0)).all() and (seen.labels["cut"] == seen.mask).all()
    assert np.abs(whole.maps["walked"][0] - ramp[0, 0].numpy()).max() < 0.01
    assert (whole.labels["walked"][:, 650:] == 1).all() and not whole.labels["walked"][:, :550].any()
    assert np.allclose(coarse.maps["walked"], 0.7, atol=1e-3) and (coarse.background["walked"] == 0.5).all()


def test_a_sheet_shows_what_is_there_and_names_the_rest(
    data: Path, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}

    def lay_out(rows: Any, titles: Sequence[str], *, notes: Sequence[str], **_: Any) -> np.ndarray:
        shown.update(titles=list(titles), notes=list(notes))
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("afa.prediction.sheet.contact_sheet", lay_out)
    path = weights(tmp_path, Guided, data, maps=str(tmp_path / "gone"))
    arguments = ("contact_sheet.py", path, "--limit", "1", "--output", tmp_path / "sheet.png", "--device", "cpu")
    done = run_tool(*arguments, f"dataset.saliency={data / 'saliency'}")
    assert done.returncode == 0, done.stderr
    assert shown["titles"] == ["image", "ground truth", "CAM", "cut-out"]
    assert shown["notes"][-1] == "without walked CAM (needs maps/cam)"
    assert done.stdout.endswith("sheet.png, without walked CAM (needs maps/cam)\n")
    assert f"note: maps/cam: dataset.maps: there is no folder {tmp_path / 'gone'}" in done.stderr
    done = run_tool(*arguments, "dataset.maps=null")
    assert done.returncode == 0 and "note" not in done.stderr
    assert shown["titles"] == ["image", "ground truth", "CAM"]
    assert shown["notes"][-1] == "without walked CAM (needs maps/cam), cut-out (needs saliency)"


def test_images_of_people_get_inputs_by_name(data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    path, out = weights(tmp_path, Guided, data, saliency=str(tmp_path / "of_the_training")), tmp_path / "out"
    images, saliency = data / "JPEGImages", data / "saliency"
    arguments = ("infer.py", path, images, "--device", "cpu", "--output", out, "--no-overlays")
    done = run_tool(*arguments, "--pseudo-labels", "cut", "plain", f"dataset.saliency={saliency}")
    assert done.returncode == 0, done.stderr
    for name, size in zip(NAMES, SIZES, strict=True):
        for place in ("masks", "pseudo_labels/cut"):
            assert (np.array(Image.open(out / place / f"{name}.png")) == (left_half(*size) > 0)).all()
        assert (out / "pseudo_labels" / "plain" / f"{name}.png").exists()
    few = tmp_path / "few"
    shutil.copytree(saliency, few)
    (few / "image_3.png").unlink()
    done = run_tool(*arguments, f"dataset.saliency={few}")
    assert done.returncode == 2 and "1 of the 5 images have no saliency map" in done.stderr
    done = run_tool(*arguments)
    assert done.returncode == 0, "the saliency maps of the training are of other images"


def line(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_one_line(data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    guided, blind = weights(tmp_path, Guided, data), weights(tmp_path, Blind, data)
    needs = "walked, which needs maps/cam: 'afa label' writes them for the images of a list, with dataset.maps="
    image = data / "JPEGImages" / "image_0.jpg"
    model = afa.load(guided, device="cpu")
    assert set(model.predict(image).maps) == {"cam"}
    assert needs in line(lambda: model.predict(image, maps=["walked"]))
    assert needs in line(lambda: afa.load(blind, device="cpu").predict(image))
    for arguments in ((guided, "--pseudo-labels", "walked"), (blind,)):
        done = run_tool(
            "infer.py", arguments[0], image, *arguments[1:], "--device", "cpu", "--output", tmp_path / "out"
        )
        assert done.returncode == 2 and needs in done.stderr
    assert not (tmp_path / "out").exists()
    done = run_tool("contact_sheet.py", blind, "--device", "cpu", "--output", tmp_path / "sheet.png")
    assert done.returncode == 2 and needs in done.stderr


@pytest.mark.parametrize(("method", "titles"), [(Guided, ["image", "CAM", "cut-out"]), (Blind, None)])
def test_training_shows_what_its_samples_bring(
    method: type[Method],
    titles: list[str] | None,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    shown: list[list[str]] = []

    def lay_out(rows: Any, titles: Sequence[str], **_: Any) -> np.ndarray:
        shown.append(list(titles))
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("afa.prediction.sheet.contact_sheet", lay_out)
    settings = {
        "method": method.name,
        "dataset": {"root": str(data), "train_split": "train", "saliency": str(data / "saliency")},
        "train": {"output": str(tmp_path / "run"), "steps": 1, "device": "cpu", "workers": 0, "pictures_every": 1},
        "validation": {"outputs": ["cam", "cut"]},
        "optimiser": {"freeze": "none"},
    }
    if method is Blind:  # no validation: it would ask for maps
        settings["dataset"]["mask_dir"] = str(tmp_path / "no_masks")  # type: ignore[index]
    assert train(config_from_dict(settings)) == 0
    assert shown == ([] if titles is None else [titles])
    said = "gets no images: the method 'blind'" if titles is None else "images lack walked CAM (needs maps/cam)"
    assert [said in record.getMessage() for record in caplog.records].count(True) == 1
