"""The folder of a checkpoint: the names of its files, and its facts, which carry their own checksum."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from afa.data.classes import MAX_CLASSES
from afa.errors import UserError
from afa.weights.files import UnreadableError, parse_json, read_file, shown

CHECKPOINTS_FOLDER = "checkpoints"
WEIGHTS_FILE = "weights.safetensors"
TRAINING_FILE = "training.safetensors"
FACTS_FILE = "checkpoint.json"
CHECKSUMS = "sha256"
"""Key of the facts: file name -> SHA-256, in hexadecimal; that of the facts themselves counts all other keys."""

_LONGEST_NAME = 1000
_MOST_BLOCKS = 1000
_LAST_STEP = 2**53
_SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


class Facts(dict[str, Any]):
    """What ``checkpoint.json`` says. A key that it lacks is the user's to hear of, not the program's to fall over.

    Attributes:
        folder: Of the checkpoint.
    """

    folder: Path

    def __missing__(self, key: str) -> NoReturn:
        raise UserError(
            f"the checkpoint {self.folder} was written by another version or edited: {FACTS_FILE} says no '{key}'; "
            "move it away to go on from the one before"
        )


def pack_facts(content: Mapping[str, Any], checksums: Mapping[str, str]) -> str:
    """The text of ``checkpoint.json``.

    Args:
        content: JSON.
        checksums: Of the files beside it, by name.
    """
    return json.dumps({**content, CHECKSUMS: {**checksums, FACTS_FILE: _checksum(content)}}, indent=2) + "\n"


def read_facts(folder: Path) -> Facts:
    """What ``checkpoint.json`` says, after its own checksum was compared and the types of its values were.

    Raises:
        UnreadableError: It is there and cannot be read now.
        UserError: It is missing, damaged, or says what cannot be.
    """
    try:
        data = read_file(folder / FACTS_FILE)
    except UnreadableError:
        raise
    except UserError as error:
        raise UserError(f"the checkpoint {folder} is incomplete: {error}") from error
    try:
        facts = Facts(parse_json(data, finite=False))
        content = {key: value for key, value in facts.items() if key != CHECKSUMS}
        intact = _checksum(content) == facts[CHECKSUMS][FACTS_FILE]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the checkpoint {folder} is damaged: {FACTS_FILE} does not hold what it should") from error
    if not intact:
        raise UserError(f"the checkpoint {folder} is damaged: {FACTS_FILE} does not match its checksum")
    facts.folder = folder
    check_facts(facts, f"the checkpoint {folder}: {FACTS_FILE}")
    return facts


def check_facts(facts: Mapping[str, Any], source: str) -> None:
    """Refuse values that no version of the program writes. What is not there is not asked for.

    Args:
        facts: ``checkpoint.json``, or the metadata of a weights file.
        source: Begins the message.

    Raises:
        UserError: A value of another type, out of its range, or a configuration with an interpolation in it.
    """

    def refuse(key: str, wanted: str) -> NoReturn:
        raise UserError(f"{source}: '{key}' is not {wanted}: it was edited, or another program wrote it")

    for key, is_right, wanted in (
        ("config", lambda value: isinstance(value, Mapping), "a configuration"),
        ("step", _is_step, "a number of steps"),
        ("best", lambda value: value is None or _is_number(value), "a number"),
        ("best_step", lambda value: value is None or _is_step(value), "a number of steps"),
        ("recorded", lambda value: isinstance(value, bool), "true or false"),
        ("seconds", lambda value: _is_number(value) and 0 <= value < math.inf, "a time in seconds"),
        ("recorded_step", _is_step, "a number of steps"),
        ("seconds_since_record", lambda value: _is_number(value) and 0 <= value < math.inf, "a time in seconds"),
        ("world_size", lambda value: _is_step(value) and value > 0, "a number of processes"),
        ("global_batch", lambda value: _is_step(value) and value > 0, "a number of images"),
        ("versions", lambda value: isinstance(value, Mapping), "an object"),
        ("meters", _are_meters, "a list of sums"),
        ("scaler", _is_scaler, "a state of the gradient scaler"),
        ("non_finite", _are_counts, "an object with the counts of skipped steps"),
    ):
        if key in facts and not is_right(facts[key]):
            refuse(key, wanted)
    if facts.get("class_names") is not None:
        _check_class_names(facts["class_names"], source)
    if "config" in facts:
        _check_config(facts["config"], source)
        train = facts["config"].get("train")
        if isinstance(train, Mapping) and train.get("precision") == "fp16" and facts.get("scaler") == {}:
            refuse("scaler", "a state of the gradient scaler, which fp16 needs")


def _check_config(config: Mapping[str, Any], source: str) -> None:
    """Only the user's own YAML may refer to something else: here it would be read from the reader's environment."""
    nodes: list[Any] = [config]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Mapping):
            nodes += [*node.keys(), *node.values()]
        elif isinstance(node, list):
            nodes += node
        elif isinstance(node, str) and ("${" in node or node == "???"):
            raise UserError(
                f"{source}: its configuration holds '{shown(node)}': such a reference would read a value of "
                "this machine, so it is refused; give your own configuration instead (--config)"
            )
    model = config.get("model")
    depths = model.get("depths") if isinstance(model, Mapping) else None
    if depths is not None and not (
        isinstance(depths, list) and all(_is_step(depth) and 1 <= depth <= _MOST_BLOCKS for depth in depths)
    ):
        raise UserError(f"{source}: 'model.depths' is not a list of numbers of blocks (1 to {_MOST_BLOCKS})")


def _check_class_names(names: Any, source: str) -> None:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: 'class_names' is not a list of names")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{source}: 'class_names' holds {len(names)} names, more than {MAX_CLASSES}")
    seen = set()
    for name in names:
        if not name.strip():
            raise UserError(f"{source}: 'class_names' holds an empty name")
        if len(name) > _LONGEST_NAME:
            raise UserError(f"{source}: 'class_names' holds a name of {len(name)} characters ('{shown(name)}')")
        if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
            raise UserError(f"{source}: 'class_names' holds '{shown(name)}', which is more than one line of text")
        if name in seen:
            raise UserError(f"{source}: 'class_names' holds '{shown(name)}' twice")
        seen.add(name)


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LAST_STEP


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_meters(meters: Any) -> bool:
    """One state for each process, all of the same names."""
    return (
        isinstance(meters, list)
        and bool(meters)
        and all(
            isinstance(meter, Mapping)
            and isinstance(meter.get("names"), list)
            and all(isinstance(name, str) for name in meter["names"])
            and meter["names"] == meters[0]["names"]
            and isinstance(meter.get("sums"), list)
            and len(meter["sums"]) == len(meter["names"])
            and all(_is_number(value) for value in meter["sums"])
            for meter in meters
        )
        and (not meters[0]["names"] or meters[0]["names"].count("steps") == 1)
    )


def _is_scaler(state: Any) -> bool:
    """Empty where there is none."""
    if state == {}:
        return True
    return isinstance(state, Mapping) and all(
        _is_number(state.get(key)) and 0 <= state[key] < math.inf for key in _SCALER
    )


def _are_counts(counts: Any) -> bool:
    return isinstance(counts, Mapping) and all(_is_step(counts.get(key)) for key in ("skipped", "overflows"))


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
