"""What every encoder and every decoder must do, and what is particular to DeepLab's heads."""

from __future__ import annotations

import io
import math

import pytest
import torch

from afa.config.encoders import EncoderConfig
from afa.errors import UserError
from afa.models import SegmentationNetwork, build_decoder, build_encoder
from afa.models.deeplab import ASPP, LargeFOV

TINY = {"encoder": "custom", "widths": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "heads": [1, 2, 5, 8]}
ENCODERS = {
    "mit, stride 8": EncoderConfig(**TINY, strides=[4, 2, 1, 1]),
    "mit, stride 16": EncoderConfig(**TINY, strides=[4, 2, 2, 1]),
}
DECODERS = {
    "segformer": {"width": 12, "dropout": 0.1, "rates": ()},
    "deeplab_largefov": {"width": 12, "dropout": 0.5, "rates": (12,)},
    "deeplab_v2": {"width": 0, "dropout": 0.0, "rates": (6, 12, 18, 24)},
}


def network(encoder: str, decoder: str) -> SegmentationNetwork:
    built = build_encoder(ENCODERS[encoder])
    return SegmentationNetwork(built, build_decoder(decoder, built, 3, **DECODERS[decoder]))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_gives_what_it_promises(name: str) -> None:
    encoder = build_encoder(ENCODERS[name]).eval()
    assert len(encoder.mean) == len(encoder.std) == 3
    for height, width in ((64, 48), (37, 51)):
        features = encoder.features(torch.randn(2, 3, height, width))
        expected = [
            (2, channels, math.ceil(height / stride), math.ceil(width / stride))
            for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
        ]
        assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_network_trains_and_can_be_saved(encoder: str, decoder: str) -> None:
    built = network(encoder, decoder)
    images = torch.randn(2, 3, 37, 51)
    logits = built.segment(images)
    stride = built.encoder.strides[0 if decoder == "segformer" else -1]
    assert logits.shape == (2, 3, math.ceil(37 / stride), math.ceil(51 / stride))
    logits.square().sum().backward()
    assert not [name for name, parameter in built.named_parameters() if parameter.grad is None]
    assert all(torch.isfinite(parameter.grad).all() for parameter in built.parameters())

    file = io.BytesIO()
    torch.save(built.state_dict(), file)
    file.seek(0)
    other = network(encoder, decoder)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval().segment(images), built.eval().segment(images))


@pytest.mark.parametrize(("stride", "reach"), [(8, {6, 12, 18, 24}), (16, {3, 6, 9, 12})])
def test_aspp_looks_as_far_in_pixels_at_both_strides(stride: int, reach: set[int]) -> None:
    head = ASPP(channels=4, stride=stride, num_classes=2, rates=(6, 12, 18, 24))
    assert rows_that_notice(head) == {0, *reach, *(-step for step in reach)}


@pytest.mark.parametrize(("stride", "reach"), [(8, 12), (16, 6)])
def test_large_fov_looks_as_far_in_pixels_at_both_strides(stride: int, reach: int) -> None:
    head = LargeFOV(channels=4, stride=stride, num_classes=2, width=32, dropout=0.5, rate=12).eval()
    assert rows_that_notice(head) == {-reach, 0, reach}


def rows_that_notice(head: torch.nn.Module) -> set[int]:
    """At which distances in rows the logits depend on one position of the features."""
    features = torch.zeros(1, 4, 61, 61)
    before = head([features])
    features[:, :, 30, 30] = 1.0
    changed = (head([features]) != before).any(dim=1)[0]
    assert torch.equal(changed.any(dim=0), changed.any(dim=1))
    return {int(row) - 30 for row in changed.any(dim=1).nonzero()}


def test_branches_of_aspp_are_summed() -> None:
    whole = ASPP(channels=4, stride=8, num_classes=2, rates=(6, 12))
    features = torch.randn(1, 4, 9, 9)
    total = sum(branch(features) for branch in whole.branches)
    torch.testing.assert_close(whole([features]), total)


@pytest.mark.parametrize("stride", [4, 32])
def test_deeplab_refuses_other_strides(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride 8 or 16, not {stride}"):
        ASPP(channels=4, stride=stride, num_classes=2, rates=(6,))
    with pytest.raises(ValueError, match=f"stride 8 or 16, not {stride}"):
        LargeFOV(channels=4, stride=stride, num_classes=2, width=4, dropout=0.0, rate=12)


def test_deeplab_refuses_rates_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="must be even"):
        ASPP(channels=4, stride=16, num_classes=2, rates=(6, 9))
    assert len(ASPP(channels=4, stride=8, num_classes=2, rates=(6, 9)).branches) == 2


def test_unknown_encoder_is_one_line_that_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"model.encoder: 'mit_b6' is none of mit_b0.*did you mean 'mit_b"):
        build_encoder(EncoderConfig(encoder="mit_b6"))


def test_unknown_decoder() -> None:
    with pytest.raises(ValueError, match="no decoder 'fcn'"):
        build_decoder("fcn", build_encoder(ENCODERS["mit, stride 8"]), 3, width=1, dropout=0.0, rates=())
