"""Weights of PSA's networks, and of timm's: under everybody's names, into networks, and out again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from psa_files import mxnet_names, released_names, write_mxnet
from samples import same, small_network
from torch import nn

from afa.config.encoders import EncoderConfig
from afa.errors import UserError
from afa.models import AffinityNetwork, CAMNetwork, ResNet38, build_encoder
from afa.weights import (
    layouts_of,
    load_encoder,
    load_fitting,
    load_network,
    read_tensors,
    save_afa_layout,
    save_network,
)
from afa.weights.layouts import describe_resnet38, recognise

SHAPE = {"base_width": 2, "depths": (1, 2, 1, 1)}


def changed(network: nn.Module) -> nn.Module:
    """With other values in every place, counters aside."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network


def classifier(num_classes: int = 3) -> CAMNetwork:
    return CAMNetwork(ResNet38(**SHAPE), num_classes)  # type: ignore[arg-type]


@pytest.fixture
def trained() -> CAMNetwork:
    network = changed(classifier())
    assert isinstance(network, CAMNetwork)
    return network


def test_a_released_file_fills_a_network_and_its_encoder(trained: CAMNetwork, tmp_path: Path) -> None:
    released = released_names(trained.state_dict())
    without_counters = {name: value for name, value in released.items() if not name.endswith("num_batches_tracked")}
    for number, content in enumerate((released, without_counters, {"state_dict": released})):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        network, encoder = classifier(), ResNet38(**SHAPE)  # type: ignore[arg-type]
        load_network(network, path)
        load_encoder(encoder, path)
        assert same(trained, network) and same(trained.encoder, encoder)


def test_mxnet_s_file_fills_the_encoder_without_its_head(
    trained: CAMNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = {"arg:linear1000_weight": torch.zeros(1000, 128), "arg:linear1000_bias": torch.zeros(1000)}
    write_mxnet(tmp_path / "imagenet.params", {**mxnet_names(trained.encoder.state_dict()), **head})
    encoder = ResNet38(**SHAPE)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="afa"):
        load_encoder(encoder, tmp_path)  # the only file of weights in this folder
    assert same(trained.encoder, encoder)
    assert "ResNet-38 ImageNet weights (ResNet-38, base width 2, depths [1, 2, 1, 1])" in caplog.text
    assert "without arg:linear1000_weight and arg:linear1000_bias" in caplog.text


def test_names_of_the_published_mxnet_file() -> None:
    state = ResNet38(base_width=1).state_dict()
    theirs = mxnet_names(state)
    assert {"arg:res4b5_branch2b1_weight", "aux:bn2b1_branch2a_moving_mean", "arg:res6a_branch1_weight"} <= set(theirs)
    seen = recognise(theirs)
    assert set(seen.tensors) == {f"encoder.{name}" for name in state if not name.endswith("num_batches_tracked")}
    assert seen.kind == "ResNet-38 ImageNet weights (ResNet-38, base width 1, depths [3, 3, 6, 3])"


