"""Check a data set: read every file once, and report what is wrong.

    afa check voc dataset.root=data/VOC2012 --output report.json

Exit code 0: no problem found; 1: problems found; 2: there is no such data set.
"""

from __future__ import annotations

from collections.abc import Sequence

from afa.commands.arguments import CommandParser, add_workers_argument, check_workers
from afa.data.files import require_writable, write_json
from afa.paths import expand_home, given_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, check, report."""
    parser = CommandParser(__doc__, settings=True)
    parser.add_argument(
        "config", type=expand_home, metavar="CONFIG", help="a recipe or a YAML file, whose data set is checked"
    )
    parser.add_argument("--output", type=given_path, metavar="FILE", help="file for the whole report as JSON")
    add_workers_argument(parser)
    args = parser.read(arguments)
    check_workers(args)
    if args.output is not None:
        require_writable(args.output, "--output")

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.layout import find_class_names
    from afa.methods import build_method, load_config

    config = load_config(args.config, args.settings)
    class_names = find_class_names(config.dataset)
    from afa.data.check import check_data
    from afa.methods.base import SingleProcess

    method = build_method(config, class_names, SingleProcess())
    report = check_data(config.dataset, needs=method.needs, workers=args.workers)
    print(report.as_text())
    if args.output is not None:
        write_json(args.output, report.as_dict())
    return 0 if report.ok else 1
