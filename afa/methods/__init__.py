"""Training methods, each in a room of its own. What they promise is in :mod:`afa.methods.base`.

This file knows their names; a method itself, and PyTorch with it, is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from afa.config import RunConfig
from afa.config.reading import config_from_tree, read_config
from afa.errors import UserError

if TYPE_CHECKING:
    from afa.methods.base import Method, Runtime

ENTRY_POINTS = "afa.methods"
"""Group of entry points by which an installed package offers methods: ``NAME = "module:Class"``."""


class _Known(NamedTuple):
    """Where a method and its configuration are: "module:Class", or the class itself."""

    method: str | type[Method]
    config: str | type[RunConfig] | None = None


_KNOWN: dict[str, _Known] = {
    "afa": _Known("afa.methods.afa.method:AFA", "afa.methods.afa.config:AFAConfig"),
    "psa_cam": _Known("afa.methods.psa.cam:PSACam", "afa.methods.psa.config:PSACamConfig"),
    "psa_affinity": _Known("afa.methods.psa.affinity:PSAAffinity", "afa.methods.psa.config:PSAAffinityConfig"),
    "edam": _Known("afa.methods.edam.method:EDAM", "afa.methods.edam.config:EDAMConfig"),
    "segment": _Known("afa.methods.segment.method:Segment", "afa.methods.segment.config:SegmentConfig"),
}

OWN_METHODS = tuple(_KNOWN)
"""Names of the project's own methods."""


def register_method(method: type[Method]) -> type[Method]:
    """Make a method known under its name; can be used as a decorator.

    Args:
        method: With a ``name`` and a ``config_class``.

    Raises:
        ValueError: Another method has that name.
    """
    known = _KNOWN.get(method.name)
    if known is not None and known.method is not method:
        raise ValueError(f"there is a method '{method.name}' already")
    _KNOWN[method.name] = _Known(method, method.config_class)
    return method


def method_names() -> list[str]:
    """The names of all methods, those of other packages included."""
    return sorted({*_KNOWN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def method_class(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        UserError: There is none.
    """
    return _resolve(_find(name).method)


def config_class(name: str) -> type[RunConfig]:
    """The configuration class of a method; for the project's own ones without importing PyTorch.

    Raises:
        UserError: There is no such method.
    """
    known = _find(name)
    return method_class(name).config_class if known.config is None else _resolve(known.config)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Read and check a configuration, see :func:`afa.config.reading.read_config`.

    Returns:
        Of the class that belongs to its ``method``.
    """
    return read_config(path, overrides, config_class)


def config_from_dict(tree: Mapping[str, Any], source: str = "configuration", overrides: Sequence[str] = ()) -> Any:
    """As :func:`load_config`, of a nested dict, see :func:`afa.config.reading.config_from_tree`."""
    return config_from_tree(tree, config_class, source, overrides)


def build_method(config: RunConfig, class_names: Sequence[str], runtime: Runtime) -> Method:
    """The method that a configuration names, with initial weights."""
    return method_class(config.method)(config, class_names, runtime)


def _find(name: str) -> _Known:
    if name in _KNOWN:
        return _KNOWN[name]
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return _Known(point.value)
    raise UserError(
        f"method: '{name}' is none of {', '.join(method_names())}; a package that offers another must be installed"
    )


def _resolve(place: Any) -> Any:
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
