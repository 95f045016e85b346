"""A segmentation network as an ONNX file, checked against PyTorch before it is kept."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from afa.data.files import replacing, write_json
from afa.errors import UserError
from afa.methods.segmentation import exported_network
from afa.prediction.model import Model
from afa.weights.reading import file_checksum

OPSET = 17
LARGEST_DIFFERENCE = 1e-4
"""Of logits, over the largest logit or 1: what rounding may do. Beyond it the file is not kept."""

_TRACED = (2, 128, 160)
# Sizes that the network did not see while it was traced: odd, upright, small, and several images.
_TRIED = ((1, 64, 64), (3, 97, 131), (1, 160, 96))
_LARGEST_SIDE = 8192
_INPUT, _OUTPUT = "image", "logits"


class Exported(NamedTuple):
    """What an export found.

    Attributes:
        files: The ONNX file, and the JSON that describes it.
        difference: Largest difference of a logit between PyTorch and onnxruntime, over the largest logit or 1.
        any_size: Whether it takes images of any size.
    """

    files: tuple[Path, Path]
    difference: float
    any_size: bool


class _Segment(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.segment(image)  # type: ignore[operator]


def require_segmenter(model: Model) -> None:
    """Refuse a method without a segmentation network.

    Raises:
        UserError: Its outputs give no logits.
    """
    if not any(output.logits for output in model.method.outputs) or not callable(
        getattr(model.method.network, "segment", None)
    ):
        outputs = ", ".join(output.name for output in model.method.outputs)
        raise UserError(
            f"the method '{model.method.name}' has no segmentation network, its outputs are {outputs}: export a run of "
            "a method that gives 'segmentation', such as afa or segment"
        )


def require_onnx() -> None:
    """Refuse to go on without the libraries that are needed.

    Raises:
        UserError: One of them is not installed.
    """
    try:
        for name in ("onnx", "onnxruntime"):
            import_module(name)
    except ImportError as error:
        raise UserError(
            f"an ONNX export needs {error.name or 'onnx'}: pip install onnx onnxruntime, or -e .[onnx]"
        ) from error


@torch.no_grad()
def export_onnx(model: Model, path: Path, *, size: Sequence[int] | None = None) -> Exported:
    """Write a segmentation network, and beside it a JSON file about its pre- and postprocessing.

    The graph takes normalised images ``image`` float32 [B, 3, H, W] and gives ``logits`` float32 [B, C, h, w]. B, H and
    W are free, unless ``size`` is given. The file is kept only where onnxruntime gives the same logits as PyTorch for
    random images, also of sizes and numbers that the graph was not made with.

    Args:
        model: Its network segments, see :func:`require_segmenter`; on the CPU, in float32.
        path: The ONNX file; the JSON has the same name with the suffix ``.json``.
        size: (H, W) of all images; None: any.

    Raises:
        UserError: The network cannot be exported, onnxruntime gives other logits, or a file cannot be written.
    """
    require_segmenter(model)
    network = _Segment(exported_network(model.method.network, None if size is None else (size[0], size[1]))).eval()
    traced = _TRACED if size is None else (2, size[0], size[1])
    tried = [traced, *(_TRIED if size is None else ((1, *size),))]
    description = path.with_suffix(".json")
    try:
        with replacing(path) as temporary:
            _trace(network, traced, temporary, free=size is None)
            difference, stride = 0.0, 0.0
            session = _session(temporary)
            generator = torch.Generator().manual_seed(0)
            for shape in tried:
                images = torch.randn(shape[0], 3, *shape[1:], generator=generator)
                wanted = network(images)
                difference = max(difference, _difference(session, images, wanted, size is None))
                stride = images.shape[-1] / wanted.shape[-1]
            facts = _facts(model, size, difference, round(stride))
            _describe(temporary, facts)
            write_json(description, facts)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error
    return Exported((path, description), difference, size is None)


def _trace(network: nn.Module, shape: tuple[int, int, int], path: Path, *, free: bool) -> None:
    """Write the graph."""
    axes = {0: "batch"}
    image_axes, logit_axes = (
        {**axes, 2: f"{prefix}height", 3: f"{prefix}width"} if free else axes for prefix in ("", "logits_")
    )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # What is said of sizes that become constants is tried below, with other sizes.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (torch.zeros(shape[0], 3, *shape[1:]),),
                str(path),
                dynamo=False,  # the newer exporter takes minutes, and fixes the size of such networks
                opset_version=OPSET,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_axes={_INPUT: image_axes, _OUTPUT: logit_axes},
            )
    except OSError:
        raise
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"PyTorch cannot export this network: {reason}") from error
    finally:
        logger.setLevel(level)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said once, by us
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"onnxruntime cannot read the exported network: {' '.join(str(error).split())[:200]}"
        ) from error


def _difference(session: Any, images: Tensor, wanted: Tensor, free: bool) -> float:
    """The largest difference of a logit, over the largest logit or 1.

    Raises:
        UserError: It is more than rounding.
    """
    size = f"{images.shape[-2]} x {images.shape[-1]}"
    advice = ": give --size HEIGHT WIDTH for a file of one size" if free else ""
    try:
        found = session.run([_OUTPUT], {_INPUT: images.numpy()})[0]
    except Exception as error:
        raise UserError(f"the exported network fails for {len(images)} images of {size} pixels{advice}") from error
    if found.shape != tuple(wanted.shape):
        raise UserError(
            f"the exported network gives logits of {list(found.shape)} for images of {size} pixels, and PyTorch "
            f"{list(wanted.shape)}{advice}"
        )
    difference = float(np.abs(found - wanted.numpy()).max()) / max(1.0, float(wanted.abs().max()))
    if not difference <= LARGEST_DIFFERENCE or math.isnan(difference):
        raise UserError(
            f"the exported network differs from PyTorch by {difference:.1e} of the largest logit for images of {size} "
            f"pixels, more than rounding ({LARGEST_DIFFERENCE:.0e}){advice}"
        )
    return difference


def _facts(model: Model, size: Sequence[int] | None, difference: float, stride: int) -> dict[str, Any]:
    """What must be known to use the file."""
    dataset, test = model.config.dataset, model.config.test
    long_side = test.long_side
    resize = (
        f"resize the normalised image to a long side of {long_side} pixels, the other side int(side * {long_side} / "
        "long side), bilinear, align_corners False, no antialiasing"
        if long_side
        else "none: the network sees the image at its own size"
    )
    if size is not None:
        resize = f"resize the normalised image to {size[0]} x {size[1]} pixels (height x width), bilinear"
    return {
        "made_by": "afa export onnx",
        "method": model.method.name,
        "weights_sha256": file_checksum(model.weights),
        "step": model.step,
        "opset": OPSET,
        "input": {
            "name": _INPUT,
            "type": "float32",
            "layout": "[batch, channel, height, width]",
            "channels": "RGB",
            "normalisation": "(value - mean) / std of each channel, values from 0 to 255",
            "mean": list(dataset.image_mean),
            "std": list(dataset.image_std),
            "batch": "any",
            "size": "any" if size is None else [size[0], size[1]],
            "smallest_side": min(min(shape[1:]) for shape in _TRIED) if size is None else min(size),
            "size_multiple": 1,
            "resize": resize,
        },
        "output": {
            "name": _OUTPUT,
            "type": "float32",
            "layout": "[batch, class, height, width]",
            "stride": stride,
            "classes": ["background", *model.class_names],
            "meaning": "logits: softmax over the classes gives probabilities. Resize them to the image's size, "
            "bilinear, align_corners False; the class with the highest one is the label of a pixel.",
        },
        "protocol": "one pass at one scale, without the mirror image",
        "check": {
            "largest_difference": difference,
            "allowed": LARGEST_DIFFERENCE,
            "of": "the largest logit, or 1",
            "torch": str(torch.__version__),
            "onnxruntime": _version(),
        },
    }


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _describe(path: Path, facts: dict[str, Any]) -> None:
    """Put the description into the file, too: as metadata, each part as JSON."""
    import onnx

    network = onnx.load(str(path))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(network, texts)
    onnx.checker.check_model(network)
    onnx.save(network, str(path))
