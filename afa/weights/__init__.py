"""Weights of networks: reading, recognising, loading strictly, writing. No file's code is ever run.

What stands here is imported when it is used: names of files are looked at before PyTorch, which takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afa.weights.checkpoint import OpenedCheckpoint, open_checkpoint, pack_metadata
    from afa.weights.layouts import describe_network
    from afa.weights.loading import load_encoder, load_fitting, load_network, load_segmenter
    from afa.weights.reading import find_weights, last_checkpoint, read_tensors
    from afa.weights.saving import layouts_of, save_afa_layout, save_huggingface, save_network, write_tensors

_PLACES = {
    "OpenedCheckpoint": "checkpoint",
    "describe_network": "layouts",
    "find_weights": "reading",
    "last_checkpoint": "reading",
    "layouts_of": "saving",
    "load_encoder": "loading",
    "load_fitting": "loading",
    "load_network": "loading",
    "load_segmenter": "loading",
    "open_checkpoint": "checkpoint",
    "pack_metadata": "checkpoint",
    "read_tensors": "reading",
    "save_afa_layout": "saving",
    "save_huggingface": "saving",
    "save_network": "saving",
    "write_tensors": "saving",
}

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


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'afa.weights' has no attribute '{name}'")
    return getattr(import_module(f"afa.weights.{_PLACES[name]}"), name)
