"""The output folder of a run: which run owns it, and that only one run writes there."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from afa.config import TestConfig, config_differences, config_to_dict, config_to_yaml
from afa.config.values import declared_settings
from afa.data.dataset import SETTINGS_OF_PLACES
from afa.data.files import write_json, write_text
from afa.engine.checkpoint import CheckpointStore
from afa.errors import UserError
from afa.methods import config_class, config_from_dict, load_config
from afa.weights.facts import read_facts

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
RESULT = "result.json"

_SHOWN_DIFFERENCES = 5
_IMAGES = "images"

# Settings that may change while a run goes on: where things lie (a fingerprint tells whether they are the same), how
# the run goes about its work, what it records and when, and what it may take to go on at all. Some change what comes
# out (docs/reliability.md, "Where results can differ").
_FREE_SETTINGS = {
    "dataset": set(SETTINGS_OF_PLACES),
    "train": {
        "output", "workers", "device", "threads", "compile", "channels_last", "batch_size", "accumulate",
        "non_finite", "non_finite_limit", "log_every", "pictures_every", "checkpoint_every", "keep_checkpoints",
        "resume",
    },
    "validation": {"every", "outputs", "batch_size"},
    "test": {field.name for field in dataclasses.fields(TestConfig)},
}  # fmt: skip


def check_output(output: Path, facts: Mapping[str, Any], *, resume: bool) -> bool:
    """Whether the folder holds checkpoints to go on from. Nothing is written.

    A run that has ended may be extended: ``train.steps`` may grow then.

    Args:
        output: Folder of the run.
        facts: ``config``, ``class_names``, ``global_batch`` and ``images`` (the fingerprint of the training images) of
            the run to come.
        resume: Whether going on is wanted.

    Raises:
        UserError: What lies there belongs to another configuration or other training images, or going on is not wanted.
    """
    store = CheckpointStore(output)
    steps = store.steps()
    if steps and not resume:
        raise UserError(f"{output} already holds a run, and train.resume=false: choose another train.output")
    old = _earlier_run(output, store)
    if old is None:
        return bool(steps)
    new = _comparable(facts)
    ended, wanted = old["train"]["steps"], new["train"]["steps"]
    extended = ended < wanted and finished_step(output) == ended
    grown: list[str] = []
    if extended:
        old["train"]["steps"] = wanted
    if extended and old["method"] == new["method"]:
        grown = _take_schedule(old, new)
    compared = [key for key in old if key in new and key != _IMAGES]
    lines = config_differences({key: old[key] for key in compared}, {key: new[key] for key in compared})
    if lines:
        more = f"; and {len(lines) - _SHOWN_DIFFERENCES} more" if len(lines) > _SHOWN_DIFFERENCES else ""
        raise UserError(
            f"{output} holds a run of another configuration ({'; '.join(lines[:_SHOWN_DIFFERENCES])}{more}): "
            "choose another train.output, or delete the folder"
        )
    if steps and old.get(_IMAGES) is None:
        logger.warning(
            "%s does not record its training list and labels: it was not checked whether they are still the same",
            output,
        )
    elif steps and old[_IMAGES] != facts[_IMAGES]:
        raise UserError(
            f"{output} holds a run with another training list, other labels or other maps (files of another time "
            "count as others: cp -p keeps the times): bring back those of its start, choose another train.output, or "
            "delete the folder"
        )
    if extended:
        logger.info(
            "%s ended at step %d and is extended to %d: its weights stay, and the schedule of %d steps holds from "
            "here%s", output, ended, wanted, wanted, f" ({'; '.join(grown)})" if grown else "",
        )  # fmt: skip
    return bool(steps)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Create the folder and keep every other run out of it until the block ends or the process dies.

    Raises:
        UserError: The folder cannot be written, or another process trains there.
    """
    lock = FileLock(output / ".lock", timeout=0)
    held = False
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / ".lock").open("a").close()  # a folder that cannot be written is said, and not waited for
    except OSError as error:
        raise UserError(f"train.output: {output} cannot be written: {error.strerror}") from error
    try:
        lock.acquire()
        held = True
    except Timeout as error:
        raise UserError(f"another process trains in {output}: wait for its end, or take another folder") from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        logger.warning("%s cannot be locked (%s): let only one run write there", output, reason)
    try:
        yield
    finally:
        if held:
            lock.release()


def write_config(output: Path, config: Mapping[str, Any]) -> None:
    """Say in the folder what the run is.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        write_text(output / CONFIG, config_to_yaml(config))
    except OSError as error:
        raise UserError(f"train.output: {output / CONFIG} cannot be written: {error.strerror}") from error


def write_result(output: Path, result: Mapping[str, Any]) -> None:
    """Write what came out of a finished run; where that fails, the run only warns."""
    try:
        write_json(output / RESULT, result)
    except OSError as error:
        logger.warning("%s could not be written: %s", output / RESULT, error.strerror)


def finished_step(output: Path) -> int | None:
    """The step at which the run was finished, None where it was not."""
    try:
        return int(json.loads((output / RESULT).read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _earlier_run(output: Path, store: CheckpointStore) -> dict[str, Any] | None:
    """What the folder's run must agree on with one that goes on, as far as that can be read."""
    for step in reversed(store.steps()):
        try:
            facts = read_facts(store.path(step))
        except UserError:
            continue  # A damaged checkpoint is reported when the run is restored.
        # Settings that came into being after the run have their defaults.
        config = config_from_dict(facts.get("config", {}), source=str(store.path(step)))
        return _comparable({**facts, "config": config_to_dict(config)})
    try:
        return _comparable({"config": config_to_dict(load_config(output / CONFIG))})
    except UserError:
        return None


def _take_schedule(old: dict[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Let settings that count steps differ, as shares of the steps do when these grow; returns lines that say which."""
    lines = []
    for key, declared in declared_settings(config_class(str(new["method"]))).items():
        section, _, name = key.partition(".")
        if declared.of_steps and name in old.get(section, ()) and name in new[section]:
            lines += config_differences({name: old[section][name]}, {name: new[section][name]}, f"{section}.")
            old[section][name] = new[section][name]
    return lines


def _comparable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What two starts of one run must agree on."""
    config = {
        section: {key: value for key, value in settings.items() if key not in _FREE_SETTINGS.get(section, ())}
        if isinstance(settings, Mapping)
        else settings
        for section, settings in facts["config"].items()
    }
    return {**config, **{key: facts[key] for key in ("class_names", "global_batch", _IMAGES) if key in facts}}
