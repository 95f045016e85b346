"""Checkpoints that survive a kill, a full disk and damage.

A checkpoint is a folder ``OUTPUT/checkpoints/step_00002000`` with ``weights.safetensors`` (the network alone),
``training.safetensors`` (the optimiser's state) and ``checkpoint.json`` (configuration, step, checksums, versions, and
all else needed to go on). It is written beside, flushed and renamed. ``last`` and ``best`` are links to such folders.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import afa
from afa.errors import UserError
from afa.weights.facts import (
    CHECKPOINTS_FOLDER,
    CHECKSUMS,
    FACTS_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    pack_facts,
    read_facts,
)

logger = logging.getLogger(__name__)

_PART = ".part_"
_DAMAGED = "damaged_"
_REPLACED = "replaced_"


class Checkpoint(NamedTuple):
    """An intact checkpoint, read.

    Attributes:
        facts: What ``checkpoint.json`` says.
        weights: The network's tensors by name, on the CPU.
        training: The optimiser's tensors, see :func:`restore`.
    """

    facts: dict[str, Any]
    weights: dict[str, Tensor]
    training: dict[str, Tensor]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        output: Folder of the run.
        keep: How many of the latest stay; the best stays besides.
    """

    def __init__(self, output: Path, *, keep: int = 1) -> None:
        self.folder = output / CHECKPOINTS_FOLDER
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, rising."""
        found = []
        for path in self.folder.glob("step_*"):
            number = path.name.removeprefix("step_")
            if number.isdigit() and path.is_dir():
                found.append(int(number))
        return sorted(found)

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step_{step:08d}"

    def save(self, step: int, network: nn.Module, optimiser: torch.optim.Optimizer, facts: Mapping[str, Any]) -> bool:
        """Write a checkpoint.

        A full disk or an unwritable folder costs the checkpoint, not the run.

        Args:
            step: Steps done.
            network: Its weights and buffers are saved.
            optimiser: Its state is saved.
            facts: What else is needed to go on; JSON.

        Returns:
            Whether it was written.
        """
        target = self.path(step)
        part = self.folder / f"{_PART}{target.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove(part)
            part.mkdir()
            checksums = {
                WEIGHTS_FILE: _write_tensors(part / WEIGHTS_FILE, network.state_dict()),
                TRAINING_FILE: _write_tensors(part / TRAINING_FILE, _optimiser_tensors(network, optimiser)),
            }
            _write_flushed(part / FACTS_FILE, pack_facts({"step": step, **facts}, checksums).encode())
            _flush_folder(part)
            if target.exists():
                os.replace(target, self.folder / f"{_REPLACED}{target.name}")
            os.replace(part, target)
            _flush_folder(self.folder)
        except (OSError, safetensors.SafetensorError) as error:
            logger.warning("the checkpoint of step %d could not be written, training goes on: %s", step, error)
            shutil.rmtree(part, ignore_errors=True)
            self._settle_replaced()
            return False
        self._settle_replaced()
        self._point("last", target)
        self._prune()
        return True

    def mark_best(self, step: int) -> bool:
        """Let ``best`` lead to a step's checkpoint; returns whether it does (there may be none: the disk was full)."""
        return self.path(step).is_dir() and self._point("best", self.path(step))

    def load_latest(self) -> Checkpoint | None:
        """Read the newest intact checkpoint; damaged newer ones are set aside as ``damaged_*``.

        To be called by the one process that writes here.

        Returns:
            The checkpoint, or None where there is none at all.

        Raises:
            UserError: There are checkpoints and all are damaged.
        """
        for left_over in self.folder.glob(f"{_PART}*"):
            _remove(left_over)
        self._settle_replaced()
        steps = self.steps()
        damaged = []
        for step in reversed(steps):
            try:
                checkpoint = read_checkpoint(self.path(step))
            except UserError as error:
                logger.warning("%s; taking the one before", error)
                damaged.append(step)
                continue
            for newer in damaged:
                self._set_aside(newer)
            self._repair_links(step, checkpoint.facts.get("best_step"))
            return checkpoint
        if steps:
            raise UserError(f"every checkpoint in {self.folder} is damaged: delete the folder to start afresh")
        return None

    def _repair_links(self, last: int, best: int | None) -> None:
        """After newer checkpoints were set aside, the links may lead nowhere."""
        self._point("last", self.path(last))
        link = self.folder / "best"
        if not link.exists():
            _remove(link)
            if best is not None and self.path(best).is_dir():
                self._point("best", self.path(best))

    def _settle_replaced(self) -> None:
        """Drop checkpoints that newer ones of the same step have replaced, or put them back where none came."""
        for replaced in self.folder.glob(f"{_REPLACED}*"):
            target = self.folder / replaced.name.removeprefix(_REPLACED)
            try:
                if target.exists():
                    _remove(replaced)
                else:
                    os.replace(replaced, target)
            except OSError as error:
                logger.warning("%s could not be tidied up: %s", replaced, error)

    def _set_aside(self, step: int) -> None:
        aside = self.folder / f"{_DAMAGED}{self.path(step).name}"
        try:
            _remove(aside)
            os.replace(self.path(step), aside)
        except OSError as error:
            raise UserError(f"the damaged checkpoint {self.path(step)} cannot be renamed: {error.strerror}") from error

    def _point(self, name: str, target: Path) -> bool:
        """Let a link lead to a checkpoint; returns whether it does: some file systems have no links."""
        temporary = self.folder / f"{_PART}{name}"
        try:
            _remove(temporary)
            temporary.symlink_to(target.name)
            os.replace(temporary, self.folder / name)
        except OSError as error:
            logger.warning("the link '%s' to %s could not be written: %s", name, target, error)
            return False
        return True

    def _prune(self) -> None:
        steps = self.steps()
        best = (self.folder / "best").resolve()
        for step in steps[: -self.keep]:
            if self.path(step).resolve() != best:
                shutil.rmtree(self.path(step), ignore_errors=True)
        for path in self.folder.glob(f"{_DAMAGED}step_*"):
            # As long as the run has not come further, a damaged file may still be worth a rescue.
            if path.name.removeprefix(f"{_DAMAGED}step_") <= f"{steps[-1]:08d}":
                shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, every byte of which is compared with its checksum first. No code in it is run.

    Raises:
        UserError: Something is missing or damaged.
    """
    facts = read_facts(path)
    tensors = {}
    for name in (WEIGHTS_FILE, TRAINING_FILE):
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise UserError(f"the checkpoint {path} is incomplete: {name}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != facts[CHECKSUMS].get(name):
            raise UserError(f"the checkpoint {path} is damaged: {name} does not match its checksum")
        tensors[name] = safetensors.torch.load(data)
    return Checkpoint(facts, tensors[WEIGHTS_FILE], tensors[TRAINING_FILE])


def restore(checkpoint: Checkpoint, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Load weights and the optimiser's state, strictly.

    Raises:
        UserError: They do not fit the network.
    """
    parameters = dict(network.named_parameters())
    state: dict[Tensor, dict[str, Tensor]] = {}
    try:
        for key, value in checkpoint.training.items():
            kind, name = key.split("/", 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:
                # Fused updates want the moments in the parameter's own memory order, channels-last included.
                value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
            state.setdefault(parameter, {})[kind] = value.to(parameter.device)
        network.load_state_dict(checkpoint.weights)
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        step = checkpoint.facts["step"]
        raise UserError(f"the checkpoint of step {step} does not fit this network: {reason}") from error
    optimiser.state.clear()
    optimiser.state.update(state)


def software_versions() -> dict[str, str]:
    """What the program and what it stands on were when it was started."""
    return {
        "afa": afa.__version__,
        "git": git_revision(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def git_revision() -> str:
    """The revision of this source tree, ``+`` where it holds changes; "unknown" outside a repository."""
    here = Path(afa.__file__).parent
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+" if changes else "")


def _optimiser_tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{key}/{names[parameter]}": value
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    _write_flushed(path, data)
    return hashlib.sha256(data).hexdigest()


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
