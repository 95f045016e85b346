"""The weights that the PSA and EDAM golden files were computed with: they follow from names and shapes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from golden import DATA
from torch import Tensor

_KEPT = ("num_batches_tracked", "embedding.position.pe")


def released_weights(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every entry is the first draw of a generator of its own.

    Args:
        prefix: ``weight_prefix`` of the file.
        shapes: Name in the released state dict -> shape. Counters and position tables are left out.

    Returns:
        Name -> float32.
    """
    return {name: _entry(prefix, name, shape) for name, shape in shapes.items() if not name.endswith(_KEPT)}


def released_state(name: str, key: str) -> dict[str, Tensor]:
    """The state dict that ``tests/data/NAME.npz`` was computed with, under its released names.

    Args:
        name: Of the file.
        key: Its array of names and shapes.
    """
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        shapes = parsed_shapes(arrays[key])
        weights = released_weights(str(arrays["weight_prefix"]), shapes)
    counters = {entry: torch.tensor(0) for entry in shapes if entry.endswith("num_batches_tracked")}
    return {**weights, **counters}


def parsed_shapes(lines: np.ndarray) -> dict[str, tuple[int, ...]]:
    """``name d0 d1 ..`` of each entry -> shapes."""
    return {name: tuple(map(int, sizes)) for name, *sizes in (str(line).split() for line in lines)}


def _entry(prefix: str, name: str, shape: tuple[int, ...]) -> Tensor:
    rng = np.random.RandomState(zlib.crc32((prefix + name).encode()))
    last = name.rpartition(".")[2]
    if last == "running_var" or (len(shape) < 2 and last in ("weight", "a_2")):
        values = 0.5 + rng.random_sample(shape)
    elif len(shape) < 2:
        values = 0.1 * rng.standard_normal(shape)
    else:
        values = rng.standard_normal(shape) * np.sqrt(2 / prod(shape[1:]))
        if "conv_branch2b" in name:
            values = 0.3 * values
    return torch.from_numpy(values.astype(np.float32))
