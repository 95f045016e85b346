"""From a YAML file, overrides or a plain dict to a checked configuration, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afa.config.checks import check_agreement, check_keys, check_ranges
from afa.config.settings import Config
from afa.config.values import declared_settings, fit, from_command_line, shown
from afa.config.yaml_text import read_yaml, write_yaml
from afa.errors import UserError
from afa.paths import expand_home


class _Given(NamedTuple):
    """A setting's value, and who gave it."""

    value: Any
    source: str


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides, check everything.

    A file may name another one it builds on: ``base: voc.yaml``, relative to itself.

    Args:
        path: The YAML file.
        overrides: ``section.key=value`` strings; they win over the file. A text setting takes the text as it stands,
            all others read it as YAML.

    Returns:
        The checked configuration.

    Raises:
        UserError: Missing file, broken YAML, unknown key (names the nearest), wrong type, value out of range,
            or values that contradict each other.
    """
    return _fill({**_from_file(Path(path)), **_from_overrides(overrides)}, str(path), overrides)


def config_from_dict(tree: Mapping[str, Any], source: str = "configuration", overrides: Sequence[str] = ()) -> Config:
    """Check a nested dict of settings, as a checkpoint's JSON holds it, and make it a :class:`Config`.

    Nothing in it stands for anything else: neither ``~`` nor ``${...}`` is replaced.

    Args:
        tree: Sections with settings; what is missing has its default.
        source: Where it comes from, for messages.
        overrides: As :func:`load_config` takes them.

    Raises:
        UserError: As :func:`load_config`.
    """
    return _fill({**_from_tree(tree, source), **_from_overrides(overrides)}, source, overrides)


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts and lists, ready for JSON."""
    return dataclasses.asdict(config)


def config_to_yaml(config: Mapping[str, Any]) -> str:
    """A configuration, as :func:`config_to_dict` gives it, as the text of a YAML file."""
    return write_yaml(config)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every setting in which two configurations (as dicts) differ."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += config_differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _fill(given: Mapping[str, _Given], source: str, overrides: Sequence[str]) -> Config:
    """Put values of the right types into a configuration, and check them."""
    # OmegaConf is handed no text: it would look for ${...} in it.
    texts = {key: value for key, (value, _) in given.items() if isinstance(value, str)}
    tree = OmegaConf.structured(Config)
    for key, (value, where) in given.items():
        if key not in texts:
            try:
                OmegaConf.update(tree, key, value)
            except OmegaConfBaseException as error:
                raise UserError(f"{where}: {key}: {str(error).strip().splitlines()[0]}") from error
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    for key, text in texts.items():
        *sections, name = key.split(".")
        section: Any = config
        for part in sections:
            section = getattr(section, part)
        setattr(section, name, text)
    check_ranges(config, lambda key: given[key].source if key in given else source)
    check_agreement(config, f"{source}, with the overrides" if overrides else source)
    return config


def _from_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, _Given]:
    """The settings of a YAML file and of those that it builds on."""
    if path.resolve() in seen:
        raise UserError(f"{path}: 'base' leads back to this file")
    try:
        tree = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration file; those of the project lie in configs/") from error
    if tree is None:
        raise UserError(f"{path}: is empty: give at least one setting")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds {shown(tree)}, not sections with settings")
    base = tree.pop("base", None)
    given = _from_tree(tree, str(path), own_file=True)
    if base is None:
        return given
    if not isinstance(base, str):
        raise UserError(f"{path}: base: {shown(base)} is no file name: put it in quotes")
    return {**_from_file(path.parent / expand_home(base), (*seen, path.resolve())), **given}


def _from_overrides(overrides: Sequence[str]) -> dict[str, _Given]:
    """The settings of the command line."""
    given = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        source = f"override {shown(override)}"
        if not equals or not key:
            raise UserError(f"{source} is not of the form key=value, for example train.steps=100")
        declared = declared_settings(Config).get(key)
        if declared is None:
            check_keys(_nested(key, text), Config, "", source)
            raise UserError(f"{source}: unknown key {shown(key)}")
        try:
            given[key] = _Given(from_command_line(text, declared), source)
        except UserError as error:
            raise UserError(f"{source}: {key}: {error}") from error
    return given


def _from_tree(tree: Mapping[str, Any], source: str, *, own_file: bool = False) -> dict[str, _Given]:
    """The settings of a nested dict; ``own_file`` says that the user wrote it, and ``~`` is a home folder."""
    check_keys(tree, Config, "", source)
    given = {}
    for key, declared in declared_settings(Config).items():
        *sections, name = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section, {})
        if name not in node:
            continue
        try:
            value = fit(node[name], declared, expand=own_file)
        except UserError as error:
            raise UserError(f"{source}: {key}: {error}") from error
        given[key] = _Given(value, source)
    return given


def _nested(key: str, value: str) -> dict[str, Any]:
    first, dot, rest = key.partition(".")
    return {first: _nested(rest, value) if dot else value}
