"""Tables of scores: as text, as ``evaluation.json`` with one entry per protocol, and each image's counts beside it.

``evaluation.json`` is ``{"evaluations": [ENTRY, ...]}``. An entry holds ``protocol`` (what was done, see
:func:`protocol_key`), ``partial`` (whether only the first images were scored), ``per_image`` (the file with each
image's counts, or null), ``table`` (the scores), and for each row of it ``confusion`` (:func:`confusion_rows`) and
``image_iou`` (:func:`image_iou`). A flat file, as it was written before, is read as one entry; entries of before lack
the last two.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from afa.data.files import confusion_place, read_json, replacing, write_json, write_text
from afa.errors import UserError

if TYPE_CHECKING:
    import torch

    from afa.evaluation.metrics import ImageCounts

_MEANS = {"miou": "mIoU", "pacc": "pAcc", "macc": "mAcc"}
_ERROR_RATES = {"fp_rate": "false positives", "fn_rate": "false negatives"}
_OPEN = "left open"
_PARTS = ("intersection", "labelled", "predicted", "left_open")


def protocol_key(
    *,
    split: str | None,
    step: int | None,
    scales: Sequence[float] | None,
    long_side: int | None,
    mirror: bool | None,
    crf: Mapping[str, Any] | None,
    limit: int | None,
    settings: Mapping[str, str] | None = None,
    precision: str = "float32",
) -> dict[str, Any]:
    """The protocol that identifies an evaluation of a run.

    Args:
        split: Name of the list.
        step: Of the checkpoint; None where the weights do not say.
        scales: Of the prediction.
        long_side: To which images are resized first; 0: their own size.
        mirror: Whether mirror images were predicted, too.
        crf: Settings of DenseCRF; None without.
        limit: How many images of the list, the first ones, were scored; None: all.
        settings: Of the method's own, those that are not the run's, as they were given.
        precision: Of the network. The key of float32 does not name it: so it is that of earlier versions.
    """
    key = {
        "split": split,
        "step": step,
        "scales": None if scales is None else [float(scale) for scale in scales],
        "long_side": long_side,
        "mirror": mirror,
        "crf": None if crf is None else dict(crf),
        "limit": limit,
    }
    if precision != "float32":
        key["precision"] = precision
    return {**key, "settings": dict(settings)} if settings else key


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of an ``evaluation.json``; none where there is no such file.

    Raises:
        UserError: The file holds something else.
    """
    if not path.exists():
        return []
    content = read_json(path, "the evaluation")
    if isinstance(content, dict) and isinstance(content.get("evaluations"), list):
        entries = content["evaluations"]
        if all(isinstance(entry, dict) and isinstance(entry.get("protocol"), dict) for entry in entries):
            return entries
    elif isinstance(content, dict) and "images" in content and _columns(content):
        return [_entry_of_flat(content)]
    raise UserError(f"{path} holds no evaluations: move it away, or write to another file (--output)")


def write_entry(
    path: Path,
    key: Mapping[str, Any],
    table: Mapping[str, Any],
    per_image: Mapping[str, ImageCounts] | None = None,
    confusion: Mapping[str, torch.Tensor] | None = None,
) -> Path | None:
    """Put a table into an ``evaluation.json``, in the place of one of the same protocol; others stay.

    Rows of the old table that the new one does not have stay as well, if the rows that both have are equal to the
    pixel: they are then of the same weights.

    Args:
        path: The file; a flat one becomes one of entries.
        key: As :func:`protocol_key` gives it.
        table: Scores, JSON.
        per_image: Row of the table -> each image's counts, where they were kept; written to ``evaluation_HASH.npz``
            beside the file.
        confusion: Row of the table -> confusion matrix [C, C + 1].

    Returns:
        The file of the images' counts, if there is one.

    Raises:
        UserError: The file holds something else, or cannot be written.
    """
    key = json.loads(json.dumps(key))  # tuples become lists, as the file has them
    entries = read_entries(path)
    matrices = {row: confusion_rows(matrix) for row, matrix in (confusion or {}).items()}
    places = [index for index, old in enumerate(entries) if _canonical(old["protocol"]) == _canonical(key)]
    old = entries[places[0]] if places else {}
    kept = _rows_to_keep(old, table, matrices)
    beside = None
    try:
        if per_image:
            counts = {**_kept_counts(path, old, kept), **per_image}
            short = hashlib.blake2b(_canonical(key).encode("ascii"), digest_size=4).hexdigest()
            beside = path.with_name(f"{path.stem}_{short}.npz")
            write_image_counts(beside, counts, list(table[next(iter(per_image))]["iou"]))
        entry = {
            "protocol": key,
            "partial": key.get("limit") is not None,
            "per_image": None if beside is None else beside.name,
            "table": {**{row: old["table"][row] for row in kept}, **table},
            "confusion": {**{row: old["confusion"][row] for row in kept}, **matrices},
            "image_iou": {
                **{row: old["image_iou"][row] for row in kept if row in old.get("image_iou", {})},
                **{row: image_iou(images, list(table[row]["iou"])) for row, images in (per_image or {}).items()},
            },
        }
        if places:
            entries[places[0]] = entry
        else:
            entries.append(entry)
        write_json(path, {"evaluations": entries})
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): give --output") from error
    return beside


