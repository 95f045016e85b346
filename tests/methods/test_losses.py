from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from afa.methods.afa.labels import affinity_label
from afa.methods.afa.losses import affinity_loss
from afa.methods.classification import classification_loss
from afa.methods.segmentation import segmentation_loss
from afa.ops.random_walk import TokenAffinity
from afa.ops.token_pairs import sum_of_ordered_pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", [0, 3, 255])
def test_empty_sides_are_zero_with_zero_gradient(dtype: torch.dtype, fill: int) -> None:
    logits = (torch.randn(2, 5, 6, 6) * 20).to(dtype).requires_grad_()
    label = torch.full((2, 6, 6), fill)
    loss = segmentation_loss(logits, label, background_share=0.5)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    if fill == 255:
        assert loss == 0
        assert not logits.grad.any()
    else:
        # The side that has pixels keeps its half.
        expected = 0.5 * F.cross_entropy(logits.detach().float(), label)
        torch.testing.assert_close(loss.detach(), expected)


def test_segmentation_loss_by_definition() -> None:
    logits = torch.randn(2, 4, 8, 8)
    label = torch.randint(0, 4, (2, 8, 8))
    label[:, :2] = 255
    background, foreground = label.clone(), label.clone()
    background[label > 0] = 255
    foreground[label == 0] = 255
    halves = [F.cross_entropy(logits, part, ignore_index=255) for part in (background, foreground)]
    torch.testing.assert_close(
        segmentation_loss(logits, label, background_share=0.5), 0.5 * halves[0] + 0.5 * halves[1]
    )
    torch.testing.assert_close(
        segmentation_loss(logits, label, background_share=0.2), 0.2 * halves[0] + 0.8 * halves[1]
    )


def test_ignored_pixels_do_not_matter() -> None:
    logits, label = torch.randn(1, 4, 8, 8), torch.randint(0, 4, (1, 8, 8))
    label[:, 4:] = 255
    other = logits.clone()
    other[:, :, 4:] = 50
    assert segmentation_loss(logits, label, background_share=0.5) == segmentation_loss(
        other, label, background_share=0.5
    )


def test_pixels_count_over_the_whole_batch() -> None:
    logits = torch.randn(2, 3, 4, 4)
    label = torch.zeros(2, 4, 4, dtype=torch.long)
    label[1] = 1
    swapped = torch.stack([logits[1], logits[0]]), torch.stack([label[1], label[0]])
    torch.testing.assert_close(
        segmentation_loss(logits, label, background_share=0.5), segmentation_loss(*swapped, background_share=0.5)
    )


def test_affinity_loss_by_hand() -> None:
    # Two tokens side by side; (0, 0) is no pair, (0, 1) each with itself, (0, 2) the first with the second.
    affinity = torch.tensor([[[[[0.0, 0.0]], [[0.9, 0.6]], [[0.2, 0.0]]]]])
    pairs = torch.tensor([[[[[255, 255]], [[1, 1]], [[0, 255]]]]], dtype=torch.uint8)
    # Positive: (0.1 + 0.4) / (2 + 1); negative, in both orders: (0.2 + 0.2) / (2 + 1).
    assert affinity_loss(affinity, pairs, positive_share=0.5).item() == pytest.approx(0.5 * 0.5 / 3 + 0.5 * 0.4 / 3)
    assert affinity_loss(affinity, torch.full_like(pairs, 255), positive_share=0.5) == 0


def test_affinity_loss_pulls_the_right_way() -> None:
    affinity = torch.full((1, 1, 3, 1, 2), 0.5, requires_grad=True)
    pairs = torch.tensor([[[[[255, 255]], [[1, 255]], [[0, 255]]]]], dtype=torch.uint8)
    affinity_loss(affinity, pairs, positive_share=0.5).backward()
    assert affinity.grad[0, 0, 1, 0, 0] < 0
    assert affinity.grad[0, 0, 2, 0, 0] > 0
    assert not affinity.grad[pairs == 255].any()


def test_affinity_loss_counts_every_ordered_pair_of_the_matrix() -> None:
    tokens, radius = torch.randint(0, 3, (2, 4, 5)), 2
    tokens[:, 0, :2] = 255
    matrix = torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(0))
    matrix = (matrix + matrix.transpose(1, 2)) / 2
    places = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    flat = tokens.flatten(1)
    counts = (
        ((places[:, None] - places).abs() <= radius).all(dim=-1) & (flat != 255)[:, :, None] & (flat != 255)[:, None]
    )
    same = flat[:, :, None] == flat[:, None]
    positive, negative = matrix[counts & same], matrix[counts & ~same]
    expected = 0.3 * (1 - positive).sum() / (len(positive) + 1) + 0.7 * negative.sum() / (len(negative) + 1)
    pairs = affinity_label(tokens, (4, 5), radius)
    found = affinity_loss(TokenAffinity(matrix, (4, 5)).within(radius).values, pairs, positive_share=0.3)
    torch.testing.assert_close(found, expected)


def test_classification_loss_by_hand() -> None:
    loss = classification_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2)


def test_global_denominators_make_processes_add_up() -> None:
    """Two processes whose losses divide by half the global counts average to the loss of the whole batch."""
    logits, label = torch.randn(4, 3, 6, 6), torch.randint(0, 3, (4, 6, 6))
    label[0] = 0
    affinity, pairs = torch.rand(4, 2, 3, 3, 3), affinity_label(label[:, :3, :3], (3, 3), 1)
    pixels = torch.stack([(label == 0).sum(), (label != 0).sum()]).float()
    counts = torch.stack([sum_of_ordered_pairs(pairs == value) for value in (1, 0)]).float()
    parts = [
        (
            segmentation_loss(
                logits[half], label[half], denominator=lambda _, plus: (pixels + plus) / 2, background_share=0.5
            ),
            affinity_loss(
                affinity[half], pairs[half], denominator=lambda _, plus: (counts + plus) / 2, positive_share=0.5
            ),
        )
        for half in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, segmentation_loss(logits, label, background_share=0.5))
    torch.testing.assert_close((parts[0][1] + parts[1][1]) / 2, affinity_loss(affinity, pairs, positive_share=0.5))
