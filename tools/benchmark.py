#!/usr/bin/env python
"""Measure speed and memory on this machine: tools/benchmark.py step --crop 512 --batch 2 --json step.json"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from afa.errors import UserError, run_command
from afa.paths import given_path


def main(arguments: Sequence[str] | None = None) -> None:
    from afa.benchmarks import crf, data, eval, growth, operators, par, regularised, step
    from afa.data.files import write_json

    benchmarks = {
        "step": step,
        "operators": operators,
        "growth": growth,
        "par": par,
        "data": data,
        "eval": eval,
        "crf": crf,
        "reg": regularised,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, benchmark in benchmarks.items():
        summary = str(benchmark.__doc__).split("\n\n")[0]
        command = commands.add_parser(name, help=summary, description=benchmark.__doc__)
        benchmark.add_arguments(command)
        command.add_argument("--json", type=given_path, metavar="FILE", help="also write the figures here")
        command.set_defaults(run=benchmark.run)
    args = parser.parse_args(arguments)
    if args.json and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
    figures = args.run(args)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    run_command(main)