def _rows_to_keep(old: Mapping[str, Any], table: Mapping[str, Any], matrices: Mapping[str, Any]) -> list[str]:
    """Rows of an old entry of the same protocol, and the same weights, that a new table does not have."""
    known = old.get("confusion")
    if not isinstance(known, dict) or not isinstance(old.get("table"), dict):
        return []
    both = known.keys() & matrices.keys()
    if not both or any(known[row] != matrices[row] for row in both):
        return []
    return [row for row in known if row not in table and row in old["table"]]


def _kept_counts(path: Path, old: Mapping[str, Any], rows: Sequence[str]) -> dict[str, ImageCounts]:
    """Each image's counts of some rows of an old entry, where its file is there and can be read."""
    if not rows or not isinstance(old.get("per_image"), str):
        return {}
    try:
        counts, _ = read_image_counts(path.with_name(old["per_image"]))
    except UserError:
        return {}
    return {row: counts[row] for row in rows if row in counts}


def write_image_counts(path: Path, rows: Mapping[str, ImageCounts], class_names: Sequence[str]) -> None:
    """Write each image's counts: ``class_names`` [C], and for each row ``ROW/names`` [images], ``ROW/intersection``,
    ``ROW/labelled``, ``ROW/predicted`` int64 [images, C] and ``ROW/left_open`` int64 [images].

    Args:
        path: File with the suffix ``.npz``.
        rows: Row of the table -> counts.
        class_names: C names, background first.
    """
    arrays: dict[str, np.ndarray] = {"class_names": np.array(list(class_names), dtype=np.str_)}
    for row, images in rows.items():
        counts = images.stacked()
        arrays[f"{row}/names"] = np.array(images.names, dtype=np.str_)
        arrays |= {f"{row}/{name}": part.numpy() for name, part in zip(_PARTS, counts.parts, strict=True)}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_image_counts(path: Path) -> tuple[dict[str, ImageCounts], tuple[str, ...]]:
    """Read what :func:`write_image_counts` wrote; nothing in the file is executed.

    Returns:
        Row -> counts, and the class names, background first.

    Raises:
        UserError: The file is missing, damaged, or something else.
    """
    import torch  # takes seconds, and tables of scores alone do without

    from afa.evaluation.metrics import Counts, ImageCounts

    rows: dict[str, ImageCounts] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = tuple(str(name) for name in arrays["class_names"])
            for row in (key.removesuffix("/names") for key in arrays.files if key.endswith("/names")):
                parts = [torch.from_numpy(arrays[f"{row}/{part}"]) for part in _PARTS]
                images = [str(name) for name in arrays[f"{row}/names"]]
                shapes = [tuple(part.shape) for part in parts]
                if shapes != [(len(images), len(names))] * 3 + [(len(images),)]:
                    raise ValueError(f"its arrays of '{row}' do not fit together")
                rows[row] = ImageCounts(images, [Counts(*values) for values in zip(*parts, strict=True)])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        MemoryError,
    ) as error:
        raise UserError(f"the counts of images {path} cannot be read: {error}") from error
    return rows, names


def confusion_rows(matrix: torch.Tensor) -> list[list[int]]:
    """A confusion matrix for JSON.

    Args:
        matrix: [C, C + 1], as :attr:`afa.evaluation.metrics.ConfusionMatrix.counts` has it.

    Returns:
        C rows, one for each true class, background first. Number j of a row counts its pixels that are predicted as
        class j; the last number, those that are predicted as no class (255).
    """
    return [[int(count) for count in row] for row in matrix.tolist()]


def image_iou(images: ImageCounts, class_names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """IoU of each image apart. Pixels whose true value is 255 count for nothing.

    Args:
        images: Each image's counts.
        class_names: C names, background first.

    Returns:
        Image -> ``iou``: name -> TP / union of each class that the true mask or the prediction shows; and ``miou``: the
        mean over these, so a class that is predicted and not there counts as 0. None for an image without a labelled
        pixel. Values from 0 to 1, of six decimals.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for name, counts in zip(images.names, images.counts, strict=True):
        right, labelled, predicted = (part.tolist() for part in counts.parts[:3])
        values = {
            class_name: hits / (true + said - hits)
            for class_name, hits, true, said in zip(class_names, right, labelled, predicted, strict=True)
            if true + said > 0
        }
        miou = counts.image_miou()
        rounded = {class_name: round(value, 6) for class_name, value in values.items()}
        found[name] = None if miou is None else {"miou": round(miou, 6), "iou": rounded}
    return found


def confusion_csv(rows: Mapping[str, torch.Tensor], class_names: Sequence[str]) -> str:
    """Confusion matrices as CSV, counts of pixels.

    Args:
        rows: What was scored -> confusion matrix [C, C + 1].
        class_names: C names, background first.

    Returns:
        A header, and per output one line for each true class; the columns are the predicted classes, the last one
        pixels that are predicted as no class.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["output", "true class", *class_names, _OPEN])
    for row, matrix in rows.items():
        for class_name, counts in zip(class_names, confusion_rows(matrix), strict=True):
            writer.writerow([row, class_name, *counts])
    return buffer.getvalue()


