"""EDAM: what it says about images, its stage through the commands, and what can go wrong."""

from __future__ import annotations

import json
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
from run_tool import RunTool

from afa.data.map_files import read_maps
from afa.data.samples import Sample
from afa.errors import UserError
from afa.methods import build_method, config_from_dict
from afa.methods.base import Method, SegmentationProtocol, SingleProcess

MODEL = {"encoder": "resnet38", "base_width": 2, "depths": [1, 1, 1, 1], "attention_width": 8}
CLASS_NAMES = ["disc", "bar", "ring"]
ANY = SegmentationProtocol()


def method(**sections: Any) -> Method:
    torch.manual_seed(0)
    settings = {"cam": {"scales": [1.0, 0.5]}, **sections}
    built = build_method(config_from_dict({"method": "edam", "model": MODEL, **settings}), CLASS_NAMES, SingleProcess())
    built.network.eval()
    return built


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sample(*classes: int, seed: int = 0, **inputs: np.ndarray) -> Sample:
    labels = np.zeros(3, np.float32)
    labels[list(classes)] = 1
    return Sample("a", noise(41, 50, seed), labels, inputs)


# -- prediction


def test_scores_of_the_mirror_image_are_mirrored_and_batches_change_nothing() -> None:
    edam = method()
    first, second = sample(0, 2), sample(0, 2, seed=1)
    alone = [edam.predict([one], ["cam"], ANY)[0].outputs["cam"] for one in (first, second)]
    together = edam.predict([first, second], ["cam"], ANY)
    mirror = Sample("a", np.ascontiguousarray(first.image[:, ::-1]), first.class_labels)
    mirrored = edam.predict([mirror], ["cam"], ANY)[0].outputs["cam"]
    for one, found in zip(alone, together, strict=True):
        assert one.class_ids.tolist() == [[1, 3]] and one.scores.amax(dim=(2, 3)).tolist() == [[1, 1]]
        torch.testing.assert_close(found.outputs["cam"].scores, one.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored.scores.flip(-1), alone[0].scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", ["released", "algorithm1", "crf"])
def test_saliency_decides_what_may_be_an_object(rule: str) -> None:
    # Nothing is above beta, everything reaches alpha.
    limits = {"alpha": 0.0, "beta": 1.0, "crf_alpha": 0.0, "crf_beta": 1.0}
    edam = method(edam={"rule": rule, "theta": 0.2, **limits}, crf={"background_exponent": 8.0})
    saliency = np.zeros((41, 50), np.uint8)
    saliency[:, 25:] = 21
    wanted = ["crf", "cam", "with_saliency"]
    found = edam.predict([sample(0, 2, saliency=saliency), sample(0, 2, saliency=saliency)], wanted, ANY)[1]
    label = found.outputs["with_saliency"]
    assert label.dtype == torch.int64 and not label[:, :25].any()
    assert set(label[:, 25:].unique().tolist()) <= {0, 1, 3} and label[:, 25:].any()
    assert found.outputs["crf"].class_ids.tolist() == [[0, 1, 3]] and found.class_ids == (1, 3)
    saliency[:] = 20
    assert not edam.predict([sample(0, 2, saliency=saliency)], wanted, ANY)[0].outputs["with_saliency"].any() or (
        rule == "algorithm1"
    ), "the grey value itself is salient for the paper alone"


@pytest.mark.parametrize("rule", ["released", "algorithm1", "crf"])
def test_an_image_without_classes_is_background(rule: str) -> None:
    edam = method(edam={"rule": rule})
    salient = np.full((41, 50), 255, np.uint8)
    (found, other) = edam.predict(
        [sample(saliency=salient), sample(1, saliency=salient)], ["crf", "cam", "with_saliency"], ANY
    )
    assert found.class_ids == () and not found.outputs["with_saliency"].any()
    assert not edam.output("cam").label(found.outputs["cam"]).any()
    assert not edam.output("crf").label(found.outputs["crf"]).any()
    assert other.class_ids == (2,)


def test_classes_that_nobody_knows_are_those_of_the_image_paired_with_itself() -> None:
    edam = method()
    image = noise(41, 50)
    (found,) = edam.predict([Sample("a", image, None, network_size=(30, 40))], ["cam", "crf"], ANY)
    assert found.class_logits is not None and len(found.class_ids) >= 1
    assert found.outputs["cam"].size == (30, 40) and found.outputs["crf"].size == (41, 50)
    assert edam.predict([sample(0)], ["cam"], ANY)[0].class_logits is None


# -- settings


def test_what_the_released_program_freezes_does_not_move() -> None:
    built = method()
    built.network.train()
    trained = {id(parameter) for group in built.parameter_groups() for parameter in group["params"]}
    for key, parameter in built.network.named_parameters():
        frozen = key.startswith(("encoder.conv1a", "encoder.b2.")) or ".bn" in key
        assert (id(parameter) in trained) != frozen, key
    free = method(optimiser={"freeze": "none"})
    groups = {group["name"]: group for group in free.parameter_groups()}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(free.network.parameters()))
    rates = {name: group["base_lr"] / groups["encoder"]["base_lr"] for name, group in groups.items()}
    assert rates == pytest.approx({"encoder": 1, "encoder_biases": 2, "heads": 10, "attention": 1})
    assert [name for name, group in groups.items() if not group["weight_decay"]] == ["encoder_biases"]


