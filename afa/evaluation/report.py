"""The evaluation table as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afa.data.files import write_json
from afa.errors import UserError
from afa.weights.facts import CHECKPOINTS_FOLDER

_TITLES = {
    "cam": "CAM",
    "propagated_cam": "propagated CAM",
    "segmentation": "segmentation",
    "segmentation_crf": "segmentation + CRF",
}
_MEANS = {"miou": "mIoU", "pacc": "pAcc", "macc": "mAcc"}


def format_table(table: Mapping[str, Any]) -> str:
    """Classes and means in rows, what was scored in columns, in percent; "-" for a class that does not occur.

    Args:
        table: As :func:`afa.evaluation.evaluate.evaluate` gives it.
    """
    columns = [row for row in _TITLES if row in table]
    lines = [["IoU in %", *(_TITLES[column] for column in columns)]]
    if columns:
        for name in table[columns[0]]["iou"]:
            lines.append([name, *(_percent(table[column]["iou"][name]) for column in columns)])
        for key, title in _MEANS.items():
            lines.append([title, *(_percent(table[column][key]) for column in columns)])
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns) + 1)]
    texts = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    rule = "-" * len(texts[0])
    body = [texts[0], rule, *texts[1 : -len(_MEANS)], rule, *texts[-len(_MEANS) :]] if columns else []
    return "\n".join([*body, f"F1 of the image-level labels {_percent(table['cls_f1'])}, {table['images']} images"])


def default_report_path(checkpoint: str | Path) -> Path:
    """``evaluation.json`` in the folder of the run that a checkpoint belongs to, else beside the weights file."""
    path = Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    # OUTPUT itself, OUTPUT/checkpoints and OUTPUT/checkpoints/step_00002000 all belong to the run OUTPUT.
    store = next((parent for parent in (folder, folder.parent) if parent.name == CHECKPOINTS_FOLDER), None)
    return (store.parent if store else folder) / "evaluation.json"


def write_report(path: Path, table: Mapping[str, Any]) -> None:
    """Write the table as JSON, atomically.

    Raises:
        UserError: It cannot be written there.
    """
    try:
        write_json(path, table)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): give --output") from error


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
