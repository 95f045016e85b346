"""Weights into networks, strictly: every tensor has its place, and every place its tensor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from afa.errors import UserError
from afa.models import AFANet, CAMNetwork, EDAMNetwork, TimmCNN, TimmViT
from afa.weights.files import shown
from afa.weights.layouts import (
    EDAM_HEADS,
    PSA_HEADS,
    Recognised,
    ResNet38Shape,
    article,
    encoder_shape,
    recognise,
)
from afa.weights.reading import WeightsFile, file_checksum, find_pretrained, find_weights, read_source
from afa.weights.timm_layouts import for_timm_cnn, for_timm_vit
from afa.weights.versions import listed

logger = logging.getLogger(__name__)

_NAMED = 6
_OUR_TIMM = ("encoder.cnn.", "encoder.vit.")
_HEADS = ("decoder.", "attn_proj.", "classifier.", *PSA_HEADS, *EDAM_HEADS)


def load_encoder(encoder: nn.Module, source: str | Path) -> None:
    """Give an encoder pretrained weights. What was loaded, and its SHA-256, goes to the log.

    Args:
        encoder: The encoder of a network, changed in place.
        source: SegFormer's ImageNet files, Hugging Face Segformers, ResNet-38 of MXNet, PSA or EDAM, for an encoder of
            timm what :mod:`afa.weights.timm_layouts` names, or checkpoints of ours (their encoder): a file, a folder,
            or a name on the Hugging Face hub such as ``nvidia/mit-b1``. Heads are left out. ``FILE#ENTRY`` names one of
            several versions in a file.

    Raises:
        UserError: As :func:`afa.weights.read_tensors`; another variant, another network, missing or left-over tensors.
            The encoder is then unchanged.
    """
    file = read_source(source, find_pretrained)
    seen = recognise(file.tensors)
    wanted = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    found = {name: tensor for name, tensor in seen.tensors.items() if not name.startswith(_HEADS)}
    if isinstance(encoder, (TimmCNN, TimmViT)) and not any(name.startswith(_OUR_TIMM) for name in seen.tensors):
        if isinstance(encoder, TimmCNN):
            found, dropped = for_timm_cnn(seen.tensors, encoder)
        else:
            found, dropped = for_timm_vit(seen.tensors, encoder)
        seen = seen._replace(dropped=[*seen.dropped, *dropped])
    fitting = _fitting(wanted, found, seen, file.path, num_classes=None)
    encoder.load_state_dict(_below("encoder.", fitting))
    _report("encoder", seen, file)


def load_network(network: nn.Module, source: str | Path) -> None:
    """Give a network all its weights. What was loaded, and its SHA-256, goes to the log.

    Args:
        network: Changed in place.
        source: An AFA checkpoint, the released program's or ours: a file, a run, or a folder that holds one.

    Raises:
        UserError: As :func:`load_encoder`, or another number of classes. The network is then unchanged.
    """
    load_recognised(network, read_source(source, find_weights))


def load_fitting(network: nn.Module, source: str | Path) -> None:
    """Give a network those weights of another one that fit by name and shape; the others stay. The log says how many.

    Args:
        network: Changed in place.
        source: As :func:`load_network` takes it, of any method.

    Raises:
        UserError: As :func:`afa.weights.read_tensors`; none fits, or one that does is not finite.
    """
    file = read_source(source, find_weights)
    wanted = network.state_dict()
    found = recognise(file.tensors).tensors
    fitting = {
        name: tensor.to(wanted[name].dtype)
        for name, tensor in found.items()
        if name in wanted and tensor.shape == wanted[name].shape and _kind(tensor.dtype) == _kind(wanted[name].dtype)
    }
    if not fitting:
        raise UserError(
            f"{file.path} holds nothing that fits this network: {listed(list(found))} there, {listed(list(wanted))} "
            "here"
        )
    _require_finite(fitting, file.path)
    network.load_state_dict(fitting, strict=False)
    logger.info(
        "%d of the network's %d tensors start from %s (not there: %s), sha256 %s",
        len(fitting), len(wanted), file.path, listed([name for name in wanted if name not in fitting]) or "none",
        file_checksum(file.path),
    )  # fmt: skip


def load_recognised(network: nn.Module, file: WeightsFile) -> None:
    """As :func:`load_network`, from a file that has been read."""
    seen = recognise(file.tensors)
    wanted = network.state_dict()
    network.load_state_dict(_fitting(wanted, seen.tensors, seen, file.path, num_classes=_num_classes(network)))
    _report("network", seen, file)


def check_names_and_shapes(network: nn.Module, file: WeightsFile) -> None:
    """As :func:`load_recognised`, but only look. The network may lie on PyTorch's meta device and take no memory.

    Raises:
        UserError: As :func:`load_network`.
    """
    seen = recognise(file.tensors)
    _check(network.state_dict(), _complete(network.state_dict(), seen.tensors), seen, file.path, _num_classes(network))


def load_segmenter(network: AFANet, source: str | Path) -> None:
    """Give a network the weights of encoder and decoder; classifier and affinity head stay as they are.

    Args:
        network: Changed in place.
        source: A Hugging Face ``SegformerForSemanticSegmentation`` or an AFA checkpoint.

    Raises:
        UserError: As :func:`load_network`.
    """
    file = read_source(source, find_pretrained)
    seen = recognise(file.tensors)
    heads = ("attn_proj.", "classifier.")
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(heads)}
    found = {name: tensor for name, tensor in seen.tensors.items() if not name.startswith(heads)}
    fitting = _fitting(wanted, found, seen, file.path, num_classes=network.num_classes)
    network.encoder.load_state_dict(_below("encoder.", fitting))
    network.decoder.load_state_dict(_below("decoder.", fitting))
    _report("encoder and decoder", seen, file)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fitting(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], seen: Recognised, path: Path, num_classes: int | None
) -> dict[str, Tensor]:
    """What is to be loaded, in the network's own types. Whatever does not fit is refused before anything is changed."""
    complete = _complete(wanted, found)
    _check(wanted, complete, seen, path, num_classes)
    fitting = {name: tensor.to(wanted[name].dtype) for name, tensor in complete.items()}
    _require_finite(fitting, path)
    return fitting


