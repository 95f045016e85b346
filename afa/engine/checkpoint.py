"""Checkpoints that survive a kill, a full disk and damage.

A checkpoint is a folder ``OUTPUT/checkpoints/step_00002000`` with ``weights.safetensors`` (the network alone),
``training.safetensors`` (the optimiser's state) and ``checkpoint.json`` (configuration, step, checksums, versions, and
all else needed to go on). It is written beside, flushed and renamed. ``last`` and ``best`` are links to such folders.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import afa
from afa.errors import UserError

logger = logging.getLogger("afa")

WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
FACTS = "checkpoint.json"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        output: Folder of the run.
        keep: How many of the latest stay; the best stays besides.
    """

    def __init__(self, output: Path, *, keep: int) -> None:
        self.folder = output / "checkpoints"
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

    def save(
        self,
        step: int,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        facts: Mapping[str, Any],
        *,
        is_best: bool,
    ) -> bool:
        """Write a checkpoint.

        A full disk or an unwritable folder costs the checkpoint, not the run.

        Args:
            step: Steps done.
            network: Its weights and buffers are saved.
            optimiser: Its state is saved.
            facts: What else is needed to go on; JSON.
            is_best: Whether ``best`` shall lead here.

        Returns:
            Whether it was written.
        """
        target = self.path(step)
        part = self.folder / f".part_{target.name}_{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.mkdir()
            checksums = {
                WEIGHTS: _write_tensors(part / WEIGHTS, network.state_dict()),
                TRAINING: _write_tensors(part / TRAINING, _optimiser_tensors(network, optimiser)),
            }
            facts = {"step": step, **facts, "sha256": checksums, "versions": _versions()}
            _write_flushed(part / FACTS, (json.dumps(facts, indent=2) + "\n").encode())
            if target.exists():
                # Only a damaged checkpoint, which was passed over when resuming, is ever written again.
                shutil.rmtree(target)
            os.replace(part, target)
            _flush_folder(self.folder)
            self._point("last", target)
            if is_best:
                self._point("best", target)
            self._prune()
        except (OSError, safetensors.SafetensorError) as error:
            logger.warning("the checkpoint of step %d could not be written, training goes on: %s", step, error)
            shutil.rmtree(part, ignore_errors=True)
            return False
        return True

    def load_latest(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Restore the newest intact checkpoint.

        Returns:
            Its facts, or None where there is no checkpoint.

        Raises:
            UserError: There are checkpoints and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.path(step)
            try:
                facts = read_facts(path)
                restore(path, facts, network, optimiser)
            except UserError as error:
                logger.warning("%s; taking the one before", error)
                continue
            return facts
        if steps:
            raise UserError(f"every checkpoint in {self.folder} is damaged: delete the folder to start afresh")
        return None

    def _point(self, name: str, target: Path) -> None:
        link = self.folder / name
        temporary = self.folder / f".part_{name}_{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, link)

    def _prune(self) -> None:
        best = (self.folder / "best").resolve()
        kept = {self.path(step) for step in self.steps()[-self.keep :]}
        for step in self.steps():
            path = self.path(step)
            if path not in kept and path.resolve() != best:
                shutil.rmtree(path, ignore_errors=True)
        for left_over in self.folder.glob(".part_*"):
            if not left_over.name.endswith(f"_{os.getpid()}"):
                shutil.rmtree(left_over, ignore_errors=True)


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON file of a checkpoint, after its files' checksums were compared.

    Raises:
        UserError: Something is missing or damaged.
    """
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        checksums = facts["sha256"]
        for name in (WEIGHTS, TRAINING):
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != checksums[name]:
                raise UserError(f"the checkpoint {path} is damaged: {name} does not match its checksum")
    except OSError as error:
        raise UserError(f"the checkpoint {path} is incomplete: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint {path} is damaged: {FACTS} does not hold what it should") from error
    return facts


def restore(path: Path, facts: Mapping[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and optimiser state, strictly.

    Raises:
        UserError: The files do not fit the network.
    """
    try:
        weights = safetensors.torch.load_file(path / WEIGHTS)
        training = safetensors.torch.load_file(path / TRAINING)
        network.load_state_dict(weights)
        _restore_optimiser(network, optimiser, training)
    except (OSError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the checkpoint {path} of step {facts['step']} does not fit this network: {reason}") from error


def _optimiser_tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{key}/{names[parameter]}": value
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _restore_optimiser(network: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    optimiser.state.clear()
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        parameter = parameters[name]
        optimiser.state.setdefault(parameter, {})[kind] = value.to(parameter.device)


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


def _versions() -> dict[str, str]:
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
