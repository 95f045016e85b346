"""Recognising checkpoints by their names, and translating the names.

Names inside the project are those of the released AFA program: ``encoder.*``, ``decoder.*``, ``attn_proj.*`` and
``classifier.*``. SegFormer's ImageNet files hold the encoder without its prefix. Hugging Face's library has names of
its own and keeps keys and values apart, which AFA stacks in one matrix, keys first. mmsegmentation's first SegFormer
has the released names below ``backbone.*`` and ``decode_head.*``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from afa.config import VARIANTS
from afa.errors import UserError
from afa.methods.afa.config import ModelConfig
from afa.weights.files import shown

_BLOCK_PARTS = {
    "norm1": "layer_norm_1",
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.sr": "attention.self.sr",
    "attn.norm": "attention.self.layer_norm",
    "attn.proj": "attention.output.dense",
    "norm2": "layer_norm_2",
    "mlp.fc1": "mlp.dense1",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    "mlp.fc2": "mlp.dense2",
}
# transformers 5 has these names in memory, and so in a state dict saved with torch.save; its own files keep the above.
_NEWER_BLOCK_PARTS = {
    "norm1": "layernorm_before",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.sr": "attention.sequence_reduction.sequence_reduction",
    "attn.norm": "attention.sequence_reduction.layer_norm",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    "mlp.fc2": "mlp.fc2",
}
_PARTS_FROM_HUGGINGFACE = {theirs: ours for ours, theirs in (*_NEWER_BLOCK_PARTS.items(), *_BLOCK_PARTS.items())}
_EMBEDDING_PARTS = {"proj": "proj", "norm": "layer_norm"}
_HEAD_PARTS = {"linear_fuse.conv": "linear_fuse", "linear_fuse.bn": "batch_norm", "linear_pred": "classifier"}

# Made by every mmsegmentation head and not used by SegFormer's; beside it; for ImageNet.
_MMSEGMENTATION_HEADS = ("decode_head.conv_seg.", "auxiliary_head.", "backbone.head.")

_THEIR_BLOCK = re.compile(r"(?:segformer\.)?(?:encoder\.block\.(\d)|stages\.(\d)\.blocks)\.(\d+)\.(.+)", re.ASCII)
_THEIR_EMBEDDING = re.compile(
    r"(?:segformer\.)?(?:encoder\.patch_embeddings\.(\d)|stages\.(\d)\.patch_embeddings)\.(proj|layer_norm)",
    re.ASCII,
)
_THEIR_NORM = re.compile(r"(?:segformer\.)?(?:encoder\.layer_norm\.(\d)|stages\.(\d)\.layer_norm)", re.ASCII)
_THEIR_PROJECTION = re.compile(r"decode_head\.(?:linear_c|linear_projections)\.(\d)\.proj", re.ASCII)
_ANY_BLOCK = re.compile(r"encoder\.block([1-4])\.(\d+)\.", re.ASCII)
_OUR_BLOCK = re.compile(r"encoder\.block(\d)\.(\d+)\.(.+)", re.ASCII)
_OUR_EMBEDDING = re.compile(r"encoder\.patch_embed(\d)\.(proj|norm)", re.ASCII)
_OUR_NORM = re.compile(r"encoder\.norm(\d)", re.ASCII)
_OUR_PROJECTION = re.compile(r"decoder\.linear_c(\d)\.proj", re.ASCII)


@dataclass(frozen=True)
class EncoderShape:
    """What a state dict tells about its Mix Transformer. The number of heads leaves no trace in it."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    reductions: tuple[int, ...]
    mlp_ratio: float

    @property
    def variant(self) -> str | None:
        """``mit_b0`` ... ``mit_b5``, or None for a custom one."""
        for name, variant in VARIANTS.items():
            if (variant.widths, variant.depths) == (self.widths, self.depths):
                return name
        return None

    def __str__(self) -> str:
        return self.variant or f"custom MiT, widths {list(self.widths)}, depths {list(self.depths)}"


