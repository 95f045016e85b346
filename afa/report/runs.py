"""What a run is to a comparison: its recipe, and what it scored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa.config import config_to_dict
from afa.data.dataset import SETTINGS_OF_PLACES
from afa.data.files import read_json
from afa.data.map_files import LABEL_FACTS
from afa.errors import UserError
from afa.evaluation.tables import read_entries
from afa.methods import load_config
from afa.weights import last_checkpoint
from afa.weights.facts import FACTS_FILE, read_facts

EVALUATION, CONFIG = "evaluation.json", "config.yaml"


# What tells two runs of one recipe apart, and what does not shape the scores: how a run goes about its work. What an
# evaluation is stands in its protocol.
_NO_RECIPE = {
    "dataset": {*SETTINGS_OF_PLACES, "val_split"},
    "train": {
        "seed", "output", "workers", "device", "threads", "compile", "channels_last", "deterministic", "log_every",
        "pictures_every", "checkpoint_every", "keep_checkpoints", "resume", "init",
    },
    "validation": {"every", "outputs", "batch_size"},
    "test": None,
}  # fmt: skip
_INPUTS = ("pixel_labels", "maps", "saliency", "pairs")


@dataclass(frozen=True)
class Score:
    """What one run scored in one output under one protocol.

    Attributes:
        output: Name of the output; ``NAME_crf`` after DenseCRF.
        protocol: As :func:`afa.evaluation.tables.protocol_key` gives it, without the step; of an output that DenseCRF
            does not touch without ``crf``.
        step: Of the checkpoint.
        miou: 0 to 1.
        images: How many were scored; None where the file does not say.
        counts: The file with each image's counts; None where there is none.
    """

    output: str
    protocol: Mapping[str, Any]
    step: int | None
    miou: float
    images: int | None
    counts: Path | None

    @property
    def key(self) -> tuple[str, str]:
        """What two scores must share to be compared."""
        return self.output, json.dumps(self.protocol, sort_keys=True)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: As it was named.
        settings: Of the recipe, flat: key with dots -> value.
        recipe: Tells its recipe from others.
        method: Name of its method; None where there is no configuration.
        seed: Likewise.
        supervision: What it was taught with, as far as the settings tell; None where they do not.
        scores: One for each output and protocol; of several steps the last.
    """

    path: Path
    settings: Mapping[str, Any]
    recipe: str
    method: str | None
    seed: int | None
    supervision: str | None
    scores: tuple[Score, ...]


def read_run(path: Path) -> Run:
    """Read what a run is and what it scored.

    Args:
        path: A run's output folder, or an ``evaluation.json`` of one.

    Raises:
        UserError: It was not evaluated, or a file is damaged.
    """
    file = path / EVALUATION if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"{path} holds no {EVALUATION}: 'afa eval {path}' writes it")
    if not file.exists():
        raise UserError(f"{path} does not exist: name a run's output folder, or its {EVALUATION}")
    scores = _scores(file)
    folder = file.parent
    if not (folder / CONFIG).is_file():
        return Run(path, {}, str(file.resolve()), None, None, None, scores)
    config = load_config(folder / CONFIG)
    dataset = config.dataset
    settings = dict(_recipe_settings(config_to_dict(config)))
    inputs = {name: getattr(dataset, name) for name in _INPUTS if getattr(dataset, name) is not None}
    identity: dict[str, Any] = {
        **settings,
        **{f"dataset.{name}": _made_by(Path(value)) for name, value in inputs.items()},
        "images": (None if inputs else _training_images(folder)) or _place(dataset.root),
    }
    supervision = None
    if not {"pixel_labels", "maps"} & set(inputs):
        supervision = "I+S" if "saliency" in inputs else "I"
    shown = {
        **settings,
        **{f"dataset.{name}": getattr(dataset, name) for name in ("root", *_INPUTS)},
    }
    recipe = json.dumps(identity, sort_keys=True, default=str)
    return Run(path, shown, recipe, config.method, config.train.seed, supervision, scores)


def _scores(path: Path) -> tuple[Score, ...]:
    found: dict[tuple[str, str], Score] = {}
    partial = 0
    for entry in read_entries(path):
        table, protocol = entry.get("table"), entry["protocol"]
        if not isinstance(table, Mapping):
            raise UserError(f"{path} is damaged: an evaluation has no table")
        if entry.get("partial"):
            partial += 1
            continue
        step = protocol.get("step")
        beside = entry.get("per_image")
        counts = path.parent / Path(beside).name if isinstance(beside, str) else None
        for output, scores in table.items():
            if not isinstance(scores, Mapping):
                continue  # the number of images and the like
            miou = scores.get("miou")
            if isinstance(miou, bool) or not isinstance(miou, int | float):
                raise UserError(f"{path} is damaged: '{output}' has no mIoU")
            refined = output.endswith("_crf") and output.removesuffix("_crf") in table
            own = {key: value for key, value in protocol.items() if key != "step"}
            if isinstance(own.get("settings"), Mapping):
                # A seed reads the folders that its own stages made: that there is one counts, not which.
                own["settings"] = {
                    key: "given" if key.removeprefix("dataset.") in _INPUTS else value
                    for key, value in own["settings"].items()
                }
            score = Score(
                output=output,
                protocol=own if refined else {**own, "crf": None},
                step=step if isinstance(step, int) else None,
                miou=float(miou),
                images=table.get("images") if isinstance(table.get("images"), int) else None,
                counts=counts,
            )
            known = found.get(score.key)
            if known is None or (known.step or 0) <= (score.step or 0):
                found[score.key] = score
    if not found:
        part = ": they are of a part of the list alone, evaluate without --limit" if partial else ""
        raise UserError(f"{path} holds no scores of whole lists{part}")
    return tuple(found.values())


def _recipe_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that make a recipe, flat."""
    for name, value in tree.items():
        left_out = _NO_RECIPE.get(prefix.rstrip("."), ()) if prefix else ()
        if (not prefix and _NO_RECIPE.get(name, ()) is None) or name in (left_out or ()):
            continue
        if isinstance(value, Mapping):
            yield from _recipe_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _training_images(folder: Path) -> str | None:
    """What tells the training images from others; None where no checkpoint says it."""
    checkpoint = last_checkpoint(folder)
    if checkpoint == folder or not (checkpoint / FACTS_FILE).is_file():
        return None
    images = read_facts(checkpoint).get("images")
    return images if isinstance(images, str) else None


def _place(setting: str | None) -> str:
    return "" if setting is None else os.path.realpath(setting)


def _made_by(folder: Path) -> Any:
    """What made a folder that an earlier stage, or somebody else, has written: other seeds of a stage are the same."""
    facts = read_json(folder / LABEL_FACTS) if (folder / LABEL_FACTS).is_file() else None
    if not isinstance(facts, Mapping):
        return os.path.realpath(folder)
    return {key: facts.get(key) for key in ("method", "step", "class_names", "split", "outputs", "config")}
