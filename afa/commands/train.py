"""Train a method with a recipe.

    afa train voc --output work_dirs/mine optimiser.lr=1e-4
    afa train mine.yaml train.steps=5000

CONFIG is a recipe ('afa list recipes' names them) or your own YAML file. After a kill, the same command continues
from the last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from afa.commands.arguments import CommandParser
from afa.config import check_training, describe_settings
from afa.methods import config_class, load_config, method_names
from afa.paths import expand_home

_SHORT = {"output": "train.output", "device": "train.device", "workers": "train.workers"}


class _PrintSettings(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, _: argparse.Namespace, values: object, __: object = None
    ) -> None:
        print(describe_settings(config_class(str(values or "afa"))))
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and train."""
    parser = CommandParser(__doc__, settings=True)
    parser.add_argument("config", type=expand_home, metavar="CONFIG", help="a recipe, or a YAML file")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the run: the setting train.output")
    parser.add_argument("--device", help="the setting train.device: auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--workers", metavar="N", help="the setting train.workers: processes that load images")
    parser.add_argument(
        "--settings",
        dest="method",  # not `settings`: those are key=value
        nargs="?",
        metavar="METHOD",
        action=_PrintSettings,
        help=f"list every setting of a method ({', '.join(method_names())}; default: afa) and exit",
    )
    args = parser.read(arguments)
    settings = [f"{key}={getattr(args, name)}" for name, key in _SHORT.items() if getattr(args, name) is not None]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")

    # The configuration is checked before PyTorch, which takes seconds, is even imported.
    config = load_config(args.config, [*args.settings, *settings])
    check_training(config)
    from afa.engine.training import train

    return train(config)
