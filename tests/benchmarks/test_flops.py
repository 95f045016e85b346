"""The count of a step's arithmetic, against counts by hand."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from golden import random_image, small_network
from torch.nn.attention import SDPBackend, sdpa_kernel

from afa.benchmarks import flops
from afa.benchmarks.flops import FlopCounter
from afa.ops.token_pairs import symmetric_products

ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


def factors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def test_fused_attention_by_hand() -> None:
    query, key, value = factors((2, 3, 17, 8), (2, 3, 11, 8), (2, 3, 11, 8))
    product = 2 * 2 * 3 * 17 * 11 * 8
    with FlopCounter() as forward:
        attended = F.scaled_dot_product_attention(query, key, value)
    with FlopCounter() as backward:
        attended.sum().backward()
    assert (forward.total, backward.total, forward.unknown, backward.unknown) == (2 * product, 5 * product, (), ())


def test_fused_and_written_out_attention_count_alike() -> None:
    """Fused attention multiplies queries and keys once more for the gradient, and is otherwise the same arithmetic."""
    encoder, images = small_network().encoder.train(), random_image(2, 3, 64, 64)
    totals = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend), FlopCounter() as counter:
            sum(feature.sum() for feature in encoder(images).features).backward()
        assert not counter.unknown
        totals.append(counter.total)
    # Of the blocks: tokens, tokens after the spatial reduction, channels.
    once_more = [(16 * 16, 4, 8), (8 * 8, 4, 16), (4 * 4, 4, 20), *[(4 * 4, 4 * 4, 32)] * 2]
    assert totals[0] - totals[1] == sum(2 * 2 * tokens * others * width for tokens, others, width in once_more)


def test_convolutions_and_products_by_hand() -> None:
    image, full, depthwise = factors((2, 4, 9, 7), (6, 4, 3, 3), (4, 1, 3, 3))
    with FlopCounter() as counter:
        (F.conv2d(image, full, padding=1).sum() + F.conv2d(image, depthwise, padding=1, groups=4).sum()).backward()
    assert counter.total == 3 * 2 * 2 * 9 * 7 * 9 * (6 * 4 + 4)
    query, key = factors((1, 3, 5, 4), (1, 3, 5, 4))
    with FlopCounter() as counter:
        products = symmetric_products(query, key, 1)
    rows = 3 + 2 * 2  # the rows with themselves, then both products of each with the next
    assert (counter.total, counter.unknown) == (2 * rows * 5 * 5 * 4, ())
    with FlopCounter() as counter:
        products.sigmoid().sum().backward()
    assert (counter.total, counter.unknown) == (2 * (3 + 2) * 4 * 5 * 5 * 4, ())


@pytest.mark.parametrize("name", ["linear", "mkldnn_linear", "_int_mm", "baddbmm_", "conv2d", "_new_attention_for_cpu"])
def test_names_of_products(name: str) -> None:
    assert flops.is_of_products(f"aten.{name}")


@pytest.mark.parametrize("name", ["upsample_bilinear2d", "upsample_linear1d", "_convert", "native_layer_norm", "clamp"])
def test_names_of_others(name: str) -> None:
    assert not flops.is_of_products(f"aten.{name}")


def test_an_operator_that_is_not_known_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(flops.FORMULAS, ATTENTION)
    query, key, value = factors((1, 1, 4, 8), (1, 1, 4, 8), (1, 1, 4, 8))
    with caplog.at_level(logging.WARNING), FlopCounter() as counter:
        F.scaled_dot_product_attention(query, key, value)
    assert counter.unknown in ((f"aten.{ATTENTION}",), ())  # () where PyTorch has a formula of its own
    assert (f"not counted: aten.{ATTENTION}" in caplog.text) == bool(counter.unknown)
