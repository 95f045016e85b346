"""EDAM's network against the released program, and its own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import DATA, Agreement, load_golden
from released_weights import parsed_shapes, released_state
from torch import Tensor, nn

from afa.config.encoders import EncoderConfig
from afa.models import EDAMNetwork, ResNet38, build_encoder
from afa.models.edam import attention_of_blocks, position_code, run_blocks
from afa.ops import attention
from afa.weights.layouts import recognise

TINY = {"base_width": 2, "depths": (1, 1, 1, 1), "last_relu": False}


def golden_network() -> EDAMNetwork:
    """The narrow network of the golden file with its weights, loaded by their released names."""
    network = EDAMNetwork(ResNet38(base_width=4, last_relu=False), 20, width=16)
    network.load_state_dict(recognise(released_state("edam_narrow", "shapes")).tensors)
    return network.eval()


def tiny_network(num_classes: int = 3, **settings: float) -> EDAMNetwork:
    torch.manual_seed(0)
    return EDAMNetwork(ResNet38(**TINY), num_classes, width=8, **settings)  # type: ignore[arg-type]


def relative(found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Both over the largest expected value."""
    largest = expected.abs().max()
    return found / largest, expected / largest


def test_names_and_shapes_are_those_of_the_released_program() -> None:
    with np.load(DATA / "edam_narrow.npz") as arrays:
        theirs = parsed_shapes(arrays["shapes"])
    assert theirs.pop("embedding.position.pe") == (1, 46 * 46, 16), "ours is computed"
    ours = {
        name.removeprefix("encoder."): tuple(tensor.shape) for name, tensor in golden_network().state_dict().items()
    }
    assert ours == theirs


@torch.no_grad()
def test_reference_edam_network(agreement: Agreement) -> None:
    golden, network = load_golden("edam_narrow"), golden_network()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    images = ((golden["images_uint8"].double() / 255 - mean[:, None, None]) / std[:, None, None]).float()
    order, unit = golden["class_order"], "relative to the largest"
    taps = network.encoder.features(images)
    for name, tap in zip(("conv4", "conv5", "conv6"), taps, strict=True):
        agreement.values(f"EDAM, {name}", *relative(tap, golden[name]), 2e-5, unit)
    distribution = network.activate(taps[-1])
    agreement.values("EDAM, distribution", *relative(distribution, golden["distribution"]), 2e-5, unit)
    agreement.values("EDAM, code of positions", position_code(48, 16), golden["positions"][0], 1e-6)
    tokens = network.tokens(taps[-1], distribution)[order]
    agreement.values("EDAM, tokens", *relative(tokens[:4].transpose(0, 1), golden["embedded"]), 2e-5, unit)
    first, sequence = [network.get_submodule(f"trans_list.{int(order[0])}.0")], tokens[:1].reshape(1, 1, 96, 16)
    attention = attention_of_blocks(first, sequence, heads=2)[0]
    agreement.values("EDAM, attention", *relative(attention, golden["attention_first"]), 2e-5, unit)
    block = run_blocks(first, sequence, heads=2)[0]
    agreement.values("EDAM, transformer block", *relative(block, golden["block_first"]), 2e-5, unit)
    agreement.values("EDAM, logits", *relative(network(images)[:, order], golden["logits"]), 2e-5, unit)


def by_definition(network: EDAMNetwork, images: Tensor) -> Tensor:
    """Logits of one pair, class by class and step by step, as the text of the method has it."""

    def norm(module: nn.Module, values: Tensor) -> Tensor:
        mean, std = values.mean(-1, keepdim=True), values.std(-1, keepdim=True)
        return module.a_2 * (values - mean) / (std + 1e-6) + module.b_2  # type: ignore[operator,return-value]

    feature = network.encoder.features(images)[-1]
    scores = network.mask_layer(feature)
    distribution = (scores / scores.norm(dim=1, keepdim=True)).abs()
    logits = []
    for index in range(network.num_classes):
        masked = network.d_d(feature * distribution[:, index : index + 1]).flatten(2).transpose(1, 2)
        segments = network.get_parameter("embedding.segment.weight")
        coded = [one + position_code(*one.shape) + segments[place] for place, one in enumerate(masked)]
        tokens = torch.cat(coded)
        block = network.get_submodule(f"trans_list.{index}.0")
        normed = norm(block.input_sublayer.norm, tokens)  # type: ignore[union-attr,arg-type]
        query, key, value = (layer(normed) for layer in block.attention.linear_layers)  # type: ignore[union-attr]
        width = tokens.shape[1] // network.heads
        heads = []
        for start in range(0, tokens.shape[1], width):
            part = slice(start, start + width)
            shares = (query[:, part] @ key[:, part].T / math.sqrt(width)).softmax(dim=-1)
            heads.append(shares @ value[:, part])
        tokens = tokens + block.attention.output_linear(torch.cat(heads, dim=1))  # type: ignore[union-attr,operator]
        hidden = block.feed_forward.w_1(norm(block.output_sublayer.norm, tokens))  # type: ignore[union-attr,operator,arg-type]
        gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        tokens = tokens + block.feed_forward.w_2(gelu)  # type: ignore[union-attr,operator]
        means = torch.stack([half.mean(dim=0) for half in tokens.chunk(2)])
        logits.append(means @ network.get_parameter(f"fc_list.{index}.weight").flatten())
    return torch.stack(logits, dim=1)


