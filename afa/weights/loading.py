"""Weights into networks, strictly: every tensor has its place, and every place its tensor."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from afa.errors import UserError
from afa.models import AFANet, MixTransformer
from afa.weights.layouts import Recognised, article, encoder_shape, recognise
from afa.weights.reading import WeightsFile, file_checksum, find_pretrained, find_weights, read_weights_file

logger = logging.getLogger(__name__)

_LISTED = 6
_HEADS = ("decoder.", "attn_proj.", "classifier.")


def load_encoder(encoder: MixTransformer, source: str | Path) -> None:
    """Give an encoder pretrained weights. What was loaded, and its SHA-256, goes to the log.

    Args:
        encoder: The encoder of a network, changed in place.
        source: SegFormer's ImageNet files, Hugging Face Segformers, or AFA checkpoints (their encoder): a file, a
            folder, or a name on the Hugging Face hub such as ``nvidia/mit-b1``. Heads are left out.

    Raises:
        UserError: As :func:`afa.weights.read_tensors`; another variant, another network, missing or left-over tensors.
            The encoder is then unchanged.
    """
    file = read_weights_file(find_pretrained(source))
    seen = recognise(file.tensors)
    wanted = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    found = {name: tensor for name, tensor in seen.tensors.items() if not name.startswith(_HEADS)}
    _check(wanted, found, seen, file.path, num_classes=None)
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in found.items()})
    _report("encoder", seen, file)


def load_network(network: AFANet, source: str | Path) -> None:
    """Give a network all its weights. What was loaded, and its SHA-256, goes to the log.

    Args:
        network: Changed in place.
        source: An AFA checkpoint, the released program's or ours: a file, a run, or a folder that holds one.

    Raises:
        UserError: As :func:`load_encoder`, or another number of classes. The network is then unchanged.
    """
    file = read_weights_file(find_weights(source))
    load_recognised(network, file)


def load_recognised(network: AFANet, file: WeightsFile) -> None:
    """As :func:`load_network`, from a file that has been read."""
    seen = recognise(file.tensors)
    _check(network.state_dict(), seen.tensors, seen, file.path, num_classes=network.num_classes)
    network.load_state_dict(seen.tensors)
    _report("network", seen, file)


def load_segmenter(network: AFANet, source: str | Path) -> None:
    """Give a network the weights of encoder and decoder; classifier and affinity head stay as they are.

    Args:
        network: Changed in place.
        source: A Hugging Face ``SegformerForSemanticSegmentation`` or an AFA checkpoint.

    Raises:
        UserError: As :func:`load_network`.
    """
    file = read_weights_file(find_pretrained(source))
    seen = recognise(file.tensors)
    heads = ("attn_proj.", "classifier.")
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(heads)}
    found = {name: tensor for name, tensor in seen.tensors.items() if not name.startswith(heads)}
    _check(wanted, found, seen, file.path, num_classes=network.num_classes)
    network.encoder.load_state_dict(_below("encoder.", found))
    network.decoder.load_state_dict(_below("decoder.", found))
    _report("encoder and decoder", seen, file)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], seen: Recognised, path: Path, num_classes: int | None
) -> None:
    """Refuse whatever does not fit, before anything is changed."""
    missing = [name for name in wanted if name not in found]
    left_over = [name for name in found if name not in wanted]
    other = [name for name in wanted if name in found and wanted[name].shape != found[name].shape]
    other_type = [
        name for name in wanted if name in found and wanted[name].is_floating_point() != found[name].is_floating_point()
    ]
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
    broken = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{path} holds values that are not finite ({', '.join(_shortened(broken))}): "
            "it is damaged, or its training diverged; take an earlier one"
        )


def _how_to_set(seen: Recognised) -> str:
    if seen.encoder is None or seen.encoder.variant is None:
        return "model.encoder=custom with its widths, depths and heads"
    return f"model.encoder={seen.encoder.variant}"


def _listing(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what} ({len(names)}): {', '.join(_shortened(names))}"] if names else []


def _shortened(names: Collection[str]) -> list[str]:
    listed = list(names)[:_LISTED]
    return [*listed, "..."] if len(names) > _LISTED else listed


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _report(part: str, seen: Recognised, file: WeightsFile) -> None:
    dropped = f", without {' and '.join(seen.dropped)}" if seen.dropped else ""
    logger.info("%s from %s: %s%s, sha256 %s", part, file.path, seen.kind, dropped, file_checksum(file.path))
