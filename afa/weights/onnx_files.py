"""Parameters out of ONNX files: tensors and their names, not the program."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afa.errors import UserError

ONNX_SUFFIX = ".onnx"


def read_onnx(path: Path, *, most_tensors: int) -> dict[str, Tensor]:
    """The parameters of an exported network under the names that they had before the export.

    PyTorch's exporter keeps the names but for the matrices of linear layers, which it transposes and numbers. Where
    such a product meets a bias that has a name, the matrix gets the name of this layer, and is turned back. What has
    no name otherwise keeps its number.

    Args:
        path: The file; its parameters must lie in it.
        most_tensors: More are refused.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        UserError: The package ``onnx`` is missing, the file is damaged, or its parameters lie beside it.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise UserError(f"{path} is an ONNX file, and reading it needs the package onnx: pip install onnx") from error

    try:
        graph: Any = onnx.load(str(path), load_external_data=False).graph
    # What protobuf raises depends on its version; OSError is the caller's.
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is damaged or no ONNX file ({type(error).__name__}): fetch or copy it again"
        ) from error
    if len(graph.initializer) > most_tensors:
        raise UserError(f"{path} holds {len(graph.initializer)} tensors: no network that is known here has as many")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise UserError(f"{path} holds its parameters in another file beside it, which is not read: put them into one")
    names = _names_of_matrices(graph)
    tensors: dict[str, Tensor] = {}
    for stored in graph.initializer:
        try:
            values = torch.from_numpy(numpy_helper.to_array(stored).copy())
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: '{stored.name}' does not hold its values") from error
        name = names.get(stored.name)
        if name is not None and values.ndim == 2:
            tensors[name] = values.T.contiguous()
        else:
            tensors[stored.name] = values
    return tensors


def _names_of_matrices(graph: Any) -> dict[str, str]:
    """Unnamed factor of a product -> ``LAYER.weight``, where ``LAYER.bias`` is added to the product."""
    stored = {tensor.name for tensor in graph.initializer}
    factors = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in stored and node.input[0] not in stored
    }
    uses = Counter(factors.values())
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
            factor = factors.get(product)
            if factor is None or bias not in stored or not bias.endswith(".bias"):
                continue
            name = f"{bias.removesuffix('.bias')}.weight"
            # A matrix that several layers share has no one name, and a name that is taken needs no other owner.
            if uses[factor] == 1 and name not in stored and name not in names.values():
                names[factor] = name
    return names
