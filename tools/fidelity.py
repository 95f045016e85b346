#!/usr/bin/env python
"""Compare every part with the released program's values and print how far it is away: tools/fidelity.py [--write]"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from afa.errors import UserError, run_command

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "fidelity.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


class Collector:
    """A pytest plugin that keeps what the tests noted."""

    def __init__(self) -> None:
        self.differences: dict[tuple[str, str, str], float] = {}

    def pytest_runtest_logreport(self, report) -> None:
        """Called by pytest after each phase of a test."""
        if report.when != "call":
            return
        test = report.nodeid.removeprefix("tests/").split("[")[0].replace("::", " ")
        for name, value in report.user_properties:
            if name == "agreement":
                note = json.loads(value)
                unit = "" if note["unit"] == "absolute" else f" {note['unit']}"
                row = (note["part"], f"{note['tolerance']:g}{unit}", f"`{test}`")
                self.differences[row] = max(note["difference"], self.differences.get(row, 0.0))

    def table(self) -> str:
        """One row per part, in Markdown."""
        lines = ["| part | largest difference | tolerance | test |", "|---|---|---|---|"]
        for (part, tolerance, test), difference in self.differences.items():
            lines.append(f"| {part} | {f'{difference:.1e}' if difference else '0'} | {tolerance} | {test} |")
        return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"also put the table into {DOCUMENT.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    try:
        import pytest
    except ImportError as error:
        raise UserError("the comparisons are tests: pip install -e .[test]") from error

    collector = Collector()
    os.chdir(ROOT)
    arguments = ["tests", "-k", "reference", "-p", "no:cacheprovider", "--tb=no"]
    with open(os.devnull, "w") as quiet:
        stdout, sys.stdout = sys.stdout, quiet
        try:
            code = pytest.main(arguments, plugins=[collector])
        finally:
            sys.stdout = stdout
    table = collector.table()
    print(table, end="")
    if code != 0:
        raise UserError(
            f"not all of them agree (pytest's exit code {int(code)}): run python -m pytest tests -k reference"
        )
    if args.write:
        before, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise UserError(f"{DOCUMENT} lacks the lines {BEGIN.strip()} and {END.strip()}")
        beside = DOCUMENT.with_suffix(".md.part")
        beside.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")
        beside.replace(DOCUMENT)
    return 0


if __name__ == "__main__":
    run_command(main)
