"""A checkpoint opened for use, and what it is used with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from afa.config import Config, TestConfig, config_from_dict, config_to_dict
from afa.data.layout import find_class_names
from afa.device import allow_tf32, choose_device
from afa.errors import UserError
from afa.models import AFANet
from afa.ops.dense_crf import DenseCRF
from afa.weights import open_checkpoint

logger = logging.getLogger(__name__)

_OPEN_SECTIONS = ("dataset", "cam", "affinity", "par", "validation", "test")


@dataclass(frozen=True)
class OpenedNetwork:
    """A network in evaluation mode on its device, and the settings to use it with."""

    network: AFANet
    config: Config
    class_names: tuple[str, ...]
    step: int | None
    device: torch.device


def open_network(
    checkpoint: str | Path,
    *,
    config: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> OpenedNetwork:
    """Open a checkpoint for use.

    Args:
        checkpoint: As :func:`afa.weights.open_checkpoint` takes it.
        config: Configuration (YAML) instead of the one that came with the weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overrides: ``section.key=value`` strings for how the network is used; what it is stays as it was trained.

    Raises:
        UserError: The checkpoint, the device or a setting is wrong.
    """
    chosen_device = choose_device(device, "--device")
    allow_tf32(False)
    opened = open_checkpoint(checkpoint, config)
    changed = override_config(opened.config, overrides)
    network = opened.network.to(chosen_device).eval().requires_grad_(False)
    return OpenedNetwork(network, changed, tuple(opened.class_names), opened.step, chosen_device)


def scored_class_names(opened: OpenedNetwork) -> tuple[str, ...]:
    """The K class names of the data set that the network is scored on.

    Raises:
        UserError: The network has another number of classes; or the names cannot be read.
    """
    names = tuple(find_class_names(opened.config.dataset))
    if len(names) != len(opened.class_names):
        raise UserError(
            f"the network knows {len(opened.class_names)} classes, the data set {opened.config.dataset.root} has "
            f"{len(names)}: set dataset.root to the one it was trained for"
        )
    for own, other in zip(opened.class_names, names, strict=True):
        if own != other:
            logger.warning("the network's class '%s' is '%s' in the data set: their classes should agree", own, other)
            break
    return names


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with some settings changed that concern how a network is used.

    Raises:
        UserError: An override is malformed, unknown, or of a section that is fixed by the training.
    """
    tree = config_to_dict(config)
    for override in overrides:
        section = override.partition("=")[0].partition(".")[0]
        if section in tree and section not in _OPEN_SECTIONS:
            raise UserError(
                f"override '{override}': {section} is fixed by the checkpoint; open are {', '.join(_OPEN_SECTIONS)}"
            )
    return config_from_dict(tree, source="the checkpoint's configuration", overrides=overrides)


def build_crf(settings: TestConfig, negligible: float | None = None) -> DenseCRF:
    """DenseCRF with the ``test`` section's settings.

    Raises:
        UserError: ``negligible`` is no probability.
    """
    try:
        return DenseCRF(
            iterations=settings.crf_iterations,
            gaussian_sxy=settings.crf_gaussian_sxy,
            gaussian_weight=settings.crf_gaussian_weight,
            bilateral_sxy=settings.crf_bilateral_sxy,
            bilateral_srgb=settings.crf_bilateral_srgb,
            bilateral_weight=settings.crf_bilateral_weight,
            negligible=negligible,
        )
    except ValueError as error:
        raise UserError(f"DenseCRF: {error}") from error
