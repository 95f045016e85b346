"""From a YAML file, overrides or a plain dict to a checked configuration, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afa.config.checks import check_agreement, check_keys, check_ranges
from afa.config.settings import Config
from afa.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides, check everything.

    A file may name another one it builds on: ``base: voc.yaml``, relative to itself.

    Args:
        path: The YAML file.
        overrides: ``section.key=value`` strings, values in YAML syntax; they win over the file.

    Returns:
        The checked configuration.

    Raises:
        UserError: Missing file, broken YAML, unknown key (names the nearest), wrong type, value out of range,
            or values that contradict each other.
    """
    tree = _read_yaml(Path(path))
    apply_overrides(tree, overrides)
    return config_from_dict(tree, source=str(path))


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Change a nested dict of settings.

    Args:
        tree: Changed in place.
        overrides: ``section.key=value`` strings, values in YAML syntax.

    Raises:
        UserError: An override is malformed. Whether there is such a setting is :func:`config_from_dict`'s to say.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override '{override}' is not of the form key=value, for example train.steps=100")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"override '{override}': {_first_line(error)}") from error
        _insert(tree, key, value, override)


def config_from_dict(tree: Mapping[str, Any], source: str = "configuration") -> Config:
    """Check a nested dict of settings, as a YAML file or a checkpoint's JSON holds it, and make it a :class:`Config`.

    Raises:
        UserError: As :func:`load_config`.
    """
    check_keys(tree, Config, "", source)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(dict(tree))))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{source}: {f'{key}: ' if key else ''}{_first_line(error)}") from error
    assert isinstance(config, Config)
    check_ranges(config, source)
    check_agreement(config, source)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts and lists, ready for JSON."""
    return dataclasses.asdict(config)


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


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: 'base' leads back to this file")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration file; those of the project lie in configs/") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds {type(loaded).__name__}, not sections with settings")
    tree: dict[str, Any] = {str(key): value for key, value in loaded.items()}
    base = tree.pop("base", None)
    if base is None:
        return tree
    return _merge(_read_yaml(path.parent / str(base), (*seen, path.resolve())), tree)


def _merge(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _insert(tree: dict[str, Any], dotted_key: str, value: Any, override: str) -> None:
    *sections, key = dotted_key.split(".")
    for section in sections:
        node = tree.setdefault(section, {})
        if not isinstance(node, dict):
            raise UserError(f"override '{override}': '{section}' is a setting, not a section")
        tree = node
    tree[key] = value


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
