"""Check a data set: python tools/check_data.py configs/voc.yaml [key=value ...] [--json report.json]

Exit code 0 when nothing is wrong, 1 when something is, 2 when there is no such data set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from afa.data.files import require_writable, write_json
from afa.data.parallel import usable_cores
from afa.errors import run_command
from afa.paths import expand_home, given_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, check, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", type=expand_home, metavar="CONFIG", help="configuration (YAML) whose data set is checked"
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings, for example dataset.root=data/mine"
    )
    parser.add_argument("--json", type=given_path, help="file for the whole report as JSON")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: all usable cores)")
    args = parser.parse_intermixed_args(arguments)
    if args.json is not None:
        require_writable(args.json, "--json")

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.check import check_data
    from afa.data.layout import find_class_names
    from afa.methods import build_method, load_config
    from afa.methods.base import SingleProcess

    config = load_config(args.config, args.overrides)
    method = build_method(config, find_class_names(config.dataset), SingleProcess())
    report = check_data(config.dataset, needs=method.needs, workers=args.workers)
    print(report.as_text())
    if args.json is not None:
        write_json(args.json, report.as_dict())
    return 0 if report.ok else 1


if __name__ == "__main__":
    run_command(main)
