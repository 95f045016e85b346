"""The page: images are predicted and scored one by one, those to show are kept, and all is written to one file."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import afa
from afa.data.files import write_text
from afa.data.palette import voc_palette
from afa.engine.checkpoint import git_revision
from afa.errors import UserError, one_line
from afa.methods.base import Output
from afa.progress import track
from afa.report.charts import Curve, Mark, chart_svg, style_of
from afa.report.encoding import (
    AFFINITY_LEVELS,
    IMAGE_LONG_SIDE,
    affinity_entry,
    label_uri,
    maps_entry,
    packed_affinity,
    photo_uri,
    shown_size,
)
from afa.report.scores import Scores
from afa.report.sources import FolderSource, Seen, Source, require_same_images
from afa.report.summary import Summary, summary_of

WITH_AFFINITY = 10
"""So many images of a page, the first ones, have their affinity."""

_LONGEST_NAME = 120
_MOST_CLASSES = 12  # of an image's maps: those that count, those in its mask, and those predicted for some of it
_COVERS = 0.02  # of its pixels
_GROUP_TITLES = {"loss": "losses", "lr": "learning rates", "validation": "validation", "time": "time"}


@dataclass(frozen=True)
class Written:
    """What came of a report.

    Attributes:
        images: How many images were looked at.
        shown: How many of them are in the page.
        bytes: Size of the page.
    """

    images: int
    shown: int
    bytes: int


def write_report(path: Path, sources: Sequence[Source], *, most_images: int) -> Written:
    """Predict or read the images, and write the page.

    Args:
        path: The file; it appears when it is whole.
        sources: One, or two that are shown side by side.
        most_images: Images in the page: half of them those with the lowest mIoU, the others evenly from the list.

    Raises:
        UserError: The sources do not fit together, an image is damaged, or the file cannot be written.
    """
    names = list(sources[0].names) if len(sources) == 1 else require_same_images(*sources)
    _find_thresholds(sources, names)
    class_names = ("background", *sources[0].class_names)
    scores = [Scores(class_names, source.outputs) for source in sources]
    kept = _Kept(len(names), most_images)
    looked = 0
    for seen in track(_together(sources, names), len(names), "looking"):
        looked += 1
        found = [counted.add(image) for counted, image in zip(scores, seen, strict=True)]
        first = sources[0].main
        miou = None if first is None else found[0].get(first.name)
        if kept.wants(looked - 1, miou):
            kept.add(looked - 1, miou, _image_entry(sources, seen, found))
    if not looked:
        raise UserError("no image could be read: 'afa check' says what is wrong with them")
    images = _finished(kept.entries())
    html = render(sources, scores, images, looked=looked, listed=len(names))
    try:
        write_text(path, html, surrogates="backslashreplace")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error
    return Written(looked, len(images), path.stat().st_size)


def _together(sources: Sequence[Source], names: Sequence[str]) -> Any:
    """The outputs of all sources for each image; an image that one source skips is skipped."""
    streams = [iter(source.seen(names)) for source in sources]
    waiting = [next(stream, None) for stream in streams]
    place = {name: index for index, name in enumerate(names)}
    while all(seen is not None for seen in waiting):
        furthest = max(place[seen.sample.name] for seen in waiting if seen is not None)
        behind = [place[seen.sample.name] < furthest for seen in waiting if seen is not None]
        if not any(behind):
            yield waiting
            behind = [True] * len(streams)
        waiting = [
            next(stream, None) if is_behind else seen
            for stream, seen, is_behind in zip(streams, waiting, behind, strict=True)
        ]


def _find_thresholds(sources: Sequence[Source], names: Sequence[str]) -> None:
    """Give maps of other programs without a known threshold the best threshold: from a first pass over them."""
    for source in sources:
        if not isinstance(source, FolderSource):
            continue
        open_outputs = [output for output in source.outputs if source.needs_threshold(output)]
        if not open_outputs:
            continue
        scores = Scores(("background", *source.class_names), open_outputs)
        for seen in source.seen(names):
            scores.add(seen)
        for name, curve in scores.curves().items():
            if name not in scores.with_background:
                source.set_threshold(name, curve["best"]["threshold"])


class _Kept:
    """The images of the page: half of them the worst, the others evenly from the list; all where nothing is scored.

    Args:
        images: How many there are.
        most: How many the page takes.
    """

    def __init__(self, images: int, most: int) -> None:
        most = min(images, most)
        self._worst_count = most // 2 if most < images else 0
        even = most - self._worst_count
        self._even = {index * images // even for index in range(even)}
        self._spare = {index * images // most for index in range(most)}
        self._entries: dict[int, tuple[float | None, dict[str, Any]]] = {}
        self._worst: list[tuple[float, int]] = []  # a heap of (-mIoU, -index), the best of the worst first

    def wants(self, index: int, miou: float | None) -> bool:
        """Whether an image may be shown, as far as is known by now."""
        if index in self._even or index in self._spare:
            return True
        if miou is None or not self._worst_count:
            return False
        return len(self._worst) < self._worst_count or -miou > self._worst[0][0]

    def add(self, index: int, miou: float | None, entry: dict[str, Any]) -> None:
        """Keep an image; one that is not among the worst any more may go."""
        self._entries[index] = miou, entry
        if miou is None or not self._worst_count or index in self._even:
            return
        heapq.heappush(self._worst, (-miou, -index))
        if len(self._worst) > self._worst_count:
            gone = -heapq.heappop(self._worst)[1]
            if gone not in self._spare:
                del self._entries[gone]

    def entries(self) -> list[dict[str, Any]]:
        """The images, those with the lowest mIoU first, those without one last."""
        chosen = self._even | {-index for _, index in self._worst}
        for index in sorted(self._spare):  # where there were too few to be the worst
            if len(chosen) < len(self._spare) and index in self._entries:
                chosen.add(index)
        found = [self._entries[index] for index in sorted(chosen) if index in self._entries]
        return [entry for _, entry in sorted(found, key=lambda pair: (pair[0] is None, pair[0] or 0.0))]


def _image_entry(sources: Sequence[Source], seen: Sequence[Seen], mious: Sequence[dict[str, float]]) -> dict[str, Any]:
    """All that the page holds of an image, affinities not yet packed."""
    first = seen[0]
    height, width = first.sample.image.shape[:2]
    shown = shown_size((height, width))
    return {
        "name": one_line(first.sample.name, _LONGEST_NAME),
        "size": [width, height],
        "shown": [shown[1], shown[0]],
        "image": photo_uri(first.sample.image),
        "truth": None if first.truth is None else label_uri(first.truth),
        "true": [] if first.truth is None else _ids(first.truth),
        "given": [int(index) + 1 for index in np.flatnonzero(first.sample.class_labels)]
        if first.sample.class_labels is not None
        else [],
        "sources": [
            _said(source, image, found) for source, image, found in zip(sources, seen, mious, strict=True)
        ],
    }  # fmt: skip


def _said(source: Source, seen: Seen, mious: dict[str, float]) -> dict[str, Any]:
    labels = {name: look.label for name, look in seen.looks.items() if look.label is not None}
    main = source.main
    label = None if main is None else labels.get(main.name)
    predicted = [] if label is None else _ids(label)
    covering = [] if label is None else [id_ for id_ in predicted if (label == id_).float().mean() >= _COVERS]
    classes = list(dict.fromkeys([*seen.class_ids, *([] if seen.truth is None else _ids(seen.truth)), *covering]))
    wanted = [0, *classes[:_MOST_CLASSES]]
    maps = {
        name: maps_entry(look.maps, wanted, logits=look.logits)
        for name, look in seen.looks.items()
        if look.maps is not None
    }
    affinities = {name: affinity_entry(look.affinity) for name, look in seen.looks.items() if look.affinity is not None}
    return {
        "miou": None if main is None else mious.get(main.name),
        "mious": mious,
        "predicted": predicted,
        "labels": {name: label_uri(label) for name, label in labels.items()},
        "maps": {name: entry for name, entry in maps.items() if entry is not None},
        "affinities": affinities,
    }


def _finished(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images with their affinities packed; of the first ones alone."""
    for number, image in enumerate(images):
        for said in image["sources"]:
            said["affinities"] = {
                name: packed_affinity(entry)
                for name, entry in said["affinities"].items()
                if entry is not None and number < WITH_AFFINITY
            }
    return images


