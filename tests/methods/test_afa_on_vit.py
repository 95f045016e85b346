"""AFA on a Vision Transformer of timm, as people use it: trained, resumed, opened, labelled, exported."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_tool import RunTool

from afa.errors import UserError
from afa.methods import build_method, config_from_dict, load_config
from afa.methods.base import SingleProcess
from afa.weights import open_checkpoint, read_tensors, save_network

STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on images of 64 pixels, no multiple of the patch in any crop: ``run``, and its ``config.yaml``."""
    import timm

    if not timm.is_model("test_vit"):
        pytest.skip(f"timm {timm.__version__} has no test_vit")
    folder = tmp_path_factory.mktemp("vit")
    settings = faults.tiny_settings(faults.make_data(folder / "data"), folder / "run")
    settings["model"] = {"encoder": "timm/test_vit", "decoder_width": 16, "affinity_blocks": 3}
    settings["augmentation"]["crop_size"] = 61
    settings["cam"]["scales"] = [1.0, 0.5, 1.5]
    settings["schedule"] = {"cls_until": 0, "refined_until": 2}
    settings["train"] |= {"steps": STEPS, "checkpoint_every": 3}
    settings["validation"]["every"] = STEPS
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    done = faults.run_here(folder / "config.yaml")
    assert done.code == 0, done.text
    return folder


def test_every_phase_trains_and_validates(folder: Path) -> None:
    records = faults.records(folder / "run")
    losses = {name: value for record in records for name, value in record.items() if name.startswith("loss/")}
    assert losses["loss/seg"] > 0 and losses["loss/aff"] > 0
    assert any("segmentation/miou" in record or "segmentation_miou" in str(record) for record in records)


def test_a_run_that_stopped_goes_on_to_the_same_weights(folder: Path) -> None:
    other = folder / "stopped"
    overrides = (f"train.output={other}", "train.log_every=1")
    stopped = faults.run_here(folder / "config.yaml", *overrides, when={"step 4/": faults.stop_with(signal.SIGTERM)})
    assert stopped.code == 75, stopped.text
    assert faults.run_here(folder / "config.yaml", *overrides).code == 0
    whole, resumed = (
        read_tensors(run / "checkpoints" / "last" / "weights.safetensors") for run in (folder / "run", other)
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_it_is_opened_as_it_was_trained_and_predicts(folder: Path, tmp_path: Path, run_tool: RunTool) -> None:
    opened = open_checkpoint(folder / "run")
    assert opened.config.model.encoder == "timm/test_vit"  # type: ignore[attr-defined]
    assert opened.config.dataset.image_mean == [127.5, 127.5, 127.5] == list(opened.method.network.encoder.mean)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 91, 3), np.uint8)).save(tmp_path / "odd.png")
    done = run_tool("infer.py", folder / "run", tmp_path / "odd.png", "--out", tmp_path / "masks", "--no-overlays")
    assert done.returncode == 0, done.stderr
    assert {Image.open(path).size for path in (tmp_path / "masks").rglob("*.png")} == {(91, 37)}


@pytest.mark.parametrize(("layout", "name"), [("released", "out.pth"), ("huggingface", "out")])
def test_layouts_without_a_place_for_it(
    layout: str, name: str, folder: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    done = run_tool("convert_weights.py", folder / "run", tmp_path / name, "--format", layout)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "with the encoder timm/test_vit" in line and "give --format afa" in line
    assert not (tmp_path / name).exists()
    done = run_tool("convert_weights.py", folder / "run", tmp_path / "ours.safetensors", "--format", "afa")
    assert done.returncode == 0 and open_checkpoint(tmp_path / "ours.safetensors").class_names


def test_weights_alone_need_their_configuration(folder: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(folder / "run")
    save_network(opened.method.network, tmp_path / "alone.safetensors", {})
    with pytest.raises(UserError, match="Vision Transformer cannot be told from its weights; give the configuration"):
        open_checkpoint(tmp_path / "alone.safetensors")
    again = open_checkpoint(tmp_path / "alone.safetensors", folder / "config.yaml")
    assert again.method.name == "afa"
    mit = tmp_path / "mit.yaml"
    mit.write_text(f"dataset: {{root: '{folder / 'data'}'}}\nmodel: {{encoder: mit_b0}}\n")
    with pytest.raises(UserError, match=r"seems to be an AFA checkpoint with a Vision Transformer \(\d+ classes"):
        open_checkpoint(tmp_path / "alone.safetensors", mit)


@pytest.mark.parametrize(
    ("decoder", "encoder", "problem"),
    [
        ("segformer", "timm/test_vit", None),
        ("dilated", "timm/test_vit", None),
        ("segformer", "timm/vit_small_patch14_dinov2", None),
        (
            "dilated",
            "timm/vit_small_patch14_dinov2",
            "model.token_stride: dilated needs features of stride 8 or 16, not 14; set 8 or 16",
        ),
    ],
)
def test_the_method_segment_takes_it_as_well(decoder: str, encoder: str, problem: str | None) -> None:
    tree: dict[str, Any] = {"method": "segment", "dataset": {"pixel_labels": "labels"}}
    tree["model"] = {"encoder": encoder, "decoder": decoder}
    if problem is not None:
        with pytest.raises(UserError, match=problem):
            config_from_dict(tree)
    elif encoder == "timm/test_vit":
        method = build_method(config_from_dict(tree), ["a", "b"], SingleProcess())
        batch = {"image": torch.randn(2, 3, 50, 70), "label": torch.randint(0, 3, (2, 50, 70), dtype=torch.uint8)}
        step = method.training_step(method.network, batch, 0)
        step.losses["seg"].backward()
        assert not [name for name, parameter in method.network.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("method", ["psa_cam", "psa_affinity", "edam"])
def test_methods_for_convolutional_networks_refuse_it(method: str) -> None:
    with pytest.raises(UserError, match=r"needs a convolutional network, and 'timm/test_vit' is a Vision Transformer"):
        config_from_dict({"method": method, "model": {"encoder": "timm/test_vit"}})


def test_normalisation_is_the_encoder_s_own_unless_it_is_given(tmp_path: Path) -> None:
    grey, imagenet = [127.5, 127.5, 127.5], [123.675, 116.28, 103.53]
    path = tmp_path / "config.yaml"
    path.write_text("model: {encoder: timm/vit_base_patch16_224}\n")
    assert load_config(path).dataset.image_mean == load_config(path).dataset.image_std == grey
    given = load_config(path, ["dataset.image_mean=[1,2,3]"]).dataset
    assert given.image_mean == [1, 2, 3] and given.image_std == grey
    for name, mean in (("timm/vit_small_patch14_dinov2", imagenet), ("mit_b0", imagenet)):
        assert config_from_dict({"model": {"encoder": name}}).dataset.image_mean == pytest.approx(mean)
    cnn = {"method": "psa_cam", "model": {"encoder": "timm/tf_efficientnet_lite0"}}
    assert config_from_dict(cnn).dataset.image_mean == grey
    assert config_from_dict({**cnn, "dataset": {"image_mean": imagenet}}).dataset.image_mean == imagenet
