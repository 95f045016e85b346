"""ResNet-38, PSA's classifier and AffinityNet against the released program, and their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import DATA, Agreement, load_golden
from released_weights import parsed_shapes, released_state
from torch import nn

from afa.config.encoders import EncoderConfig
from afa.models import AffinityNetwork, CAMNetwork, ResNet38, build_encoder, pair_affinity
from afa.ops.neighbour_pairs import paired
from afa.weights.layouts import recognise

TINY = {"base_width": 2, "depths": (1, 1, 1, 1)}


def released_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> normalised in double precision, then float32."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return ((images.double() / 255 - mean[:, None, None]) / std[:, None, None]).float()


def golden_network(kind: str) -> nn.Module:
    """The narrow network of the golden file with its weights, loaded by their released names."""
    encoder = ResNet38(base_width=4)
    network = CAMNetwork(encoder, 20) if kind == "cls" else AffinityNetwork(encoder)
    network.load_state_dict(recognise(released_state("psa_narrow", f"{kind}_shapes")).tensors)
    return network.eval()


def relative(found: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both over the largest expected value."""
    largest = expected.abs().max()
    return found / largest, expected / largest


@pytest.mark.parametrize("kind", ["cls", "aff"])
def test_names_and_shapes_are_those_of_the_released_program(kind: str) -> None:
    with np.load(DATA / "psa_narrow.npz") as arrays:
        theirs = parsed_shapes(arrays[f"{kind}_shapes"])
    ours = {
        name.removeprefix("encoder."): tuple(tensor.shape) for name, tensor in golden_network(kind).state_dict().items()
    }
    assert ours == theirs


def test_weights_follow_from_their_names() -> None:
    golden = load_golden("psa_narrow")
    state = released_state("psa_narrow", "cls_shapes")
    checked = [key for key in golden if key.startswith("weight_check/")]
    assert len(checked) == 5
    for key in checked:
        assert torch.equal(state[key.removeprefix("weight_check/")].flatten()[:8], golden[key])


@torch.no_grad()
def test_reference_psa_classifier(agreement: Agreement) -> None:
    golden, network = load_golden("psa_narrow"), golden_network("cls")
    images = released_input(golden["images_uint8"])
    taps = network.encoder.features(images)  # type: ignore[union-attr,operator]
    for name, tap in zip(("conv4", "conv5", "conv6"), taps, strict=True):
        agreement.values(f"ResNet-38, {name}", *relative(tap, golden[name]), 2e-5, "relative to the largest")
    logits, cam = network(images), network.cam(images)  # type: ignore[operator]
    agreement.values("PSA, class logits", *relative(logits, golden["cls_logits"]), 2e-5, "relative to the largest")
    agreement.values("PSA, CAM", *relative(cam, golden["cam"]), 2e-5, "relative to the largest")


@torch.no_grad()
def test_reference_psa_affinity_net(agreement: Agreement) -> None:
    golden, network = load_golden("psa_narrow"), golden_network("aff")
    assert isinstance(network, AffinityNetwork)
    images = released_input(golden["images_uint8"])
    for part, found, key in (
        ("concatenated features", network.concatenated(images), "affinity_concatenated"),
        ("features", network.features(images), "affinity_feature"),
        ("affinity of pairs", network(images), "affinity"),
    ):
        agreement.values(f"AffinityNet, {part}", *relative(found, golden[key]), 2e-5, "relative to the largest")
    height, width = golden["affinity_feature"].shape[-2:]
    first, second = paired(torch.arange(height * width).view(height, width), network.radius)
    agreement.labels("AffinityNet, first positions of pairs", first[0], golden["pair_from"], 0)
    agreement.labels("AffinityNet, second positions of pairs", second, golden["pair_to"], 0)


def test_the_affinity_s_gradient_is_that_of_its_definition() -> None:
    features = torch.randn(2, 5, 6, 10, dtype=torch.float32, requires_grad=True)
    first, second = paired(features, 3)
    expected = (first - second).abs().mean(dim=1).neg().exp()
    found = pair_affinity(features, 3)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    (by_definition,) = torch.autograd.grad(expected, features, weight)
    (gradient,) = torch.autograd.grad(found, features, weight)
    torch.testing.assert_close(gradient, by_definition)


def test_the_affinity_is_float32_also_where_features_are_not() -> None:
    features = torch.randn(1, 5, 6, 10)
    found = pair_affinity(features.bfloat16(), 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pair_affinity(features.bfloat16().float(), 3))


def test_a_crop_too_small_for_pairs_is_refused() -> None:
    network = AffinityNetwork(ResNet38(**TINY)).eval()
    assert network(torch.zeros(1, 3, 33, 65)).shape == (1, 34, 1)
    with pytest.raises(ValueError, match="a grid of 4 x 9 positions is too small"):
        network(torch.zeros(1, 3, 32, 65))


