"""Checkpoints that survive a kill, a full disk and damage.

A checkpoint is a folder ``OUTPUT/checkpoints/step_00002000`` with ``weights.safetensors`` (the network alone),
``training.safetensors`` (the optimiser's state) and ``checkpoint.json`` (configuration, step, checksums, versions, and
all else needed to go on). It is written beside, flushed and renamed. ``last`` and ``best`` are links to such folders.
Only names that the program itself gives are its own: what else lies there is neither counted nor removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
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
from afa.weights.files import UnreadableError, read_file, shown
from afa.weights.versions import listed

logger = logging.getLogger(__name__)

_PART = ".part_"
_DAMAGED = "damaged_"
_REPLACED = "replaced_"
_ASIDE = "aside_"
_LINKS = ("last", "best")
# Eight figures, more without a zero in front: what "step_%08d" gives.
_STEP = re.compile(r"step_([0-9]{8}|[1-9][0-9]{8,15})")
_SET_ASIDE = re.compile(rf"{_DAMAGED}(step_[0-9]+)(_[0-9]+)?")

_MOST_UPDATES = 2.0**53
_ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}


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
        """Steps of all complete checkpoints, rising. Links, and names that are not the store's, do not count.

        Raises:
            UnreadableError: The folder is there and cannot be read: that is not the same as an empty one.
        """
        found = [_step_of(name) for name in self._names() if not self._is_foreign(self.folder / name)]
        return sorted(step for step in found if step is not None)

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
            if os.path.lexists(target) and self._is_another(target, step):
                self._set_aside(target, _ASIDE)
            elif target.exists():
                os.replace(target, self.folder / f"{_REPLACED}{target.name}")
            os.replace(part, target)
            _flush_folder(self.folder)
        except (OSError, safetensors.SafetensorError, UserError) as error:
            logger.warning("the checkpoint of step %d could not be written, training goes on: %s", step, error)
            shutil.rmtree(part, ignore_errors=True)
            self._tidy_up(self._settle_replaced)
            return False
        self._tidy_up(self._settle_replaced)
        self._point("last", target)
        self._tidy_up(lambda: self._prune(step))
        return True

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, and not something else under its name."""
        return os.path.lexists(self.path(step)) and not self._is_another(self.path(step), step)

    def mark_best(self, step: int) -> bool:
        """Let ``best`` lead to a step's checkpoint; returns whether it does (there may be none: the disk was full)."""
        return self.holds(step) and self._point("best", self.path(step))

    def load_latest(self) -> Checkpoint | None:
        """Read the newest intact checkpoint.

        Newer ones that are damaged are set aside as ``damaged_*``, newer ones of another step than their name says (a
        copy under another name) as ``aside_*``, both with a warning. To be called by the one process that writes here.

        Returns:
            The checkpoint, or None where there is none at all.

        Raises:
            UnreadableError: A checkpoint is there, and the system does not hand it out now. Nothing is set aside: an
                older one would throw away what was trained since.
            UserError: There are checkpoints and none can be used.
        """
        for name in self._names():
            if name.startswith(_PART) and _is_own(name.removeprefix(_PART)):
                _remove(self.folder / name)
        self._settle_replaced()
        steps = self.steps()
        strange = [name for name in self._names() if name.startswith("step_") and _step_of(name) not in steps]
        if strange:
            logger.warning("%s: not made by this program, left alone: %s", self.folder, listed(strange))
        passed_over: list[tuple[int, str]] = []
        for step in reversed(steps):
            path = self.path(step)
            try:
                checkpoint = read_checkpoint(path)
            except UnreadableError as error:
                raise UnreadableError(
                    f"{error}: start again once it can be read, or move {path} away to go on from the one before"
                ) from error
            except UserError as error:
                logger.warning("%s; taking the one before", error)
                passed_over.append((step, _DAMAGED))
                continue
            if checkpoint.facts.get("step") != step:
                logger.warning("%s holds step %s: it is not this run's; left out", path, checkpoint.facts.get("step"))
                passed_over.append((step, _ASIDE))
                continue
            for newer, prefix in passed_over:
                self._set_aside(self.path(newer), prefix)
            self._repair_links(step, checkpoint.facts.get("best_step"))
            return checkpoint
        if steps and any(prefix == _ASIDE for _, prefix in passed_over):
            raise UserError(
                f"no checkpoint in {self.folder} can be used: the step in some of them is not the step in their "
                "name; restore their names, or delete the folder to start again"
            )
        if steps:
            raise UserError(f"every checkpoint in {self.folder} is damaged: delete the folder to start afresh")
        return None

    def _names(self) -> list[str]:
        """What lies in the folder; nothing where there is no such folder."""
        try:
            return sorted(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UnreadableError(f"{self.folder}: cannot be read ({error.strerror})") from error

    def _is_foreign(self, path: Path) -> bool:
        """Whether something that the store did not make stands where it puts a folder."""
        return path.is_symlink() or (os.path.lexists(path) and not path.is_dir())

    def _is_another(self, path: Path, step: int) -> bool:
        """Whether a place holds something else than the checkpoint of a step, or may do."""
        if self._is_foreign(path):
            return True
        try:
            return read_facts(path).get("step") != step
        except UnreadableError:
            return True
        except UserError:  # damaged: of use to nobody once a new one is there
            return False

    def _tidy_up(self, tidy: Callable[[], None]) -> None:
        """What only keeps the folder small costs no run."""
        try:
            tidy()
        except (OSError, UserError) as error:
            logger.warning("%s could not be tidied up: %s", self.folder, error)

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
        for name in self._names():
            own = name.removeprefix(_REPLACED)
            if own == name or _step_of(own) is None:
                continue
            replaced, target = self.folder / name, self.folder / own
            try:
                if target.exists():
                    _remove(replaced)
                else:
                    os.replace(replaced, target)
            except OSError as error:
                logger.warning("%s could not be tidied up: %s", replaced, error)

    def _set_aside(self, path: Path, prefix: str) -> None:
        """Give another name, one that is not taken: what lies there is not written over."""
        aside = self.folder / f"{prefix}{path.name}"
        number = 1
        while os.path.lexists(aside):
            number += 1
            aside = self.folder / f"{prefix}{path.name}_{number}"
        try:
            os.replace(path, aside)
        except OSError as error:
            raise UserError(f"{path} cannot be renamed to {aside.name}: {error.strerror}") from error

    def _point(self, name: str, target: Path) -> bool:
        """Let a link lead to a checkpoint; returns whether it does: some file systems have no links."""
        temporary = self.folder / f"{_PART}{name}"
        try:
            _remove(temporary)
            temporary.symlink_to(target.name)
            if os.path.lexists(self.folder / name) and not (self.folder / name).is_symlink():
                # A copy of the run with its links followed: it would stand for the newest one for ever.
                self._set_aside(self.folder / name, _ASIDE)
                logger.warning("%s was no link: it was renamed to %s%s", self.folder / name, _ASIDE, name)
            os.replace(temporary, self.folder / name)
        except (OSError, UserError) as error:
            logger.warning("the link '%s' to %s could not be written: %s", name, target, error)
            return False
        return True

    def _prune(self, written: int) -> None:
        """Remove what is older than the latest ones. A higher number than the newest is no checkpoint of this run."""
        older = [step for step in self.steps() if step < written and self.holds(step)]
        best = os.path.realpath(self.folder / "best")
        for step in older[: max(0, len(older) - self.keep + 1)]:
            if os.path.realpath(self.path(step)) != best:
                shutil.rmtree(self.path(step), ignore_errors=True)
        for name in self._names():
            # As long as the run has not come further, a damaged file may still be worth a rescue.
            match = _SET_ASIDE.fullmatch(name)
            step_of = None if match is None else _step_of(match[1])
            if step_of is not None and step_of <= written and not (self.folder / name).is_symlink():
                shutil.rmtree(self.folder / name, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, every byte of which is compared with its checksum first. No code in it is run.

    Raises:
        UnreadableError: It is there and cannot be read now.
        UserError: Something is missing, damaged, or cannot be what the program wrote.
    """
    facts = read_facts(path)
    tensors = {}
    for name in (WEIGHTS_FILE, TRAINING_FILE):
        try:
            data = read_file(path / name)
        except UnreadableError:
            raise
        except UserError as error:
            raise UserError(f"the checkpoint {path} is incomplete: {error}") from error
        if hashlib.sha256(data).hexdigest() != facts[CHECKSUMS].get(name):
            raise UserError(f"the checkpoint {path} is damaged: {name} does not match its checksum")
        try:
            tensors[name] = safetensors.torch.load(data)
        # What the library raises on types of numbers that it does not know is no narrower.
        except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            reason = f"{name} holds no tensors that can be read ({type(error).__name__})"
            raise UserError(f"the checkpoint {path} is damaged: {reason}") from error
    return Checkpoint(facts, tensors[WEIGHTS_FILE], tensors[TRAINING_FILE])


def restore(checkpoint: Checkpoint, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Load weights and the optimiser's state, strictly. Nothing is changed unless all fits.

    Raises:
        UserError: They do not fit the network.
    """
    reason = _misfit(checkpoint.weights, network) or _misfit_of_state(checkpoint.training, network, optimiser)
    if reason:
        step = checkpoint.facts.get("step")
        raise UserError(f"the checkpoint of step {step} does not fit this network: {reason}")
    parameters = dict(network.named_parameters())
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in checkpoint.training.items():
        kind, name = key.split("/", 1)
        parameter = parameters[name]
        if value.shape == parameter.shape:
            # Fused updates want the moments in the parameter's own memory order, channels-last included.
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(parameter, {})[kind] = value.to(parameter.device)
    network.load_state_dict(checkpoint.weights)
    optimiser.state.clear()
    optimiser.state.update(state)


def _misfit(weights: Mapping[str, Tensor], network: nn.Module) -> str | None:
    """Why the weights are not this network's; None where they are. Types count: an integer would be cast unseen."""
    wanted = network.state_dict()
    for name in wanted:
        if name not in weights:
            return f"it has no {name}"
    for name, value in weights.items():
        if name not in wanted:
            return f"the network has no {shown(name)}"
        if (value.shape, value.dtype) != (wanted[name].shape, wanted[name].dtype):
            return f"{name} is {_described(value)}, not {_described(wanted[name])}"
    return None


def _misfit_of_state(
    training: Mapping[str, Tensor], network: nn.Module, optimiser: torch.optim.Optimizer
) -> str | None:
    """Why the optimiser's state is not this network's; None where it is."""
    parameters = dict(network.named_parameters())
    kinds: dict[str, set[str]] = {}
    for key, value in training.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            return f"{TRAINING_FILE} holds {shown(key)}, which is no state of a parameter"
        kinds.setdefault(name, set()).add(kind)
        parameter = parameters[name]
        is_count = (
            kind == "step" and value.ndim == 0 and value.is_floating_point() and 0 <= float(value) < _MOST_UPDATES
        )
        if not is_count and (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
            return f"{shown(key)} is {_described(value)}, its parameter {_described(parameter)}"
    wanted = _ADAMW_STATE if isinstance(optimiser, torch.optim.AdamW) else set().union(*kinds.values())
    for name, there in kinds.items():
        if there != wanted:
            found = ", ".join(sorted(map(shown, there)))
            return f"{TRAINING_FILE} holds {found} of {name}, not {', '.join(sorted(wanted))}"
    return None


def _described(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a scalar"
    return f"{shape} ({str(tensor.dtype).removeprefix('torch.')})"


def software_versions() -> dict[str, str]:
    """Versions of the program and its libraries at the start."""
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


def _step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for a name that the store does not give."""
    match = _STEP.fullmatch(name)
    return None if match is None else int(match[1])


def _is_own(name: str) -> bool:
    return name in _LINKS or _step_of(name) is not None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