@pytest.mark.parametrize("layout", ["ours", "released"])
def test_affinity_net_starts_from_a_classifier(
    layout: str, trained: CAMNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ("cam.safetensors" if layout == "ours" else "res38_cls.pth")
    if layout == "ours":
        save_network(trained, path, {})
    else:
        save_afa_layout(trained, path)
        assert set(read_tensors(path)) == set(released_names(trained.state_dict()))
    network = AffinityNetwork(ResNet38(**SHAPE))  # type: ignore[arg-type]
    before = network.f9.weight.clone()
    with caplog.at_level(logging.INFO, logger="afa"):
        load_fitting(network, path)
    assert same(trained.encoder, network.encoder)
    assert torch.equal(network.f9.weight, before)
    assert "not there: f8_3.weight, f8_4.weight, f8_5.weight, f9.weight" in caplog.text


def test_both_networks_have_the_released_layout(trained: CAMNetwork, tmp_path: Path) -> None:
    affinity = changed(AffinityNetwork(ResNet38(**SHAPE)))  # type: ignore[arg-type]
    assert layouts_of(trained) == layouts_of(affinity) == ("afa", "released")
    assert layouts_of(CAMNetwork(build_encoder(EncoderConfig(encoder="timm/lcnet_050")), 3)) == ("afa",)
    save_afa_layout(affinity, tmp_path / "res38_aff.pth")
    again = AffinityNetwork(ResNet38(**SHAPE))  # type: ignore[arg-type]
    load_network(again, tmp_path / "res38_aff.pth")
    assert same(affinity, again)


def test_a_released_file_describes_itself(trained: CAMNetwork) -> None:
    seen = recognise(released_names(trained.state_dict()))
    assert seen.num_classes == 4
    assert seen.kind.startswith("PSA CAM network (ResNet-38, base width 2")
    model = {"encoder": "resnet38", "base_width": 2, "depths": [1, 2, 1, 1]}
    assert describe_resnet38(seen) == {"method": "psa_cam", "model": model}
    affinity = recognise(released_names(AffinityNetwork(trained.encoder).state_dict()))
    assert describe_resnet38(affinity) == {"method": "psa_affinity", "model": model}
    assert describe_resnet38(recognise(trained.encoder.state_dict())) is None
    assert describe_resnet38(recognise(small_network().state_dict())) is None


def test_another_encoder_is_named(trained: CAMNetwork, tmp_path: Path) -> None:
    torch.save(released_names(trained.state_dict()), tmp_path / "cls.pth")
    before = ResNet38(base_width=2, depths=(1, 1, 1, 1))
    for encoder in (before, small_network().encoder):
        with pytest.raises(UserError, match=r"a PSA CAM network .*set model\.encoder=resnet38, model\.base_width=2"):
            load_encoder(encoder, tmp_path / "cls.pth")
    with pytest.raises(UserError, match="has 4 classes with the background, but the network has 6"):
        load_network(classifier(5), tmp_path / "cls.pth")
    torch.save(small_network().state_dict(), tmp_path / "afa.pth")
    with pytest.raises(UserError, match=r"an AFA checkpoint .*encoder is a ResNet-38, base width 2"):
        load_encoder(trained.encoder, tmp_path / "afa.pth")


def test_left_over_and_missing_tensors_are_named(trained: CAMNetwork, tmp_path: Path) -> None:
    released = released_names(trained.state_dict())
    del released["b7.conv_branch1.weight"]
    torch.save({**released, "b8.conv_branch1.weight": torch.zeros(1)}, tmp_path / "cls.pth")
    with pytest.raises(UserError, match=r"missing \(1\): encoder\.b7.*left over \(1\): encoder\.b8"):
        load_network(classifier(), tmp_path / "cls.pth")


@pytest.mark.parametrize(
    ("name", "dropped"),
    [("lcnet_050", "conv_head.weight"), ("resnet10t", "fc.weight"), ("convnext_atto", "head.norm.weight")],
)
def test_timm_s_own_files_fill_its_networks(
    name: str, dropped: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import timm

    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / f"{name}.pth")
    encoder = build_encoder(EncoderConfig(encoder=f"timm/{name}")).eval()
    with caplog.at_level(logging.INFO, logger="afa"):
        load_encoder(encoder, tmp_path / f"{name}.pth")
    own = timm.create_model(name, features_only=True, output_stride=8).eval()
    own.load_state_dict({key.removeprefix("cnn."): value for key, value in encoder.state_dict().items()})
    weights = {key.replace(".", "_", 1): value for key, value in whole.state_dict().items()} | whole.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in own.state_dict().items())
    assert dropped in caplog.text

    save_network(CAMNetwork(encoder, 3), tmp_path / "ours.safetensors", {})
    again = build_encoder(EncoderConfig(encoder=f"timm/{name}"))
    load_encoder(again, tmp_path / "ours.safetensors")
    assert same(encoder, again)


def test_a_file_of_another_network_of_timm_is_refused(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    encoder = build_encoder(EncoderConfig(encoder="timm/resnet10t"))
    with pytest.raises(UserError, match=r"it seems to be a ResNet-18; missing \(28\).*layer1\.1\.bn1"):
        load_encoder(encoder, tmp_path / "resnet18.pth")
