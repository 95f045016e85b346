"""Write a trained network in another layout: ours, the released program's, or Hugging Face's.

SOURCE is a run's output folder (its best checkpoint, else its last), a checkpoint folder, or a file of weights. If a
file has several versions of the network, SOURCE#ENTRY names one: model.pth#model_ema.
--output is a .safetensors file (afa), a .pth file (released), or a folder (huggingface).

The format huggingface supports AFA's networks with a Mix Transformer only. The format released supports these, and
PSA's and EDAM's networks with a ResNet-38. The format afa supports all networks.

    afa convert work_dirs/voc --output afa_voc_hf --format huggingface
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afa.commands.arguments import CommandParser, one_output
from afa.data.files import require_writable
from afa.errors import UserError
from afa.paths import expand_home
from afa.weights.files import require_source

if TYPE_CHECKING:
    from afa.weights import OpenedCheckpoint

_SUFFIXES = {"afa": (".safetensors",), "released": (".pth", ".pt", ".bin")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Open, then write; returns the exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "source", type=expand_home, metavar="SOURCE", help="run, checkpoint folder, or file of weights (#ENTRY)"
    )
    parser.add_argument("earlier_output", nargs="?", type=expand_home, help=argparse.SUPPRESS)
    parser.add_argument("--output", metavar="PLACE", type=expand_home, help="file or folder to write")
    parser.add_argument("--format", required=True, choices=("afa", "released", "huggingface"), help="layout to write")
    parser.add_argument(
        "--config",
        type=expand_home,
        metavar="FILE",
        help="configuration (a YAML file or a recipe) of weights that come with none",
    )
    args = parser.read(arguments)

    destination = Path(one_output(args.output, args.earlier_output, parser, "PLACE"))
    suffixes = _SUFFIXES.get(args.format)
    if suffixes and destination.suffix not in suffixes:
        raise UserError(f"{destination}: --format {args.format} writes a file that ends in {' or '.join(suffixes)}")
    if not suffixes and any(destination.suffix in known for known in _SUFFIXES.values()):
        raise UserError(f"{destination}: --format huggingface writes a folder: name one")

    require_writable(destination, "--output", folder=suffixes is None)
    require_source(args.source)

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from safetensors import SafetensorError

    from afa.weights import open_checkpoint

    logging.basicConfig(format="%(message)s")
    logging.getLogger("afa").setLevel(logging.INFO)

    opened = open_checkpoint(args.source, args.config)
    try:
        write(opened, destination, args.format)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{destination} could not be written: {error}") from error
    print(f"wrote {destination}: {len(opened.class_names)} classes and the background")
    return 0


def write(opened: OpenedCheckpoint, destination: Path, layout: str) -> None:
    """Write what was opened.

    Args:
        opened: Of any method.
        destination: File or folder.
        layout: ``afa``, ``released`` or ``huggingface``.

    Raises:
        UserError: The layout has no place for this network.
    """
    from afa.config import EncoderConfig
    from afa.weights import layouts_of, pack_metadata, save_afa_layout, save_huggingface, save_network

    network, config, class_names = opened.method.network, opened.config, opened.class_names
    if layout == "afa":
        save_network(network, destination, pack_metadata(config, class_names, opened.step))
        return
    if layout not in layouts_of(network):
        model = getattr(config, "model", None)
        encoder = f" with the encoder {model.encoder}" if isinstance(model, EncoderConfig) else ""
        raise UserError(
            f"{opened.path} holds a network of the method '{opened.method.name}'{encoder}, and --format {layout} has "
            "no place for it: give --format afa"
        )
    if layout == "released":
        save_afa_layout(network, destination)
        return
    mean, std = config.dataset.image_mean, config.dataset.image_std
    save_huggingface(network, destination, class_names=class_names, image_mean=mean, image_std=std)