def test_an_odd_batch_is_refused() -> None:
    config = config_from_dict({"method": "edam", "model": MODEL, "train": {"batch_size": 3}})
    assert list(config.training_problems()) == [
        "train.batch_size counts images, and pairs need an even number: 3 is odd"
    ]


# -- the stage, through the commands


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = faults.make_data(tmp_path_factory.mktemp("edam") / "data")
    write_saliency(root, root / "saliency")
    return root


def write_saliency(data: Path, folder: Path) -> None:
    """The objects of every image, for both lists."""
    folder.mkdir()
    for path in (data / "SegmentationClass").glob("*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where((mask > 0) & (mask < 255), 200, 10).astype(np.uint8)).save(folder / path.name)


def configuration(root: Path, data: Path, **sections: Any) -> Path:
    tree: dict[str, Any] = {
        "method": "edam",
        "dataset": {"root": str(data), "train_split": "train", "val_split": "val"},
        "augmentation": {"crop_size": 72, "long_side_min": 64, "long_side_max": 80},
        "model": MODEL,
        "cam": {"scales": [1.0]},
        "optimiser": {"lr": 0.01, "freeze": "none", "warmup_steps": 2},
        "train": {
            "output": str(root / "run"),
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
    path = root / "edam.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run, read by all."""
    root = tmp_path_factory.mktemp("trained")
    done = faults.run_here(configuration(root, data, dataset={"saliency": str(data / "saliency")}))
    assert done.code == 0
    return root / "run"


def test_labels_with_and_without_saliency(trained: Path, data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    assert {"loss/cls", "validation/with_saliency_miou"} <= set(faults.records(trained)[-1])
    done = run_tool("label.py", trained, "--split", "val", "--workers", 0, "--output", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "all" / "labels").iterdir()) == ["cam", "crf", "with_saliency"]
    name = next((tmp_path / "all" / "maps" / "cam").glob("*.npz"))
    assert read_maps(name).maps.scores.dtype == torch.float32
    done = run_tool(
        "label.py", trained, "dataset.saliency=null", "--split", "val", "--workers", 0, "--output", tmp_path / "without"
    )
    assert done.returncode == 0 and "with_saliency" in done.stderr + done.stdout, "it says what is left out"
    assert sorted(path.name for path in (tmp_path / "without" / "labels").iterdir()) == ["cam", "crf"]
    rule = ("edam.rule=crf", "--outputs", "with_saliency")
    done = run_tool("label.py", trained, *rule, "--split", "val", "--workers", 0, "--output", tmp_path / "crf")
    assert done.returncode == 0, done.stderr
    done = run_tool("score.py", "masks", tmp_path / "all", "--config", trained / "config.yaml", "--split", "val",
                    "--output", tmp_path / "scores.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "scores.json").read_text())["rows"]) == {"cam", "crf", "with_saliency"}


def listed_pairs(data: Path, path: Path) -> Path:
    """Two pairs, as EDAM's list has them."""
    names = (data / "ImageSets/Segmentation/train.txt").read_text().split()
    by_class: dict[int, list[str]] = {}
    for name in names:
        mask = np.asarray(Image.open(data / "SegmentationClass" / f"{name}.png"))
        for class_id in set(np.unique(mask).tolist()) - {0, 255}:
            by_class.setdefault(class_id, []).append(name)
    lines = [
        f"/JPEGImages/{members[0]}.jpg /JPEGImages/{members[1]}.jpg {class_id - 1}"
        for class_id, members in sorted(by_class.items())
    ]
    path.write_text("\n".join(lines[:2]))
    return path


def test_stopped_and_started_again_it_is_the_same_and_needs_the_same_pairs(data: Path, tmp_path: Path) -> None:
    outcomes = []
    pairs = listed_pairs(data, tmp_path / "pairs.txt")
    for name, moments in (("whole", {}), ("stopped", {"step 2/4": faults.stop_with(signal.SIGTERM)})):
        (tmp_path / name).mkdir()
        config = configuration(tmp_path / name, data, dataset={"pairs": str(pairs)})
        if moments:
            assert faults.run_here(config, when=moments).code == 75
        assert faults.run_here(config).code == 0
        outcomes.append(faults.outcome(tmp_path / name / "run", 4))
    assert outcomes[0] == outcomes[1]
    pairs.write_text("\n".join(reversed(pairs.read_text().split("\n"))))
    done = faults.run_here(configuration(tmp_path / "whole", data, dataset={"pairs": str(pairs)}), "train.steps=6")
    assert done.code == 2 and "holds a run with another training list" in done.text


def unknown_image(pairs: Path) -> None:
    pairs.write_text(f"{pairs.read_text()}\n/JPEGImages/nobody.jpg /JPEGImages/nobody.jpg 0\n")


def no_list(pairs: Path) -> None:
    pairs.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"), [(unknown_image, "is no image of 'train'"), (no_list, "pairs.txt")], ids=["image", "list"]
)
def test_pairs_that_do_not_fit_are_refused_in_one_line(
    spoil: Callable[[Path], object], message: str, data: Path, tmp_path: Path
) -> None:
    pairs = listed_pairs(data, tmp_path / "pairs.txt")
    spoil(pairs)
    done = faults.run_here(configuration(tmp_path, data, dataset={"pairs": str(pairs)}))
    said = [line for line in done.text.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(said) == 1 and message in said[0], done.text
    assert not (tmp_path / "run").exists()


def test_pairs_are_for_methods_that_train_on_pairs(data: Path, tmp_path: Path) -> None:
    pairs = listed_pairs(data, tmp_path / "pairs.txt")
    settings = {"method": "psa_cam", "dataset": {"root": str(data), "train_split": "train", "pairs": str(pairs)}}
    settings["train"] = {"output": str(tmp_path / "run")}
    settings["model"] = {key: value for key, value in MODEL.items() if key != "attention_width"}
    (tmp_path / "psa.yaml").write_text(yaml.safe_dump(settings))
    done = faults.run_here(tmp_path / "psa.yaml")
    assert done.code == 2 and "dataset.pairs is set, but this method trains on single images" in done.text


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"encoder": "mit_b0"}}, "EDAM needs a convolutional network"),
        ({"model": {**MODEL, "attention_heads": 3}}, "8 channels cannot be shared out among"),
    ],
)
def test_settings_that_contradict_each_other(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_dict({"method": "edam", **sections})
