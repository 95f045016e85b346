"""Catching non-finite losses and gradients without making a GPU wait."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from afa.engine.runtime import ProcessRuntime
from afa.errors import UserError
from afa.methods.base import Batch, StepOutput

logger = logging.getLogger("afa")


class _Pending(NamedTuple):
    step: int
    flag: Tensor
    ready: torch.cuda.Event | None
    batch: Batch
    losses: dict[str, Tensor]
    gradient_norm: Tensor


class FiniteGuard:
    """Leaves out the update of a step whose loss or gradient is not finite, and stops the run or counts.

    The optimiser reads the flag on its own device (``found_inf`` of the fused AdamW), so that a bad step never reaches
    the weights. The host learns of it at once on the CPU, and on a GPU one step later.

    Args:
        runtime: The processes, which must agree.
        output: Folder of the run, for the debug bundle.
        policy: ``stop`` or ``skip``.
        limit: With ``skip``, so many bad steps stop the run all the same.
        skipped: Bad steps so far, when resuming.
    """

    def __init__(self, runtime: ProcessRuntime, output: Path, *, policy: str, limit: int, skipped: int = 0) -> None:
        self.runtime = runtime
        self.output = output
        self.policy = policy
        self.limit = limit
        self.skipped = skipped
        self._pending: _Pending | None = None

    def inspect(
        self, step: int, batch: Batch, result: StepOutput, total: Tensor, gradients: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Look at a step's loss and gradients.

        Args:
            step: Counted from 0.
            batch: Its (last) micro-batch.
            result: What the method made of it.
            total: The total loss.
            gradients: Those that count; none where a gradient scaler looks after them.

        Returns:
            The gradient norm, and the 0/1 flag for the optimiser, on the device.
        """
        norm = torch.nn.utils.get_total_norm(gradients)
        flag = (~(torch.isfinite(norm) & torch.isfinite(total.detach()))).float()
        flag = self.runtime.any_on_device(flag)
        losses = {name: loss.detach() for name, loss in result.losses.items()}
        if flag.device.type == "cuda":
            host_flag = flag.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        else:
            host_flag, ready = flag, None
        previous, self._pending = self._pending, _Pending(step, host_flag, ready, batch, losses, norm.detach())
        if previous is not None:
            self._judge(previous)
        if ready is None:
            self.settle()
        return norm, flag

    def settle(self) -> None:
        """Judge the step that is still open.

        Raises:
            UserError: It was not finite and the policy, or the limit, says stop.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._judge(pending)

    def _judge(self, pending: _Pending) -> None:
        if pending.ready is not None:
            pending.ready.synchronize()
        if not pending.flag.item():
            return
        self.skipped += 1
        terms = {name: float(loss) for name, loss in pending.losses.items()}
        bad = [name for name, value in terms.items() if not torch.isfinite(torch.tensor(value))]
        cause = f"loss {', '.join(bad)} is not finite" if bad else "a gradient is not finite, the losses are"
        bundle = self._save_bundle(pending, terms)
        where = f"step {pending.step}: {cause} (images: {', '.join(pending.batch['name'])}; saved in {bundle})"
        if self.policy == "stop":
            raise UserError(f"{where}. The weights were not touched; train.non_finite=skip goes on past such steps")
        if self.skipped >= self.limit:
            raise UserError(f"{where}. That was the last of {self.limit} steps that train.non_finite_limit allows")
        logger.warning("%s; the step is skipped (%d so far)", where, self.skipped)

    def _save_bundle(self, pending: _Pending, terms: dict[str, float]) -> Path:
        folder = self.output / "non_finite" / f"step_{pending.step:08d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stem = folder / f"rank_{self.runtime.rank}"
            batch = pending.batch
            save_file(
                {
                    "image": batch["image"].contiguous().cpu(),
                    "class_labels": batch["class_labels"].contiguous(),
                    "valid_box": batch["valid_box"].contiguous(),
                },
                f"{stem}.safetensors.part",
            )
            os.replace(f"{stem}.safetensors.part", f"{stem}.safetensors")
            facts = {
                "step": pending.step,
                "images": batch["name"],
                "losses": {name: repr(value) for name, value in terms.items()},
                "gradient_norm": repr(float(pending.gradient_norm)),
            }
            Path(f"{stem}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            logger.warning("the debug bundle of step %d could not be saved: %s", pending.step, error)
        return folder
