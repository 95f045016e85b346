"""Whether the device computes what the CPU does: same weights and inputs, largest differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from afa.benchmarks.gpu.apart import NotHere
from afa.benchmarks.gpu.setting import (
    CLASSES,
    PRESENT,
    Setting,
    require_precision,
    restored_backends,
    step_arguments,
    step_configuration,
)
from afa.benchmarks.gpu.training import first_step
from afa.benchmarks.pictures import noise_image
from afa.benchmarks.training_step import class_names, make_batch
from afa.device import choose_device
from afa.engine.runtime import ProcessRuntime
from afa.engine.trainer import Trainer
from afa.methods import build_method
from afa.methods.afa.method import AFA

PRECISIONS = ("float32", "tf32", "bf16")
BOUND = 1e-3
"""In float32, no value may differ by more than this share of the largest one of its kind. Chosen before any GPU was at
hand: a mistake is far above, other roundings of sums far below."""

_BOUND_TO = ("network", "par")
# Nothing random; and no pixel between two thresholds, where none of a network with random weights might count.
_SETTINGS = ("model.drop_path=0", "model.decoder_dropout=0", "cam.low=0.45", "cam.high=0.45")


def measure_values(setting: Setting) -> Iterator[dict[str, Any]]:
    """Compare a step with propagated labels, without dropout and drop-path, with the CPU's in float32.

    Yields:
        ``precisions``: name -> ``network`` and ``par``: kind of value -> ``largest``, the largest difference,
        and ``relative``, over the largest value of the CPU; ``labels``: the share of pixels that differ; ``losses``:
        [CPU's, the device's]; ``gradients``: norm of the difference over the norm of the CPU's. Or ``reason``: why
        that precision is not there. And ``agrees``: whether the network's values and PAR in float32 are within
        ``bound``. CAMs, labels and what follows from them are not bound: a threshold decides them, so a rounding can
        turn a pixel over.
    """
    device = choose_device(setting.device, "--device")
    reference = _values(setting, "cpu", "float32")
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        try:
            require_precision(precision, device)
        except NotHere as error:
            found[precision] = {"reason": str(error)}
        else:
            found[precision] = differences(_values(setting, str(device), precision), reference)
        yield {"precisions": found}
    bound = [row for name in _BOUND_TO for row in found["float32"][name].values()]
    yield {"bound": BOUND, "agrees": all(row["relative"] <= BOUND for row in bound)}


def _values(setting: Setting, device: str, precision: str) -> dict[str, Any]:
    """Everything that is compared, on the CPU."""
    args = step_arguments(setting, precision, *_SETTINGS)
    args.device, args.crop = device, setting.sizes.checked_crop
    config = step_configuration(args)
    with restored_backends(), ProcessRuntime.start(config.train) as runtime:
        torch.manual_seed(0)
        method = build_method(config, class_names(CLASSES), runtime)
        assert isinstance(method, AFA)
        network = method.network.to(runtime.device).train()
        batch = Trainer(config, method, runtime, setting.folder).to_device(make_batch(method, CLASSES, PRESENT))
        with torch.no_grad(), runtime.autocast():
            output = network(batch["image"])
        side = setting.sizes.checked_crop
        image = noise_image(side, side).float().div(255)[None].to(runtime.device)
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator)
        masks = F.interpolate(coarse, (side, side), mode="bilinear").softmax(dim=1).to(runtime.device)
        par = method.labels.par(image, masks)
        step = method.training_step(network, batch, first_step(config, "propagated"))
        step.total().backward()
        tensors = {
            f"{name} {index}" if index else name: leaf
            for name, value in output._asdict().items()
            for index, leaf in enumerate(tree_leaves(value))
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        }
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return {
            "network": {name: leaf.detach().float().cpu() for name, leaf in tensors.items()},
            "par": {"refined": par.float().cpu()},
            "labels": {name: target.cpu() for name, target in step.targets.items()},
            "losses": {name: float(value.detach()) for name, value in step.losses.items()},
            "gradients": torch.cat([gradient.float().flatten().cpu() for gradient in gradients]),
        }


def differences(own: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """How far values are from those of the reference, see :func:`measure_values`."""
    rows: dict[str, Any] = {}
    for part in _BOUND_TO:
        rows[part] = {name: _difference(own[part][name], value) for name, value in reference[part].items()}
    rows["labels"] = {
        name: float((own["labels"][name] != label).float().mean()) for name, label in reference["labels"].items()
    }
    rows["losses"] = {name: [value, own["losses"][name]] for name, value in reference["losses"].items()}
    gap = (own["gradients"] - reference["gradients"]).double().norm() / reference["gradients"].double().norm()
    rows["gradients"] = float(gap)
    return rows


def _difference(own: Tensor, reference: Tensor) -> dict[str, float]:
    largest = float((own - reference).abs().max())
    return {"largest": largest, "relative": largest / max(float(reference.abs().max()), 1e-30)}
