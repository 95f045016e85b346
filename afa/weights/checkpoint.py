"""Opening what a user names: a run, one of its checkpoints, or a file of weights alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from afa.config import VARIANTS, Config, ModelConfig, config_from_dict, config_to_dict, load_config
from afa.data.classes import CLASS_NAMES_FILE, COCO_CLASS_NAMES, VOC_CLASS_NAMES
from afa.data.layout import find_class_names
from afa.errors import UserError
from afa.models import AFANet, build_network
from afa.weights.facts import CHECKSUMS, FACTS_FILE, WEIGHTS_FILE, check_facts, read_facts
from afa.weights.files import parse_json
from afa.weights.layouts import article, describe_network, recognise
from afa.weights.loading import check_names_and_shapes, load_recognised
from afa.weights.reading import WeightsFile, file_checksum, find_weights, read_source

_TENSORS_OF_A_BLOCK = 12


class OpenedCheckpoint(NamedTuple):
    """A network ready for use, and what is known about it.

    Attributes:
        network: In evaluation mode, on the CPU.
        config: What it was trained with; defaults where nothing came with the weights.
        class_names: K names, background left out.
        step: Training steps done, None where nobody says.
    """

    network: AFANet
    config: Config
    class_names: list[str]
    step: int | None


def open_checkpoint(path: str | Path, config_path: str | Path | None = None) -> OpenedCheckpoint:
    """Build the network that a checkpoint holds.

    Args:
        path: A run's output folder (its checkpoint ``best``, else ``last``), a checkpoint folder, or a file: ours, or
            the released program's. ``FILE#ENTRY`` names one of several versions in a file.
        config_path: Configuration to use instead of the one that came with the weights. A file that brings none is
            described by the shapes of its tensors, which is enough for mit_b0 to mit_b5.

    Returns:
        Network, configuration, class names and step.

    Raises:
        UserError: Nothing there, damaged, no AFA network, or a configuration that does not fit it.
    """
    file = read_source(path, find_weights)
    record = _record(file.path, file.metadata)
    seen = recognise(file.tensors)
    if seen.num_classes is None:
        raise UserError(f"{file.path} holds no AFA network: it seems to be {article(seen.kind)}")
    if config_path is not None:
        config = load_config(config_path)
    elif "config" in record:
        config = config_from_dict(record["config"], source=str(file.path))
    else:
        try:
            settings, _ = describe_network(file.tensors)
        except UserError as error:
            raise UserError(f"{file.path}: {error}") from error
        config = Config(model=settings)
    known_names = record.get("class_names")
    if known_names is None and config_path is not None:
        known_names = _names_from_config(config)
    class_names = names_by_count(seen.num_classes - 1) if known_names is None else list(known_names)
    if not class_names or len(class_names) + 1 != seen.num_classes:
        raise UserError(
            f"{file.path} has {seen.num_classes - 1} classes without the background, but "
            f"{config_path or 'its record'} names {len(class_names)}: give the configuration it was trained with"
        )
    network = _build(config.model, seen.num_classes, file)
    load_recognised(network, file)
    return OpenedCheckpoint(network.eval(), config, class_names, record.get("step"))


def pack_metadata(config: Config, class_names: Sequence[str], step: int | None) -> dict[str, str]:
    """What makes a weights file speak for itself: metadata for :func:`afa.weights.save_network`."""
    metadata = {"config": json.dumps(config_to_dict(config)), "class_names": json.dumps(list(class_names))}
    return metadata if step is None else {**metadata, "step": str(step)}


def names_by_count(count: int) -> list[str]:
    """Names for weights that come with none: PASCAL VOC's for 20 classes, COCO's for 80, else class1, class2, ..."""
    for known in (VOC_CLASS_NAMES, COCO_CLASS_NAMES):
        if len(known) == count:
            return list(known)
    return [f"class{index}" for index in range(1, count + 1)]


def _build(settings: ModelConfig, num_classes: int, file: WeightsFile) -> AFANet:
    """The network of a configuration, after it was compared with the tensors: it may ask for more than memory holds."""
    variant = VARIANTS.get(settings.encoder)
    depths = settings.depths or (variant.depths if variant else [])
    if sum(depths) * _TENSORS_OF_A_BLOCK > len(file.tensors):
        raise UserError(
            f"{file.path} does not fit: its {len(file.tensors)} tensors are too few for {sum(depths)} blocks "
            f"(model.encoder={settings.encoder}): give the configuration it was trained with"
        )
    try:
        with torch.device("meta"):
            outline = build_network(settings, num_classes)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file.path}: no network can be built as its configuration says: {reason}") from error
    check_names_and_shapes(outline, file)
    return build_network(settings, num_classes)


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


def _names_from_config(config: Config) -> list[str] | None:
    """None where an own data set is not at hand: weights can be converted without it."""
    dataset = config.dataset
    if dataset.type == "folder" and not dataset.class_names and not Path(dataset.root, CLASS_NAMES_FILE).is_file():
        return None
    return list(find_class_names(dataset))
