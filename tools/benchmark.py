#!/usr/bin/env python
"""Measure speed and memory on this machine: tools/benchmark.py crf --threads 2 --json crf.json"""

from __future__ import annotations

import argparse
from pathlib import Path

from afa.errors import run_command


def main() -> None:
    from afa.benchmarks import crf, data, eval, regularised
    from afa.data.files import write_json

    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, benchmark in {"data": data, "eval": eval, "crf": crf, "reg": regularised}.items():
        command = commands.add_parser(name, help=benchmark.__doc__, description=benchmark.__doc__)
        benchmark.add_arguments(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
        command.set_defaults(run=benchmark.run)
    args = parser.parse_args()
    figures = args.run(args)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    run_command(main)
