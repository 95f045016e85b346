"""Opening what a user names: a run, one of its checkpoints, or a file of weights alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afa.config import EncoderConfig, RunConfig, config_to_dict
from afa.config.encoders import encoder_family, encoder_variant
from afa.data.classes import CLASS_NAMES_FILE, COCO_CLASS_NAMES, VOC_CLASS_NAMES
from afa.data.layout import find_class_names
from afa.errors import UserError
from afa.methods import build_method, config_from_dict, load_config
from afa.methods.afa.config import AFAConfig
from afa.methods.base import Method, SingleProcess
from afa.weights.facts import CHECKSUMS, FACTS_FILE, WEIGHTS_FILE, check_facts, read_facts
from afa.weights.files import parse_json
from afa.weights.layouts import Recognised, article, describe_network, describe_resnet38, recognise
from afa.weights.loading import check_names_and_shapes, load_recognised
from afa.weights.reading import WeightsFile, file_checksum, find_weights, read_source

_TENSORS_OF_A_BLOCK = {"mit": 12, "resnet38": 10}  # at least; the depth of timm's networks is not in the settings


class OpenedCheckpoint(NamedTuple):
    """A trained method ready for use, and what is known about it.

    Attributes:
        method: Its network is in evaluation mode, on the CPU.
        config: What it was trained with; defaults where nothing came with the weights.
        class_names: K names, without the background.
        step: Training steps done; None if unknown.
        path: The file of the weights.
    """

    method: Method
    config: RunConfig
    class_names: list[str]
    step: int | None
    path: Path


def open_checkpoint(
    path: str | Path, config_path: str | Path | None = None, change: Callable[[RunConfig], RunConfig] | None = None
) -> OpenedCheckpoint:
    """Build the network that a checkpoint holds, as the method that it names does.

    Args:
        path: A run's output folder (its checkpoint ``best``, else ``last``), a checkpoint folder, or a file: ours, or
            a released program's. ``FILE#ENTRY`` names one of several versions in a file.
        config_path: Configuration to use instead of the one that came with the weights. A file that brings none is
            taken for AFA's, PSA's or EDAM's and described by the shapes of its tensors, which is enough for mit_b0 to
            mit_b5 and for a ResNet-38.
        change: Makes of that configuration the one to be used.

    Returns:
        Method, configuration, class names, step and file.

    Raises:
        UserError: Nothing there, damaged, no network that the method knows, or a configuration that does not fit it.
    """
    file = read_source(path, find_weights)
    record = _record(file.path, file.metadata)
    seen = recognise(file.tensors)
    if config_path is not None:
        config = load_config(config_path)
        if "config" in record:
            _require_same_classifier(file, config_path, config, record["config"])
    elif "config" in record:
        config = config_from_dict(record["config"], source=str(file.path))
    else:
        config = _described(file, seen)
    if change is not None:
        config = change(config)
    if isinstance(config, AFAConfig) and seen.num_classes is None:
        raise UserError(f"{file.path} holds no AFA network: it seems to be {article(seen.kind)}")
    class_names = _class_names(file, seen, record.get("class_names"), config, config_path)
    method = _build(config, class_names, file)
    load_recognised(method.network, file)
    method.network.eval()
    return OpenedCheckpoint(method, config, class_names, record.get("step"), file.path)


def pack_metadata(config: RunConfig, class_names: Sequence[str], step: int | None) -> dict[str, str]:
    """What makes a weights file speak for itself: metadata for :func:`afa.weights.save_network`."""
    metadata = {"config": json.dumps(config_to_dict(config)), "class_names": json.dumps(list(class_names))}
    return metadata if step is None else {**metadata, "step": str(step)}


def names_by_count(count: int) -> list[str]:
    """Names for weights that come with none: PASCAL VOC's for 20 classes, COCO's for 80, else class1, class2, ..."""
    for known in (VOC_CLASS_NAMES, COCO_CLASS_NAMES):
        if len(known) == count:
            return list(known)
    return [f"class{index}" for index in range(1, count + 1)]


def _described(file: WeightsFile, seen: Recognised) -> RunConfig:
    """The configuration of weights that bring none: AFA's, PSA's and EDAM's tell enough by their shapes."""
    sections = describe_resnet38(seen)
    if sections is not None:
        return config_from_dict(sections, source=str(file.path))
    if seen.num_classes is None:
        raise UserError(
            f"{file.path} holds no AFA network and has no record of its configuration: it seems to be "
            f"{article(seen.kind)}; give the configuration that it was trained with"
        )
    try:
        settings, _ = describe_network(file.tensors)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error
    return AFAConfig(model=settings)


