"""Recognising checkpoints by their names, and translating the names.

Names inside the project are those of the released programs, the encoder's below ``encoder.*``. AFA has ``decoder.*``,
``attn_proj.*`` and ``classifier.*`` besides; PSA's classifier is ``fc8.*``, its AffinityNet ``f8_3.*``, ``f8_4.*``,
``f8_5.*`` and ``f9.*``; EDAM has ``mask_layer.*``, ``d_d.*``, ``embedding.*``, ``trans_list.*`` and ``fc_list.*``; the
released files of both hold the ResNet-38 without prefix. MXNet's file of that encoder has names of its own, and so have
files for timm's networks (:mod:`afa.weights.timm_layouts`). SegFormer's ImageNet files hold the encoder without its
prefix. Hugging Face's library has names of its own and keeps keys and values apart, which AFA stacks in one matrix,
keys first. mmsegmentation's first SegFormer has the released names below ``backbone.*`` and ``decode_head.*``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from afa.config import VARIANTS
from afa.config.encoders import RESNET38_DEPTHS
from afa.errors import UserError
from afa.methods.afa.config import ModelConfig
from afa.models.edam import position_code
from afa.weights.files import shown
from afa.weights.timm_layouts import EFFICIENTNET_STEM, HUGGINGFACE_VIT

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

_OUR_VIT = "encoder.vit.patch_embed.proj.weight"

PSA_HEADS = ("fc8.", "f8_3.", "f8_4.", "f8_5.", "f9.")
"""What PSA's networks have besides their encoder."""
EDAM_HEADS = ("mask_layer.", "d_d.", "embedding.", "trans_list.", "fc_list.")
"""What EDAM's network has besides its encoder."""
_EDAM_POSITIONS = "embedding.position.pe"  # a table that follows from its shape; ours is computed for each map
_EDAM_GRID = 46 * 46  # positions of the released program's crop
_RESIDUAL_UNIT = re.compile(r"encoder\.(b[2-5])(?:_(\d+))?\.", re.ASCII)
_MXNET_UNIT = re.compile(r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|beta|gamma|moving_mean|moving_var)", re.ASCII)
_MXNET_KINDS = {
    "weight": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var",
}  # fmt: skip
_MXNET_HEAD = re.compile(r"(arg:|aux:)?linear1000_")


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


@dataclass(frozen=True)
class ResNet38Shape:
    """What a state dict tells about its ResNet-38: all but its dropout."""

    base_width: int
    depths: tuple[int, ...]

    @property
    def variant(self) -> str | None:
        """``resnet38`` as published, or None for a narrower or shorter one."""
        return "resnet38" if (self.base_width, self.depths) == (64, RESNET38_DEPTHS) else None

    def __str__(self) -> str:
        return self.variant or f"ResNet-38, base width {self.base_width}, depths {list(self.depths)}"


class Recognised(NamedTuple):
    """A checkpoint in the names of the project.

    Attributes:
        kind: What the file seems to be, in words.
        tensors: Name -> tensor. Names that could not be translated stay as they are.
        dropped: Heads for ImageNet and the like, which none of our networks has.
        encoder: Shape of the encoder, None where the file holds no whole Mix Transformer or ResNet-38.
        num_classes: C of the decoder or of EDAM's distribution, or of PSA's classifier with the background; None where
            there is none of them.
    """

    kind: str
    tensors: dict[str, Tensor]
    dropped: list[str]
    encoder: EncoderShape | ResNet38Shape | None
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
    elif _OUR_VIT in tensors:
        kind = "AFA checkpoint" if "attn_proj.weight" in tensors else "segmentation network"
        family = f"{kind} with a Vision Transformer"
    elif any(name in tensors for name in ("conv1a.weight", "encoder.conv1a.weight", "arg:conv1a_weight")):
        return _recognise_resnet38(tensors)
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
    return _described(family, translated, dropped)


def _recognise_resnet38(tensors: Mapping[str, Tensor]) -> Recognised:
    """ResNet-38 alone, or with the heads of PSA or EDAM or a decoder; from MXNet, the released programs, or us."""
    dropped = [name for name in tensors if _MXNET_HEAD.match(name) or name == _EDAM_POSITIONS]
    translated = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    if "arg:conv1a_weight" in tensors:
        return _described("ResNet-38 ImageNet weights", _renamed(translated, _from_mxnet), dropped)
    if "conv1a.weight" in tensors:
        heads = PSA_HEADS + EDAM_HEADS
        translated = _renamed(translated, lambda name: name if name.startswith(heads) else f"encoder.{name}")
    if "fc8.weight" in tensors:
        family = "PSA CAM network"
    elif "mask_layer.weight" in tensors:
        family = "EDAM network"
    elif "f9.weight" in tensors:
        family = "PSA AffinityNet"
    elif any(name.startswith("decoder.") for name in tensors):
        family = "segmentation network"
    else:
        family = "ResNet-38 weights"
    return _described(family, translated, dropped)


def _described(family: str, translated: dict[str, Tensor], dropped: list[str]) -> Recognised:
    """Add what the shapes tell."""
    encoder = encoder_shape(translated)
    prediction = translated.get("decoder.linear_pred.weight")
    classifier, distribution = translated.get("fc8.weight"), translated.get("mask_layer.weight")
    num_classes = len(prediction) if _is_filled(prediction, 4) else None
    if _is_filled(classifier, 4):
        num_classes = len(classifier) + 1
    elif _is_filled(distribution, 4):
        num_classes = len(distribution)
    details = [str(encoder)] if encoder else []
    if num_classes is not None:
        details.append(f"{num_classes} classes with the background")
    kind = f"{family} ({', '.join(details)})" if details else family
    return Recognised(kind, translated, dropped, encoder, num_classes)


