"""Comparison of runs: seeds of one recipe as mean and deviation, recipes by a paired bootstrap over images.

A group is the runs of one recipe: the same settings but the seed and the output places. A row is one output of a group
under one protocol. What is compared is the mIoU over all images, as :meth:`afa.evaluation.metrics.Counts.scores`
computes it; between two groups it is computed anew for each resample from the images' counts, so that it is the mIoU
itself that is resampled, and not a mean of images' IoU.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from afa.errors import UserError
from afa.evaluation.metrics import ImageCounts
from afa.evaluation.tables import read_image_counts, row_title
from afa.report.bootstrap import RESAMPLES, paired_bootstrap
from afa.report.runs import EVALUATION, Run, Score

_ROUNDING = 1e-6  # of an mIoU that went through JSON and of one from counts
_SEED_NAME = re.compile(r"(?:[_.-]?seed)?[_.-]?\d*$", re.IGNORECASE)


@dataclass
class Group:
    """Runs of one recipe, or of one title.

    Attributes:
        title: What people call it.
        runs: One or more.
        supervision: Their supervision; None if unknown.
    """

    title: str
    runs: list[Run] = field(default_factory=list)
    supervision: str | None = None

    def scores(self, key: tuple[str, str]) -> list[Score]:
        """Those of its runs that have the output under the protocol."""
        return [score for run in self.runs for score in run.scores if score.key == key]


@dataclass(frozen=True)
class Row:
    """One output of a group under one protocol, over its runs.

    Attributes:
        title: Of the group.
        supervision: Of the group.
        output: Its name, and what else tells its protocol from others of the table.
        images: How many images of which list.
        runs: How many.
        mean: Of the runs' mIoU, 0 to 1.
        deviation: Sample standard deviation (divided by n - 1); None of a single run.
        lowest, highest: Of the runs' mIoU.
    """

    title: str
    supervision: str | None
    output: str
    images: str
    runs: int
    mean: float
    deviation: float | None
    lowest: float
    highest: float


@dataclass(frozen=True)
class Difference:
    """A group against the first one, in one output under one protocol.

    Attributes:
        title: Of the group.
        base: Of the first group.
        output: As in :class:`Row`.
        difference: Its mean mIoU less that of the first group; None where they cannot be compared.
        low, high: Ends of the 95 % interval.
        reason: Why there is no interval; None where there is one.
    """

    title: str
    base: str
    output: str
    difference: float | None
    low: float | None
    high: float | None
    reason: str | None


@dataclass(frozen=True)
class Comparison:
    """All that is said of some runs.

    Attributes:
        groups: In the order in which they were named.
        rows: Of each group.
        differences: Of each further group against the first.
        settings: Key -> value of each group, for settings in which groups differ.
        notes: What else must be known, one line each.
        resamples: How many there were.
        seed: Of the resamples.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    settings: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    resamples: int
    seed: int


def group_runs(runs: Sequence[tuple[str | None, Run]], supervision: Mapping[str, str] | None = None) -> list[Group]:
    """Put the runs of a recipe together.

    Args:
        runs: A title and a run. Runs of one title are one group, whatever their settings; of those without a title, the
            runs of one recipe.
        supervision: Title -> supervision of the group; it overrides the one from the settings.

    Raises:
        UserError: A run is named twice, or a title of ``supervision`` is no group's.
    """
    seen: dict[str, Path] = {}
    groups: dict[tuple[str, str], Group] = {}
    for title, run in runs:
        place = os.path.realpath(run.path / EVALUATION if run.path.is_dir() else run.path)
        if place in seen:
            raise UserError(f"{run.path} is named twice: each run counts once")
        seen[place] = run.path
        key = ("title", title) if title is not None else ("recipe", run.recipe)
        groups.setdefault(key, Group(title or "")).runs.append(run)
    taken = {group.title for group in groups.values() if group.title}
    for group in groups.values():
        if not group.title:
            group.title = _free_title(_common_title(group.runs), taken)
            taken.add(group.title)
    for title in supervision or {}:
        if title not in taken:
            raise UserError(f"--supervision {title}: there are the groups {', '.join(sorted(taken))}")
    for group in groups.values():
        told = {run.supervision for run in group.runs}
        group.supervision = (supervision or {}).get(group.title, told.pop() if len(told) == 1 else None)
    return list(groups.values())


def compare(groups: Sequence[Group], *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compare groups of runs; the first is what the others are held against.

    Args:
        groups: As :func:`group_runs` gives them.
        resamples: How many resamples of the images an interval is made of.
        seed: Of the resamples.
    """
    keys = list(dict.fromkeys(score.key for group in groups for run in group.runs for score in run.scores))
    names = _output_names(keys)
    rows, notes = [], list(_notes(groups))
    for group in groups:
        for key in keys:
            scores = group.scores(key)
            if not scores:
                continue
            if len(scores) < len(group.runs):
                notes.append(f"{group.title}, {names[key]}: {len(scores)} of {len(group.runs)} runs were scored so")
            rows.append(_row(group, names[key], scores))
    cache: dict[Path, dict[str, ImageCounts] | UserError] = {}
    differences = [
        _difference(group, groups[0], key, names[key], resamples, seed, cache)
        for group in groups[1:]
        for key in keys
        if group.scores(key) and groups[0].scores(key)
    ]
    for group in groups[1:]:
        if not any(found.title == group.title for found in differences):
            notes.append(
                f"{group.title} and {groups[0].title} have no output that was scored with the same protocol: they "
                "cannot be compared"
            )
    return Comparison(tuple(groups), tuple(rows), tuple(differences), _differing(groups), tuple(notes), resamples, seed)


def _common_title(runs: Sequence[Run]) -> str:
    """What the runs' folders have in common, without seeds; else the name of the method."""
    folders = [run.path if run.path.is_dir() else run.path.parent for run in runs]
    places = [Path(os.path.abspath(folder)) for folder in folders]
    if len(runs) == 1:
        name = places[0].name
        return places[0].parent.name + "/" + name if _SEED_NAME.fullmatch(name) else name
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*(place.name for place in places), strict=False))
    common = _SEED_NAME.sub("", "".join(letters[0] for letters in alike))
    if not common.strip("_.- ") and len({place.parent for place in places}) == 1:
        common = places[0].parent.name
    return common.strip("_.- ") or runs[0].method or "runs"


