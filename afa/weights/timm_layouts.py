"""Names of files that fill networks of timm: the library's own, and those of other programs with the same networks.

Vision Transformers: timm, DINOv2's own program, Hugging Face (``ViTModel``, ``Dinov2Model``, and what holds them), also
out of ONNX files. Convolutional networks: timm and torchvision; EfficientNets also as ``efficientnet_pytorch`` names
them.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from afa.models import TimmCNN, TimmViT

logger = logging.getLogger(__name__)

HUGGINGFACE_VIT = "embeddings.patch_embeddings.projection.weight"
"""The end of a name that tells Hugging Face's Vision Transformers."""
EFFICIENTNET_STEM = "_conv_stem.weight"
"""A name that tells files of ``efficientnet_pytorch``."""

_CNN, _VIT = "encoder.cnn.", "encoder.vit."
_VIT_HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "pre_logits.", "classifier.", "decoder.", "pooler.")
_UNNAMED = "onnx::"

_TIMM_BLOCK = re.compile(r"encoder\.cnn\.blocks\.(\d+)\.(\d+)\.", re.ASCII)
_EFFICIENTNET_BLOCK = re.compile(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", re.ASCII)
_EFFICIENTNET_PARTS = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}  # fmt: skip
_EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand",
}  # fmt: skip
_NOT_EXPANDING = {**_EXPANDING, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

_HUGGINGFACE_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", re.ASCII)
_HUGGINGFACE_BLOCK_PARTS = {
    "norm1": "norm1",
    "layernorm_before": "norm1",
    "norm2": "norm2",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.weights_in": "mlp.fc1",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_out": "mlp.fc2",
    "output.dense": "mlp.fc2",
}
_HUGGINGFACE_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_QUERY_KEY_VALUE = re.compile(r"(blocks\.\d+\.attn)\.attention\.(query|key|value)\.(weight|bias)", re.ASCII)
_DINOV2_PARTS = {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}


def for_timm_cnn(tensors: Mapping[str, Tensor], encoder: TimmCNN) -> tuple[dict[str, Tensor], list[str]]:
    """Translate the names of a file for an encoder made of a convolutional network of timm.

    Args:
        tensors: Of the whole network, as timm, torchvision or ``efficientnet_pytorch`` name them.
        encoder: Of the network's containers some lie beside them there.

    Returns:
        The tensors under our names, and the names of those left out: layers after the last feature map, of which the
        encoder has no part. What is missing or does not belong there keeps its name.
    """
    wanted = {f"encoder.{name}" for name in encoder.state_dict()}
    names = {name: name for name in tensors}
    if EFFICIENTNET_STEM in tensors:
        names = _from_efficientnet(tensors, wanted)
    translated: dict[str, Tensor] = {}
    dropped: list[str] = []
    parts = {name.split(".")[2] for name in wanted}
    parts |= {part.partition("_")[0] for part in parts}
    for original, name in names.items():
        places = [f"{_CNN}{name}", f"{_CNN}{name.replace('.', '_', 1)}"]
        place = next((place for place in places if place in wanted), None)
        if place is None and name.partition(".")[0] not in parts:
            dropped.append(original)
        else:
            translated[place or original] = tensors[original]
    return translated, dropped


def for_timm_vit(tensors: Mapping[str, Tensor], encoder: TimmViT) -> tuple[dict[str, Tensor], list[str]]:
    """Translate the names of a file for an encoder made of a Vision Transformer of timm.

    A table of positions of another grid is interpolated, as timm does it. Where the file knows positions of the class
    token and the network does not, they are added to the token.

    Args:
        tensors: Of the whole network, as timm, DINOv2's program or Hugging Face name them.
        encoder: The encoder.

    Returns:
        The tensors under our names, and the names of those left out: heads, a norm behind the pooling where the network
        has another one, the token that hides patches in DINOv2's training. What does not belong there keeps its name.
    """
    wanted = encoder.state_dict()
    dropped: list[str] = []
    found: dict[str, Tensor] = {}
    for name, tensor in _vit_names(tensors).items():
        if name.startswith(_VIT_HEADS) or name == "mask_token":
            dropped.append(name)
        else:
            found[name] = tensor
    if "vit.norm.weight" in wanted and "norm.weight" not in found:
        for kind in ("weight", "bias"):
            if f"fc_norm.{kind}" in dropped:
                dropped.remove(f"fc_norm.{kind}")
                found[f"norm.{kind}"] = tensors[f"fc_norm.{kind}"]
    if "pos_embed" in found and "vit.pos_embed" in wanted:
        _fit_positions(found, encoder)
    return {f"{_VIT}{name}" if f"vit.{name}" in wanted else name: tensor for name, tensor in found.items()}, dropped


def _vit_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under timm's names."""
    prefix = next((name.removesuffix(HUGGINGFACE_VIT) for name in tensors if name.endswith(HUGGINGFACE_VIT)), None)
    if prefix is not None:
        return _from_huggingface(tensors, prefix)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = "reg_token" if name == "register_tokens" else name
        for theirs, ours in _DINOV2_PARTS.items():
            new = new.replace(f".{theirs}.", f".{ours}.")
        found[name if new in tensors else new] = tensor
    return found


def _from_huggingface(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Hugging Face's names below a prefix; what lies beside it is a head."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(prefix)
        if name.startswith(_UNNAMED):
            found[name] = tensor
        elif bare == "embeddings.mask_token":
            found["mask_token"] = tensor
        elif not name.startswith(prefix):
            found[name if name.startswith(_VIT_HEADS) else f"head.{name}"] = tensor
        elif match := _HUGGINGFACE_BLOCK.fullmatch(bare):
            block, part, kind = match.groups()
            if kind == "lambda1":
                found[f"blocks.{block}.{part.replace('layer_scale', 'ls')}.gamma"] = tensor
            elif part.startswith("attention.attention."):
                found[f"blocks.{block}.attn.{part.removeprefix('attention.')}.{kind}"] = tensor
            else:
                found[f"blocks.{block}.{_HUGGINGFACE_BLOCK_PARTS.get(part, part)}.{kind}"] = tensor
        else:
            found[_HUGGINGFACE_NAMES.get(bare, bare)] = tensor
    _join_query_key_value(found)
    _join_positions(found)
    return found


def _join_query_key_value(found: dict[str, Tensor]) -> None:
    """Three matrices side by side -> timm's one, in its order; where one is missing the others keep their names."""
    for name in list(found):
        match = _QUERY_KEY_VALUE.fullmatch(name)
        if match is None or match[2] != "query":
            continue
        names = [f"{match[1]}.attention.{part}.{match[3]}" for part in ("query", "key", "value")]
        parts = [found[one] for one in names if one in found]
        if len(parts) == 3 and len({(part.shape[1:], part.dtype) for part in parts}) == 1:
            for one in names:
                del found[one]
            found[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)


def _join_positions(found: dict[str, Tensor]) -> None:
    """Exporters split the table of positions at the class token and leave both parts without names."""
    token = found.get("cls_token")
    if token is None or "pos_embed" in found:
        return
    parts = [
        name
        for name, tensor in found.items()
        if name.startswith(_UNNAMED) and tensor.ndim == 3 and tensor.shape[::2] == token.shape[::2]
    ]
    parts.sort(key=lambda name: found[name].shape[1])
    if [found[name].shape[1] == 1 for name in parts] == [True, False]:
        found["pos_embed"] = torch.cat([found.pop(name) for name in parts], dim=1)


def _fit_positions(found: dict[str, Tensor], encoder: TimmViT) -> None:
    """A table of positions, [1, rows, C], of the encoder's rows and grid. What cannot be understood stays as it is."""
    from timm.layers import resample_abs_pos_embed

    table, own = found["pos_embed"], encoder.position_prefix
    if table.ndim != 3 or not table.is_floating_point():
        return
    rows = table.shape[1]
    if own == 0 and not _is_square(rows) and _is_square(rows - 1) and "cls_token" in found:
        if found["cls_token"].shape != table[:, :1].shape:
            return
        found["cls_token"] = found["cls_token"] + table[:, :1]
        table = found["pos_embed"] = table[:, 1:]
        rows -= 1
    if rows == own + math.prod(encoder.grid) or not _is_square(rows - own):
        return
    side = math.isqrt(rows - own)
    logger.info("positions of %d x %d patches are interpolated to %d x %d", side, side, *encoder.grid)
    found["pos_embed"] = resample_abs_pos_embed(
        table, new_size=list(encoder.grid), old_size=[side, side], num_prefix_tokens=own
    )


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _from_efficientnet(tensors: Mapping[str, Tensor], wanted: set[str]) -> dict[str, str]:
    """Name in the file -> timm's name. The file counts all blocks, timm those of each stage."""
    places = sorted({(int(match[1]), int(match[2])) for name in wanted if (match := _TIMM_BLOCK.match(name))})
    names = {}
    for name in tensors:
        match = _EFFICIENTNET_BLOCK.fullmatch(name)
        if match is None:
            part, _, kind = name.rpartition(".")
            names[name] = f"{_EFFICIENTNET_PARTS.get(part, part)}.{kind}"
            continue
        index, part, kind = int(match[1]), match[2], match[3]
        expands = f"_blocks.{index}._expand_conv.weight" in tensors
        ours = (_EXPANDING if expands else _NOT_EXPANDING).get(part)
        known = ours is not None and index < len(places)
        names[name] = f"blocks.{places[index][0]}.{places[index][1]}.{ours}.{kind}" if known else name
    return names
