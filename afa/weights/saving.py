"""Networks into files: ours, the released program's, Hugging Face's. Each appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from afa.data.files import replacing
from afa.errors import UserError
from afa.models import AFANet, AffinityNetwork, CAMNetwork, EDAMNetwork, MixTransformer, ResNet38
from afa.weights.layouts import to_huggingface, to_released_resnet38
from afa.weights.reading import with_checksum


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum of its content: beside, flushed to the disk, then renamed.

    Args:
        path: The file; its folder is made if needed.
        tensors: Name -> tensor, on any device.
        metadata: Texts to keep with them.
    """
    plain = _plain(tensors)
    with replacing(Path(path)) as temporary:
        save_file(plain, temporary, metadata=with_checksum(plain, metadata))
        flush(temporary)


def save_network(network: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a network's weights as ours: safetensors, with the network's own names, AFA's being the released program's.

    Args:
        network: Of any method; its weights and running statistics are written, in their own precision.
        path: The ``.safetensors`` file.
        metadata: See :func:`afa.weights.pack_metadata`.
    """
    write_tensors(path, network.state_dict(), metadata)


def layouts_of(network: nn.Module) -> tuple[str, ...]:
    """The layouts in which a network can be written, see ``afa convert --format``."""
    if isinstance(network, AFANet) and isinstance(network.encoder, MixTransformer):
        return ("afa", "released", "huggingface")
    return ("afa", "released") if _is_released_resnet38(network) else ("afa",)


def save_afa_layout(network: nn.Module, path: str | Path) -> None:
    """Write a state dict that the released program of AFA, PSA or EDAM loads: ``torch.save``, no ``module.``.

    Args:
        network: One that has this layout, see :func:`layouts_of`.
        path: File to write.
    """
    tensors = network.state_dict()
    with replacing(Path(path)) as temporary:
        torch.save(_plain(to_released_resnet38(tensors) if _is_released_resnet38(network) else tensors), temporary)
        flush(temporary)


def save_huggingface(
    network: nn.Module,
    folder: str | Path,
    *,
    class_names: Sequence[str],
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> None:
    """Write encoder and decoder as a folder that ``SegformerForSemanticSegmentation.from_pretrained`` reads.

    Classifier and affinity head have no place there and are left out.

    Args:
        network: One that has this layout, see :func:`layouts_of`.
        folder: Must not exist, or be such a folder, which is replaced.
        class_names: K names; label 0 becomes ``background``.
        image_mean: Of R, G, B, in 0..255.
        image_std: Of R, G, B, in 0..255.

    Raises:
        UserError: The folder holds something else.
        ValueError: The number of names is not the network's, or the network has no such layout.
    """
    if not isinstance(network, AFANet) or not isinstance(network.encoder, MixTransformer):
        raise ValueError(f"a {type(network).__name__} with this encoder has no such layout")
    if len(class_names) != network.num_classes - 1:
        raise ValueError(f"{len(class_names)} class names for {network.num_classes - 1} classes without background")
    target = Path(folder)
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    if target.exists() and not (target.is_dir() and {path.name for path in target.iterdir()} <= names):
        raise UserError(f"{target} exists and holds something else: name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
        new = Path(beside, "new")
        new.mkdir()
        write_tensors(new / "model.safetensors", to_huggingface(network.state_dict()), {"format": "pt"})
        processor = _image_processor(image_mean, image_std)
        for name, content in (
            ("config.json", _huggingface_config(network, class_names)),
            ("preprocessor_config.json", processor),
        ):
            (new / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            flush(new / name)
        if target.exists():
            shutil.move(target, Path(beside, "old"))
        os.replace(new, target)


def _is_released_resnet38(network: nn.Module) -> bool:
    """Whether the released program of PSA or EDAM has this network."""
    return isinstance(network, (CAMNetwork, AffinityNetwork, EDAMNetwork)) and isinstance(network.encoder, ResNet38)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, each with memory of its own: views of one tensor cannot be written."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def flush(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _huggingface_config(network: AFANet, class_names: Sequence[str]) -> dict[str, Any]:
    encoder = network.encoder
    assert isinstance(encoder, MixTransformer)  # layouts_of
    labels = ["background", *class_names]
    ratios = [
        encoder.get_submodule(f"block{stage}.0.mlp.fc1").out_features / width  # type: ignore[operator]
        for stage, width in enumerate(encoder.channels, start=1)
    ]
    return {
        "model_type": "segformer",
        "architectures": ["SegformerForSemanticSegmentation"],
        "num_channels": 3,
        "num_encoder_blocks": 4,
        "depths": list(encoder.depths),
        "hidden_sizes": list(encoder.channels),
        "num_attention_heads": list(encoder.heads),
        "sr_ratios": list(encoder.reductions),
        "patch_sizes": [7, 3, 3, 3],
        "strides": list(encoder.embedding_strides),
        "mlp_ratios": [int(ratio) if ratio == int(ratio) else ratio for ratio in ratios],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": network.decoder.dropout.p,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": network.decoder.width,
        "reshape_last_stage": True,
        "semantic_loss_ignore_index": 255,
        "id2label": {str(index): name for index, name in enumerate(labels)},
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def _image_processor(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Native size by default, as AFA predicts: a resize to a square would change the aspect ratio."""
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "size": {"height": 512, "width": 512},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in mean],
        "image_std": [value / 255 for value in std],
        "do_reduce_labels": False,
    }