def _free_title(title: str, taken: set[str]) -> str:
    number = 2
    found = title
    while found in taken:
        found, number = f"{title} ({number})", number + 1
    return found


def _notes(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        if len({run.recipe for run in group.runs}) > 1:
            keys = _differing_keys(group.runs)
            what = f"differ in {', '.join(keys)}" if keys else "are of different recipes or training images"
            yield f"{group.title}: its runs {what}, and form one group because they have the same title"
        seeds = [run.seed for run in group.runs if run.seed is not None]
        if len(set(seeds)) < len(seeds):
            yield f"{group.title}: several runs have the same seed, so the deviation may be too small"
        if group.supervision is None:
            yield (
                f"the supervision of {group.title} is unknown (I, I+S, pixels): give --supervision, for example "
                f"'{group.title}=I'"
            )


def _value(value: Any) -> str:
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) or value is None else str(value)
    )


def _differing_keys(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({_value(run.settings.get(key)) for run in runs}) > 1]


def _differing(groups: Sequence[Group]) -> dict[str, tuple[str, ...]]:
    """Settings in which groups differ; one whose runs differ inside of each group says nothing."""
    found = {}
    keys = dict.fromkeys(key for group in groups for run in group.runs for key in run.settings)
    for key in keys:
        values = [
            list(dict.fromkeys(_value(run.settings[key]) if key in run.settings else "-" for run in group.runs))
            for group in groups
        ]
        if len({tuple(own) for own in values}) > 1 and any(len(own) == 1 for own in values):
            found[key] = tuple(own[0] if len(own) == 1 else "several" for own in values)
    return found


def _output_names(keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Each row's name: the output, and in what its protocol differs from others of that output."""
    protocols = {key: _flat(json.loads(key[1])) for key in keys}
    names = {}
    for key, protocol in protocols.items():
        others = [protocols[other] for other in keys if other[0] == key[0]]
        differing = [
            name
            for name in dict.fromkeys(name for one in others for name in one)
            if len({str(one.get(name)) for one in others}) > 1
        ]
        output = row_title(key[0], {other[0] for other in keys})
        if protocol.get("crf_iterations"):
            output = f"{key[0].removesuffix('_crf')} + CRF"
        names[key] = ", ".join(
            [output, *(f"{name.replace('_', ' ')} {_value(protocol[name])}" for name in differing if name in protocol)]
        )
    return names


def _flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    inner = {**(protocol.get("crf") or {}), **(protocol.get("settings") or {})}
    return {**{key: value for key, value in protocol.items() if key not in ("settings", "crf")}, **inner}


def _row(group: Group, output: str, scores: Sequence[Score]) -> Row:
    values = [score.miou for score in scores]
    counts = sorted({"-" if score.images is None else str(score.images) for score in scores})
    split = scores[0].protocol.get("split")
    return Row(
        title=group.title,
        supervision=group.supervision,
        output=output,
        images=f"{'-' if split is None else split} ({' or '.join(counts)})",
        runs=len(values),
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
    )


def _difference(
    group: Group,
    base: Group,
    key: tuple[str, str],
    name: str,
    resamples: int,
    seed: int,
    cache: dict[Path, dict[str, ImageCounts] | UserError],
) -> Difference:
    """One group against another."""

    def refused(reason: str) -> Difference:
        return Difference(group.title, base.title, name, None, None, None, reason)

    sides: list[list[ImageCounts]] = []
    for side in (base, group):
        sides.append([])
        for score in side.scores(key):
            if score.counts is None:
                return refused(f"an evaluation of {side.title} has no counts of images: evaluate it again")
            if score.counts not in cache:
                try:
                    cache[score.counts] = read_image_counts(score.counts)[0]
                except UserError as error:
                    cache[score.counts] = error
            found = cache[score.counts]
            if isinstance(found, UserError):
                return refused(str(found))
            if score.output not in found:
                return refused(f"{score.counts} has no counts of '{score.output}': evaluate {side.title} again")
            images = found[score.output]
            totals = images.stacked().total()
            known = bool(totals.labelled.any())
            if (
                known
                and abs(totals.scores([str(id_) for id_ in range(len(totals.labelled))])["miou"] - score.miou)
                > _ROUNDING
            ):
                return refused(f"{score.counts} is not of the score beside it: evaluate {side.title} again")
            sides[-1].append(images)
    names = sorted(sides[0][0].names)
    if any(sorted(images.names) != names for side in sides for images in side):
        return refused("they were scored on different images")
    first, second = ([ImageCounts.joined([images]).stacked() for images in side] for side in sides)
    if len({counts.labelled.shape for counts in (*first, *second)}) > 1:
        return refused("they have different numbers of classes")
    if any(not bool((counts.labelled == first[0].labelled).all()) for counts in (*first, *second)):
        return refused("their true masks differ")
    difference, low, high = paired_bootstrap(first, second, resamples=resamples, seed=seed)
    return Difference(group.title, base.title, name, difference, low, high, None)