def test_values_and_gradients_are_those_of_the_definition() -> None:
    network = tiny_network(dropout=0.0).eval()
    images = torch.randn(2, 3, 33, 50)
    names = [
        "mask_layer.weight", "d_d.weight", "embedding.segment.weight", "fc_list.1.weight",
        "trans_list.2.0.attention.linear_layers.0.weight", "trans_list.2.0.feed_forward.w_1.bias",
        "trans_list.0.0.output_sublayer.norm.a_2", "encoder.b7.conv_branch1.weight",
    ]  # fmt: skip
    weight = torch.randn(2, 3)
    found, expected = network(images), by_definition(network, images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    parameters = [network.get_parameter(name) for name in names]
    of_found = torch.autograd.grad((found * weight).sum(), parameters)
    of_expected = torch.autograd.grad((expected * weight).sum(), parameters)
    for name, one, other in zip(names, of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_pairs_know_nothing_of_each_other() -> None:
    network = tiny_network().eval()
    images = torch.randn(4, 3, 32, 48)
    together = network(images)
    torch.testing.assert_close(together, torch.cat([network(images[:2]), network(images[2:])]))
    assert not torch.allclose(network(images[[0, 3]])[0], together[0], atol=1e-4), "partners do"
    with pytest.raises(ValueError, match="images come in pairs, not 3"):
        network(images[:3])


@torch.no_grad()
def test_the_distribution_s_squares_have_the_sum_1_and_the_last_map_both_signs() -> None:
    network = tiny_network().eval()
    images = torch.randn(1, 3, 40, 33)
    found = network.distribution(images)
    assert found.shape == (1, 4, 5, 5) and float(found.min()) >= 0
    torch.testing.assert_close(found.square().sum(dim=1), torch.ones(1, 5, 5))
    assert float(network.encoder.features(images)[-1].min()) < 0
    assert float(ResNet38(base_width=2, depths=(1, 1, 1, 1)).eval().features(images)[-1].min()) == 0


def test_dropout_is_that_of_the_state_of_randomness_and_goes_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "AT_ONCE", 70)  # some queries of one sequence at a time
    network = tiny_network(dropout=0.3).eval()
    network.requires_grad_(False)
    images = torch.randn(4, 3, 32, 32)
    feature = network.encoder.features(images)[-1].requires_grad_()
    plain = network.classify(feature)
    network.train()
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        logits = network.classify(feature)
        outcomes.append((logits.detach(), torch.autograd.grad(logits.sum(), feature)[0], torch.rand(())))
    for one, other in zip(*outcomes[:2], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(outcomes[0][0], outcomes[2][0]) and not torch.equal(outcomes[0][0], plain)
    # A difference quotient with the same draws: what is formed anew for the gradient has to be what was.
    step = 1e-2 * torch.randn_like(feature)
    ends = []
    for sign in (1, -1):
        torch.manual_seed(1)
        ends.append(float(network.classify((feature + sign * step).detach()).sum()))
    assert (ends[0] - ends[1]) / 2 == pytest.approx(float((outcomes[0][1] * step).sum()), rel=0.05, abs=1e-3)


def test_initial_weights() -> None:
    network = EDAMNetwork(ResNet38(base_width=4, last_relu=False), 20, width=16)
    for name, fan_in, fan_out in (
        ("mask_layer.weight", 256 * 9, 21 * 9),
        ("d_d.weight", 256, 16),
        ("embedding.segment.weight", 16, 5),
        ("trans_list.3.0.feed_forward.w_1.weight", 16, 64),
        ("fc_list.3.weight", 16, 1),
    ):
        largest = network.get_parameter(name).abs().max().item()
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.6 * bound < largest <= bound, name
    assert network.get_parameter("trans_list.3.0.input_sublayer.norm.a_2").unique().tolist() == [1]
    assert network.get_parameter("trans_list.3.0.attention.output_linear.bias").abs().max().item() > 0


def test_a_network_of_timm_serves_as_well() -> None:
    network = EDAMNetwork(build_encoder(EncoderConfig(encoder="timm/lcnet_050"), last_relu=False), 3, width=8).eval()
    images = torch.randn(2, 3, 41, 70)
    assert network(images).shape == (2, 3) and network.distribution(images).shape == (2, 4, 6, 9)
    narrow = EDAMNetwork(network.encoder, 1, width=2, heads=1).train()
    narrow(images).sum().backward()
    assert all(part.grad.isfinite().all() for part in narrow.parameters() if part.grad is not None)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        tiny_network(0)
    with pytest.raises(ValueError, match="8 channels cannot be shared by 3 heads"):
        tiny_network(heads=3)
