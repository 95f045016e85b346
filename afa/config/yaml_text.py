"""YAML as configurations use it: sections, lists and plain values, read without surprises and written back.

Beside what PyYAML's safe loader refuses, keys that stand twice are refused, and all that makes a short text stand for
something else: aliases, merge keys, tags, ``${...}``.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from afa.errors import UserError

_MOST_BYTES = 1 << 16  # of a file; those of the project hold some thousand
_MOST_LEVELS = 20

_NULL, _BOOL, _INT, _FLOAT, _TEXT, _DATE = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")
)
# PyYAML takes 1e-4 for text, as it lacks the dot.
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_WORDS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


@dataclass(frozen=True)
class Unquoted:
    """A value in YAML without quotes that YAML does not read as text.

    Attributes:
        text: As it stands.
        kind: What YAML takes it for, in words.
        value: Its value; None where it is written in a way that settings do not take, such as 0x10 or 12:30.
    """

    text: str
    kind: str
    value: bool | int | float | None

    def __str__(self) -> str:
        return self.text


class _Reader(yaml.SafeLoader):
    """Composes plain nodes alone."""

    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"line {line}: aliases (*{event.anchor}) are not read here: write the value out")
        if getattr(event, "tag", None) is not None:
            raise UserError(f"line {line}: tags ({event.tag}) are not read here: write the plain value")
        if self._level > _MOST_LEVELS:
            raise UserError(f"line {line}: it is nested too deeply")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node


class _Writer(yaml.SafeDumper):
    """Quotes whatever :class:`_Reader` would not take for text."""


for _class in (_Reader, _Writer):
    _class.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789"))


def read_yaml(path: Path) -> Any:
    """Read a file.

    Returns:
        Nested dicts and lists of texts, None and :class:`Unquoted` values; None for an empty file.

    Raises:
        UserError: It cannot be read, is too large, or holds anything else. The message names the file.
        FileNotFoundError: There is none.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: not readable as YAML: it is not a file")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path}: not readable as YAML: a configuration has at most {_MOST_BYTES >> 10} KiB")
    try:
        return parse_yaml(data)
    except UserError as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error


def parse_yaml(data: bytes | str) -> Any:
    """Read one YAML document; as :func:`read_yaml`, but the message names no file."""
    try:
        reader = _Reader(data)
        node = reader.get_single_node()
        return None if node is None else _value(node)
    except yaml.YAMLError as error:
        raise UserError(_reason(error)) from error


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Nested dicts and lists as a YAML text that :func:`read_yaml` reads back."""
    return yaml.dump(dict(tree), Dumper=_Writer, sort_keys=False, allow_unicode=True)


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    text: str = node.value
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return Unquoted(text, "true or false", _WORDS[text.lower()])
    if node.tag == _DATE:
        return Unquoted(text, "a date", None)
    if node.tag == _INT:
        return Unquoted(text, "a number", _number(text) if _DECIMAL.match(text) else None)
    if node.tag == _FLOAT:
        return Unquoted(text, "a number", _number(text))
    if "${" in text:
        line = node.start_mark.line + 1
        raise UserError(f"line {line}: nothing is put in the place of ${{...}} here: write the value out")
    return text


def _mapping(node: yaml.MappingNode) -> dict[Hashable, Any]:
    tree: dict[Hashable, Any] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"line {line}: a key must be a word")
        if key.value == "<<":
            raise UserError(f"line {line}: merge keys (<<) are not read here: write the values out")
        if key.value in lines:
            raise UserError(f"'{key.value}' appears twice, in lines {lines[key.value]} and {line}: keep one of them")
        lines[key.value] = line
        tree[key.value] = _value(value)
    return tree


def _number(text: str) -> int | float | None:
    plain = text.replace("_", "").lower()
    try:
        return int(plain) if _DECIMAL.match(plain) else float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # in sixties, or of thousands of digits
        return None


def _reason(error: yaml.YAMLError) -> str:
    """PyYAML's words in one short line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        return f"{where}{error.problem or error.context}"
    return str(error).splitlines()[0]
