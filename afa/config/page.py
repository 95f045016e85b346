"""All settings as one page of documentation, in Markdown: what the methods share once, and what each has otherwise."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from afa.config.settings import RunConfig, each_setting

_TYPES = {"bool": "true or false", "int": "whole number", "float": "number", "str": "text"}
_SPECIAL = re.compile(r"([\\|*<>`\[\]])")


class _Setting(NamedTuple):
    """One setting of a method, as the page shows it."""

    default: str
    values: str
    meaning: str


def settings_page(kinds: Mapping[str, type[RunConfig]]) -> str:
    """Every setting of some methods.

    What all methods have stands in one table for each section, as the first method has it. Each method has a
    table of what it has besides, and of those settings whose default, values or meaning differ.

    Args:
        kinds: Name of a method -> its configuration class, at least one.

    Returns:
        Markdown: headings of the second and third level, and tables.
    """
    of_methods = {name: dict(_settings(kind())) for name, kind in kinds.items()}
    first = next(iter(kinds))
    common = {key: one for key, one in of_methods[first].items() if all(key in own for own in of_methods.values())}
    lines = ["## Settings of all methods", "", f"Defaults are those of the method `{first}`.", ""]
    for section, classes in _sections(kinds[first]()):
        own = _of_section(common, section)
        if own:
            differing = {key: [name for name, all_of in of_methods.items() if all_of[key] != own[key]] for key in own}
            lines += [f"### {section}", "", _purpose(classes[-1]), "", *_table(own, differing), ""]
    for name, settings in of_methods.items():
        lines += [f"## Method {name}", ""]
        other = {key: one for key, one in settings.items() if common.get(key) != one}
        for section, classes in _sections(kinds[name]()):
            own = _of_section(other, section)
            if own:
                lines += [f"`{section}`: {_purpose(classes[0])}", "", *_table(own, {}), ""]
        for old, new in kinds[name].renamed.items():
            lines += [f"`{old}` is the earlier name of `{new.key}`. It is still read.", ""]
    return "\n".join(lines)


def _settings(config: RunConfig) -> Iterator[tuple[str, _Setting]]:
    for key, value, item in each_setting(config):
        if key != "method":  # its default in each class is not what people set
            meaning = _SPECIAL.sub(r"\\\1", item.metadata["help"])
            yield key, _Setting(_code(value), _values(item), meaning)


def _of_section(settings: Mapping[str, _Setting], section: str) -> dict[str, _Setting]:
    return {key: one for key, one in settings.items() if key.rpartition(".")[0] == section}


def _sections(config: Any, prefix: str = "") -> Iterator[tuple[str, list[type]]]:
    """Each section's key with dots, its class and those that it inherits from."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield (
                f"{prefix}{item.name}",
                [kind for kind in inspect.getmro(type(value)) if dataclasses.is_dataclass(kind)],
            )
            yield from _sections(value, f"{prefix}{item.name}.")


def _purpose(section: type) -> str:
    """The first line of a section's docstring."""
    return (inspect.getdoc(section) or "").splitlines()[0].replace("``", "`")


def _table(settings: Mapping[str, _Setting], differing: Mapping[str, list[str]]) -> list[str]:
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for key, one in settings.items():
        links = ", ".join(f"[{name}](#method-{name})" for name in differing.get(key, ()))
        meaning = f"{one.meaning}. Differs in {links}" if links else one.meaning
        rows.append(f"| `{key}` | {one.default} | {one.values} | {meaning} |")
    return rows


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _values(item: dataclasses.Field[Any]) -> str:
    """What a setting may be, in words."""
    metadata = item.metadata
    if metadata["choices"]:
        return ", ".join(map(_code, metadata["choices"]))
    kinds = str(item.type).split(" | ")
    words = "path" if metadata["path"] else " or ".join(_kind(kind) for kind in kinds if kind != "None")
    low, high = metadata["minimum"], metadata["maximum"]
    if low is not None and high is not None:
        words += f", {low:,} to {high:,}"
    else:
        limits = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
        words += "".join(f", {word} {metadata[name]:,}" for name, word in limits.items() if metadata[name] is not None)
    return f"{words}; or `null`" if "None" in kinds else words


def _kind(name: str) -> str:
    inner = name.removeprefix("list[").removesuffix("]")
    words = _TYPES.get(inner, inner)
    return words if inner == name else f"list of {words}s"
