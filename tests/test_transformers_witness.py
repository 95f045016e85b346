"""An independent witness: the ``transformers`` library's Segformer and ours agree in both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from afa.errors import UserError
from afa.methods.afa.config import ModelConfig
from afa.methods.afa.network import build_network
from afa.models import AFANet
from afa.weights import load_encoder, load_network, load_segmenter, save_huggingface

transformers = pytest.importorskip("transformers")

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
WIDTHS, DEPTHS, HEADS = [8, 16, 20, 32], [1, 2, 1, 2], [1, 2, 5, 8]
AGREEMENT = 1e-4


def ours(num_classes: int = 6) -> AFANet:
    settings = ModelConfig(encoder="custom", widths=WIDTHS, depths=DEPTHS, heads=HEADS, decoder_width=16)
    return build_network(settings, num_classes).eval()


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Random norms, biases and running statistics too: their initial ones and zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dim() == 1:
                noise = 0.2 * torch.randn(tensor.shape, generator=generator)
                one = name.endswith(("running_var", "weight"))
                tensor.copy_(noise.abs() + 0.5 if one else noise)
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
    return network.eval()


def theirs(kind: str, **more: object) -> nn.Module:
    config = transformers.SegformerConfig(
        hidden_sizes=WIDTHS, depths=DEPTHS, num_attention_heads=HEADS, decoder_hidden_size=16, strides=[4, 2, 2, 1],
        **more,
    )  # fmt: skip
    return randomised(getattr(transformers, kind)(config), seed=3)


def image(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", ["SegformerModel", "SegformerForImageClassification"])
@pytest.mark.parametrize("form", ["folder", "bin", "names in memory"])
def test_encoder_saved_by_transformers_gives_the_same_features(kind: str, form: str, tmp_path: Path) -> None:
    witness, network = theirs(kind), ours()
    witness.save_pretrained(tmp_path)
    source = tmp_path
    if form != "folder":
        from safetensors.torch import load_file

        state = load_file(tmp_path / "model.safetensors") if form == "bin" else witness.state_dict()
        source = tmp_path / "pytorch_model.bin"
        torch.save(state, source)
    load_encoder(network.encoder, source)
    with torch.no_grad():
        expected = witness(image(), output_hidden_states=True).hidden_states
        features = network.encoder(image()).features
    for mine, other in zip(features, expected[-4:], strict=True):
        torch.testing.assert_close(mine, other, atol=AGREEMENT, rtol=0)


def test_what_difference_there_is_comes_from_the_epsilon_of_the_norms(tmp_path: Path) -> None:
    """With AFA's 1e-6 in the blocks and at the stages' ends, ten times closer agreement."""
    witness, network = theirs("SegformerModel"), ours()
    witness.save_pretrained(tmp_path)
    load_encoder(network.encoder, tmp_path)
    for name, module in witness.named_modules():
        if isinstance(module, nn.LayerNorm) and "embeddings" not in name and "attention" not in name:
            module.eps = 1e-6
    with torch.no_grad():
        expected = witness(image(), output_hidden_states=True).hidden_states[-4:]
        features = network.encoder(image()).features
    for mine, other in zip(features, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=AGREEMENT / 10, rtol=0)


def test_segmenter_saved_by_transformers_gives_the_same_logits(tmp_path: Path) -> None:
    witness, network = theirs("SegformerForSemanticSegmentation", num_labels=6), ours()
    witness.save_pretrained(tmp_path)
    load_segmenter(network, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(network.segment(image()), witness(image()).logits, atol=AGREEMENT, rtol=0)
    with pytest.raises(UserError, match=r"missing \(3\): attn_proj.weight, attn_proj.bias, classifier.weight"):
        load_network(network, tmp_path)
    with pytest.raises(UserError, match="has 6 classes with the background, but the network has 9"):
        load_segmenter(ours(num_classes=9), tmp_path)


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_our_export_gives_our_logits_in_transformers(size: tuple[int, int], tmp_path: Path) -> None:
    network = randomised(ours(), seed=4)
    assert isinstance(network, AFANet)
    folder = tmp_path / "exported"
    names = ["cat", "dog", "cow", "bus", "car"]
    save_huggingface(network, folder, class_names=names, image_mean=MEAN, image_std=STD)
    witness, report = transformers.SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert witness.config.id2label == dict(enumerate(["background", *names]))

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = transformers.AutoImageProcessor.from_pretrained(folder)(pixels, return_tensors="pt").pixel_values
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    normalised = ((torch.from_numpy(pixels).permute(2, 0, 1).float() - mean) / std)[None]
    torch.testing.assert_close(prepared, normalised, atol=1e-5, rtol=0)
    with torch.no_grad():
        logits = witness.eval()(prepared).logits
        torch.testing.assert_close(logits, network.segment(normalised), atol=AGREEMENT, rtol=0)
    label = witness.config.label2id["dog"]
    assert label == 2
