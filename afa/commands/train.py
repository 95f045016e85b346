"""Train: tools/train.py configs/voc.yaml train.output=work_dirs/mine optimiser.lr=1e-4"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from afa.config import describe_settings
from afa.methods import config_class, load_config, method_names
from afa.paths import expand_home


class _PrintSettings(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, _: argparse.Namespace, values: object, __: object = None
    ) -> None:
        print(describe_settings(config_class(str(values or "afa"))))
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=expand_home, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    parser.add_argument(
        "--settings",
        nargs="?",
        metavar="METHOD",
        action=_PrintSettings,
        help=f"list every setting of a method ({', '.join(method_names())}; default: afa) and leave",
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")

    # The configuration is checked before PyTorch, which takes seconds, is even imported.
    config = load_config(args.config, args.overrides)
    from afa.engine.training import train

    return train(config)
