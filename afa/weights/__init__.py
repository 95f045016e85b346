"""Weights of networks: reading, recognising, loading strictly, writing. No file's code is ever run."""

from __future__ import annotations

from afa.weights.checkpoint import OpenedCheckpoint, open_checkpoint, pack_metadata
from afa.weights.layouts import describe_network
from afa.weights.loading import load_encoder, load_fitting, load_network, load_segmenter
from afa.weights.reading import find_weights, last_checkpoint, read_tensors
from afa.weights.saving import layouts_of, save_afa_layout, save_huggingface, save_network, write_tensors

__all__ = [
    "OpenedCheckpoint",
    "describe_network",
    "find_weights",
    "last_checkpoint",
    "layouts_of",
    "load_encoder",
    "load_fitting",
    "load_network",
    "load_segmenter",
    "open_checkpoint",
    "pack_metadata",
    "read_tensors",
    "save_afa_layout",
    "save_huggingface",
    "save_network",
    "write_tensors",
]
