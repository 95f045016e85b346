"""Attention in every way that it is computed, against the definition in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afa.ops import attention
from afa.ops.attention import attend

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def parts(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as heads of tokens; all keys have much in common."""
    images, heads, queries, keys, channels = shape
    generator = torch.Generator().manual_seed(5)
    found = []
    for number, tokens in enumerate((queries, keys, keys)):
        part = torch.randn(images, tokens, heads, channels, generator=generator)
        part += 20 * torch.randn(heads, channels, generator=generator) if number == 1 else 0
        found.append(part.transpose(1, 2).to(dtype).requires_grad_())
    return found


def results(attention_of: Attention, inputs: list[Tensor]) -> list[Tensor]:
    """The attended values, and the gradients of queries, keys and values."""
    inputs = [part.detach().clone().requires_grad_() for part in inputs]
    attended = attention_of(*inputs)
    weights = torch.linspace(-1, 1, attended.numel()).view(attended.shape).to(attended.dtype)
    return [attended.detach(), *torch.autograd.grad(attended, inputs, weights)]


def errors(attention_of: Attention, inputs: list[Tensor]) -> list[float]:
    """How far the results are from those in float64, as a share of the largest one."""
    exact = results(F.scaled_dot_product_attention, [part.detach().double() for part in inputs])
    found = results(attention_of, inputs)
    return [float((ours - true).abs().max() / true.abs().max()) for ours, true in zip(found, exact, strict=True)]


@pytest.mark.parametrize("shape", [(3, 2, 40, 40, 16), (5, 1, 30, 70, 8), (1, 3, 1, 9, 4)])
def test_bfloat16_rounds_little(shape: tuple[int, int, int, int, int]) -> None:
    # 0.012 at most; 0.05 with what the keys have in common in the scores. Fused attention: 0.11.
    assert max(errors(attend, parts(shape, torch.bfloat16))) < 0.015


@pytest.mark.parametrize("shape", [(3, 2, 40, 40, 16), (5, 1, 30, 70, 8)])
def test_float32_is_fused_attention(shape: tuple[int, int, int, int, int]) -> None:
    inputs = parts(shape, torch.float32)
    fused = results(F.scaled_dot_product_attention, inputs)
    assert all(map(torch.equal, results(attend, inputs), fused))


@pytest.mark.parametrize("at_once", [7200, 1600, 999, 70])
def test_what_does_not_fit_at_once_is_computed_in_pieces(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of 2 x 40 x 40 scores; one head; some queries of one head; one query."""
    inputs = parts((3, 2, 40, 40, 16), torch.bfloat16)
    monkeypatch.setattr(attention, "AT_ONCE", at_once)
    assert max(errors(attend, inputs)) < 0.015


@pytest.mark.parametrize(("name", "limit"), [("MOST_WITH_GRADIENT", 2 * 40 * 40 - 1), ("MOST_KEYS", 39)])
def test_what_costs_too_much_is_fused(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = parts((3, 2, 40, 40, 16), torch.bfloat16)
    monkeypatch.setattr(attention, name, limit)
    fused = F.scaled_dot_product_attention(*inputs)
    assert torch.equal(attend(*inputs), fused)
    values_alone = [inputs[0].detach(), inputs[1].detach(), inputs[2]]  # that need a gradient
    assert torch.equal(attend(*values_alone), fused)
    with torch.no_grad():
        assert torch.equal(attend(*inputs), fused) == (name == "MOST_KEYS")
