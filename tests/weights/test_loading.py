"""Every known file is recognised and loaded strictly; another one is named, and nothing is changed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import KEYS, published, same, small_network

from afa.config import VARIANTS
from afa.errors import UserError
from afa.methods.afa.config import ModelConfig
from afa.methods.afa.network import build_network
from afa.weights import describe_network, load_encoder, load_network, open_checkpoint, save_afa_layout


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_encoder_has_the_names_and_shapes_of_the_published_files(variant: str) -> None:
    with torch.device("meta"):  # shapes alone
        encoder = build_network(ModelConfig(encoder=variant), 21).encoder
    ours = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    theirs = {name: shape for name, shape in KEYS[f"segformer_{variant}"].items() if not name.startswith("head.")}
    assert ours == theirs


@pytest.mark.parametrize("variant", ["mit_b0", "mit_b1"])
def test_network_has_the_names_and_shapes_of_the_released_checkpoints(variant: str) -> None:
    network = build_network(ModelConfig(encoder=variant), 21)
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == KEYS[f"afa_{variant}_voc"]
    settings, num_classes = describe_network(network.state_dict())
    assert (settings, num_classes) == (ModelConfig(encoder=variant), 21)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_imagenet_file_of_another_variant_is_named(variant: str, tmp_path: Path) -> None:
    path = tmp_path / f"{variant}.pth"
    torch.save(published(f"segformer_{variant}"), path)
    wrong = "mit_b1" if variant != "mit_b1" else "mit_b0"
    encoder = build_network(ModelConfig(encoder=wrong), 21).encoder
    with pytest.raises(UserError, match=rf"SegFormer ImageNet weights \({variant}\).*is a {wrong}.*encoder={variant}"):
        load_encoder(encoder, path)


def test_imagenet_file_is_loaded_and_its_head_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, target = small_network(1), small_network(2)
    path = tmp_path / "mit.pth"
    head = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    torch.save({**source.encoder.state_dict(), **head}, path)
    decoder_before = target.decoder.linear_pred.weight.clone()
    with caplog.at_level(logging.INFO, logger="afa"):
        load_encoder(target.encoder, path)
    assert same(source.encoder, target.encoder)
    assert torch.equal(target.decoder.linear_pred.weight, decoder_before)
    assert "head.weight and head.bias" in caplog.text and "sha256" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_released_checkpoint_with_and_without_wrapping(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    source, target = small_network(1), small_network(2)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "afa.pth")
    load_network(target, tmp_path / "afa.pth")
    assert same(source, target)
    encoder_only = small_network(3)
    load_encoder(encoder_only.encoder, tmp_path / "afa.pth")
    assert same(source.encoder, encoder_only.encoder) and not same(source, encoder_only)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    source, target = small_network(1).half(), small_network(2)
    save_afa_layout(source, tmp_path / "half.pth")
    load_network(target, tmp_path / "half.pth")
    assert target.classifier.weight.dtype == torch.float32
    assert torch.equal(target.classifier.weight, source.classifier.weight.float())


def test_missing_and_left_over_names_are_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    network, before = small_network(1), small_network(1)
    state = small_network(2).state_dict()
    for name in [name for name in state if name.startswith("decoder.linear_c")]:
        del state[name]
    state["extra.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(UserError) as caught:
        load_network(network, tmp_path / "odd.safetensors")
    message = str(caught.value)
    assert "missing (8): decoder.linear_c4.proj.weight" in message and "..." in message
    assert "left over (1): extra.weight" in message and "AFA checkpoint" in message
    assert same(network, before)


def test_another_shape_another_type_and_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = small_network()
    for name, tensor, message in (
        ("attn_proj.weight", torch.zeros(1, 8, 1, 1), r"of another shape \(1\): attn_proj.weight 1x8x1x1 for 1x16x1x1"),
        ("attn_proj.bias", torch.zeros(1, dtype=torch.long), r"of another type \(1\): attn_proj.bias"),
        ("attn_proj.bias", torch.tensor([float("nan")]), r"not finite \(attn_proj.bias\)"),
    ):
        save_file({**network.state_dict(), name: tensor}, tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match=message):
            load_network(small_network(1), tmp_path / "odd.safetensors")


def test_number_of_classes_is_compared(tmp_path: Path) -> None:
    save_afa_layout(small_network(num_classes=9), tmp_path / "nine.pth")
    with pytest.raises(UserError, match="has 9 classes with the background, but the network has 6"):
        load_network(small_network(), tmp_path / "nine.pth")
    load_encoder(small_network().encoder, tmp_path / "nine.pth")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["conv1.weight", "bn1.weight", "fc.bias"] + [f"layer{s}.{b}.conv3.weight" for s, n in
         zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True) for b in range(n)] + ["layer1.0.conv1.weight"], "a ResNet-50"),
        (["cls_token", "pos_embed", "blocks.0.attn.qkv.weight"], "a Vision Transformer"),
        (["layers.0.blocks.0.attn.relative_position_bias_table"], "a Swin Transformer"),
        (["features.0.weight", "classifier.0.weight"], "a VGG or AlexNet"),
        (["backbone.patch_embed1.proj.weight"], "a SegFormer trained with mmsegmentation"),
        (["exp_avg/classifier.weight"], "optimiser state"),
        (["something.weight"], "none of the known kinds"),
    ],
)  # fmt: skip
def test_other_networks_are_named(names: list[str], kind: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(2) for name in names}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"seems to be {kind}"):
        load_encoder(small_network().encoder, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"seems to be {kind}"):
        open_checkpoint(tmp_path / "other.pth")


def test_folders_with_one_several_and_no_weights(tmp_path: Path) -> None:
    source, target = small_network(1), small_network(2)
    with pytest.raises(UserError, match="holds no weights"):
        load_network(target, tmp_path)
    save_afa_layout(source, tmp_path / "one.pth")
    load_network(target, tmp_path)
    assert same(source, target)
    save_afa_layout(source, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"several weights files \(one.pth, two.pth\): name one"):
        load_network(target, tmp_path)
