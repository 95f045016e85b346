"""Weights of EDAM's network under the released names, into networks, and out again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from psa_files import released_names
from run_tool import RunTool
from samples import same

from afa.errors import UserError
from afa.models import CAMNetwork, EDAMNetwork, ResNet38
from afa.models.edam import position_code
from afa.weights import layouts_of, load_encoder, load_fitting, load_network, read_tensors, save_afa_layout
from afa.weights.layouts import describe_resnet38, recognise


def small(num_classes: int = 3) -> EDAMNetwork:
    encoder = ResNet38(base_width=2, depths=(1, 1, 1, 1), last_relu=False)
    network = EDAMNetwork(encoder, num_classes, width=8)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network


def test_a_released_file_fills_a_network_and_its_encoder_whatever_its_table_of_positions(tmp_path: Path) -> None:
    network, again = small(), small()
    released = {**released_names(network.state_dict()), "embedding.position.pe": torch.zeros(1, 7, 8)}
    torch.save(released, tmp_path / "EDAM_final.pth")
    load_network(again, tmp_path / "EDAM_final.pth")
    encoder = ResNet38(base_width=2, depths=(1, 1, 1, 1))
    load_encoder(encoder, tmp_path / "EDAM_final.pth")
    assert same(network, again) and same(network.encoder, encoder)
    with pytest.raises(UserError, match="has 4 classes with the background, but the network has 6"):
        load_network(small(5), tmp_path / "EDAM_final.pth")


def test_the_released_layout_holds_the_table_of_positions(tmp_path: Path) -> None:
    network, again = small(), small()
    assert layouts_of(network) == ("afa", "released")
    save_afa_layout(network, tmp_path / "EDAM_final.pth")
    written = read_tensors(tmp_path / "EDAM_final.pth")
    assert set(written) == {*released_names(network.state_dict()), "embedding.position.pe"}
    assert torch.equal(written["embedding.position.pe"][0], position_code(46 * 46, 8))
    load_network(again, tmp_path / "EDAM_final.pth")
    assert same(network, again)


def test_a_released_file_describes_itself() -> None:
    seen = recognise(released_names(small().state_dict()))
    assert seen.num_classes == 4 and seen.kind.startswith("EDAM network (ResNet-38, base width 2")
    model = {"encoder": "resnet38", "base_width": 2, "depths": [1, 1, 1, 1], "attention_width": 8}
    assert describe_resnet38(seen) == {"method": "edam", "model": model}
    assert describe_resnet38(recognise({**seen.tensors, "d_d.weight": torch.zeros(())})) is None


def test_it_starts_from_a_classifier_of_psa(tmp_path: Path) -> None:
    classifier = CAMNetwork(ResNet38(base_width=2, depths=(1, 1, 1, 1)), 3)
    torch.save(released_names(classifier.state_dict()), tmp_path / "res38_cls.pth")
    network = small()
    before = network.d_d.weight.clone()
    load_fitting(network, tmp_path / "res38_cls.pth")
    assert same(classifier.encoder, network.encoder) and torch.equal(network.d_d.weight, before)


def test_a_released_file_is_opened_without_a_configuration(tmp_path: Path, run_tool: RunTool) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save(images / "a.png")
    network = EDAMNetwork(ResNet38(base_width=2, depths=(1, 1, 1, 1), last_relu=False), 20, width=8)
    torch.save(released_names(network.state_dict()), tmp_path / "EDAM_final.pth")
    done = run_tool("infer.py", tmp_path / "EDAM_final.pth", images, "test.long_side=0", "--output", tmp_path / "found")
    assert done.returncode == 0 and (tmp_path / "found").is_dir(), done.stderr