class Recognised(NamedTuple):
    """A checkpoint in the names of the project.

    Attributes:
        kind: What the file seems to be, in words.
        tensors: Name -> tensor. Names that could not be translated stay as they are.
        dropped: Heads for ImageNet and the like, which no AFA network has.
        encoder: Shape of the encoder, None where the file holds no whole Mix Transformer.
        num_classes: C of the decoder, None where there is none.
    """

    kind: str
    tensors: dict[str, Tensor]
    dropped: list[str]
    encoder: EncoderShape | None
    num_classes: int | None


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """Tell by its names what a checkpoint is, and translate it."""
    heads: tuple[str, ...] = ()
    if "patch_embed1.proj.weight" in tensors:
        family, heads = "SegFormer ImageNet weights", ("head.",)
    elif "backbone.patch_embed1.proj.weight" in tensors:
        family, heads = "SegFormer trained with mmsegmentation", _MMSEGMENTATION_HEADS
    elif any(_THEIR_EMBEDDING.match(name) for name in tensors):
        if any(name.startswith("decode_head.") for name in tensors):
            family = "Hugging Face SegformerForSemanticSegmentation"
        elif "classifier.weight" in tensors:
            family, heads = "Hugging Face SegformerForImageClassification", ("classifier.",)
        else:
            family = "Hugging Face SegformerModel"
    elif "encoder.patch_embed1.proj.weight" in tensors:
        family = "AFA checkpoint" if "classifier.weight" in tensors else "part of an AFA checkpoint"
    else:
        return Recognised(_foreign_kind(tensors), dict(tensors), [], None, None)
    dropped = [name for name in tensors if name.startswith(heads)]
    translated = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    if family == "SegFormer ImageNet weights":
        translated = _renamed(translated, lambda name: f"encoder.{name}")
    elif family.startswith("Hugging Face"):
        translated = _from_huggingface(translated)
    elif heads == _MMSEGMENTATION_HEADS:
        translated = _renamed(translated, _from_mmsegmentation)
    encoder = encoder_shape(translated)
    prediction = translated.get("decoder.linear_pred.weight")
    num_classes = len(prediction) if _is_filled(prediction, 4) else None
    details = [str(encoder)] if encoder else []
    if num_classes is not None:
        details.append(f"{num_classes} classes with the background")
    kind = f"{family} ({', '.join(details)})" if details else family
    return Recognised(kind, translated, dropped, encoder, num_classes)


def encoder_shape(tensors: Mapping[str, Tensor]) -> EncoderShape | None:
    """Read widths, depths, reductions and MLP ratio off the shapes of ``encoder.*``; None if a stage is missing."""
    blocks: dict[str, set[str]] = {}
    for name in tensors:
        if match := _ANY_BLOCK.match(name):
            blocks.setdefault(match[1], set()).add(match[2])
    widths, depths, reductions, ratios = [], [], [], []
    for stage in range(1, 5):
        embedding = tensors.get(f"encoder.patch_embed{stage}.proj.weight")
        hidden = tensors.get(f"encoder.block{stage}.0.mlp.fc1.weight")
        if not _is_filled(embedding, 4) or not _is_filled(hidden, 2):
            return None
        reduction = tensors.get(f"encoder.block{stage}.0.attn.sr.weight")
        widths.append(len(embedding))
        depths.append(len(blocks[str(stage)]))
        reductions.append(reduction.shape[-1] if _is_filled(reduction, 4) else 1)
        ratios.append(len(hidden) / len(embedding))
    return EncoderShape(tuple(widths), tuple(depths), tuple(reductions), ratios[0])


def describe_network(tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, int]:
    """Deduce the architecture of an AFA network from its state dict, where no configuration came with it.

    Args:
        tensors: State dict in the names of the released program.

    Returns:
        The ``model`` settings, and the number of classes C with the background. What a state dict does not tell
        (strides, pooling, drop rates) is at its default.

    Raises:
        UserError: It is no whole AFA network, or one whose numbers of heads are not known.
    """
    seen = recognise(tensors)
    head, fusion = seen.tensors.get("attn_proj.weight"), seen.tensors.get("decoder.linear_fuse.conv.weight")
    if seen.encoder is None or seen.num_classes is None or not _is_filled(head, 4) or not _is_filled(fusion, 4):
        raise UserError(f"not a whole AFA network: it seems to be {article(seen.kind)}")
    variant = seen.encoder.variant
    if variant is None:
        raise UserError(
            f"a {seen.encoder}: its numbers of attention heads cannot be told from its weights; "
            "give the configuration it was trained with"
        )
    heads = VARIANTS[variant].heads
    blocks, maps = 0, 0
    heads_of_blocks = [count for count, depth in zip(heads, seen.encoder.depths, strict=True) for _ in range(depth)]
    for count in reversed(heads_of_blocks):
        if maps >= head.shape[1]:
            break
        blocks, maps = blocks + 1, maps + count
    if maps != head.shape[1]:
        raise UserError(f"an affinity head of {head.shape[1]} attention maps does not fit the blocks of {variant}")
    settings = ModelConfig(
        encoder=variant,
        reductions=list(seen.encoder.reductions),
        mlp_ratio=seen.encoder.mlp_ratio,
        decoder_width=len(fusion),
        affinity_blocks=blocks,
    )
    return settings, seen.num_classes


