"""AdamW or SGD over named groups, and the learning rate's course."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afa.config import OptimiserConfig
from afa.methods.base import ParameterGroup


def build_optimiser(groups: Sequence[ParameterGroup], settings: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser that the settings name, with one group per :class:`ParameterGroup`.

    ``base_lr`` stays in the group for the schedule. On a GPU the fused implementation is used, which can leave a step
    out on the device itself, see :func:`update`. On the CPU the plain one: it rounds as the released programs' do.
    """
    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
    named: list[dict[str, Any]] = [{**group, "lr": group["base_lr"]} for group in groups]
    if settings.name == "sgd":
        return torch.optim.SGD(named, momentum=settings.momentum, fused=on_gpu)
    return torch.optim.AdamW(named, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=on_gpu)


def update(optimiser: torch.optim.Optimizer, bad: Tensor) -> None:
    """One update, left out where the step is bad; the host does not wait for a GPU.

    Args:
        optimiser: Of :func:`build_optimiser`.
        bad: 0 or 1, a float scalar on the parameters' device, see :class:`afa.engine.finite.FiniteGuard`.
    """
    if optimiser.defaults["fused"]:
        optimiser.found_inf = bad  # type: ignore[attr-defined]
        optimiser.step()
    elif not bad.item():
        optimiser.step()


def lr_factor(step: int, *, steps: int, settings: OptimiserConfig) -> float:
    """Factor of the learning rate at step ``step``, counted from 0.

    Linear warm-up from ``warmup_ratio`` towards 1, then polynomial decay to 0. The decay counts from step 0 (the
    factor drops where the warm-up ends) or, with ``decay_from`` "warmup", from the end of the warm-up.
    """
    if step < settings.warmup_steps:
        return 1 - (1 - step / settings.warmup_steps) * (1 - settings.warmup_ratio)
    start = settings.warmup_steps if settings.decay_from == "warmup" else 0
    return (1 - (step - start) / max(1, steps - start)) ** settings.power


def learning_rates(
    optimiser: torch.optim.Optimizer, step: int, *, steps: int, settings: OptimiserConfig
) -> dict[str, float]:
    """Group name -> its learning rate at a step."""
    factor = lr_factor(step, steps=steps, settings=settings)
    return {group["name"]: group["base_lr"] * factor for group in optimiser.param_groups}


def set_learning_rates(
    optimiser: torch.optim.Optimizer, step: int, *, steps: int, settings: OptimiserConfig
) -> dict[str, float]:
    """Set every group's learning rate for a step; returns what :func:`learning_rates` does."""
    rates = learning_rates(optimiser, step, steps=steps, settings=settings)
    for group in optimiser.param_groups:
        group["lr"] = rates[group["name"]]
    return rates