def _ids(label: Any) -> list[int]:
    """The classes in a label, background and open pixels left out."""
    return [value for value in label.unique().tolist() if value not in (0, 255)]


def render(
    sources: Sequence[Source],
    scores: Sequence[Scores],
    images: Sequence[dict[str, Any]],
    *,
    looked: int,
    listed: int,
) -> str:
    """The page as HTML.

    Args:
        sources: What it is about.
        scores: Of each.
        images: As they are kept.
        looked: How many images were looked at.
        listed: How many there were to look at.
    """
    titles = _titles(sources)
    class_names = ("background", *sources[0].class_names)
    parts = [
        {
            "title": title,
            "summary": summary,
            "charts": _record_charts(summary),
            "sweeps": _sweep_charts(source.outputs, counted),
        }
        for title, source, counted, summary in (
            (title, source, counted, summary_of(source))
            for title, source, counted in zip(titles, sources, scores, strict=True)
        )
    ]
    shrunk = sum(image["size"] != image["shown"] for image in images)
    notes = list(dict.fromkeys(itertools.chain.from_iterable(source.notes for source in sources)))
    notes += [
        f"{source.shrunk} images of more than 1024 pixels were shrunk to that before the network saw them: {title}"
        for title, source in zip(titles, sources, strict=True)
        if source.shrunk
    ]
    if shrunk:
        notes.append(f"{shrunk} of the images are scaled down to {IMAGE_LONG_SIDE} pixels in this page, not for scores")
    if len(images) < looked:
        notes.append(
            f"{len(images)} of {looked} images are shown: half of them have the lowest mIoU, the others are taken "
            "evenly from the list; all are scored (--images N shows more)"
        )
    if looked < listed:
        notes.append(f"{listed - looked} of {listed} images were damaged and are left out")
    tables = [counted.table() for counted in scores]
    data = {
        "classes": [one_line(name, _LONGEST_NAME) for name in class_names],
        "affinityLevels": AFFINITY_LEVELS,
        "palette": voc_palette()[: len(class_names)].tolist(),
        "sources": [_source_data(*found) for found in zip(titles, sources, scores, strict=True)],
        "images": list(images),
    }
    folder = files("afa.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["line"] = one_line
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=" and ".join(titles),
        parts=parts,
        columns=_columns(titles, sources, tables),
        rows=_rows(class_names, sources, tables),
        colours=[f"rgb({red} {green} {blue})" for red, green, blue in data["palette"]],
        notes=[one_line(note) for note in notes],
        looked=looked,
        scored=max(counted.images for counted in scores),
        made_with=f"AFA {afa.__version__}, git {git_revision()}",
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup((folder / "page.js").read_text(encoding="utf-8")),
        data=Markup(_json(data)),
    )


