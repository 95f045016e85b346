"""Methods that nothing in the package knows: the one of docs/architecture.md, and one with two views and a teacher."""

from __future__ import annotations

import copy
import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import faults
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afa
from afa.commands import eval as eval_command
from afa.commands import label, score
from afa.config import RunConfig
from afa.data.samples import Sample
from afa.data.transforms import draw_crop, normalise
from afa.engine.training import train
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import load_config, method_names, register_method
from afa.methods.base import (
    Batch,
    Found,
    Method,
    Output,
    ParameterGroup,
    Runtime,
    SegmentationProtocol,
    StepOutput,
    Transform,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
STEPS = 8


def block(name: str) -> str:
    """A block of code of the page."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name}: begin -->\n```\w+\n(.*?)```\n<!-- {name}: end -->", text, flags=re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page's method, imported from a file of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.py").write_text(block("method"), encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield importlib.import_module("tiny")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.make_data(tmp_path_factory.mktemp("shapes") / "data")


def write_config(folder: Path, data: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    overrides = {"dataset.root": data, "train.output": folder / "run"}
    for key, value in overrides.items():
        section, name = key.split(".")
        path.write_text(re.sub(rf"({section}: {{.*?){name}: [^,}}]+", rf"\g<1>{name}: {value}", path.read_text()))
    return path


OVERRIDES = (
    f"train.steps={STEPS}",
    "train.batch_size=4",
    "train.threads=1",
    "train.device=cpu",
    "train.workers=0",
    "train.checkpoint_every=3",
    "train.log_every=2",
    "validation.every=4",
)


def killed_in_step(config: Path, step: int, method: type[Method]) -> None:
    """In a process of its own: die in the midst of a run."""

    def after_step(self: Method, number: int, bad: Tensor) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    method.after_step = after_step  # type: ignore[method-assign]
    train(load_config(config, OVERRIDES))


def test_the_page_s_method_trains_resumes_labels_scores_and_predicts(
    tiny: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "tiny" in method_names()
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    config = write_config(killed, data, block("configuration"))
    process = multiprocessing.get_context("fork").Process(target=killed_in_step, args=(config, 4, tiny.Tiny))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "run" / "result.json").exists()
    assert train(load_config(config, OVERRIDES)) == 0
    assert train(load_config(write_config(straight, data, block("configuration")), OVERRIDES)) == 0
    assert faults.outcome(killed / "run", STEPS) == faults.outcome(straight / "run", STEPS)
    assert "cam_miou" in json.dumps(faults.records(straight / "run"))

    run, labels = straight / "run", tmp_path / "labels"
    assert label.main([str(run), "--split", "val", "--output", str(labels), "--workers", "0"]) == 0
    assert sorted(path.name for path in (labels / "labels" / "cam").iterdir()) == [
        f"val_{number:05d}.png" for number in range(4)
    ]
    result = tmp_path / "scores.json"
    arguments = ["maps", str(labels), "--config", str(config), "--split", "val", "--output", str(result)]
    assert not score.main(arguments)
    assert "cam" in result.read_text()

    assert eval_command.main([str(run), "--workers", "0"]) == 0
    assert "CAM" in capsys.readouterr().out
    model = afa.load(run)
    found = model.predict(data / "JPEGImages" / "val_00000.jpg")
    assert found.mask.shape == (64, 64)
    assert found.maps["cam"].shape == (len(found.class_names), 64, 64)


def test_a_method_that_nobody_offers_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("method: nobody\n")
    with pytest.raises(UserError, match=r"'nobody' is none of afa, .*segment.*installed"):
        load_config(path)


def test_two_methods_of_one_name_are_refused(tiny: ModuleType) -> None:
    class Other(Method):
        name, config_class = "tiny", RunConfig

    with pytest.raises(ValueError, match="there is a method 'tiny' already"):
        register_method(Other)
    assert register_method(tiny.Tiny) is tiny.Tiny


@dataclass
class TwoViewsConfig(RunConfig):
    """Nothing beside what every run has."""


class Student(nn.Module):
    """Two networks, of which one follows the other, and a statistic of the training images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(4, num_classes, 1))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, image: Tensor) -> Tensor:
        return self.student(image)


class CropsOfTwoViews:
    """Two crops of one image."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        views = {}
        for name in ("image", "view"):
            crop = draw_crop(sample.image.shape, rng, crop_size=32)
            views[name] = normalise(crop.image(sample.image, "pil"), [127] * 3, [64] * 3)
        assert sample.class_labels is not None
        return {**views, "class_labels": torch.from_numpy(sample.class_labels)}


class TwoViews(Method):
    """Two views of an image, a moving average, and statistics over the training images after the last step."""

    name, config_class = "two_views", TwoViewsConfig
    network: Student

    def __init__(self, config: TwoViewsConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        self.network = Student(len(class_names) + 1)
        self.outputs = (Output("segmentation", "segmentation", "maps", logits=True),)

    def transform(self) -> Transform:
        return CropsOfTwoViews()

    def parameter_groups(self) -> list[ParameterGroup]:
        parameters = list(self.network.student.parameters())
        return [ParameterGroup(name="student", params=parameters, base_lr=0.01, weight_decay=0.0)]

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        one = network(batch["image"]).mean(dim=(-2, -1))
        with torch.no_grad():
            other = self.network.teacher(batch["view"]).mean(dim=(-2, -1))
        losses = {
            "cls": F.multilabel_soft_margin_loss(one[:, 1:], batch["class_labels"]),
            "consistency": F.mse_loss(one, other),
        }
        return StepOutput(losses, {"cls": 1.0, "consistency": 0.1})

    @torch.no_grad()
    def after_step(self, step: int, bad: Tensor) -> None:
        for mean, parameter in zip(self.network.teacher.parameters(), self.network.student.parameters(), strict=True):
            mean.lerp_(parameter, 0.1)

    def after_training(self, samples: Iterable[Sample]) -> None:
        means = [sample.image.reshape(-1, 3).mean(axis=0) for sample in samples]
        self.network.mean.copy_(torch.from_numpy(np.mean(means, axis=0)))

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        found = []
        for sample in samples:
            image = normalise(sample.image, [127] * 3, [64] * 3)[None]
            maps = Maps.of_all_classes(self.network.teacher(image), has_background=True)
            found.append(Found({"segmentation": maps}, ()))
        return found


def test_two_views_a_moving_average_and_a_statistic_after_the_last_step(data: Path, tmp_path: Path) -> None:
    register_method(TwoViews)
    path = tmp_path / "run.yaml"
    path.write_text(f"method: two_views\ndataset: {{root: '{data}', train_split: train}}\n")
    overrides: list[Any] = [*OVERRIDES, f"train.output={tmp_path / 'run'}", "optimiser.freeze=none"]
    assert train(load_config(path, overrides)) == 0
    model = afa.load(tmp_path / "run" / "checkpoints" / "last")
    network = model.method.network
    assert isinstance(network, Student)
    assert 50 < float(network.mean.min()) < float(network.mean.max()) < 200, "the training images' mean colour"
    parts = (network.student, network.teacher)
    student, teacher = (torch.cat([values.flatten() for values in part.parameters()]) for part in parts)
    assert not torch.equal(student, teacher)
    assert model.predict(data / "JPEGImages" / "val_00001.jpg").mask.shape == (64, 64)
    assert faults.records(tmp_path / "run")[-1]["loss/consistency"] > 0