def write_csv(
    path: Path,
    per_image: Mapping[str, ImageCounts],
    totals: Mapping[str, Mapping[str, Any]],
    confusion: Mapping[str, torch.Tensor],
) -> list[Path]:
    """Write IoU of each class and image, and beside it the confusion matrices.

    Args:
        path: ``NAME.csv``, see :func:`image_counts_csv`; the matrices go to ``NAME_confusion.csv``.
        per_image: What was scored -> each image's counts.
        totals: The same -> scores over all images.
        confusion: The same -> confusion matrix [C, C + 1].

    Returns:
        Both files.

    Raises:
        OSError: One cannot be written.
    """
    beside = confusion_place(path)
    class_names = list(next(iter(totals.values()))["iou"]) if totals else []
    write_text(path, image_counts_csv(per_image, totals), surrogates="backslashreplace")
    write_text(beside, confusion_csv(confusion, class_names), surrogates="backslashreplace")
    return [path, beside]


def image_counts_csv(rows: Mapping[str, ImageCounts], totals: Mapping[str, Mapping[str, Any]]) -> str:
    """IoU of each class, over all images and image by image, as CSV: 0 to 1, empty where a class does not occur.

    Args:
        rows: What was scored -> each image's counts.
        totals: The same -> scores over all images, as :meth:`Counts.scores` gives them.

    Returns:
        A header, and per row of the table one line for all images (the image is called ``*``) and one per image, as
        :func:`image_iou` says.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for number, (row, images) in enumerate(rows.items()):
        total = totals[row]
        names = list(total["iou"])
        if number == 0:
            writer.writerow(["output", "image", "miou", *names])
        writer.writerow([row, "*", _six(total["miou"]), *(_six(value) for value in total["iou"].values())])
        for image, found in image_iou(images, names).items():
            mean, values = (None, {}) if found is None else (found["miou"], found["iou"])
            writer.writerow([row, image, _six(mean), *(_six(values.get(name)) for name in names)])
    return buffer.getvalue()


def row_title(row: str, rows: Container[str]) -> str:
    """How other tables call a row of an evaluation: one with known classes is no result of the network alone.

    Args:
        row: Its name, such as ``segmentation_known``.
        rows: All names; the output of that row is among them.
    """
    output = row.removesuffix("_known")
    return f"{output}, classes known" if output != row and output in rows else row


def format_table(
    table: Mapping[str, Any], titles: Mapping[str, str], *, rates: bool = False, limit: int | None = None
) -> str:
    """Classes and means in rows, what was scored in columns, in percent; "-" for a class that does not occur.

    Args:
        table: Its entries that hold ``iou`` (:meth:`Counts.scores`) are the columns. ``cls_f1`` and ``images`` are told
            below them, where they are there.
        titles: Entry -> how people call it; those that it lacks go by their own name.
        rates: Whether false positives and false negatives are told, too.
        limit: Where only the first images of the list were scored: how many. It is said.
    """
    columns = _columns(table)
    lines = []
    if columns:
        rows = [table[column] for column in columns]
        lines = [["IoU in %", *(titles.get(column, column) for column in columns)]]
        lines += [[name, *(_percent(row["iou"].get(name)) for row in rows)] for name in rows[0]["iou"]]
        keys = {**_MEANS, **(_ERROR_RATES if rates else {})}
        if any(row.get("open") for row in rows):
            keys["open"] = _OPEN
        lines += [[title, *(_percent(row.get(key)) for row in rows)] for key, title in keys.items()]
    texts = aligned(lines)
    if texts:
        rule = "-" * len(texts[0])
        texts = [texts[0], rule, *texts[1 : -len(keys)], rule, *texts[-len(keys) :]]
    notes = []
    if "cls_f1" in table:
        notes.append(f"F1 of the image-level labels {_percent(table['cls_f1'])}")
    if "images" in table:
        notes.append(f"{table['images']} images")
    if limit is not None:
        notes.append(f"only the first {limit} of the list: not a score of the whole split")
    return "\n".join([*texts, *([", ".join(notes)] if notes else [])])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns: the first flush left, the others flush right."""
    if not lines:
        return []
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]


def _columns(table: Mapping[str, Any]) -> list[str]:
    return [key for key, value in table.items() if isinstance(value, Mapping) and isinstance(value.get("iou"), Mapping)]


def _entry_of_flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of before, in which step, split and settings stood among the scores."""
    test = table.get("test")
    test = test if isinstance(test, Mapping) else {}
    crf = {name: value for name, value in test.items() if name.startswith("crf_")}
    key = protocol_key(
        split=table.get("split"),
        step=table.get("step"),
        scales=test.get("scales"),
        long_side=test.get("long_side"),
        mirror=test.get("mirror"),
        crf=crf or None,
        limit=None,
    )
    scores = {name: value for name, value in table.items() if name not in ("split", "step", "test")}
    return {"protocol": key, "partial": False, "per_image": None, "table": scores}


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _six(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
