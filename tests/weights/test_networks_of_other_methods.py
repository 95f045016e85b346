"""Weights of networks that are not AFA's: written as ours, opened as the method that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_tool import RunTool
from samples import NAMES, published, refused, same

from afa.errors import UserError
from afa.methods import build_method, config_from_dict
from afa.methods.base import Method, SingleProcess
from afa.weights import open_checkpoint, pack_metadata, save_network

MODEL = {"encoder": "custom", "widths": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "heads": [1, 2, 5, 8]}


def segmenter(seed: int = 1) -> Method:
    torch.manual_seed(seed)
    sections = {"dataset": {"pixel_labels": "labels"}, "model": {**MODEL, "decoder_width": 16}}
    config = config_from_dict({"method": "segment", **sections})
    return build_method(config, NAMES, SingleProcess())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    method = segmenter()
    path = tmp_path / "segmenter.safetensors"
    save_network(method.network, path, pack_metadata(method.config, NAMES, 7))
    return path


def test_our_layout_holds_them(weights: Path, tmp_path: Path, run_tool: RunTool) -> None:
    destination = tmp_path / "again.safetensors"
    done = run_tool("convert_weights.py", weights, destination, "--format", "afa")
    assert done.returncode == 0, done.stderr
    for path in (weights, destination):
        opened = open_checkpoint(path)
        assert (opened.method.name, opened.class_names, opened.step, opened.path) == ("segment", NAMES, 7, path)
        assert opened.config == segmenter().config
        assert same(opened.method.network, segmenter().network)
        assert not opened.method.network.training


@pytest.mark.parametrize(("layout", "name"), [("released", "out.pth"), ("huggingface", "out")])
def test_other_layouts_are_refused(layout: str, name: str, weights: Path, tmp_path: Path, run_tool: RunTool) -> None:
    result = run_tool("convert_weights.py", weights, tmp_path / name, "--format", layout)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and "method 'segment'" in line and "give --format afa" in line
    assert not (tmp_path / name).exists()


def test_a_configuration_of_another_method_is_refused(weights: Path, tmp_path: Path) -> None:
    config = tmp_path / "afa.yaml"
    config.write_text("model: {encoder: mit_b0}\n")
    with pytest.raises(UserError, match=r"segmenter\.safetensors seems to be") as caught:
        open_checkpoint(weights, config)
    assert "\n" not in str(caught.value)


def test_what_says_nothing_about_itself_needs_its_configuration(
    weights: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    torch.save(published("segformer_mit_b0"), tmp_path / "encoder.pth")
    line = refused(
        run_tool("convert_weights.py", tmp_path / "encoder.pth", tmp_path / "out.pth", "--format", "released")
    )
    assert "holds no AFA network and has no record of its configuration" in line and "give the configuration" in line


@pytest.mark.parametrize(
    "encoder",
    [
        {"encoder": "resnet38", "base_width": 2, "depths": [1, 2, 1, 1]},
        {"encoder": "timm/lcnet_050", "output_stride": 16},
    ],
)
def test_convolutional_encoders_are_opened_as_they_were_built(encoder: dict[str, object], tmp_path: Path) -> None:
    model = {**encoder, "decoder": "dilated", "decoder_width": 8}
    config = config_from_dict({"method": "segment", "dataset": {"pixel_labels": "labels"}, "model": model})
    method = build_method(config, NAMES, SingleProcess())
    save_network(method.network, tmp_path / "segmenter.safetensors", pack_metadata(config, NAMES, 7))
    opened = open_checkpoint(tmp_path / "segmenter.safetensors")
    assert opened.config == config and same(opened.method.network, method.network)

    deep = config_from_dict(
        {
            "method": "segment",
            "dataset": {"pixel_labels": "labels"},
            "model": {"encoder": "resnet38", "depths": [512] * 4, "base_width": 512, "decoder": "dilated"},
        }
    )
    save_network(method.network, tmp_path / "deep.safetensors", pack_metadata(deep, NAMES, 7))
    with pytest.raises(UserError, match=r"tensors are too few for 2048 blocks \(model\.encoder=resnet38\)"):
        open_checkpoint(tmp_path / "deep.safetensors")
