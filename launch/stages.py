"""What a pipeline asks before its first stage: are the settings of all stages right, and what has each list?

    python launch/stages.py CONFIG [key=value ...] [-- CONFIG [key=value ...]] ...

Prints five lines about the first stage's data set: the validation list; the same, if it can be scored; the list that
labels of the training images are scored on; the training list, if it has saliency maps; the validation list, likewise.
In place of a list without true masks stands "-", and stderr says why; likewise where images of the validation list have
no maps in the folder that the settings name. Where they name none, the last two lines are "-".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from afa.config import DatasetConfig, check_training
from afa.data.inputs import SALIENCY, Inputs
from afa.data.layout import Layout, find_layout
from afa.data.true_masks import TrueMasks
from afa.errors import UserError, run_command
from afa.methods import load_config


def main(arguments: Sequence[str]) -> None:
    """Check the stages, print the lists.

    Raises:
        UserError: A configuration, a setting or the data set is wrong, or images of the training list have no saliency
            maps although the settings name a folder of them.
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
    layout = find_layout(dataset)
    layout.names(dataset.train_split)
    _require_saliency(dataset, layout, dataset.train_split)
    print(dataset.val_split)
    for split in (dataset.val_split, _scored_training_list(dataset)):
        try:
            TrueMasks.of_split(dataset, split)
        except UserError as error:
            print(f"note: '{split}' gets no scores: {error}", file=sys.stderr)
            split = "-"
        print(split)
    print("-" if dataset.saliency is None else dataset.train_split)
    print(_salient_validation_list(dataset, layout))


def _scored_training_list(dataset: DatasetConfig) -> str:
    """VOC's augmented list is scored on the images that VOC itself segmented, as PSA's authors do."""
    return "train" if (dataset.type, dataset.train_split) == ("voc", "train_aug") else dataset.train_split


def _salient_validation_list(dataset: DatasetConfig, layout: Layout) -> str:
    """Maps that others publish are often for the training images alone: EDAM's authors' are."""
    if dataset.saliency is None:
        return "-"
    try:
        _require_saliency(dataset, layout, dataset.val_split)
    except UserError as error:
        print(f"note: '{dataset.val_split}' is labelled without saliency: {error}", file=sys.stderr)
        return "-"
    return dataset.val_split


def _require_saliency(dataset: DatasetConfig, layout: Layout, split: str) -> None:
    """Refuse a list of images without saliency maps, where the settings name a folder of them."""
    if dataset.saliency is not None:
        Inputs(dataset, [SALIENCY], layout.class_names).require(layout.names(split), split, {})


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
