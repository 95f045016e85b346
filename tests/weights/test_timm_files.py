"""Files that fill networks of timm: the library's own, of other grids, with other programs' names, and out of ONNX."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import same
from torch import Tensor

from afa.config.encoders import EncoderConfig
from afa.errors import UserError
from afa.models import Encoder, build_encoder
from afa.weights import load_encoder, read_tensors


def own_network(name: str, **settings: Any) -> Any:
    import timm

    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(1)
    own = timm.create_model(name, **settings).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return own


def encoder_of(name: str) -> Encoder:
    torch.manual_seed(2)
    return build_encoder(EncoderConfig(encoder=f"timm/{name}")).eval()


def below_vit(encoder: Encoder) -> dict[str, Tensor]:
    return {name.removeprefix("vit."): value for name, value in encoder.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "dropped"), [("test_vit", "head.weight"), ("test_vit2", "head.weight"), ("test_vit3", "attn_pool.latent")]
)
def test_timm_s_own_files(name: str, dropped: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own, encoder = own_network(name), encoder_of(name)
    torch.save(own.state_dict(), tmp_path / "own.pth")
    with caplog.at_level(logging.INFO, logger="afa"):
        load_encoder(encoder, tmp_path / "own.pth")
    assert dropped in caplog.text
    state = own.state_dict()
    for key, value in below_vit(encoder).items():
        source = f"fc_{key}" if name == "test_vit2" and key.startswith("norm.") else key  # a norm behind the pooling
        assert torch.equal(value, state[source]), key


def test_positions_of_another_grid_are_interpolated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own, encoder = own_network("test_vit", img_size=96), encoder_of("test_vit")
    torch.save(own.state_dict(), tmp_path / "small.pth")
    with caplog.at_level(logging.INFO, logger="afa"):
        load_encoder(encoder, tmp_path / "small.pth")
    assert "positions of 6 x 6 patches are interpolated to 10 x 10" in caplog.text
    own.set_input_size((160, 160))
    torch.testing.assert_close(below_vit(encoder)["pos_embed"], own.pos_embed.detach())
    assert torch.equal(below_vit(encoder)["pos_embed"][:, 0], torch.load(tmp_path / "small.pth")["pos_embed"][:, 0])


def test_dinov2_s_own_names_and_positions_of_the_class_token(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    own, encoder = own_network(name, num_classes=0), encoder_of(name)
    published = dict(own.state_dict())
    published["register_tokens"] = published.pop("reg_token")
    published["mask_token"] = torch.zeros(1, 384)
    of_token = torch.randn(1, 1, 384)
    published["pos_embed"] = torch.cat([of_token, published["pos_embed"]], dim=1)
    torch.save(published, tmp_path / "dinov2.pth")
    load_encoder(encoder, tmp_path / "dinov2.pth")
    expected = {**own.state_dict(), "cls_token": own.cls_token + of_token}
    assert all(torch.equal(value, expected[key]) for key, value in below_vit(encoder).items())


def huggingface_names(own: Any, *, dinov2: bool = False) -> dict[str, Tensor]:
    """Its state under Hugging Face's names, queries, keys and values apart."""
    plain = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    parts = {"attn.proj": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after"}
    parts |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    if dinov2:
        parts |= {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    found = {}
    for name, value in own.state_dict().items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name):
            layer = f"encoder.layer.{match[1]}"
            if match[2] == "attn.qkv":
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    found[f"{layer}.attention.attention.{part}.{match[3]}"] = third
            else:
                found[f"{layer}.{parts[match[2]]}.{match[3]}"] = value
        elif name in plain:
            found[plain[name]] = value
    return found


@pytest.mark.parametrize(
    ("prefix", "dinov2", "head"), [("", False, "pooler.dense.weight"), ("dinov2.", True, "classifier.weight")]
)
def test_hugging_face_s_names(prefix: str, dinov2: bool, head: str, tmp_path: Path) -> None:
    own, encoder = own_network("test_vit"), encoder_of("test_vit")
    theirs = {f"{prefix}{name}": value for name, value in huggingface_names(own, dinov2=dinov2).items()}
    theirs |= {head: torch.zeros(2), f"{prefix}embeddings.mask_token": torch.zeros(1)}
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    load_encoder(encoder, tmp_path / "pytorch_model.bin")
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in below_vit(encoder).items())

    missing = f"{prefix}encoder.layer.3.attention.attention.key.weight"
    torch.save({name: value for name, value in theirs.items() if name != missing}, tmp_path / "pytorch_model.bin")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(
        UserError, match=r"with Hugging Face's names; missing \(1\): encoder\.vit\.blocks\.3\.attn\.qkv"
    ):
        load_encoder(encoder, tmp_path / "pytorch_model.bin")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def write_onnx(path: Path, tensors: dict[str, Tensor]) -> None:
    """As PyTorch's exporter leaves a network: matrices of linear layers turned and numbered, positions in two parts."""
    onnx = pytest.importorskip("onnx")
    stored, nodes = [], []
    positions = tensors["embeddings.position_embeddings"]
    named = {key: value for key, value in tensors.items() if key != "embeddings.position_embeddings"}
    named |= {"onnx::Reshape_9": positions[:, 1:], "onnx::Concat_8": positions[:, :1]}
    for number, (name, value) in enumerate(reversed(named.items())):
        bias = f"{name.removesuffix('.weight')}.bias"
        if value.ndim == 2:
            name, value = f"onnx::MatMul_{number}", value.T
            nodes.append(onnx.helper.make_node("MatMul", [f"input{number}", name], [f"product{number}"]))
            added = [bias, f"product{number}"] if number % 2 else [f"product{number}", bias]
            nodes.append(onnx.helper.make_node("Add", added, [f"output{number}"]))
        stored.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), name))
    graph = onnx.helper.make_graph(nodes, "network", [], [], initializer=stored)
    onnx.save(onnx.helper.make_model(graph), str(path))