def _json(data: Any) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _titles(sources: Sequence[Source]) -> list[str]:
    """Names of the sources; longer where two would be the same."""
    titles = [source.title for source in sources]
    if len(set(titles)) < len(titles):
        titles = [one_line(str(source.where)) for source in sources]
    if len(set(titles)) < len(titles):
        titles = [f"{title} ({number})" for number, title in enumerate(titles, 1)]
    return titles


def _source_data(title: str, source: Source, scores: Scores) -> dict[str, Any]:
    main = source.main
    return {
        "title": title,
        "main": None if main is None else main.name,
        "outputs": [
            {"name": output.name, "title": output.title, "kind": output.kind, "threshold": output.threshold}
            for output in source.outputs
        ],
        "confusion": scores.confusion(),
        "sweeps": scores.curves(),
        "table": scores.table(),
    }


def _columns(titles: Sequence[str], sources: Sequence[Source], tables: Sequence[dict[str, Any]]) -> list[str]:
    return [
        output.title if len(sources) == 1 else f"{title}: {output.title}"
        for title, source, table in zip(titles, sources, tables, strict=True)
        for output in source.outputs
        if output.name in table
    ]


def _rows(
    class_names: Sequence[str], sources: Sequence[Source], tables: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the table of scores: each class, then the means."""
    scored = [
        table[output.name]
        for source, table in zip(sources, tables, strict=True)
        for output in source.outputs
        if output.name in table
    ]
    rows = [
        {"name": one_line(name, _LONGEST_NAME), "index": index, "values": [row["iou"][name] for row in scored]}
        for index, name in enumerate(class_names)
    ]
    means = {"miou": "mIoU", "pacc": "pixel accuracy", "macc": "mean accuracy", "open": "left open"}
    rows += [
        {"name": title, "index": None, "values": [row[key] for row in scored]}
        for key, title in means.items()
        if key != "open" or any(row["open"] for row in scored)
    ]
    return rows if scored else []


def _record_charts(summary: Summary) -> list[dict[str, Any]]:
    """A chart for each group of the records: what stands before the first ``/``."""
    groups: dict[str, list[Curve]] = {}
    for name, (steps, values) in summary.records.items():
        group, _, rest = name.partition("/")
        if name != "time/seconds":  # it only says that time goes by
            groups.setdefault(group, []).append(Curve((rest or group).replace("_", " "), steps, values))
    order = {name: number for number, name in enumerate(("loss", "validation", "lr"))}
    return [
        {
            **_chart(
                _GROUP_TITLES.get(group, group.replace("_", " ")),
                curves,
                x_label="step",
                percent=group == "validation" and not any(curve.label.startswith("loss") for curve in curves),
            ),
            "first": group in order,
        }
        for group, curves in sorted(groups.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    ]


def _sweep_charts(outputs: Sequence[Output], scores: Scores) -> list[dict[str, Any]]:
    """A chart over thresholds for each output with maps."""
    titles = {output.name: output for output in outputs}
    charts = []
    for name, found in scores.curves().items():
        best = found["best"]
        curves = [
            Curve("mIoU", found["thresholds"], found["miou"]),
            Curve("false positives", found["thresholds"], found["fp_rate"]),
            Curve("false negatives", found["thresholds"], found["fn_rate"]),
        ]
        marks = [Mark(best["threshold"], f"best: {best['threshold']:g}")]
        threshold = titles[name].threshold
        text = f"The best mIoU is {100 * best['miou']:.1f} %, at the threshold {best['threshold']:g}."
        if threshold is not None:
            marks.append(Mark(threshold, f"set: {threshold:g}"))
            text += f" Labels are made with {threshold:g}."
        else:
            text += " These maps have a background of their own: 0.5 gives their own label."
        charts.append(
            {**_chart(titles[name].title, curves, x_label="threshold", percent=True, marks=marks), "text": text}
        )
    return charts


def _chart(title: str, curves: Sequence[Curve], **options: Any) -> dict[str, Any]:
    return {
        "title": title,
        "text": "",
        "svg": Markup(chart_svg(title, curves, **options)),
        "legend": [(style_of(number), curve.label) for number, curve in enumerate(curves)],
    }