def test_cam_is_the_classifier_at_each_position() -> None:
    network = CAMNetwork(ResNet38(**TINY), 3).eval()
    images = torch.randn(2, 3, 40, 33)
    feature = network.encoder.features(images)[-1]
    logits = torch.einsum("kc,bchw->bkhw", network.fc8.weight[:, :, 0, 0], feature)
    torch.testing.assert_close(network(images), logits.mean(dim=(2, 3)))
    torch.testing.assert_close(network.cam(images), logits.clamp(min=0))


def test_dropout_drops_channels_in_training_alone() -> None:
    network = CAMNetwork(ResNet38(**TINY), 3)
    feature = torch.ones(1, 128, 2, 2)
    assert torch.equal(network.eval().classify(feature), network.classify(feature))
    assert not torch.equal(network.train().classify(feature), network.classify(feature))
    network.encoder.freeze_released()
    images = torch.randn(1, 3, 32, 32)  # the blocks' dropout is active beside frozen norms
    assert not torch.equal(network.train().encoder.features(images)[2], network.encoder.features(images)[2])


def test_resnet38_as_published() -> None:
    with torch.device("meta"):
        encoder = ResNet38()
        widths = [parameter.shape[0] for parameter in AffinityNetwork(encoder).parameters()][-4:]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 105_070_912
    assert (encoder.channels, encoder.strides) == ((512, 1024, 4096), (8, 8, 8))
    assert widths == [64, 128, 256, 448]
    dilations = {
        name: (module.stride[0], module.dilation[0])
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and (module.stride[0], module.dilation[0]) != (1, 1)
    }
    assert dilations == {
        "b2.conv_branch2a": (2, 1),
        "b3.conv_branch2a": (2, 1),
        "b4.conv_branch2a": (2, 1),
        "b5.conv_branch2b1": (1, 2),
        **{f"b5_{unit}.conv_branch2{part}": (1, 2) for unit in (1, 2) for part in ("a", "b1")},
        "b6.conv_branch2b1": (1, 4),
        "b7.conv_branch2b1": (1, 4),
    }
    assert [module.p for module in encoder.modules() if isinstance(module, nn.Dropout2d)] == [0.3, 0.3, 0.5, 0.5]


def test_initial_weights() -> None:
    encoder = ResNet38(base_width=16, depths=(1, 1, 1, 1))
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05), name
    network = AffinityNetwork(encoder)
    assert network.f8_5.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.05)
    assert network.f9.weight.std().item() == pytest.approx(4 * math.sqrt(2 / (112 + 112)), rel=0.05)
    classifier = CAMNetwork(encoder, 20).fc8.weight
    assert classifier.std().item() == pytest.approx(math.sqrt(2 / (1024 + 20)), rel=0.05)
    assert classifier.abs().max().item() <= math.sqrt(6 / (1024 + 20))


def test_both_heads_work_on_a_network_of_timm() -> None:
    encoder = build_encoder(EncoderConfig(encoder="timm/lcnet_050"))
    images = torch.randn(2, 3, 41, 70)
    cam_network, affinity_network = CAMNetwork(encoder, 3).eval(), AffinityNetwork(encoder).eval()
    assert cam_network.cam(images).shape == (2, 3, 6, 9)
    assert affinity_network.features(images).shape == (2, 448, 6, 9)
    assert affinity_network(images).shape == (2, 34, 2)
    # Narrow layers in channels_last have ended the process in PyTorch's backward pass.
    for network in (CAMNetwork(encoder, 1), AffinityNetwork(encoder, (1, 1, 1))):
        network.train()(images).square().sum().backward()
        assert all(part.grad.isfinite().all() for part in network.parameters() if part.grad is not None)


def test_encoders_with_other_maps_are_refused() -> None:
    widths = {"widths": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "heads": [1, 2, 5, 8]}
    mit = build_encoder(EncoderConfig(encoder="custom", **widths))
    with pytest.raises(ValueError, match="three feature maps of one stride"):
        AffinityNetwork(mit)
    with pytest.raises(ValueError, match="three widths"):
        AffinityNetwork(ResNet38(**TINY), (4, 8))
    assert CAMNetwork(mit, 3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize("shape", [{"depths": (1, 1, 1)}, {"depths": (1, 0, 1, 1)}, {"dropout": (0.3,)}])
def test_impossible_shapes_of_resnet38_are_refused(shape: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="ResNet-38 has"):
        ResNet38(**{**TINY, **shape})  # type: ignore[arg-type]
