"""The settings of encoders: which family they belong to, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest

from afa.config.encoders import EncoderConfig, encoder_stride, encoder_variant
from afa.errors import UserError
from afa.methods import config_from_dict


def segment(model: dict[str, Any], crop_size: int = 321) -> EncoderConfig:
    sections = {"dataset": {"pixel_labels": "labels"}, "augmentation": {"crop_size": crop_size}, "model": model}
    config = config_from_dict({"method": "segment", **sections})
    return config.model  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("model", "stride"),
    [
        ({"encoder": "resnet38", "decoder": "dilated"}, 8),
        ({"encoder": "resnet38", "base_width": 8, "depths": [1, 1, 2, 1], "decoder": "dilated"}, 8),
        ({"encoder": "timm/resnet50.a1_in1k", "output_stride": 16, "decoder": "deeplab_v2"}, 16),
    ],
)
def test_convolutional_encoders_take_crops_of_any_size(model: dict[str, Any], stride: int) -> None:
    settings = segment(model)
    assert encoder_stride(settings) == stride
    assert encoder_stride(EncoderConfig(strides=[4, 2, 2, 2])) == 32


def test_depths_of_resnet38() -> None:
    assert encoder_variant(EncoderConfig(encoder="resnet38")).depths == (3, 3, 6, 3)
    assert encoder_variant(EncoderConfig(encoder="resnet38", depths=[1, 1, 2, 1])).depths == (1, 1, 2, 1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"encoder": "resnet39"}, r"'resnet39' is none of mit_b0, .*timm/NAME; did you mean 'resnet38'\?"),
        ({"encoder": "timm/hf-hub:a/b"}, "names no network of timm"),
        ({"encoder": "timm/../x"}, "names no network of timm"),
        (
            {"encoder": "resnet38", "drop_path": 0.2},
            "model.drop_path is a setting of a Mix Transformer, but",
        ),
        (
            {"encoder": "resnet38", "output_stride": 16},
            "model.output_stride is a setting of a convolutional network of timm",
        ),
        ({"encoder": "timm/resnet50", "depths": [1, 1, 1, 1]}, "model.depths is a setting of a Mix Transformer"),
        ({"encoder": "timm/resnet50", "base_width": 8}, "model.base_width is a setting of ResNet-38"),
        ({"encoder": "mit_b0", "block_dropout": [0, 0]}, "model.block_dropout is a setting of ResNet-38, but 'mit_b0'"),
        ({"encoder": "resnet38", "depths": [1, 1, 1]}, "model.depths needs four values, one each for b2 to b5"),
        ({"encoder": "resnet38", "block_dropout": [0.5]}, "model.block_dropout needs two values"),
        ({"encoder": "timm/resnet50", "output_stride": 12}, "12 is none of 8, 16, 32"),
        (
            {"encoder": "timm/vit_small_patch14_dinov2", "token_stride": 1},
            "model.token_stride: 1 would enlarge images 14 times; set 4 or more, or 0",
        ),
        ({"encoder": "mit_b0", "token_stride": 8}, "model.token_stride is a setting of a Vision Transformer of timm"),
        ({"encoder": "resnet38"}, "segformer needs the four feature maps of .*, and resnet38 has three"),
        (
            {"encoder": "timm/resnet50", "output_stride": 32, "decoder": "dilated"},
            "model.output_stride: dilated needs features of stride 8 or 16, not 32; set 8 or 16",
        ),
        ({"encoder": "resnet38", "decoder": "dilated", "decoder_rates": [6, 12]}, "dilated has one, not 2"),
    ],
)
def test_what_does_not_fit_is_one_line(model: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        segment(model, crop_size=320)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet38", "timm/resnet50", "timm/swin_tiny_patch4_window7_224"])
def test_afa_needs_an_encoder_with_attention(name: str) -> None:
    with pytest.raises(UserError, match=rf"AFA needs the attention of .*, which '{name}' does not have; set mit_b0"):
        config_from_dict({"model": {"encoder": name}})