def test_the_encoder_inside_an_onnx_file(tmp_path: Path) -> None:
    own, encoder = own_network("test_vit"), encoder_of("test_vit")
    theirs = huggingface_names(own)
    write_onnx(tmp_path / "net.onnx", theirs)
    seen = read_tensors(tmp_path / "net.onnx")
    assert not [name for name in seen if name.startswith("onnx::MatMul")]
    key = "encoder.layer.5.intermediate.dense.weight"
    assert torch.equal(seen[key], theirs[key])
    load_encoder(encoder, tmp_path / "net.onnx")
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in below_vit(encoder).items())


def test_onnx_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "net.onnx").write_bytes(b"\xff\xff no ONNX")
    with pytest.raises(UserError, match=r"net\.onnx is damaged or no ONNX file \(\w+\): fetch or copy it again"):
        read_tensors(tmp_path / "net.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(UserError, match="holds no tensors"):
        read_tensors(tmp_path / "empty.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"net\.onnx is an ONNX file, and reading it needs .*: pip install onnx$"):
        read_tensors(tmp_path / "net.onnx")


def test_efficientnet_pytorch_s_names(tmp_path: Path) -> None:
    name = "tf_efficientnet_lite0"
    own, encoder = own_network(name), encoder_of(name)
    theirs = {"_fc.weight": own.classifier.weight, "_fc.bias": own.classifier.bias}
    stem = {"_conv_stem": own.conv_stem, "_bn0": own.bn1, "_conv_head": own.conv_head, "_bn1": own.bn2}
    parts: dict[str, Any] = dict(stem)
    for index, block in enumerate(block for stage in own.blocks for block in stage):
        place = f"_blocks.{index}"
        if index == 0:  # does not expand
            layers = [("_depthwise_conv", block.conv_dw), ("_bn1", block.bn1), ("_project_conv", block.conv_pw)]
            layers += [("_bn2", block.bn2)]
        else:
            layers = [("_expand_conv", block.conv_pw), ("_bn0", block.bn1), ("_depthwise_conv", block.conv_dw)]
            layers += [("_bn1", block.bn2), ("_project_conv", block.conv_pwl), ("_bn2", block.bn3)]
        parts |= {f"{place}.{part}": module for part, module in layers}
    theirs |= {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    torch.save(theirs, tmp_path / "efficientnet-lite0.pth")
    load_encoder(encoder, tmp_path / "efficientnet-lite0.pth")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, own.state_dict()[key.removeprefix("cnn.")]), key
    other = encoder_of("tf_efficientnet_lite1")
    with pytest.raises(UserError, match=r"it seems to be an EfficientNet; missing"):
        load_encoder(other, tmp_path / "efficientnet-lite0.pth")


def test_a_file_of_another_transformer_is_refused(tmp_path: Path) -> None:
    encoder, before = encoder_of("test_vit"), encoder_of("test_vit")
    torch.save(own_network("test_vit2").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"a Vision Transformer \(ViT, DeiT\); missing .*left over \(41\): reg_token"):
        load_encoder(encoder, tmp_path / "other.pth")
    assert same(encoder, before)
