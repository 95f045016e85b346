from __future__ import annotations

import pytest
import torch

from afa.ops.random_walk import TokenAffinity, affinity_window, propagate, transition_matrix


def walked(
    scores: torch.Tensor, affinity: torch.Tensor, *, radius: int = 8, power: float = 2.0, epsilon: float = 0.1
) -> torch.Tensor:
    grid = (scores.shape[-2], scores.shape[-1])
    return propagate(scores, TokenAffinity(affinity, grid), radius=radius, power=power, epsilon=epsilon)


def random_affinity(tokens: int, batch: int = 1) -> torch.Tensor:
    affinity = torch.rand(batch, tokens, tokens, generator=torch.Generator().manual_seed(tokens))
    return (affinity + affinity.transpose(1, 2)) / 2


@pytest.mark.parametrize(("height", "width", "radius"), [(4, 5, 1), (3, 7, 2), (1, 6, 3), (5, 5, 8)])
def test_window_is_a_square_in_tokens(height: int, width: int, radius: int) -> None:
    window = affinity_window(height, width, radius)
    for one in range(height * width):
        for other in range(height * width):
            near_y = abs(one // width - other // width) <= radius
            near_x = abs(one % width - other % width) <= radius
            assert window[one, other] == (near_y and near_x)


def test_columns_sum_to_less_than_one_by_epsilon() -> None:
    affinity = random_affinity(20, batch=2)
    raised = (affinity**2 * affinity_window(4, 5, 2)).sum(dim=1)
    columns = transition_matrix(TokenAffinity(affinity, (4, 5)), radius=2, power=2, epsilon=0.1).sum(dim=1)
    torch.testing.assert_close(columns, raised / (raised + 0.1))
    assert columns.max() < 1


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_walk_by_definition(power: float) -> None:
    affinity, scores = random_affinity(12), torch.rand(1, 3, 3, 4)
    transition = affinity[0] ** power
    transition[~affinity_window(3, 4, 1)] = 0
    transition = transition / (transition.sum(dim=0) + 0.1)
    expected = (scores.reshape(3, 12) @ transition).reshape(1, 3, 3, 4)
    torch.testing.assert_close(walked(scores, affinity, radius=1, power=power), expected)


def test_affinity_stays_as_it_is() -> None:
    affinity = random_affinity(12)
    before = affinity.clone()
    walked(torch.rand(1, 3, 3, 4), affinity)
    assert torch.equal(affinity, before)


def test_token_without_any_affinity_receives_nothing() -> None:
    affinity = torch.zeros(1, 4, 4)
    assert not walked(torch.rand(1, 2, 2, 2), affinity).any()


def test_scores_move_only_within_the_radius() -> None:
    scores = torch.zeros(1, 1, 7, 7)
    scores[0, 0, 3, 3] = 1
    reached = walked(scores, torch.ones(1, 49, 49), radius=2)[0, 0] > 0
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[1:6, 1:6] = True
    assert torch.equal(reached, expected)


def test_images_and_classes_do_not_mix() -> None:
    affinity, scores = random_affinity(12, batch=2), torch.rand(2, 4, 3, 4)
    both = walked(scores, affinity, radius=1)
    torch.testing.assert_close(walked(scores[1:, [2, 0]], affinity[1:], radius=1), both[1:, [2, 0]])


def test_the_affinity_of_one_token_with_all() -> None:
    values = torch.rand(2, 6, 6)
    affinity = TokenAffinity(values, (2, 3))
    assert torch.equal(affinity.of(1, 2), values[:, 5].view(2, 2, 3))
    assert torch.equal(affinity.of(0, 1)[1, 1], values[1, 1, 3:])
    for place in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(IndexError, match="grid of 2 x 3"):
            affinity.of(*place)
