"""AFA on a Vision Transformer of timm, as people use it: trained, resumed, opened, labelled, exported."""

from __future__ import annotations

import json
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

from afa.data.samples import Sample
from afa.data.transforms import normalise
from afa.errors import UserError
from afa.maps import present_classes
from afa.methods import build_method, config_from_dict, load_config
from afa.methods.afa.labels import PseudoLabels, par_image
from afa.methods.base import SegmentationProtocol, SingleProcess
from afa.ops.cam import multi_scale_cam
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


def test_with_a_block_for_cams_the_classification_trains_the_classifier_alone(folder: Path) -> None:
    overrides = ["model.cam_block=3", "model.pooling=topk", "cam.centred=true", "optimiser.weight_decay=0"]
    config = load_config(folder / "config.yaml", [*overrides, "schedule.cls_until=2", "schedule.refined_until=3"])
    method = build_method(config, ["a", "b"], SingleProcess())
    batch = {
        "image": torch.randn(2, 3, 61, 61),
        "class_labels": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "valid_box": torch.tensor([[0, 61, 0, 61]] * 2),
    }
    step = method.training_step(method.network, batch, 0)
    sum(step.losses[name] * step.weights[name] for name in step.losses).backward()
    changed = {name for name, parameter in method.network.named_parameters() if parameter.grad.any()}
    assert changed == {"classifier.weight"}
    for later in (3, 4):
        method.network.zero_grad()
        step = method.training_step(method.network, batch, later)
        step.losses["cls"].backward(retain_graph=True)
        changed = {name for name, parameter in method.network.named_parameters() if parameter.grad is not None}
        assert changed == {"classifier.weight"}
        (step.losses["seg"] + step.losses["aff"]).backward()
        assert not [name for name, parameter in method.network.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("released", [False, True])
def test_while_only_the_classifier_learns_the_encoder_rests(released: bool, folder: Path) -> None:
    cams = ("model.cam_block=3", "schedule.cls_until=2", "schedule.refined_until=3", "train.log_every=1")
    weights = []
    for last in (1, 3, 4):
        run = folder / f"rests_{released}_{last}"
        overrides = (*cams, f"train.output={run}", f"schedule.released_decoder_passes={released}")
        stop = {f"step {last}/": faults.stop_with(signal.SIGTERM)}
        assert faults.run_here(folder / "config.yaml", *overrides, when=stop).code == 75
        weights.append(read_tensors(run / "checkpoints" / "last" / "weights.safetensors"))
    first, third, fourth = weights
    encoder = [name for name in first if name.startswith("encoder.")]
    assert all(torch.equal(first[name], third[name]) for name in encoder)
    assert not any(torch.equal(third[name], fourth[name]) for name in encoder if first[name].ndim > 1)
    assert not torch.equal(first["classifier.weight"], third["classifier.weight"])


@pytest.mark.parametrize("centred", [False, True])
def test_centred_cams_are_what_labels_and_predictions_are_made_of(centred: bool, folder: Path) -> None:
    config = load_config(folder / "config.yaml", [f"cam.centred={centred}", "cam.scales=[1.0]", "model.drop_path=0"])
    method = build_method(config, ["a", "b"], SingleProcess())
    network, settings = method.network.eval(), config.cam  # type: ignore[attr-defined]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    classes = np.array([1, 1], np.float32)
    pixels = normalise(image, config.dataset.image_mean, config.dataset.image_std)[None]
    expected = multi_scale_cam(network.cam, pixels, (1.0,), epsilon=1e-5, with_affinity=False, centred=centred).cams
    found = method.predict([Sample("one", image, classes)], ["cam"], SegmentationProtocol())[0].outputs["cam"]
    torch.testing.assert_close(found.scores, expected, atol=1e-5, rtol=0)

    box = torch.tensor([[0, 64, 0, 64]])
    batch = {"image": pixels, "class_labels": torch.from_numpy(classes)[None], "valid_box": box}
    label = method.training_step(network, batch, 1).targets["seg"]
    labels = PseudoLabels(settings, config.affinity, config.par)  # type: ignore[attr-defined]
    present = present_classes(batch["class_labels"], torch.device("cpu"))
    rgb = par_image(pixels, config.dataset.image_mean, config.dataset.image_std)
    assert torch.equal(label, labels.refined(rgb, present.maps(expected), box))


def test_a_block_for_cams_is_trained_stopped_and_opened(folder: Path, tmp_path: Path, run_tool: RunTool) -> None:
    cams = ("model.cam_block=3", "model.pooling=topk", "cam.centred=true", "schedule.cls_until=1", "train.log_every=1")
    stop = {"step 2/": faults.stop_with(signal.SIGTERM)}  # while the optimiser has no moments of the encoder
    for run, when, code in (("run", None, 0), ("stopped", stop, 75), ("stopped", None, 0)):
        done = faults.run_here(folder / "config.yaml", *cams, f"train.output={tmp_path / run}", when=when)
        assert done.code == code, done.text
    whole, resumed = (
        read_tensors(tmp_path / run / "checkpoints" / "last" / "weights.safetensors") for run in ("run", "stopped")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    with pytest.raises(
        UserError, match=r"config.yaml: model.cam_block is 0, but the classifier of .* trained with 3: "
    ):
        open_checkpoint(tmp_path / "run", folder / "config.yaml")
    opened = open_checkpoint(tmp_path / "run")
    assert opened.config.model.cam_block == 3 and opened.config.cam.centred  # type: ignore[attr-defined]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 91, 3), np.uint8)).save(tmp_path / "odd.png")
    done = run_tool("infer.py", tmp_path / "run", tmp_path / "odd.png", "--out", tmp_path / "masks")
    assert done.returncode == 0, done.stderr


def test_a_block_for_cams_needs_a_vision_transformer() -> None:
    with pytest.raises(UserError, match=r"model\.cam_block .*, not for mit_b0: set model\.cam_block=0"):
        config_from_dict({"model": {"encoder": "mit_b0", "cam_block": 3}})


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


def test_as_onnx_it_has_one_size(folder: Path, tmp_path: Path, run_tool: RunTool) -> None:
    pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    output = tmp_path / "vit.onnx"
    done = run_tool("export.py", "onnx", folder / "run", "--output", output)
    assert done.returncode == 2 and "for images of one size: give --size HEIGHT WIDTH" in done.stderr
    assert not output.exists()
    done = run_tool("export.py", "onnx", folder / "run", "--output", output, "--size", "60", "91")
    assert done.returncode == 0, done.stderr
    images = torch.randn(3, 3, 60, 91)
    (found,) = runtime.InferenceSession(str(output)).run(["logits"], {"image": images.numpy()})
    with torch.no_grad():
        expected = open_checkpoint(folder / "run").method.network.segment(images)  # type: ignore[operator]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


def test_weights_alone_need_their_configuration(folder: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(folder / "run")
    save_network(opened.method.network, tmp_path / "alone.safetensors", {})
    with pytest.raises(UserError, match="Vision Transformer cannot be told from its weights; give the configuration"):
        open_checkpoint(tmp_path / "alone.safetensors")
    again = open_checkpoint(tmp_path / "alone.safetensors", folder / "config.yaml")
    assert again.method.name == "afa"
    unknown = {
        "config": json.dumps({"model": {"of_a_later_version": 1}}),
        "class_names": json.dumps(opened.class_names),
    }
    save_network(opened.method.network, tmp_path / "later.safetensors", unknown)
    with pytest.raises(UserError, match="of_a_later_version"):
        open_checkpoint(tmp_path / "later.safetensors")
    assert open_checkpoint(tmp_path / "later.safetensors", folder / "config.yaml").method.name == "afa"
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
