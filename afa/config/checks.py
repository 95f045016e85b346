"""Checks of a configuration. Each check raises :class:`UserError` with one line that begins with its source."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from afa.config.settings import RunConfig, each_setting
from afa.config.values import shown
from afa.errors import UserError


def check_keys(tree: Any, kind: type, prefix: str, source: str, root: type[RunConfig]) -> None:
    """Refuse keys that ``kind`` does not have; names the nearest in ``root``. ``prefix`` is the key of the section."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: '{prefix.rstrip('.')}' is a section: give its settings below it, not {shown(tree)}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    defaults = kind()
    for key, value in tree.items():
        if key not in fields:
            raise UserError(
                f"{source}: unknown key {shown(f'{prefix}{key}')}{_suggest(str(key), prefix, fields, root)}"
            )
        section = getattr(defaults, key)
        if dataclasses.is_dataclass(section):
            check_keys(value, type(section), f"{prefix}{key}.", source, root)
        elif isinstance(value, Mapping):
            raise UserError(f"{source}: '{prefix}{key}' is a setting, not a section: give it one value")


def check_ranges(config: RunConfig, source_of: Callable[[str], str]) -> None:
    """Refuse values outside of their choices or range. ``source_of`` says who gave a setting its value."""
    for key, value, item in each_setting(config):
        limits, source = item.metadata, source_of(key)
        if limits["choices"] is not None and value not in limits["choices"]:
            near = difflib.get_close_matches(str(value), limits["choices"], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{source}: {key}: {shown(value)} is none of {', '.join(limits['choices'])}{hint}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if number != number or number in (float("inf"), float("-inf")):
                raise UserError(f"{source}: {key}: {number} is not a finite number")
            if limits["minimum"] is not None and number < limits["minimum"]:
                raise UserError(f"{source}: {key}: {number} is below {limits['minimum']}")
            if limits["maximum"] is not None and number > limits["maximum"]:
                raise UserError(f"{source}: {key}: {number} is above {limits['maximum']}")
            if limits["above"] is not None and number <= limits["above"]:
                raise UserError(f"{source}: {key}: {number} must be greater than {limits['above']}")
            if limits["below"] is not None and number >= limits["below"]:
                raise UserError(f"{source}: {key}: {number} must be less than {limits['below']}")
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"{source}: {key}: {number} is too large")


def check_agreement(config: RunConfig, source_of: Callable[[str], str]) -> None:
    """Refuse values that contradict each other. ``source_of`` says who gave them, by the problem."""
    for problem in config.problems():
        raise UserError(f"{source_of(problem)}: {problem}")


def check_training(config: RunConfig) -> list[str]:
    """What makes a training pointless, which reading and using a configuration need not care about.

    Returns:
        Remarks on what can be meant, but rarely is: one line each.

    Raises:
        UserError: A part of the network would never be trained, yet be scored and stored.
    """
    for problem in config.training_problems():
        raise UserError(problem)
    return list(config.training_remarks())


def _suggest(key: str, prefix: str, fields: Mapping[str, Any], root: type[RunConfig]) -> str:
    everywhere = {name.rsplit(".", 1)[-1]: name for name, _, _ in each_setting(root())}
    here = {name: f"{prefix}{name}" for name in fields}
    # A slip of the finger, the right name in the wrong section, a distant likeness: in this order.
    for known, cutoff in ((here, 0.8), (everywhere, 1.0), (here, 0.5), (everywhere, 0.75)):
        near = difflib.get_close_matches(key, list(known), n=1, cutoff=cutoff)
        if near:
            return f"; did you mean '{known[near[0]]}'?"
    return f"; known here: {', '.join(fields)}"
