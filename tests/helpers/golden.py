"""The released program's values in ``tests/data``, and the small network that they were computed with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from afa.methods import build_method, config_from_dict
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.methods.afa.network import build_network
from afa.methods.base import Runtime, SingleProcess
from afa.models import AFANet

DATA = Path(__file__).parents[1] / "data"
NUM_CLASSES = 6
SMALL_MODEL = {
    "encoder": "custom",
    "widths": [8, 16, 20, 32],
    "depths": [1, 1, 1, 2],
    "heads": [1, 2, 5, 8],
    "drop_path": 0,
    "decoder_width": 16,
    "decoder_dropout": 0,
}


def load_golden(name: str) -> dict[str, Tensor]:
    """All arrays of ``tests/data/NAME.npz``; texts are left out."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"}


def normalised(images_uint8: Tensor) -> Tensor:
    """[B, 3, H, W] as the network takes it: a float32 subtraction, then a float32 division."""
    mean = torch.tensor(AFAConfig().dataset.image_mean)[:, None, None]
    std = torch.tensor(AFAConfig().dataset.image_std)[:, None, None]
    return (images_uint8.float() - mean) / std


def small_config(**sections: object) -> AFAConfig:
    """Settings for the small network; sections as keyword arguments."""
    model = {**SMALL_MODEL, **sections.pop("model", {})}  # type: ignore[dict-item]
    return config_from_dict({"augmentation": {"crop_size": 64}, "affinity": {"radius": 2}, **sections, "model": model})


def small_network(num_classes: int = NUM_CLASSES, seed: int = 0, **model: object) -> AFANet:
    """The small network with random weights, in evaluation mode."""
    torch.default_generator.manual_seed(seed)
    return build_network(small_config(model=model).model, num_classes).eval()


def small_method(config: AFAConfig, network: AFANet | None = None, runtime: Runtime | None = None) -> AFA:
    """AFA of a configuration, with a network's weights where one is given."""
    class_names = [f"class{index}" for index in range(1, NUM_CLASSES)]
    method = build_method(config, class_names, runtime or SingleProcess())
    assert isinstance(method, AFA)
    if network is not None:
        method.network.load_state_dict(network.state_dict())
        method.network.train(network.training)
    return method


def golden_network(pooling: str = "gmp") -> AFANet:
    """The small network with the golden files' weights, in evaluation mode."""
    network = small_network(pooling=pooling)
    network.load_state_dict(load_golden("network_state"))
    return network


def random_image(*shape: int, seed: int = 0) -> Tensor:
    """Normal values of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Agreement:
    """Compares with the released program, and notes how far it is away for ``tools/fidelity.py``.

    Args:
        record: Keeps a pair of name and value with the test's report.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self.record = record

    def values(self, part: str, found: Tensor, expected: Tensor, tolerance: float, unit: str = "absolute") -> None:
        """The largest absolute difference is at most ``tolerance``."""
        assert found.shape == expected.shape
        difference = (found.double() - expected.double()).abs().max().item()
        self._note(part, difference, tolerance, unit)

    def labels(self, part: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
        """At most this share of the pixels differs."""
        assert found.shape == expected.shape
        share = (found.long() != expected.long()).double().mean().item()
        self._note(part, share, tolerance, "share of pixels")

    def _note(self, part: str, difference: float, tolerance: float, unit: str) -> None:
        self.record(
            "agreement", json.dumps({"part": part, "difference": difference, "tolerance": tolerance, "unit": unit})
        )
        assert difference <= tolerance, f"{part}: {difference:.3g} away from the released program"