def _require_same_classifier(
    file: WeightsFile, config_path: str | Path, config: RunConfig, record: Mapping[str, Any]
) -> None:
    """Refuse a configuration whose classifier reads something else than the trained one does: no tensor shows it.

    A record that this version cannot read is what a configuration is given for: nothing is compared then.
    """
    try:
        recorded = config_from_dict(record)
    except UserError:
        return
    if not (isinstance(config, AFAConfig) and isinstance(recorded, AFAConfig)):
        return
    for name in ("cam_block", "pooling", "pooling_share"):
        given, trained = getattr(config.model, name), getattr(recorded.model, name)
        if given != trained and (name != "pooling_share" or config.model.pooling == "topk"):
            raise UserError(
                f"{config_path}: model.{name} is {given}, but the classifier of {file.path} was trained with {trained}:"
                " give the configuration it was trained with, or none"
            )


def _class_names(
    file: WeightsFile,
    seen: Recognised,
    recorded: Sequence[str] | None,
    config: RunConfig,
    config_path: str | Path | None,
) -> list[str]:
    """The K names of a network's classes, as many as it has where its layout tells."""
    if recorded is None and (config_path is not None or seen.num_classes is None):
        recorded = _names_from_config(config)
    if recorded is None and seen.num_classes is None:
        raise UserError(f"{file.path} names no classes: give the configuration it was trained with")
    names = names_by_count(seen.num_classes - 1) if recorded is None else list(recorded)  # type: ignore[operator]
    if not names or (seen.num_classes is not None and len(names) + 1 != seen.num_classes):
        count = "no" if seen.num_classes is None else seen.num_classes - 1
        raise UserError(
            f"{file.path} has {count} classes without the background, but "
            f"{config_path or 'its record'} names {len(names)}: give the configuration it was trained with"
        )
    return names


def _build(config: RunConfig, class_names: Sequence[str], file: WeightsFile) -> Method:
    """The method of a configuration, after its network was compared with the tensors: it may ask for more than memory
    holds."""
    model = getattr(config, "model", None)
    if isinstance(model, EncoderConfig):
        depth = sum(encoder_variant(model).depths)
        if depth * _TENSORS_OF_A_BLOCK.get(encoder_family(model), 0) > len(file.tensors):
            raise UserError(
                f"{file.path} does not fit: its {len(file.tensors)} tensors are too few for {depth} blocks "
                f"(model.encoder={model.encoder}): give the configuration it was trained with"
            )
    try:
        with torch.device("meta"), _WithoutValues():
            outline = build_method(config, class_names, SingleProcess())
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file.path}: no network can be built as its configuration says: {reason}") from error
    check_names_and_shapes(outline.network, file)
    return build_method(config, class_names, SingleProcess())


class _WithoutValues(TorchFunctionMode):
    """Leaves out the initial values of a network that has no memory: for some of them PyTorch imports its compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:  # rates of a schedule: older versions of timm read them
            return func(*args, **{**kwargs, "device": "cpu"})
        if getattr(func, "__module__", None) == nn.init.__name__ or func is Tensor.normal_:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _record(weights: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """The ``checkpoint.json`` beside a checkpoint's weights, else the metadata within the file."""
    if weights.name == WEIGHTS_FILE and os.path.lexists(weights.parent / FACTS_FILE):
        facts = read_facts(weights.parent)
        if facts[CHECKSUMS].get(WEIGHTS_FILE) != file_checksum(weights):
            raise UserError(f"{weights} is damaged: it does not match its checksum in {FACTS_FILE}; take another one")
        return facts
    try:
        record = {key: parse_json(metadata[key]) for key in ("config", "class_names", "step") if key in metadata}
    except ValueError as error:
        raise UserError(f"{weights} is damaged ({type(error).__name__}): take another checkpoint") from error
    check_facts(record, str(weights))
    return record


def _names_from_config(config: RunConfig) -> list[str] | None:
    """None where an own data set is not at hand: weights can be converted without it."""
    dataset = config.dataset
    if dataset.type == "folder" and not dataset.class_names and not Path(dataset.root, CLASS_NAMES_FILE).is_file():
        return None
    return list(find_class_names(dataset))
