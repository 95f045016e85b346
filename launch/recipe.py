"""What launch/seeds.sh asks before it trains: are the settings right, can the run be scored, and where does it go?

    python launch/recipe.py CONFIG [key=value ...]

Prints how many images are in a step, 4x2 for 4 pairs; of how many a forward pass is; and the output folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from afa.config import check_training
from afa.data.layout import find_layout
from afa.data.true_masks import TrueMasks
from afa.errors import UserError, run_command
from afa.methods import build_method, load_config


def main(arguments: Sequence[str]) -> None:
    """Check a recipe, print its facts.

    Raises:
        UserError: A setting, a folder or the data set is wrong, or the validation list cannot be scored.
    """
    path, *settings = arguments
    config = load_config(path, settings)
    check_training(config)
    layout = find_layout(config.dataset)
    layout.names(config.dataset.train_split)
    TrueMasks.of_split(config.dataset)
    # PyTorch takes seconds: a mistake in the settings is said before.
    from afa.data.inputs import CLASS_LABELS, Inputs
    from afa.methods.base import SingleProcess, scored_outputs

    method = build_method(config, layout.class_names, SingleProcess())
    if not scored_outputs(method):
        raise UserError(f"{path}: the method '{method.name}' has no output that is scored: there is nothing to compare")
    wanted = [name for name in method.needs if name != CLASS_LABELS]
    if wanted:
        Inputs(config.dataset, wanted, layout.class_names)
    images, each = config.train.batch_size * config.train.accumulate, 2 if method.sampler == "pairs" else 1
    print(f"{images // each}x{each}" if each > 1 else images)
    print(config.train.batch_size)
    print(config.train.output)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
