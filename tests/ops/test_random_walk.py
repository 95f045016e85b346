from __future__ import annotations

import pytest
import torch

from afa.ops.random_walk import TokenAffinity, walk


def walked(
    scores: torch.Tensor, affinity: torch.Tensor, *, radius: int = 8, power: float = 2.0, epsilon: float = 0.1
) -> torch.Tensor:
    near = TokenAffinity(affinity, (scores.shape[-2], scores.shape[-1])).within(radius)
    return walk(scores, near, power=power, steps=1, epsilon=epsilon)


def random_affinity(tokens: int, batch: int = 1) -> torch.Tensor:
    affinity = torch.rand(batch, tokens, tokens, generator=torch.Generator().manual_seed(tokens))
    return (affinity + affinity.transpose(1, 2)) / 2


def window(height: int, width: int, radius: int) -> torch.Tensor:
    """Which tokens are within a radius of each other in y and in x: boolean [N, N]."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    return ((places[:, None] - places).abs() <= radius).all(dim=-1)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
@pytest.mark.parametrize(("height", "width", "radius"), [(3, 4, 1), (4, 5, 2), (3, 7, 2), (1, 6, 3), (5, 5, 8)])
def test_walk_by_definition(power: float, height: int, width: int, radius: int) -> None:
    tokens = height * width
    affinity, scores = random_affinity(tokens, batch=2), torch.rand(2, 3, height, width)
    transition = affinity**power * window(height, width, radius)
    transition = transition / (transition.sum(dim=1, keepdim=True) + 0.1)
    one = (scores.flatten(2) @ transition).view_as(scores)
    torch.testing.assert_close(walked(scores, affinity, radius=radius, power=power), one)
    near = TokenAffinity(affinity, (height, width)).within(radius)
    three = (one.flatten(2) @ transition @ transition).view_as(scores)
    torch.testing.assert_close(walk(scores, near, power=power, steps=3, epsilon=0.1), three)


def test_affinity_stays_as_it_is() -> None:
    affinity = TokenAffinity(random_affinity(12), (3, 4)).within(2)
    before = affinity.values.clone()
    walk(torch.rand(1, 3, 3, 4), affinity, power=2, steps=1, epsilon=0.1)
    assert torch.equal(affinity.values, before)


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
    scores[0], scores[1, 3] = torch.nan, torch.inf
    spoiled = walked(scores, affinity, radius=1)
    torch.testing.assert_close(spoiled[1, :3], both[1, :3])


def test_a_score_that_is_no_number_spoils_its_neighbours_alone() -> None:
    scores = torch.rand(1, 1, 4, 5)
    scores[0, 0, 1, 4] = torch.nan
    rows, columns = walked(scores, random_affinity(20), radius=1)[0, 0].isnan().nonzero().unbind(1)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(y, x) for y in (0, 1, 2) for x in (3, 4)}


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_pairs_within_a_radius_and_back(radius: int) -> None:
    matrix = random_affinity(15, batch=2)
    near = TokenAffinity(matrix, (3, 5)).within(radius)
    expected = matrix * window(3, 5, radius)
    assert near.grid == (3, 5) and torch.equal(near.all_pairs().values, expected)
    for y, x in ((0, 0), (1, 2), (2, 4)):
        assert torch.equal(near.of(y, x), expected[:, y * 5 + x].view(2, 3, 5))
    assert torch.equal(TokenAffinity(matrix, (3, 5)).within(9).within(radius).values, near.values)


def test_the_affinity_of_one_token_with_all() -> None:
    values = torch.rand(2, 6, 6)
    affinity = TokenAffinity(values, (2, 3))
    assert torch.equal(affinity.of(1, 2), values[:, 5].view(2, 2, 3))
    assert torch.equal(affinity.of(0, 1)[1, 1], values[1, 1, 3:])
    for one in (affinity, affinity.within(1)):
        for place in ((2, 0), (0, 3), (-1, 0)):
            with pytest.raises(IndexError, match="grid of 2 x 3"):
                one.of(*place)