def to_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder and decoder under the names of ``SegformerForSemanticSegmentation``, keys and values apart."""
    result = {}
    for name, tensor in tensors.items():
        if not name.startswith(("encoder.", "decoder.")):
            continue
        module, _, kind = name.rpartition(".")
        if module.endswith(".attn.kv"):
            for part, half in zip("kv", tensor.chunk(2), strict=True):
                result[f"{_their_module(module[:-2] + part)}.{kind}"] = half
        else:
            result[f"{_their_module(module)}.{kind}"] = tensor
    return result


def article(kind: str) -> str:
    """``a`` or ``an`` before a kind, nothing before plurals."""
    if kind.split(" (")[0].endswith(("weights", "state")) or kind.startswith("none "):
        return kind
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def _their_module(module: str) -> str:
    if match := _OUR_BLOCK.fullmatch(module):
        return f"segformer.encoder.block.{int(match[1]) - 1}.{match[2]}.{_BLOCK_PARTS[match[3]]}"
    if match := _OUR_EMBEDDING.fullmatch(module):
        return f"segformer.encoder.patch_embeddings.{int(match[1]) - 1}.{_EMBEDDING_PARTS[match[2]]}"
    if match := _OUR_NORM.fullmatch(module):
        return f"segformer.encoder.layer_norm.{int(match[1]) - 1}"
    if match := _OUR_PROJECTION.fullmatch(module):
        return f"decode_head.linear_c.{int(match[1]) - 1}.proj"
    return f"decode_head.{_HEAD_PARTS[module.removeprefix('decoder.')]}"


def _our_module(module: str) -> str | None:
    if match := _THEIR_BLOCK.fullmatch(module):
        part = _PARTS_FROM_HUGGINGFACE.get(match[4])
        return part and f"encoder.block{int(match[1] or match[2]) + 1}.{match[3]}.{part}"
    if match := _THEIR_EMBEDDING.fullmatch(module):
        part = "proj" if match[3] == "proj" else "norm"
        return f"encoder.patch_embed{int(match[1] or match[2]) + 1}.{part}"
    if match := _THEIR_NORM.fullmatch(module):
        return f"encoder.norm{int(match[1] or match[2]) + 1}"
    if match := _THEIR_PROJECTION.fullmatch(module):
        return f"decoder.linear_c{int(match[1]) + 1}.proj"
    for ours, theirs in _HEAD_PARTS.items():
        if module == f"decode_head.{theirs}":
            return f"decoder.{ours}"
    return None


def _from_mmsegmentation(name: str) -> str:
    for theirs, ours in (("backbone.", "encoder."), ("decode_head.", "decoder.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _from_huggingface_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    ours = _our_module(module)
    return f"{ours}.{kind}" if ours else name


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Where two names mean one place, neither may win without a word: the second is left over."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = rename(name)
        result[f"{new} (again: {name})" if new in result else new] = tensor
    return result


def _from_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = _renamed(tensors, _from_huggingface_name)
    for name in list(result):
        match = re.fullmatch(r"(.*\.attn)\.k\.(weight|bias)", name)
        if match is None:
            continue
        key, value = result[name], result.get(f"{match[1]}.v.{match[2]}")
        both = f"{match[1]}.kv.{match[2]}"
        if (
            value is not None
            and both not in result
            and key.ndim
            and (key.shape, key.dtype) == (value.shape, value.dtype)
        ):
            del result[name], result[f"{match[1]}.v.{match[2]}"]
            result[both] = torch.cat([key, value])
    return result


def _is_filled(tensor: Tensor | None, dimensions: int) -> TypeGuard[Tensor]:
    """Whether a file holds what a shape can be read off: so many dimensions, none of them empty."""
    return tensor is not None and tensor.ndim == dimensions and tensor.numel() > 0


def _foreign_kind(tensors: Mapping[str, Tensor]) -> str:
    """Name other common networks, for the message that refuses them."""
    names = set(tensors)
    if "conv1.weight" in names and "layer1.0.conv1.weight" in names:
        counts = tuple(
            len({name.split(".")[1] for name in names if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
        )
        bottleneck = "layer1.0.conv3.weight" in names
        depths = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "50" if bottleneck else "34", (3, 4, 23, 3): "101"}
        depths[3, 8, 36, 3] = "152"
        return f"ResNet-{depths[counts]}" if counts in depths else "ResNet"
    if "backbone.layers.0.0.projection.weight" in names:
        return "SegFormer trained with mmsegmentation"
    if "cls_token" in names and "blocks.0.attn.qkv.weight" in names:
        return "Vision Transformer (ViT, DeiT)"
    if any(name.endswith("relative_position_bias_table") for name in names):
        return "Swin Transformer"
    if "features.0.weight" in names:
        return "VGG or AlexNet"
    if any(name.startswith("exp_avg") for name in names):
        return "optimiser state"
    return f"none of the known kinds (its first names: {', '.join(shown(name) for name in list(tensors)[:3])})"
