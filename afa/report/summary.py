"""The summary of a source: recipe, settings, versions, and the records of its training."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import afa
from afa.config import RunConfig, config_to_dict
from afa.data.dataset import SETTINGS_OF_PLACES
from afa.engine.output import CONFIG
from afa.engine.records import METRICS, clock
from afa.errors import UserError
from afa.methods import config_class, load_config
from afa.report.sources import FolderSource, RunSource, Source
from afa.weights.facts import CHECKPOINTS_FOLDER, FACTS_FILE, read_facts

_LONGEST_VALUE = 300
# Of a checkpoint's facts: what is told elsewhere, or says nothing to a reader.
_NOT_SHOWN = (
    *("config", "class_names", "sha256", "images", "meters", "scaler", "seconds", "step"),
    # For going on alone. The best is that of before: a checkpoint is written before its own validation.
    *("recorded", "recorded_step", "seconds_since_record", "best", "best_step"),
)
_TITLES = {
    "global_batch": "images of a step",
    "world_size": "processes",
    "non_finite": "not finite:",
}
# Settings that every run has of its own.
_OWN = {"dataset": SETTINGS_OF_PLACES, "train": ("output", "device", "workers", "threads", "init", "resume")}


@dataclasses.dataclass(frozen=True)
class Summary:
    """The summary of a source on a page.

    Attributes:
        facts: (name, value) pairs.
        compared_with: What the settings are compared with.
        differences: (setting, value there, value here).
        records: Name -> steps and values, as training recorded them.
    """

    facts: Sequence[tuple[str, str]]
    compared_with: str = ""
    differences: Sequence[tuple[str, str, str]] = ()
    records: Mapping[str, tuple[list[float], list[float | None]]] = dataclasses.field(default_factory=dict)


def summary_of(source: Source) -> Summary:
    """The summary of a source.

    Raises:
        UserError: A file of the run is damaged.
    """
    data = source.images.config
    shown = [
        ("data set", f"{data.type} in {source.images.layout.root}"),
        ("list", f"{source.images.split}, {len(source.images.names)} images"),
        ("classes", str(len(source.class_names))),
    ]
    if isinstance(source, RunSource):
        return _of_run(source, shown)
    assert isinstance(source, FolderSource)
    facts = [("folder", str(source.where)), ("holds", source.folder.kind), *shown]
    for key in ("made_by", "method", "step", "weights_sha256"):
        if source.facts.get(key) is not None:
            facts.append((key.replace("_", " "), _value(source.facts[key])))
    config = source.facts.get("config")
    try:
        defaults = config_to_dict(config_class(str(source.facts.get("method")))())
    except UserError:  # a method that is not installed here
        return Summary(facts)
    if not isinstance(config, Mapping):
        return Summary(facts)
    own = {
        section: {key: value for key, value in values.items() if key in defaults[section]}
        for section, values in config.items()
        if isinstance(values, Mapping) and isinstance(defaults.get(section), Mapping)
    }
    base = {section: {key: defaults[section][key] for key in values} for section, values in own.items()}
    return Summary(facts, "the method's defaults", _differences(base, own))


def _of_run(source: RunSource, shown: Sequence[tuple[str, str]]) -> Summary:
    model = source.model
    folder = run_folder(model.weights)
    facts = [("run", str(folder or source.where)), ("method", model.method.name)]
    facts.append(("checkpoint", model.weights.parent.resolve().name if folder else model.weights.name))
    if model.step is not None:
        facts.append(("step", str(model.step)))
    facts += shown
    record = read_facts(model.weights.parent) if (model.weights.parent / FACTS_FILE).is_file() else {}
    if folder is not None and (folder / CONFIG).is_file():
        facts.append(("configured", _time(folder / CONFIG)))
    if record:
        facts.append(("checkpoint written", _time(model.weights)))
    if "seconds" in record:
        facts.append(("duration of the training", clock(record["seconds"])))
    if folder is not None and (best := folder / CHECKPOINTS_FOLDER / "best").is_dir():
        facts.append(("best in validation", best.resolve().name))
    for key in sorted(key for key in record if key not in _NOT_SHOWN):
        value = record[key]
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        facts += [(_title(key, name), _value(item)) for name, item in inner if item is not None]
    base, name = nearest_recipe(model.config)
    differences = _differences(base, config_to_dict(model.config))
    return Summary(facts, name, differences, {} if folder is None else read_records(folder / METRICS))


def run_folder(weights: Path) -> Path | None:
    """The folder of the run that a checkpoint's weights belong to; None if they are elsewhere."""
    store = weights.parent.parent
    return store.parent if store.name == CHECKPOINTS_FOLDER else None


def read_records(path: Path) -> dict[str, tuple[list[float], list[float | None]]]:
    """What a run recorded, by name; lines that are damaged are left out.

    Args:
        path: JSON lines, each with a ``step``.

    Returns:
        Name -> steps and values; None for a value that was not finite.
    """
    found: dict[str, tuple[list[float], list[float | None]]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        for name, value in record.items():
            if value is None or (type(value) in (int, float) and math.isfinite(value)):
                steps, values = found.setdefault(str(name), ([], []))
                steps.append(step)
                values.append(value)
    return found


def nearest_recipe(config: RunConfig) -> tuple[dict[str, Any], str]:
    """The recipe of the project that a run's settings are nearest to, else the defaults; and what to call it.

    Of several that are equally near, the one whose places are nearest, too.
    """
    own = config_to_dict(config)
    best: tuple[tuple[int, int], dict[str, Any], str] | None = None
    folder = Path(afa.__file__).resolve().parents[1] / "configs"
    for path in sorted(folder.rglob("*.yaml")):
        try:
            recipe = load_config(path)
        except UserError:
            continue  # a stranger's file
        if recipe.method == config.method:
            tree = config_to_dict(recipe)
            distance = len(_differences(tree, own)), len(_changed(tree, own))
            if best is None or distance < best[0]:
                best = distance, tree, f"{path.relative_to(folder.parent)}, the nearest recipe"
    return best[1:] if best is not None else (config_to_dict(type(config)()), "the method's defaults")


def _differences(base: Mapping[str, Any], own: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(setting, value there, value here) of those that differ, places and machine left out."""
    return _changed(_without_own(base), _without_own(own))


def _changed(base: Mapping[str, Any], own: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    before, after = _flat(base), _flat(own)
    nothing = object()
    return [
        (key, _value(before.get(key, "-")), _value(after.get(key, "-")))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, nothing) != after.get(key, nothing)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _without_own(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        section: {key: value for key, value in values.items() if key not in _OWN.get(section, ())}
        if isinstance(values, Mapping)
        else values
        for section, values in tree.items()
    }


def _title(key: str, name: str) -> str:
    if key == "versions":
        return "git revision" if name == "git" else f"version of {name}"
    return f"{_TITLES.get(key, key)} {name}".strip().replace("_", " ")


def _value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _time(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
