"""Conversion of a given value to the declared type of its setting."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

from afa.config.yaml_text import Unquoted, parse_yaml
from afa.errors import UserError, one_line
from afa.paths import expand_home

_LONGEST_SHOWN = 80
_MOST_BITS = 1000  # within what a float can hold
_PERCENT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*%", re.ASCII)


@dataclass(frozen=True)
class Declared:
    """The type of a setting.

    Attributes:
        kind: ``str``, ``int``, ``float`` or ``bool``; of a list: that of its items.
        is_list: Whether it is a list.
        optional: Whether it may be None.
        is_path: Whether it is the path of a file or folder.
        example: Its default.
        of_steps: Whether it counts training steps: then it may be a :class:`Share` of all of them.
    """

    kind: type
    is_list: bool
    optional: bool
    is_path: bool
    example: Any
    of_steps: bool = False


@dataclass(frozen=True)
class Share:
    """A part of ``train.steps``.

    Attributes:
        percent: From 0 to 100.
    """

    percent: Decimal

    def of(self, steps: int) -> int:
        """The nearest number of steps; at least one, unless the share is 0."""
        if not self.percent:
            return 0
        return max(1, int((self.percent * steps / 100).to_integral_value(ROUND_HALF_UP)))


def declared_settings(section: type) -> Mapping[str, Declared]:
    """The settings of a section class and of those within it: key with dots -> declared type."""
    return _declared(section, "")


@cache
def _declared(section: type, prefix: str) -> Mapping[str, Declared]:
    hints = typing.get_type_hints(section)
    defaults = section()
    found: dict[str, Declared] = {}
    for item in dataclasses.fields(section):
        default, hint = getattr(defaults, item.name), hints[item.name]
        if dataclasses.is_dataclass(default):
            inner: type = type(default)
            found |= _declared(inner, f"{prefix}{item.name}.")
            continue
        optional = isinstance(hint, types.UnionType)
        if optional:
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        is_list = typing.get_origin(hint) is list
        kind = typing.get_args(hint)[0] if is_list else hint
        found[f"{prefix}{item.name}"] = Declared(
            kind, is_list, optional, item.metadata["path"], default, item.metadata["of_steps"]
        )
    return found


def from_command_line(text: str, declared: Declared) -> Any:
    """The value of a setting from its text on the command line.

    A text setting takes the text as it stands; ``null``, or nothing, makes an optional one None. All others are read
    as YAML.

    Raises:
        UserError: It does not fit; the message does not name the setting.
    """
    if declared.kind is str and not declared.is_list:
        return fit(None if declared.optional and text in ("", "null") else text, declared, expand=True)
    return fit(parse_yaml(text), declared, expand=True)


def fit(value: Any, declared: Declared, *, expand: bool) -> Any:
    """The value as the declared type has it.

    Args:
        value: Of YAML, or of JSON.
        declared: The setting's type.
        expand: Whether a ``~`` at the start of a path becomes the home folder: where the user wrote it.

    Raises:
        UserError: It does not fit; the message does not name the setting.
    """
    if value is None or (value == "" and declared.kind is str and declared.optional):
        if declared.optional:
            return None
        raise UserError("has no value" + ("; put null in quotes if it is a name" if declared.kind is str else ""))
    if not declared.is_list:
        return _fit_one(value, declared, expand)
    if not isinstance(value, list):
        example = f", for example {declared.example}" if declared.example else ""
        raise UserError(f"{shown(value)} is no list: put it in brackets{example}")
    return [_fit_one(item, declared, expand) for item in value]


def shown(value: Any) -> str:
    """A value as messages show it: short, and in one line."""
    if value is None:
        return "nothing"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _MOST_BITS:
        return "a number of hundreds of digits"
    return f"'{one_line(str(value), _LONGEST_SHOWN)}'"


def _fit_one(given: Any, declared: Declared, expand: bool) -> Any:
    if declared.kind is str:
        return _text(given, expand=expand and declared.is_path)
    if isinstance(given, str) and (percent := _PERCENT.fullmatch(given)):
        return _share(given, percent[1], declared)
    value = given.value if isinstance(given, Unquoted) else given
    if isinstance(given, Unquoted) and value is None:
        raise UserError(f"{shown(given)} is not a plain decimal number")
    if declared.kind is bool:
        if isinstance(value, bool):
            return value
        raise UserError(f"{shown(given)} is neither true nor false")
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _MOST_BITS:
            raise UserError(f"{shown(given)} is too large")
        return float(value) if declared.kind is float else value
    if isinstance(value, float):
        if declared.kind is float:
            return value
        if isinstance(given, Unquoted) and "." not in given.text and value.is_integer():  # 1e3
            return int(value)
    hint = "; a share of train.steps is written with %, such as 10%" if declared.of_steps else ""
    raise UserError(f"{shown(given)} is not a {_missed(value, declared)}{hint}")


def _share(given: str, percent: str, declared: Declared) -> Share:
    if not declared.of_steps:
        raise UserError(
            f"{shown(given)} is not a {_missed(given, declared)}: only settings that count steps take shares"
        )
    if Decimal(percent) > 100:
        raise UserError(f"{shown(given)} is more than all training steps: give 0% to 100%")
    return Share(Decimal(percent))


def _text(value: Any, *, expand: bool) -> str:
    if isinstance(value, Unquoted):
        raise UserError(f"without quotes, YAML takes {shown(value)} for {value.kind}: put it in quotes")
    if not isinstance(value, str):
        raise UserError(f"{shown(value)} is no text: put it in quotes, if it is a name")
    if not value:
        raise UserError("is empty")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):  # control characters, halves of others
        raise UserError(f"{shown(value)} holds characters that no name should have")
    return expand_home(value) if expand else value


def _missed(value: Any, declared: Declared) -> str:
    """What a value is not."""
    wanted = "whole number" if declared.kind is int else "number"
    if not isinstance(value, str):
        return wanted
    if value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return f"finite {wanted}"
    try:
        return f"{wanted}: take the quotes off" if isinstance(parse_yaml(value), Unquoted) else wanted
    except UserError:
        return wanted
