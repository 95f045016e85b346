"""The network that a tool's arguments name, and what it is used with."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afa.config import Config, TestConfig, config_from_dict, config_to_dict
from afa.data.layout import find_class_names
from afa.errors import UserError
from afa.models import AFANet
from afa.ops.dense_crf import DenseCRF
from afa.weights import open_checkpoint

logger = logging.getLogger("afa")

_OPEN_SECTIONS = ("dataset", "cam", "affinity", "par", "validation", "test")


@dataclass(frozen=True)
class OpenedNetwork:
    """A network in evaluation mode on its device, and the settings to use it with."""

    network: AFANet
    config: Config
    class_names: tuple[str, ...]
    step: int | None
    device: torch.device


def open_network(args: argparse.Namespace, overrides: Sequence[str] = ()) -> OpenedNetwork:
    """Open the checkpoint that the arguments name.

    Args:
        args: Of :func:`add_network_arguments`, after :func:`split_scales`.
        overrides: ``section.key=value`` strings for how the network is used; what it is stays as it was trained.

    Raises:
        UserError: The checkpoint, the device or a setting is wrong.
    """
    device = choose_device(args.device)
    opened = open_checkpoint(args.checkpoint, args.config)
    overrides = list(overrides)
    if args.scales is not None:
        overrides.append(f"test.scales=[{', '.join(args.scales)}]")
    if args.flip is not None:
        overrides.append(f"test.mirror={str(args.flip).lower()}")
    if args.long_side is not None:
        overrides.append(f"test.long_side={args.long_side}")
    config = override_config(opened.config, overrides)
    network = opened.network.to(device).eval().requires_grad_(False)
    return OpenedNetwork(network, config, tuple(opened.class_names), opened.step, device)


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
    for override in overrides:
        section, dot, _ = override.partition("=")[0].partition(".")
        if "=" not in override or not dot:
            raise UserError(f"override '{override}' must be section.key=value, such as dataset.root=data/mine")
        if section in config_to_dict(config) and section not in _OPEN_SECTIONS:
            raise UserError(
                f"override '{override}': {section} is fixed by the checkpoint; open are {', '.join(_OPEN_SECTIONS)}"
            )
    try:
        changed = OmegaConf.merge(OmegaConf.create(config_to_dict(config)), OmegaConf.from_dotlist(list(overrides)))
        tree = OmegaConf.to_container(changed)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"overrides {' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    assert isinstance(tree, dict)
    return config_from_dict({str(key): value for key, value in tree.items()}, source="overrides")


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


def choose_device(name: str) -> torch.device:
    """The device of a ``--device`` argument.

    Raises:
        UserError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is no device: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs that PyTorch can use")
    return device
