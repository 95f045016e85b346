"""One table of several score files, for example of the stages of a pipeline.

    afa summary "CAM network=scores/cam_val.json" "AFA=work_dirs/voc/evaluation.json" --output summary.json
    afa summary AFA=afa.json EDAM=edam.json --supervision AFA=I EDAM=I+S

A file comes from 'afa score --output', or is an evaluation.json of 'afa eval'. Each of its outputs is a row: for maps
without a background, the score at the best threshold; for an evaluation.json, every protocol over a whole list.
--supervision adds a column with the supervision of each row: image labels (I), saliency (S), pixels.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from afa.commands.arguments import CommandParser
from afa.errors import UserError
from afa.paths import given_path

_SCORES = ("miou", "fp_rate", "fn_rate")
_HEADINGS = ("in %", "output", "images", "mIoU", "false positives", "false negatives")
_TEXTS = 3  # of these columns, the others are numbers
_SUPERVISION = "supervision"


@dataclass(frozen=True)
class Row:
    """One output of a score file.

    Attributes:
        title: What people call the file.
        output: Name of the output, and what else tells its score from others of the file.
        images: How many, and of which list.
        threshold: At which maps became labels; None where there is none.
        crf: Whether 'afa eval' refined the output with DenseCRF.
        miou: Mean IoU, 0 to 1; None where the file has none.
        fp_rate: Rate of false positives, 0 to 1, likewise.
        fn_rate: Rate of false negatives, 0 to 1, likewise.
        file: The file.
        supervision: Of the networks and labels behind it; None if unknown.
    """

    title: str
    output: str
    images: str
    threshold: float | None
    crf: bool
    miou: float | None
    fp_rate: float | None
    fn_rate: float | None
    file: str
    supervision: str | None = None

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        output = self.output if self.threshold is None else f"{self.output} > {self.threshold:g}"
        scores = (self.miou, self.fp_rate, self.fn_rate)
        return (self.title, output, self.images, *("-" if score is None else f"{100 * score:.1f}" for score in scores))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and the files, print the table.

    Raises:
        UserError: A file is missing, holds no scores, or cannot be written.
    """
    parser = CommandParser(__doc__)
    parser.add_argument(
        "files", nargs="+", metavar="[TITLE=]FILE.json", help="scores, and what to call them; default: the file's name"
    )
    parser.add_argument(
        "--supervision", nargs="+", default=[], metavar="TITLE=TEXT", help="supervision of the files of a title"
    )
    parser.add_argument("--output", type=given_path, metavar="FILE", help=".json for the table")
    args = parser.read(arguments)
    if args.output is not None and (args.output.suffix.lower() != ".json" or args.output.is_dir()):
        raise UserError(f"--output {args.output}: give a .json file")

    from afa.data.files import write_json
    from afa.evaluation.tables import aligned

    named = [title_and_place(argument, "FILE.json") for argument in args.files]
    files = [(path.stem if title is None else title, path) for title, path in named]
    supervision = titles_and_texts(args.supervision, [title for title, _ in files])
    rows = [replace(row, supervision=supervision.get(title)) for title, path in files for row in read_rows(title, path)]
    lines = [_HEADINGS, *(row.cells() for row in rows)]
    texts = [list(line[:_TEXTS]) for line in lines]
    if supervision:
        column = [_SUPERVISION, *("-" if row.supervision is None else row.supervision for row in rows)]
        texts = [[text[0], cell, *text[1:]] for text, cell in zip(texts, column, strict=True)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    joined = ("  ".join(cell.ljust(width) for cell, width in zip(text, widths, strict=True)) for text in texts)
    print("\n".join(aligned([[text, *line[_TEXTS:]] for text, line in zip(joined, lines, strict=True)])))
    if args.output is not None:
        try:
            write_json(args.output, {"rows": [asdict(row) for row in rows]})
        except OSError as error:
            raise UserError(f"--output {args.output} cannot be written: {error.strerror or error}") from error
        print(f"written to {args.output}", file=sys.stderr)
    return 0


def read_rows(title: str, path: Path) -> list[Row]:
    """The rows of one file.

    Raises:
        UserError: It is missing, or holds no scores of whole lists.
    """
    from afa.data.files import read_json
    from afa.evaluation.tables import read_entries

    content = read_json(path, "the file of scores")
    if isinstance(content, dict) and isinstance(content.get("rows"), dict):
        rows = list(_scored_rows(title, path, content))
    else:
        try:
            entries = read_entries(path)
        except UserError as error:
            raise UserError(f"{path} holds no scores of 'afa score' or 'afa eval'") from error
        whole = [entry for entry in entries if not entry.get("partial")]
        if entries and not whole:
            raise UserError(f"{path} holds scores of only a part of the list: evaluate without --limit")
        rows = list(dict.fromkeys(_evaluated_rows(title, path, whole)))
    if not rows:
        raise UserError(f"{path} holds no scores")
    return rows


def title_and_place(argument: str, what: str) -> tuple[str | None, Path]:
    """The title and the path of ``TITLE=PATH``; None for ``PATH`` alone, which may hold ``=`` where it exists.

    Args:
        argument: Of the command line.
        what: What the path is, for the message, such as ``FILE.json``.

    Raises:
        UserError: The title or the path is empty.
    """
    title, separator, place = argument.partition("=")
    if not separator or given_path(argument).exists():
        return None, given_path(argument)
    if not title.strip() or not place:
        raise UserError(f"{argument}: give TITLE={what}")
    return title, given_path(place)


def titles_and_texts(arguments: Sequence[str], titles: Sequence[str] | None) -> dict[str, str]:
    """What ``--supervision`` says: title -> what it was taught with.

    Args:
        arguments: Each ``TITLE=TEXT``.
        titles: Those that there are; None: the caller knows them later.

    Raises:
        UserError: An argument is of another form, or of no title.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        title, _, text = argument.rpartition("=")
        if not title.strip() or not text.strip():
            raise UserError(f"--supervision {argument}: give TITLE=TEXT, for example AFA=I or EDAM=I+S")
        if titles is not None and title not in titles:
            raise UserError(f"--supervision {argument}: no file has the title '{title}'")
        found[title] = text
    return found


def _scored_rows(title: str, path: Path, content: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of what 'afa score' wrote."""
    truth = str(content.get("truth", "-"))
    split = re.match(r"'(.+?)' of ", truth)
    for output, scores in content["rows"].items():
        if isinstance(scores, Mapping):
            scores = scores.get("best", scores)
        numbers = _numbers(path, output, scores, (*_SCORES, "threshold"))
        images = _images(split[1] if split else truth, content.get("images"))
        yield Row(title=title, output=output, images=images, crf=False, file=str(path), **numbers)


def _flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol with DenseCRF's settings and the method's beside all else; the method's have a dot in their keys."""
    inner = {**(protocol.get("crf") or {}), **(protocol.get("settings") or {})}
    return {**{key: value for key, value in protocol.items() if key != "settings"}, **inner}


def _evaluated_rows(title: str, path: Path, entries: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of an evaluation.json. Where its protocols differ, a row says in what."""
    from afa.evaluation.tables import row_title

    protocols = [_flat(entry["protocol"]) for entry in entries]
    differing = [
        key
        for key in dict.fromkeys(key for protocol in protocols for key in protocol)
        if key not in ("crf", "split") and len({str(one.get(key)) for one in protocols if key in one or "." in key}) > 1
    ]
    for entry, protocol in zip(entries, protocols, strict=True):
        table = entry.get("table")
        if not isinstance(table, Mapping):
            raise UserError(f"{path} is damaged: an evaluation has no table")
        for name, scores in table.items():
            if not isinstance(scores, Mapping):
                continue  # the number of images and the like
            base = name.removesuffix("_crf")
            crf = protocol.get("crf") is not None and base != name and base in table
            words = [f"{key.replace('_', ' ')} {_word(protocol[key])}" for key in differing if key in protocol]
            if not crf:
                words = [word for word in words if not word.startswith("crf ")]
            yield Row(
                title=title,
                output=", ".join([f"{base} + CRF" if crf else row_title(name, table), *words]),
                images=_images(protocol.get("split"), table.get("images")),
                crf=crf,
                file=str(path),
                **_numbers(path, name, scores, _SCORES),
                threshold=None,
            )


def _images(split: object, count: object) -> str:
    return f"{'-' if split is None else split} ({'-' if count is None else count})"


def _word(value: object) -> str:
    return " ".join(f"{item:g}" for item in value) if isinstance(value, list) else str(value).lower()


def _numbers(path: Path, output: str, scores: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Some of an output's scores; None for one that the file does not have.

    Raises:
        UserError: These are no scores.
    """
    if not isinstance(scores, Mapping) or "miou" not in scores:
        raise UserError(f"{path} is damaged: '{output}' has no mIoU")
    for key in keys:
        if isinstance(scores.get(key), bool) or not isinstance(scores.get(key), int | float | None):
            raise UserError(f"{path} is damaged: {key} of '{output}' is no number")
    return {key: scores.get(key) for key in keys}
