"""Catching non-finite losses and gradients without making a GPU wait."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from afa.data.files import replacing, write_json
from afa.engine.runtime import ProcessRuntime
from afa.errors import UserError
from afa.methods.base import Batch
from afa.weights.facts import WEIGHTS_FILE

logger = logging.getLogger(__name__)

# A gradient scaler halves its scale after each overflow; 2^16 is where it starts. So many in a row are no overflow.
_OVERFLOWS_IN_A_ROW = 24


class InspectedStep(NamedTuple):
    """One optimisation step as the guard sees it.

    Attributes:
        number: Counted from 0.
        batches: Its micro-batches on this process.
        losses: Per micro-batch: name of the term -> scalar.
        total: Sum of the micro-batches' total losses, a scalar.
    """

    number: int
    batches: Sequence[Batch]
    losses: Sequence[Mapping[str, Tensor]]
    total: Tensor


class _Pending(NamedTuple):
    step: InspectedStep
    flag: Tensor
    ready: torch.cuda.Event | None
    norm: Tensor
    gradients: list[tuple[str, Tensor]]


class FiniteGuard:
    """Leaves out the update of a step whose loss or gradient is not finite, and stops the run or counts.

    With the flag, :func:`afa.engine.optimisation.update` keeps a bad step from the weights, on the device itself;
    :meth:`mend_buffers` does the same for BatchNorm's statistics. The host learns of it at once on the CPU, and on a
    GPU one step later, before the next update.

    Args:
        runtime: The processes, which must agree.
        network: Whose gradients and buffers are looked after.
        output: Folder of the run, for the debug bundle.
        policy: ``stop`` or ``skip``.
        limit: With ``skip``, so many bad steps are skipped; the next one stops the run.
        scaled: Whether a gradient scaler is in use, whose overflows are no fault.
    """

    def __init__(
        self, runtime: ProcessRuntime, network: nn.Module, output: Path, *, policy: str, limit: int, scaled: bool
    ) -> None:
        self.runtime = runtime
        self.network = network
        self.output = output
        self.policy = policy
        self.limit = limit
        self.scaled = scaled
        self.skipped = 0
        self._overflows = 0
        self._pending: _Pending | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"skipped": self.skipped, "overflows": self._overflows}

    def restore(self, state: Mapping[str, int]) -> None:
        """From a checkpoint."""
        self.skipped, self._overflows = state["skipped"], state["overflows"]

    def remember_buffers(self) -> None:
        """Before a step's forward pass, where a bad step may be skipped."""
        if self.policy == "skip" or self.scaled:
            self._buffers = [(buffer, buffer.clone()) for buffer in self.network.buffers()]

    def mend_buffers(self, flag: Tensor) -> None:
        """After a step: bring BatchNorm's statistics back to where they were if the step was bad."""
        for buffer, before in self._buffers:
            buffer.copy_(torch.where(flag > 0, before, buffer))

    def inspect(self, step: InspectedStep) -> tuple[Tensor, Tensor]:
        """Check a step's losses and the network's gradients.

        Returns:
            The gradient norm, and the 0/1 flag for the optimiser, on the device.

        Raises:
            UserError: As :meth:`settle`, of this step on the CPU, of the one before on a GPU.
        """
        gradients = [
            (name, parameter.grad) for name, parameter in self.network.named_parameters() if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in gradients])
        flag = (~(torch.isfinite(norm) & torch.isfinite(step.total.detach()))).float()
        flag = self.runtime.any_on_device(flag)
        if flag.device.type == "cuda":
            host_flag = flag.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
            gradients = []  # They are gone before the host could look at them.
        else:
            host_flag, ready = flag, None
        previous, self._pending = self._pending, _Pending(step, host_flag, ready, norm.detach(), gradients)
        if previous is not None:
            self._judge(previous)
        if ready is None:
            self.settle()
        return norm, flag

    def settle(self) -> None:
        """Judge the step that is still open.

        Raises:
            UserError: It was not finite and the policy, or the limit, says stop; the same on every process.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._judge(pending)

    def _judge(self, pending: _Pending) -> None:
        if pending.ready is not None:
            pending.ready.synchronize()
        if not pending.flag.item():
            self._overflows = 0
            return
        terms = [{name: float(loss) for name, loss in losses.items()} for losses in pending.step.losses]
        culprits = [culprit for part in self.runtime.gather(_culprits(pending.step, terms)) for culprit in part]
        if self.scaled and not culprits and self._overflows < _OVERFLOWS_IN_A_ROW:
            self._overflows += 1  # The scaler lowers its scale and the next step fares better.
            return
        self.skipped += 1
        self._save_bundle(pending, terms)
        if culprits:
            cause = "; ".join(culprits)
        else:
            names = [name for part in self.runtime.gather(_names(pending.step)) for name in part]
            first = next((name for name, value in pending.gradients if not value.isfinite().all()), None)
            cause = f"a gradient is not finite{f' ({first})' if first else ''}, the losses are (images: {_list(names)})"
        bundle = self.output / "non_finite" / f"step_{pending.step.number:08d}"
        message = f"step {pending.step.number}: {cause}; saved in {bundle}"
        if self.policy == "stop":
            raise UserError(f"{message}. The weights were not touched; train.non_finite=skip goes on past such steps")
        if self.skipped > self.limit:
            raise UserError(f"{message}. {self.limit} such steps were skipped, more train.non_finite_limit forbids")
        if self.runtime.is_main:
            logger.warning("%s; the step is skipped (%d so far)", message, self.skipped)

    def _save_bundle(self, pending: _Pending, terms: list[dict[str, float]]) -> None:
        """Everything that is needed to look into it: images and labels of each process, figures, and the weights."""
        folder = self.output / "non_finite" / f"step_{pending.step.number:08d}"
        rank = f"rank_{self.runtime.rank}"
        facts = {
            "step": pending.step.number,
            "rank": self.runtime.rank,
            "world_size": self.runtime.world_size,
            "gradient_norm": repr(float(pending.norm)),
            "not_finite_gradients": [name for name, value in pending.gradients if not value.isfinite().all()],
            "micro_batches": [
                {"images": batch["name"], "losses": {name: repr(value) for name, value in values.items()}}
                for batch, values in zip(pending.step.batches, terms, strict=True)
            ],
        }
        tensors = {
            f"{key}/{number}": value
            for number, batch in enumerate(pending.step.batches)
            for key, value in batch.items()
            if isinstance(value, Tensor)
        }
        try:
            _save(tensors, folder / f"{rank}.safetensors")
            if self.runtime.is_main:
                _save(self.network.state_dict(), folder / WEIGHTS_FILE)
            write_json(folder / f"{rank}.json", facts)
        except (OSError, SafetensorError) as error:
            logger.warning("the debug bundle of step %d could not be saved: %s", pending.step.number, error)


def _culprits(step: InspectedStep, terms: list[dict[str, float]]) -> list[str]:
    """Which losses are not finite, and on which images."""
    found = []
    for batch, values in zip(step.batches, terms, strict=True):
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            found.append(f"loss {', '.join(bad)} is not finite (images: {_list(batch['name'])})")
    return found


def _names(step: InspectedStep) -> list[str]:
    return [name for batch in step.batches for name in batch["name"]]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
