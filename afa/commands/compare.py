"""Compare runs: seeds of one recipe as mean and standard deviation, recipes by a paired bootstrap over images.

    afa compare work_dirs/demo_seeds/seed_* work_dirs/other_seeds/seed_* --output table.md table.json
    afa compare baseline=work_dirs/a baseline=work_dirs/b mine=work_dirs/c --supervision mine=pixels

RUN is a run's output folder, or its evaluation.json. Runs of one recipe (the same settings except for the seed and
the output folders) form one group; runs with the same TITLE form one group with any settings. All other groups are
compared with the first one. The interval is over images: it shows the influence of the choice of images, not of the
seeds.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afa.commands.arguments import CommandParser
from afa.commands.summary import title_and_place, titles_and_texts
from afa.data.files import require_writable
from afa.errors import UserError
from afa.paths import given_path

if TYPE_CHECKING:
    from afa.report.comparison import Comparison

_SUFFIXES = (".json", ".csv", ".md")
_ROWS = ("in %", "supervision", "output", "images", "runs", "mean mIoU", "deviation", "lowest", "highest")
_DIFFERENCES = ("difference in %", "output", "mIoU", "95 % from", "to", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and the runs, print the tables.

    Raises:
        UserError: A run was not evaluated, a file is damaged, or an output cannot be written.
    """
    parser = CommandParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="[TITLE=]RUN", help="runs, and what to call their group")
    parser.add_argument(
        "--supervision",
        nargs="+",
        default=[],
        metavar="TITLE=TEXT",
        help="supervision of a group: I, I+S, pixels",
    )
    parser.add_argument(
        "--output",
        nargs="+",
        default=[],
        type=given_path,
        metavar="FILE",
        help="files for the tables; what each holds follows from its ending: .json, .csv or .md (Markdown)",
    )
    parser.add_argument("--resamples", type=int, metavar="N", help="resamples of an interval (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    args = parser.read(arguments)
    for path in args.output:
        if path.suffix.lower() not in _SUFFIXES:
            raise UserError(f"--output {path}: give a file that ends in {', '.join(_SUFFIXES)}")
        require_writable(path, "--output")
    if args.resamples is not None and args.resamples < 100:
        raise UserError(f"--resamples {args.resamples}: at least 100 are needed for an interval")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give 0 or more")
    named = [title_and_place(argument, "RUN") for argument in args.runs]
    supervision = titles_and_texts(args.supervision, None)

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.report.bootstrap import RESAMPLES
    from afa.report.comparison import compare, group_runs
    from afa.report.runs import read_run

    runs = [(title, read_run(path)) for title, path in named]
    groups = group_runs(runs, supervision)
    found = compare(groups, resamples=RESAMPLES if args.resamples is None else args.resamples, seed=args.seed)

    print("\n\n".join("\n".join(_text_lines(table)) for table in _tables(found) if len(table) > 1))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for path in args.output:
        _write(path, found)
    if args.output:
        print(f"written to {', '.join(map(str, args.output))}", file=sys.stderr)
    return 0


def _percent(value: float | None, *, sign: bool = False) -> str:
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}.1f}"


def _tables(found: Comparison) -> list[list[list[str]]]:
    """Scores, differences and settings, each with its header, as cells."""
    rows = [list(_ROWS)]
    for row in found.rows:
        numbers = (row.mean, row.deviation, row.lowest, row.highest)
        rows.append(
            [row.title, row.supervision or "-", row.output, row.images, str(row.runs), *(_percent(n) for n in numbers)]
        )
    differences = [list(_DIFFERENCES)]
    for other in found.differences:
        values = [_percent(value, sign=True) for value in (other.difference, other.low, other.high)]
        note = other.reason or ("" if (other.low or 0) * (other.high or 0) > 0 else "the interval contains 0")
        differences.append([f"{other.title} - {other.base}", other.output, *values, note])
    settings = [["setting", *(group.title for group in found.groups)]]
    settings += [[key, *values] for key, values in found.settings.items()]
    return [rows, differences, settings]


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("+-").replace(".", "", 1).isdigit()


def _text_lines(table: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns; columns of numbers are flush right."""
    cells = [[" ".join(cell.split()) for cell in row] for row in table]
    columns = list(zip(*cells, strict=True))
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in cells:
        parts = zip(row, widths, right, strict=True)
        lines.append("  ".join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in parts))
    return [line.rstrip() for line in lines]


def _markdown(found: Comparison) -> str:
    parts = []
    for table in _tables(found):
        if len(table) == 1:
            continue
        lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table]
        lines.insert(1, "|" + "---|" * len(table[0]))
        parts.append("\n".join(lines))
    parts.append(_legend(found))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text that a Markdown table shows as it stands."""
    text = " ".join(text.split())
    for old, new in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("_", "\\_"), ("`", "\\`")):
        text = text.replace(old, new)
    return text


def _legend(found: Comparison) -> str:
    text = "mIoU over all images; deviation: sample standard deviation over the runs (divided by n - 1)."
    if found.differences:
        text += (
            f" Intervals: paired bootstrap over images, 2.5th to 97.5th percentile of {found.resamples} resamples"
            f" (seed {found.seed})."
        )
    return text


def _csv(found: Comparison) -> str:
    """All in one table: what a line is stands in its first cell, and numbers are from 0 to 1."""
    columns = ["kind", "title", "base", "supervision", "output", "images", "runs"]
    columns += ["value", "deviation", "low", "high", "note"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in found.rows:
        values = {**asdict(row), "kind": "score", "value": row.mean, "low": row.lowest, "high": row.highest}
        writer.writerow({key: values[key] for key in columns if values.get(key) is not None})
    for other in found.differences:
        values = {**asdict(other), "kind": "difference", "value": other.difference, "note": other.reason}
        writer.writerow({key: values[key] for key in columns if values.get(key) is not None})
    return buffer.getvalue()


def _json(found: Comparison) -> dict[str, Any]:
    return {
        "groups": [
            {
                "title": group.title,
                "supervision": group.supervision,
                "runs": [{"path": str(run.path), "method": run.method, "seed": run.seed} for run in group.runs],
            }
            for group in found.groups
        ],
        "scores": [asdict(row) for row in found.rows],
        "differences": [asdict(other) for other in found.differences],
        "settings": {key: list(values) for key, values in found.settings.items()},
        "notes": list(found.notes),
        "resamples": found.resamples,
        "seed": found.seed,
    }


def _write(path: Path, found: Comparison) -> None:
    from afa.data.files import write_json, write_text

    try:
        if path.suffix.lower() == ".json":
            write_json(path, _json(found))
        else:
            text = _csv(found) if path.suffix.lower() == ".csv" else _markdown(found)
            write_text(path, text, surrogates="backslashreplace")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error