def encoder_shape(tensors: Mapping[str, Tensor]) -> EncoderShape | ResNet38Shape | None:
    """What names and shapes of ``encoder.*`` tell; None for other encoders, and where a stage is missing."""
    return _resnet38_shape(tensors) if "encoder.conv1a.weight" in tensors else _mit_shape(tensors)


def _resnet38_shape(tensors: Mapping[str, Tensor]) -> ResNet38Shape | None:
    units: dict[str, set[str | None]] = {}
    for name in tensors:
        if match := _RESIDUAL_UNIT.match(name):
            units.setdefault(match[1], set()).add(match[2])
    stem = tensors.get("encoder.conv1a.weight")
    if not _is_filled(stem, 4) or len(units) != 4:
        return None
    return ResNet38Shape(len(stem), tuple(len(units[group]) for group in sorted(units)))


def _mit_shape(tensors: Mapping[str, Tensor]) -> EncoderShape | None:
    """Widths, depths, reductions and MLP ratio of a Mix Transformer."""
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
    encoder = seen.encoder
    if _OUR_VIT in seen.tensors:
        raise UserError(
            "its Vision Transformer cannot be told from its weights; give the configuration it was trained with"
        )
    if (
        not isinstance(encoder, EncoderShape)
        or seen.num_classes is None
        or not _is_filled(head, 4)
        or not _is_filled(fusion, 4)
    ):
        raise UserError(f"not a whole AFA network: it seems to be {article(seen.kind)}")
    variant = encoder.variant
    if variant is None:
        raise UserError(
            f"a {encoder}: its numbers of attention heads cannot be told from its weights; "
            "give the configuration it was trained with"
        )
    heads = VARIANTS[variant].heads
    blocks, maps = 0, 0
    heads_of_blocks = [count for count, depth in zip(heads, encoder.depths, strict=True) for _ in range(depth)]
    for count in reversed(heads_of_blocks):
        if maps >= head.shape[1]:
            break
        blocks, maps = blocks + 1, maps + count
    if maps != head.shape[1]:
        raise UserError(f"an affinity head of {head.shape[1]} attention maps does not fit the blocks of {variant}")
    settings = ModelConfig(
        encoder=variant,
        reductions=list(encoder.reductions),
        mlp_ratio=encoder.mlp_ratio,
        decoder_width=len(fusion),
        affinity_blocks=blocks,
    )
    return settings, seen.num_classes


def describe_resnet38(seen: Recognised) -> dict[str, Any] | None:
    """Deduce which of PSA's and EDAM's networks a released state dict holds, where no configuration came with it.

    Returns:
        ``method`` and ``model`` of its configuration; None where it holds none of them whole. Dropout is at its
        default, and so are the widths of an AffinityNet and EDAM's number of attention heads.
    """
    if not isinstance(seen.encoder, ResNet38Shape):
        return None
    names = set(seen.tensors)
    reduction, attention = seen.tensors.get("d_d.weight"), {}
    if "fc8.weight" in names:
        method = "psa_cam"
    elif "mask_layer.weight" in names and _is_filled(reduction, 4):
        method, attention = "edam", {"attention_width": len(reduction)}
    elif {"f8_3.weight", "f8_4.weight", "f8_5.weight", "f9.weight"} <= names:
        method = "psa_affinity"
    else:
        return None
    shape = {"base_width": seen.encoder.base_width, "depths": list(seen.encoder.depths)}
    return {"method": method, "model": {"encoder": "resnet38", **shape, **attention}}


def to_released_resnet38(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network with a ResNet-38 under the released names of PSA or EDAM, with EDAM's table of positions."""
    released = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    if "d_d.weight" in tensors:
        released[_EDAM_POSITIONS] = position_code(_EDAM_GRID, len(tensors["d_d.weight"]))[None]
    return released


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


def _from_mxnet(name: str) -> str:
    bare = name.removeprefix("arg:").removeprefix("aux:")
    if bare == "conv1a_weight":
        return "encoder.conv1a.weight"
    if match := _MXNET_UNIT.fullmatch(bare):
        unit = f"b{match[2]}" if match[3] is None else f"b{match[2]}_{match[3]}"
        layer = "conv" if match[1] == "res" else "bn"
        return f"encoder.{unit}.{layer}_{match[4]}.{_MXNET_KINDS[match[5]]}"
    kind = _MXNET_KINDS.get(bare.removeprefix("bn7_"))
    return f"encoder.bn7.{kind}" if kind is not None and bare.startswith("bn7_") else name


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
    if names & {"cls_token", "patch_embed.proj.weight"} and "blocks.0.attn.qkv.weight" in names:
        return "Vision Transformer (ViT, DeiT)"
    if any(name.endswith(HUGGINGFACE_VIT) for name in names):
        return "Vision Transformer (ViT, DINOv2) with Hugging Face's names"
    if EFFICIENTNET_STEM in names:
        return "EfficientNet"
    if any(name.endswith("relative_position_bias_table") for name in names):
        return "Swin Transformer"
    if "features.0.weight" in names:
        return "VGG or AlexNet"
    if any(name.startswith("exp_avg") for name in names):
        return "optimiser state"
    return f"none of the known kinds (its first names: {', '.join(shown(name) for name in list(tensors)[:3])})"
