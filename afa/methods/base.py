"""What the engine asks of a training method."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from torch import Tensor, nn


class Batch(TypedDict):
    """Training images with their image-level labels.

    ``image`` lies on the network's device; what steers shapes stays on the host, that a step need not wait for a GPU.
    """

    image: Tensor  # [B, 3, H, W], normalised
    class_labels: Tensor  # [B, K], on the host
    valid_box: Tensor  # [B, 4] y0, y1, x0, x1, on the host
    name: list[str]


class ParameterGroup(TypedDict):
    """Parameters that share a learning rate; the schedule scales ``base_lr``."""

    name: str
    params: list[nn.Parameter]
    base_lr: float
    weight_decay: float


@dataclass
class StepOutput:
    """What one forward pass of a step gives.

    Attributes:
        losses: Name -> scalar with gradient.
        weights: Name -> weight of that loss in this step's total; the same names.
        scalars: Further figures for the log, as scalars on the device.
        targets: Labels that this step was supervised with, for whoever looks in from outside.
    """

    losses: dict[str, Tensor]
    weights: dict[str, float]
    scalars: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """The weighted sum of the losses."""
        terms = [self.weights[name] * loss for name, loss in self.losses.items()]
        return sum(terms[1:], start=terms[0])


class Method(Protocol):
    """A network and what one training step of it means."""

    @property
    def network(self) -> nn.Module:
        """What is trained, saved and evaluated."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """The parameters to optimise; a frozen group has learning rate 0."""
        ...

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """Forward pass, labels and losses of step ``step``, counted from 0.

        ``network`` is :attr:`network`, possibly wrapped: the pass that gets gradients goes through it.
        """
        ...

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Picture name -> RGB uint8 [3, height, width]; changes no state."""
        ...


class Runtime(Protocol):
    """What the engine offers to a method."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which networks run at the run's precision."""
        ...

    def denominator(self, counts: Tensor, plus: float) -> Tensor:
        """See :data:`afa.methods.losses.Denominator`."""
        ...
