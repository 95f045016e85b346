"""A small ResNet-38 under the names of those who publish it."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

SMALL_RESNET38 = {"encoder": "resnet38", "base_width": 2, "depths": [1, 1, 1, 1]}
"""Settings of a network that takes no time."""

_KINDS = {
    "weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var",
}  # fmt: skip


def released_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the released PSA program saves a network of ours."""
    return {name.removeprefix("encoder."): tensor.clone() for name, tensor in state.items()}


def mxnet_names(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As MXNet's ImageNet file calls the tensors of a ResNet-38; counters have no place there."""
    return {_mxnet_name(name): value for name, value in encoder.items() if not name.endswith("num_batches_tracked")}


def write_mxnet(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A legacy file of float32 arrays."""
    content = struct.pack("<3Q", 0x112, 0, len(tensors))
    for tensor in tensors.values():
        values = np.ascontiguousarray(tensor.numpy(), dtype="<f4")
        content += struct.pack(f"<{1 + values.ndim}I3i", values.ndim, *values.shape, 1, 0, 0) + values.tobytes()
    content += struct.pack("<Q", len(tensors))
    for name in tensors:
        content += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(content)


def _mxnet_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module == "conv1a":
        return "arg:conv1a_weight"
    where = "aux" if kind.startswith("running") else "arg"
    if module == "bn7":
        return f"{where}:bn7_{_KINDS[kind]}"
    match = re.fullmatch(r"b(\d)(?:_(\d))?\.(conv|bn)_(branch\w+)", module)
    assert match is not None
    single = match[1] in "67" or match[2] is None
    unit = f"{match[1]}a" if single else f"{match[1]}b{match[2]}"
    if match[3] == "conv":
        return f"arg:res{unit}_{match[4]}_weight"
    return f"{where}:bn{unit}_{match[4]}_{_KINDS[kind]}"
