"""What every encoder and every decoder must do, and what is particular to DeepLab's heads."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

from afa.config.encoders import EncoderConfig
from afa.errors import UserError
from afa.models import SegmentationNetwork, build_attentive_encoder, build_decoder, build_encoder
from afa.models.deeplab import ASPP, Dilated, LargeFOV

TINY = {"encoder": "custom", "widths": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "heads": [1, 2, 5, 8]}
ENCODERS = {
    "mit, stride 8": EncoderConfig(**TINY, strides=[4, 2, 1, 1]),
    "mit, stride 16": EncoderConfig(**TINY, strides=[4, 2, 2, 1]),
    "resnet38": EncoderConfig(encoder="resnet38", base_width=2, depths=[1, 2, 1, 1]),
    "timm, stride 8": EncoderConfig(encoder="timm/lcnet_050"),
    "timm, stride 16": EncoderConfig(encoder="timm/lcnet_050", output_stride=16),
}
DECODERS = {
    "segformer": {"width": 12, "dropout": 0.1, "rates": ()},
    "deeplab_largefov": {"width": 12, "dropout": 0.5, "rates": (12,)},
    "deeplab_v2": {"width": 0, "dropout": 0.0, "rates": (6, 12, 18, 24)},
    "dilated": {"width": 12, "dropout": 0.0, "rates": (12,)},
}
PAIRS = [
    (encoder, decoder)
    for encoder in ENCODERS
    for decoder in DECODERS
    if decoder == "dilated" or encoder.startswith("mit")  # the rest follows from the features' shapes
]
# Which layers the released programs leave as they are, BatchNorms aside; where their last one ends in the list.
FROZEN = {
    "resnet38": ("conv1a.", "b2.", "b2_1."),
    "timm, stride 8": ("cnn.conv_stem.", "cnn.blocks.0.", "cnn.blocks.1."),
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


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_frozen_stays_in_training(name: str) -> None:
    encoder = build_encoder(ENCODERS[name])
    encoder.freeze_released()
    images = torch.randn(2, 3, 40, 48)
    for one in (encoder, copy.deepcopy(encoder)):
        one.eval()
        whole = torch.nn.Sequential(one).train()
        before = {key: value.clone() for key, value in one.state_dict().items()}
        sum(feature.square().sum() for feature in one.features(images)).backward()  # type: ignore[union-attr]
        learned = {key for key, parameter in one.named_parameters() if parameter.grad is not None}
        torch.optim.SGD(whole.parameters(), lr=1e-3, weight_decay=0.1).step()
        changed = {key for key, value in one.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and changed <= learned
        norms = {key for key, module in one.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
        assert not {key.rpartition(".")[0] for key in learned} & norms
        if name.startswith("mit"):
            assert learned == {key for key, _ in one.named_parameters() if "norm" not in key}
        if name in FROZEN:
            assert learned == {
                key
                for key, _ in one.named_parameters()
                if not key.startswith(FROZEN[name]) and key.rpartition(".")[0] not in norms
            }


@pytest.mark.parametrize("name", [name for name in ENCODERS if not name.startswith("mit")])
def test_what_is_not_frozen_learns(name: str) -> None:
    encoder = build_encoder(ENCODERS[name]).train()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    sum(feature.square().sum() for feature in encoder.features(torch.randn(2, 3, 40, 48))).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(not torch.equal(value, before[key]) for key, value in encoder.named_buffers())


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
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


@pytest.mark.parametrize(("stride", "reach"), [(8, 12), (16, 6)])
def test_dilated_layers_look_twice_as_far_as_one(stride: int, reach: int) -> None:
    head = Dilated(channels=4, stride=stride, num_classes=2, width=32, dropout=0.0, rate=12).eval()
    assert rows_that_notice(head) == {-2 * reach, -reach, 0, reach, 2 * reach}


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


@pytest.mark.parametrize("name", ["resnet38", "timm/resnet50", "timm/swin_tiny_patch4_window7_224"])
def test_networks_that_need_attention_take_transformers_alone(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"attention of a Mix Transformer or of a plain .*, which '{name}' does not have"
    ):
        build_attentive_encoder(EncoderConfig(encoder=name), 2)


def test_segformer_s_decoder_needs_four_maps() -> None:
    with pytest.raises(ValueError, match="four feature maps, and the encoder has 3"):
        build_decoder("segformer", build_encoder(ENCODERS["resnet38"]), 3, width=1, dropout=0.0, rates=())


@pytest.mark.parametrize(
    ("name", "stride", "words"),
    [
        ("timm/resnet5", 8, "timm has no network 'resnet5'; did you mean 'timm/resnet5"),
        ("timm/vgg11", 8, "three feature maps at model.output_stride=8"),
        ("timm/xception41", 8, "three feature maps at model.output_stride=8"),
        ("timm/hf-hub:somebody/model", 8, "names no network of timm"),
        ("timm/", 8, "names no network of timm"),
    ],
)
def test_networks_of_timm_that_do_not_work_are_one_line(name: str, stride: int, words: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.encoder: .*{words}"):
        build_encoder(EncoderConfig(encoder=name, output_stride=stride))


def test_timm_s_maps_are_the_library_s_own() -> None:
    import timm

    encoder = build_encoder(EncoderConfig(encoder="timm/tf_efficientnet_lite0")).eval()
    own = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=8).eval()
    own.load_state_dict({name.removeprefix("cnn."): value for name, value in encoder.state_dict().items()})
    images = torch.randn(1, 3, 32, 40)
    assert encoder.channels == (40, 112, 320)
    assert encoder.mean == (127.5, 127.5, 127.5)
    # Convolutions round in another way for each memory format; the encoder takes the fastest on the CPU.
    expected_maps = own(images.contiguous(memory_format=torch.channels_last))[-3:]
    for found, expected, plain in zip(encoder.features(images), expected_maps, own(images)[-3:], strict=True):
        assert torch.equal(found, expected)
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_finer_maps_of_timm_are_averaged() -> None:
    encoder = build_encoder(ENCODERS["timm, stride 16"]).eval()
    images = torch.randn(1, 3, 32, 48)
    finer = encoder.cnn(images)[-3]
    assert finer.shape[-2:] == (4, 6)
    expected = finer.unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(encoder.features(images)[0], expected)
