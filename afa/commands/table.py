"""The sub-commands of ``afa``: the one place that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """One sub-command.

    Attributes:
        module: Where its ``main(arguments) -> exit code`` is; imported when the command runs.
        help: What it does, in one line.
    """

    module: str
    help: str


COMMANDS: Mapping[str, Command] = {
    "train": Command("afa.commands.train", "train a method with a recipe"),
    "label": Command("afa.commands.label", "label the images of a list with a trained network, for later stages"),
    "eval": Command("afa.commands.eval", "score a trained network on images that have masks"),
    "score": Command("afa.commands.score", "score a folder of masks or maps, from any program"),
    "report": Command("afa.commands.report", "one HTML page about a run or a folder of results"),
    "compare": Command("afa.commands.compare", "compare runs: seeds of one recipe, and recipes"),
    "predict": Command("afa.commands.infer", "segment any images with a trained network"),
    "sheet": Command("afa.commands.contact_sheet", "draw the maps and labels of a trained network, image by image"),
    "summary": Command("afa.commands.summary", "one table of several score files"),
    "check": Command("afa.commands.check", "check a data set"),
    "prepare": Command("afa.commands.prepare", "prepare data: VOC, COCO, labels, saliency maps, the built-in data set"),
    "convert": Command("afa.commands.convert_weights", "write a trained network in another layout"),
    "export": Command("afa.commands.export", "export results and networks for other programs"),
    "benchmark": Command("afa.commands.benchmark", "measure speed and memory on this machine"),
    "demo": Command("afa.commands.demo", "train and evaluate AFA on the built-in data set, in minutes"),
    "info": Command("afa.commands.info", "versions and devices, to paste into an issue"),
    "list": Command("afa.commands.list", "list methods, recipes and outputs"),
}

PREPARATIONS: Mapping[str, Command] = {
    "voc": Command("afa.commands.prepare_voc", "PASCAL VOC 2012 with SBD's masks"),
    "coco": Command("afa.commands.prepare_coco", "MS COCO 2014"),
    "labels": Command("afa.commands.make_labels", "image-level labels for own data, from masks or folder names"),
    "saliency": Command("afa.commands.make_saliency", "saliency maps for images that have none"),
    "shapes": Command("afa.commands.make_shapes", "the small built-in data set of the demonstration"),
}
