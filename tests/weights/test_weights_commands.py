"""The commands that read and write weights."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from run_tool import RunTool
from samples import (
    MEAN,
    NAMES,
    STD,
    Harmful,
    published,
    refused,
    same,
    small_network,
    small_settings,
    write_checkpoint,
    write_config,
    write_foreign_files,
)

from afa.data.shapes import ShapesStyle, make_shapes
from afa.errors import UserError
from afa.methods.afa.config import AFAConfig, ModelConfig
from afa.weights import load_network, load_segmenter, open_checkpoint, pack_metadata, save_huggingface, save_network


def test_command_converts_through_every_layout_and_back(tmp_path: Path, run_tool: RunTool) -> None:
    write_checkpoint(tmp_path / "run/checkpoints/step_00000004", seed=1, step=4)
    (tmp_path / "run/checkpoints/last").symlink_to("step_00000004")
    ours, released, exported = tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "c"
    for source, destination, layout in (
        (tmp_path / "run", ours, "afa"),
        (ours, released, "released"),
        (ours, exported, "huggingface"),
    ):
        outcome = run_tool("convert_weights.py", source, destination, "--format", layout)
        assert outcome.returncode == 0, outcome.stderr
        assert "5 classes and the background" in outcome.stdout and "sha256" in outcome.stderr
    assert open_checkpoint(ours).step == 4
    target, source = small_network(2), small_network(1)
    load_network(target, released)
    assert same(source, target)
    segmenter = small_network(3)
    load_segmenter(segmenter, exported)
    assert same(source.encoder, segmenter.encoder) and same(source.decoder, segmenter.decoder)
    config = json.loads((exported / "config.json").read_text())
    assert config["id2label"] == dict(zip("012345", ["background", *NAMES], strict=True))
    assert config["strides"] == [4, 2, 2, 1]


def test_what_is_no_network_of_ours_is_refused_and_runs_no_code(tmp_path: Path, run_tool: RunTool) -> None:
    good, trace = tmp_path / "good.safetensors", write_foreign_files(tmp_path)
    save_network(small_network(), good, pack_metadata(AFAConfig(model=small_settings()), NAMES, None))
    torch.save({"state_dict": small_network().state_dict()}, tmp_path / "good.pth")
    (tmp_path / "truncated.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:20000])
    (tmp_path / "truncated.safetensors").write_bytes(good.read_bytes()[:-7])
    flipped = bytearray(good.read_bytes())
    flipped[-1000] ^= 4
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "folder").mkdir()
    torch.save({"x": Harmful(trace)}, tmp_path / "old_code.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"x": Harmful(trace)}))
    torch.save(published("afa_mit_b0_voc"), tmp_path / "afa_b0.pth")
    save_huggingface(small_network(), tmp_path / "exported", class_names=NAMES, image_mean=MEAN, image_std=STD)
    write_config(tmp_path / "b1.yaml", ModelConfig(encoder="mit_b1"), type="voc")
    write_config(tmp_path / "coco.yaml", ModelConfig(encoder="mit_b0"), type="coco")
    cases: list[tuple[str, str, list[object]]] = [
        ("missing.pth", "no such file", []),
        ("truncated.pth", "damaged", []),
        ("truncated.safetensors", "damaged", []),
        ("flipped.safetensors", "checksum", []),
        ("empty.pth", "empty", []),
        ("page.pth", "no weights file", []),
        ("folder", "holds no weights", []),
        ("code.pth", "run code to be read, which is refused; open it where you trust it", []),
        ("old_code.pth", "run code to be read, which is refused; open it where you trust it", []),
        ("pickle.pth", "could run code, which is refused; open it where you trust it", []),
        ("resnet.pth", "seems to be a ResNet", []),
        ("mit_b2.pth", "SegFormer ImageNet weights (mit_b2)", []),
        ("exported", "Hugging Face SegformerForSemanticSegmentation", []),
        ("afa_b0.pth", "set model.encoder=mit_b0", [tmp_path / "b1.yaml"]),
        ("afa_b0.pth", "20 classes without the background", [tmp_path / "coco.yaml"]),
        ("good.safetensors", "neither a file nor a recipe", [tmp_path / "none.yaml"]),
    ]
    for name, message, more in cases:
        with pytest.raises(UserError, match=re.escape(message)):
            open_checkpoint(tmp_path / name, *more)
    destination = tmp_path / "out.pth"
    outcome = run_tool("convert_weights.py", tmp_path / "flipped.safetensors", destination, "--format", "released")
    assert "checksum" in refused(outcome)
    assert not destination.exists()
    assert not trace.exists()


def test_training_refuses_pretrained_weights_that_are_none_and_leaves_nothing(
    tmp_path: Path, run_tool: RunTool
) -> None:
    make_shapes(tmp_path / "shapes", train=2, val=1, seed=0, style=ShapesStyle(size=64), workers=1)
    trace = write_foreign_files(tmp_path)
    (tmp_path / "truncated.pth").write_bytes((tmp_path / "mit_b2.pth").read_bytes()[:20000])
    write_config(tmp_path / "run.yaml", ModelConfig(encoder="mit_b1"), type="voc", root=str(tmp_path / "shapes"))
    cases = {
        "code.pth": "run code to be read, which is refused",
        "resnet.pth": "seems to be a ResNet",
        "mit_b2.pth": "SegFormer ImageNet weights (mit_b2), but the network's encoder is a mit_b1",
        "truncated.pth": "damaged",
    }
    output = tmp_path / "output"
    settings = (f"train.output={output}", "train.device=cpu", "dataset.train_split=train", "train.workers=0")
    for name, message in cases.items():
        outcome = run_tool("train.py", tmp_path / "run.yaml", *settings, f"model.pretrained={tmp_path / name}")
        assert message in refused(outcome)
    assert not output.exists()
    assert not trace.exists()


@pytest.mark.parametrize(("layout", "name"), [("afa", "a.pth"), ("released", "a"), ("huggingface", "a.safetensors")])
def test_command_refuses_a_destination_of_another_layout(
    layout: str, name: str, tmp_path: Path, run_tool: RunTool
) -> None:
    assert "writes a" in refused(run_tool("convert_weights.py", tmp_path, tmp_path / name, "--format", layout))
