"""AdamW over named groups, and the learning rate's course (AFA sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from afa.config import OptimiserConfig
from afa.methods.base import ParameterGroup


def build_optimiser(groups: Sequence[ParameterGroup], settings: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW with one group per :class:`ParameterGroup`; ``base_lr`` stays in the group for the schedule.

    On a GPU the fused implementation is used, which can leave a step out on the device itself, see :func:`update`. On
    the CPU the plain one: it rounds as the released program's does.
    """
    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(
        [{**group, "lr": group["base_lr"]} for group in groups],
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=on_gpu,
    )


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


def lr_factor(step: int, *, steps: int, warmup_steps: int, warmup_ratio: float, power: float) -> float:
    """Factor of the learning rate at step ``step``, counted from 0.

    Linear warm-up from ``warmup_ratio`` towards 1, then polynomial decay to 0 that counts from step 0: the factor
    drops where the warm-up ends.
    """
    if step < warmup_steps:
        return 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return (1 - step / steps) ** power


def set_learning_rates(
    optimiser: torch.optim.Optimizer, step: int, *, steps: int, settings: OptimiserConfig
) -> dict[str, float]:
    """Set every group's learning rate for a step; returns group name -> learning rate."""
    factor = lr_factor(
        step,
        steps=steps,
        warmup_steps=settings.warmup_steps,
        warmup_ratio=settings.warmup_ratio,
        power=settings.power,
    )
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimiser.param_groups}
