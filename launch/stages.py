"""What a pipeline asks before its first stage: are the settings of all stages right, and which lists have true masks?

    python launch/stages.py CONFIG [key=value ...] [-- CONFIG [key=value ...]] ...

Prints three lines about the first stage's data set: the validation list; the same, if it can be scored; the list that
labels of the training images are scored on. In place of one without true masks stands "-", and stderr says why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from afa.config import DatasetConfig, check_training
from afa.data.layout import find_layout
from afa.data.true_masks import TrueMasks
from afa.errors import UserError, run_command
from afa.methods import load_config


def main(arguments: Sequence[str]) -> None:
    """Check the stages, print the lists.

    Raises:
        UserError: A configuration, a setting or the data set is wrong.
    """
    stages: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            stages.append([])
        else:
            stages[-1].append(argument)
    configs = [load_config(config, settings) for config, *settings in stages]
    for config in configs:
        check_training(config)
    dataset: DatasetConfig = configs[0].dataset
    find_layout(dataset).names(dataset.train_split)
    print(dataset.val_split)
    for split in (dataset.val_split, _scored_training_list(dataset)):
        try:
            TrueMasks.of_split(dataset, split)
        except UserError as error:
            print(f"note: '{split}' gets no scores: {error}", file=sys.stderr)
            split = "-"
        print(split)


def _scored_training_list(dataset: DatasetConfig) -> str:
    """VOC's augmented list is scored on the images that VOC itself segmented, as PSA's authors do."""
    return "train" if (dataset.type, dataset.train_split) == ("voc", "train_aug") else dataset.train_split


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
