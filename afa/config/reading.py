"""From a YAML file, overrides or a plain dict to a checked configuration, and back."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afa.config.checks import check_agreement, check_keys, check_ranges
from afa.config.encoders import EncoderConfig, own_normalisation
from afa.config.recipes import config_file
from afa.config.settings import RunConfig
from afa.config.values import Declared, Share, declared_settings, fit, from_command_line, shown
from afa.config.yaml_text import read_yaml, write_yaml
from afa.errors import UserError
from afa.paths import expand_home

# The type of the settings that have another name by now.
_SWITCH = Declared(bool, is_list=False, optional=False, is_path=False, example=True)


class _Given(NamedTuple):
    """A setting's value, and who gave it."""

    value: Any
    source: str


KindOf = Callable[[str], type[RunConfig]]
"""Name of a method -> the class of its configuration; raises :class:`UserError` for an unknown one."""


def read_config(path: str | Path, overrides: Sequence[str], kind_of: KindOf) -> RunConfig:
    """Read a YAML file, apply overrides, check everything.

    A file may name another one it builds on: ``base: voc.yaml``, relative to itself, or a recipe. Settings that count
    training steps may be shares of ``train.steps``: ``warmup_steps: 10%``.

    Args:
        path: The YAML file, or the name of a recipe.
        overrides: ``section.key=value`` strings; they win over the file. A text setting takes the text as it stands,
            all others read it as YAML.
        kind_of: The configuration's class follows from its ``method``.

    Returns:
        The checked configuration.

    Raises:
        UserError: Missing file, broken YAML, unknown key (names the nearest), wrong type, value out of range,
            or values that contradict each other.
    """
    first = config_file(path)
    files = _read_files(first)
    kind = kind_of(_method([tree for _, tree in files], overrides, str(first)))
    given: dict[str, _Given] = {}
    for file, tree in reversed(files):
        given |= _from_tree(tree, str(file), kind, own_file=True)
    return _fill(kind, {**given, **_from_overrides(overrides, kind)}, str(first), overrides)


