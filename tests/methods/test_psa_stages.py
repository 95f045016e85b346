"""PSA's stages through the commands: labels, scores, going on, and what can go wrong between them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from psa_files import SMALL_RESNET38, released_names
from run_tool import RunTool, tool_main
from torch.utils.data import default_collate

import afa
from afa.data.dataset import TrainingImages
from afa.data.map_files import read_maps, write_maps
from afa.maps import Maps
from afa.models import AffinityNetwork, CAMNetwork, ResNet38


class Stages:
    """Both stages of a tiny PSA, in a folder."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root, data

    def config(self, name: str, method: str, **sections: Any) -> Path:
        tree: dict[str, Any] = {
            "method": method,
            "dataset": {"root": str(self.data), "train_split": "train", "val_split": "val"},
            "augmentation": {"crop_size": 72},
            "model": SMALL_RESNET38,
            "optimiser": {"lr": 0.01, "momentum": 0.9, "freeze": "none"},
            "train": {
                "output": str(self.root / name),
                "steps": 4,
                "batch_size": 4,
                "workers": 0,
                "device": "cpu",
                "threads": 1,
                "log_every": 1,
                "checkpoint_every": 2,
                "pictures_every": 0,
            },
            "validation": {"every": 4},
        }
        for section, values in sections.items():
            tree.setdefault(section, {}).update(values)
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def cams(self) -> Path:
        """The first stage's configuration."""
        return self.config(
            "1_cam", "psa_cam", augmentation={"long_side_min": 64, "long_side_max": 80}, cam={"scales": [1.0]}
        )

    def affinity(self, maps: Path) -> Path:
        return self.config("2_affinity", "psa_affinity", dataset={"maps": str(maps)}, walk={"log_steps": 3})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.make_data(tmp_path_factory.mktemp("psa") / "data")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A trained CAM network and its label folders, for the training and the validation list; read by all."""
    root = tmp_path_factory.mktemp("stages")
    stages = Stages(root, data)
    assert faults.run_here(stages.cams()).code == 0
    for split in ("train", "val"):
        output = str(root / f"{split}_maps")
        assert not tool_main("label.py")([str(root / "1_cam"), "--split", split, "--workers", "0", "--output", output])
    return root


def test_both_stages_and_their_scores(labelled: Path, data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    stages = Stages(tmp_path, data)
    config = stages.affinity(labelled / "train_maps")
    done = run_tool("train.py", config)
    assert done.returncode == 0 and "validation leaves the output 'propagated' out" in done.stderr + done.stdout
    assert {"loss/bg", "loss/fg", "loss/neg"} <= set(faults.records(tmp_path / "2_affinity")[-1])
    run, output = tmp_path / "2_affinity", tmp_path / "labels"
    maps = f"dataset.maps={labelled / 'val_maps'}"
    wanted = ("--outputs", "propagated", "propagated_crf", "--split", "val", "--workers", 0)
    assert run_tool("label.py", run, maps, *wanted, "--output", output).returncode == 0
    assert sorted(path.name for path in (output / "labels").iterdir()) == ["propagated", "propagated_crf"]
    for kind, folder in (("maps", labelled / "val_maps"), ("masks", output)):
        done = run_tool("score.py", kind, folder, "--config", config, "--output", tmp_path / f"{kind}.json")
        assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "masks.json").read_text())["rows"]
    assert set(rows) == {"propagated", "propagated_crf"}
    for walks in ((), ("walk.beta=2",)):
        done = run_tool("eval.py", run, maps, "--workers", 0, *walks)
        assert done.returncode == 0 and "random walk" in done.stdout, done.stderr
    protocols = [entry["protocol"] for entry in json.loads((run / "evaluation.json").read_text())["evaluations"]]
    assert [protocol.get("settings") for protocol in protocols] == [
        {"dataset.maps": str(labelled / "val_maps")},
        {"dataset.maps": str(labelled / "val_maps"), "walk.beta": "2"},
    ], "two walks, two entries"


def test_stopped_and_started_again_the_second_stage_is_the_same(labelled: Path, data: Path, tmp_path: Path) -> None:
    outcomes = []
    for name, moments in (("whole", {}), ("stopped", {"step 2/4": faults.stop_with(signal.SIGTERM)})):
        (tmp_path / name).mkdir()
        config = Stages(tmp_path / name, data).affinity(labelled / "train_maps")
        if moments:
            assert faults.run_here(config, when=moments).code == 75
        assert faults.run_here(config).code == 0
        outcomes.append(faults.outcome(tmp_path / name / "2_affinity", 4))
    assert outcomes[0] == outcomes[1]


def test_channels_last_is_refused_where_it_would_end_the_process(data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    done = run_tool("train.py", Stages(tmp_path, data).cams(), "train.channels_last=true")
    assert done.returncode == 2 and "train.channels_last does not work" in done.stderr, done.stderr
    assert not (tmp_path / "1_cam").exists()


def test_without_masks_the_losses_of_the_validation_list_are_reported(
    data: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "SegmentationClass")
    stages = Stages(tmp_path, tmp_path / "data")
    done = run_tool("train.py", stages.cams(), "train.steps=2", "validation.every=1", "validation.crop_size=64")
    assert done.returncode == 0, done.stderr
    values = [record["validation/loss/cls"] for record in faults.records(tmp_path / "1_cam")]
    assert len(values) == 2
    model = afa.load(tmp_path / "1_cam" / "checkpoints" / "last")  # in evaluation mode: without dropout
    transform = model.method.validation_transform()
    assert transform is not None
    dataset = dataclasses.replace(model.config.dataset, train_split="val")
    images = TrainingImages(dataset, transform, needs=model.method.needs, seed=1)
    batch = default_collate([images[index, index] for index in range(4)])
    with torch.no_grad():
        loss = model.method.training_step(model.method.network, batch, 1).total()
    assert values[-1] == pytest.approx(float(loss), rel=1e-5)


def without_output(folder: Path) -> None:
    shutil.rmtree(folder / "maps" / "crf_low")


def without_a_map(folder: Path) -> None:
    next((folder / "maps" / "crf_low").glob("*.npz")).unlink()


def with_a_map_of_another_image(folder: Path) -> None:
    rewrite_maps(folder, size=(60, 64))


def with_a_class_too_many(folder: Path) -> None:
    rewrite_maps(folder, highest=9)
    (folder / "label.json").write_text("{}")


def of_other_classes(folder: Path) -> None:
    facts = json.loads((folder / "label.json").read_text())
    (folder / "label.json").write_text(json.dumps({**facts, "class_names": ["cat", "dog"]}))


def rewrite_maps(folder: Path, *, size: tuple[int, int] | None = None, highest: int | None = None) -> None:
    """Every map of one output, of an image of another size or with another last class."""
    for path in (folder / "maps" / "crf_low").glob("*.npz"):
        stored = read_maps(path)
        ids = stored.maps.class_ids.clone()
        if highest is not None:
            ids[:, -1] = highest
        maps = Maps(stored.maps.scores, ids, stored.maps.counted, stored.maps.has_background)
        write_maps(path, maps, size or stored.size, compress=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_output, "crf_low"),
        (without_a_map, "1 of the 24 maps are missing"),
        (with_a_map_of_another_image, "are of an image of 64 x 60 pixels"),
        (with_a_class_too_many, "are of the class 9, but the data set has"),
        (of_other_classes, "is of the classes cat dog, the data set's are disc"),
    ],
)
def test_maps_that_do_not_fit_are_refused_in_one_line(
    spoil: Callable[[Path], object], message: str, labelled: Path, data: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    folder = tmp_path / "maps"
    shutil.copytree(labelled / "train_maps", folder)
    spoil(folder)
    done = run_tool("train.py", Stages(tmp_path, data).affinity(folder))
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(said) == 1 and message in said[0], done.stderr


def test_maps_of_another_network_do_not_go_on_with_a_run(
    labelled: Path, data: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    folder = tmp_path / "maps"
    shutil.copytree(labelled / "train_maps", folder)
    config = Stages(tmp_path, data).affinity(folder)
    assert run_tool("train.py", config, "train.steps=2").returncode == 0
    facts = json.loads((folder / "label.json").read_text())
    (folder / "label.json").write_text(json.dumps({**facts, "weights_sha256": "another"}))
    done = run_tool("train.py", config, "train.steps=4")
    assert done.returncode == 2 and "another training list, other labels or other maps" in done.stderr, done.stderr


def test_released_files_are_opened_without_a_configuration(tmp_path: Path, run_tool: RunTool) -> None:
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(images / "a.png")
    for name, network in (
        ("cls", CAMNetwork(ResNet38(base_width=2), 20)),
        ("aff", AffinityNetwork(ResNet38(base_width=2))),
    ):
        torch.save(released_names(network.state_dict()), tmp_path / f"res38_{name}.pth")
    done = run_tool("infer.py", tmp_path / "res38_cls.pth", images, "--output", tmp_path / "found")
    assert done.returncode == 0 and (tmp_path / "found").is_dir(), done.stderr
    done = run_tool("infer.py", tmp_path / "res38_aff.pth", images, "--output", tmp_path / "nothing")
    assert done.returncode == 2 and "needs maps/cam: 'afa label' writes them" in done.stderr
    assert not (tmp_path / "nothing").exists()