def _num_classes(network: nn.Module) -> int | None:
    """C of networks that are recognised by their names, for a better message; shapes tell of all others."""
    if isinstance(network, (CAMNetwork, EDAMNetwork)):
        return network.num_classes + 1
    return network.num_classes if isinstance(network, AFANet) else None


def _require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{path} holds values that are not finite ({listed(broken)}): "
            "it is damaged, or its training diverged; take an earlier one"
        )


def _complete(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BatchNorm of PyTorch before 0.4.1 did not count its batches; nothing depends on the count."""
    complete = dict(found)
    for name in wanted:
        norm, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked" and f"{norm}.running_mean" in found:
            complete.setdefault(name, torch.zeros((), dtype=torch.long))
    return complete


def _check(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], seen: Recognised, path: Path, num_classes: int | None
) -> None:
    """Refuse names, shapes and types that do not fit."""
    missing = [name for name in wanted if name not in found]
    left_over = [name for name in found if name not in wanted]
    both = [name for name in wanted if name in found]
    other = [name for name in both if wanted[name].shape != found[name].shape]
    other_type = [name for name in both if _kind(wanted[name].dtype) != _kind(found[name].dtype)]
    shape = encoder_shape(wanted)
    if seen.encoder is not None and shape is not None and str(seen.encoder) != str(shape):
        raise UserError(
            f"{path} seems to be {article(seen.kind)}, but the network's encoder is {article(str(shape))}: "
            f"give weights of that encoder, or set {_how_to_set(seen)}"
        )
    if num_classes is not None and seen.num_classes is not None and seen.num_classes != num_classes:
        raise UserError(
            f"{path} has {seen.num_classes} classes with the background, but the network has {num_classes}: "
            "give the class names it was trained with, or only its encoder as model.pretrained"
        )
    problems = [
        *_listing("missing", missing),
        *_listing("left over", left_over),
        *_listing("of another shape", [f"{name} {_shape(found[name])} for {_shape(wanted[name])}" for name in other]),
        *_listing("of another type", other_type),
    ]
    if problems:
        raise UserError(f"{path} does not fit: it seems to be {article(seen.kind)}; {'; '.join(problems)}")


def _how_to_set(seen: Recognised) -> str:
    if isinstance(seen.encoder, ResNet38Shape):
        shape = seen.encoder
        return f"model.encoder=resnet38, model.base_width={shape.base_width} and model.depths={list(shape.depths)}"
    if seen.encoder is None or seen.encoder.variant is None:
        return "model.encoder=custom with its widths, depths and heads"
    return f"model.encoder={seen.encoder.variant}"


def _listing(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what} ({len(names)}): {listed(list(names))}"] if names else []


def _kind(dtype: torch.dtype) -> str:
    """What numbers of one kind can take each other's place."""
    if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return "real"
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    return "whole" if dtype in whole else str(dtype)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _report(part: str, seen: Recognised, file: WeightsFile) -> None:
    dropped = [*seen.dropped, *file.left_out]
    without = f", without {' and '.join(shown(name) for name in dropped[:_NAMED])}" if dropped else ""
    more = f" and {len(dropped) - _NAMED} more" if len(dropped) > _NAMED else ""
    version = f" ({shown(file.version)})" if file.version else ""
    checksum = file_checksum(file.path)
    logger.info("%s from %s%s: %s%s%s, sha256 %s", part, file.path, version, seen.kind, without, more, checksum)