def config_from_tree(
    tree: Mapping[str, Any], kind_of: KindOf, source: str = "configuration", overrides: Sequence[str] = ()
) -> RunConfig:
    """Check a nested dict of settings, as a checkpoint's JSON holds it, and make it a configuration.

    Nothing in it stands for anything else: neither ``~`` nor ``${...}`` is replaced.

    Args:
        tree: Sections with settings; what is missing has its default.
        kind_of: As :func:`read_config` takes it.
        source: Where it comes from, for messages.
        overrides: As :func:`read_config` takes them.

    Raises:
        UserError: As :func:`read_config`.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: holds {shown(tree)}, not sections with settings")
    kind = kind_of(_method([tree], overrides, source))
    return _fill(kind, {**_from_tree(tree, source, kind), **_from_overrides(overrides, kind)}, source, overrides)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
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


def _method(trees: Sequence[Mapping[str, Any]], overrides: Sequence[str], source: str) -> str:
    """The name of the method: of the last override that gives it, else of the first tree that does."""
    for override in reversed(overrides):
        if override.startswith("method="):
            return override.removeprefix("method=")
    name = next((tree["method"] for tree in trees if "method" in tree), RunConfig.method)
    if not isinstance(name, str):
        raise UserError(f"{source}: method: {shown(name)} is no text: put it in quotes, if it is a name")
    return name


def _fill(kind: type[RunConfig], given: Mapping[str, _Given], source: str, overrides: Sequence[str]) -> RunConfig:
    """Put values of the right types into a configuration, and check them."""
    given = _without_shares(kind, given)
    # OmegaConf is handed no text: it would look for ${...} in it.
    texts = {key: value for key, (value, _) in given.items() if isinstance(value, str)}
    tree = _defaults(kind)
    for key, (value, where) in given.items():
        if key not in texts:
            try:
                OmegaConf.update(tree, key, value)
            except OmegaConfBaseException as error:
                raise UserError(f"{where}: {key}: {str(error).strip().splitlines()[0]}") from error
    config = OmegaConf.to_object(tree)
    assert isinstance(config, RunConfig)
    for key, text in texts.items():
        *sections, name = key.split(".")
        section: Any = config
        for part in sections:
            section = getattr(section, part)
        setattr(section, name, text)
    check_ranges(config, lambda key: given[key].source if key in given else source)
    check_agreement(config, lambda problem: _blamed(problem, source, overrides))
    _normalise_as_the_encoder(config, given)
    return config


def given_by(override: str) -> str:
    """How a message names a setting that a command or a call was given."""
    return f"{shown(override)} on the command line"


def _blamed(problem: str, source: str, overrides: Sequence[str]) -> str:
    """Who gave the values that contradict each other, as far as the settings that the problem names tell."""
    named = [override for override in overrides if re.search(rf"\b{re.escape(override.partition('=')[0])}\b", problem)]
    if named:
        return f"{', '.join(map(shown, named))} on the command line, with {source}"
    return f"{source}, with the settings on the command line" if overrides else source


def _without_shares(kind: type[RunConfig], given: Mapping[str, _Given]) -> dict[str, _Given]:
    """Shares of the training steps, wherever they were given, in steps of the final ``train.steps``."""
    steps = given["train.steps"].value if "train.steps" in given else declared_settings(kind)["train.steps"].example
    return {
        key: _Given(value.of(steps), source) if isinstance(value, Share) else _Given(value, source)
        for key, (value, source) in given.items()
    }


def _normalise_as_the_encoder(config: RunConfig, given: Mapping[str, _Given]) -> None:
    """Without settings for it, images are normalised as for the pretrained weights of the encoder."""
    model = getattr(config, "model", None)
    wanted = [name for name in ("image_mean", "image_std") if f"dataset.{name}" not in given]
    own = own_normalisation(model) if wanted and isinstance(model, EncoderConfig) else None
    if own is not None:
        for name, values in zip(("image_mean", "image_std"), own, strict=True):
            if name in wanted:
                setattr(config.dataset, name, list(values))


def _defaults(kind: type) -> DictConfig:
    """All settings at their defaults."""
    return copy.deepcopy(_made_once(kind))


@cache
def _made_once(kind: type) -> DictConfig:
    """What :func:`_defaults` copies: making it takes ten times as long."""
    return OmegaConf.structured(kind)


def _read_files(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """A YAML file, and those that it builds on, each after the one that names it."""
    if path.resolve() in seen:
        raise UserError(f"{path}: 'base' leads back to this file")
    try:
        tree = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration file; 'afa list recipes' lists those of the project") from error
    if tree is None:
        raise UserError(f"{path}: is empty: give at least one setting")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds {shown(tree)}, not sections with settings")
    base = tree.pop("base", None)
    if base is None:
        return [(path, tree)]
    if not isinstance(base, str):
        raise UserError(f"{path}: base: {shown(base)} is no file name: put it in quotes")
    beside = path.parent / expand_home(base)
    try:
        file = beside if beside.exists() else config_file(base)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from error
    return [(path, tree), *_read_files(file, (*seen, path.resolve()))]


def _from_overrides(overrides: Sequence[str], kind: type[RunConfig]) -> dict[str, _Given]:
    """The settings of the command line."""
    given = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        source = given_by(override)
        if not equals or not key:
            raise UserError(f"{source} is not of the form key=value, for example train.steps=100")
        declared = declared_settings(kind).get(key)
        if declared is None and key in kind.renamed:
            renamed = kind.renamed[key]
            try:
                given[renamed.key] = _Given(renamed.values[from_command_line(text, _SWITCH)], source)
            except UserError as error:
                raise UserError(f"{source}: {key}: {error}") from error
            continue
        if declared is None:
            check_keys(_nested(key, text), kind, "", source, kind)
            raise UserError(f"{source}: unknown key {shown(key)}")
        try:
            given[key] = _Given(from_command_line(text, declared), source)
        except UserError as error:
            raise UserError(f"{source}: {key}: {error}") from error
    return given


def _from_tree(
    tree: Mapping[str, Any], source: str, kind: type[RunConfig], *, own_file: bool = False
) -> dict[str, _Given]:
    """The settings of a nested dict; ``own_file`` says that the user wrote it, and ``~`` is a home folder."""
    given = {}
    for old, renamed in kind.renamed.items():
        section, _, name = old.partition(".")
        if not isinstance(tree.get(section), Mapping) or name not in tree[section]:
            continue
        new_section, _, new_name = renamed.key.partition(".")
        if isinstance(tree.get(new_section), Mapping) and new_name in tree[new_section]:
            raise UserError(f"{source}: {old} is {renamed.key} by now, which is given, too: leave {old} out")
        try:
            given[renamed.key] = _Given(renamed.values[fit(tree[section][name], _SWITCH, expand=False)], source)
        except UserError as error:
            raise UserError(f"{source}: {old}: {error}") from error
        tree = {**tree, section: {key: value for key, value in tree[section].items() if key != name}}
    check_keys(tree, kind, "", source, kind)
    for key, declared in declared_settings(kind).items():
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
