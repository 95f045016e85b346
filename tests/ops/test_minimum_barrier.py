"""Minimum barrier distance, by hand and by a search over all ways."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from numpy.typing import NDArray

from afa.ops.minimum_barrier import barrier_distance, minimum_barrier_saliency, unlike_the_border


def test_barriers_by_hand() -> None:
    values = np.float32([[5, 5, 5, 5, 5], [5, 9, 9, 9, 5], [5, 9, 2, 9, 5], [5, 9, 9, 9, 5], [5, 5, 5, 5, 5]])
    expected = [[0, 0, 0, 0, 0], [0, 4, 4, 4, 0], [0, 4, 7, 4, 0], [0, 4, 4, 4, 0], [0, 0, 0, 0, 0]]
    assert barrier_distance(values[:, :, None]).tolist() == expected
    assert barrier_distance(np.stack([values, 2 * values], axis=2)).tolist() == (3 * np.float32(expected)).tolist()
    values[2, 3] = 5  # a door
    assert barrier_distance(values[:, :, None])[2, 2] == 3


def least_barriers(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Exact: for each lowest value that a way may have, the way whose highest value is least."""
    height, width = values.shape
    best = np.full(values.shape, np.inf, np.float32)
    for floor in np.unique(values):
        top = np.full(values.shape, np.inf, np.float32)
        queue = []
        for y in range(height):
            for x in range(width):
                if (y in (0, height - 1) or x in (0, width - 1)) and values[y, x] >= floor:
                    top[y, x] = values[y, x]
                    queue.append((values[y, x], y, x))
        heapq.heapify(queue)
        while queue:
            level, y, x = heapq.heappop(queue)
            for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= b < height and 0 <= a < width and values[b, a] >= floor:
                    higher = max(level, values[b, a])
                    if higher < top[b, a]:
                        top[b, a] = higher
                        heapq.heappush(queue, (higher, b, a))
        best = np.minimum(best, top - floor)
    return best


def test_the_passes_come_near_the_best_ways() -> None:
    rng = np.random.default_rng(2)
    for _ in range(3):
        values = np.round(rng.random((14, 17)) * 8).astype(np.float32)
        exact, found = least_barriers(values), barrier_distance(values[:, :, None])
        assert (found >= exact).all(), "no way is better than the best"
        assert (found == exact).mean() > 0.8


def test_colours_of_the_border_are_no_objects_even_where_an_object_touches_it() -> None:
    colours = np.full((40, 60, 3), 50, np.float32)
    colours[10:30, 0:20] = 200
    found = unlike_the_border(colours)
    assert found[20, 10] > 10 * found[5, 40] and found[20, 10] > 10 * found[20, 50]


@pytest.mark.parametrize("size", [(90, 120), (400, 150), (30, 200)])
def test_an_object_on_a_plain_ground_stands_out(size: tuple[int, int]) -> None:
    height, width = size
    image = np.full((height, width, 3), (90, 120, 90), np.uint8)
    image[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = (200, 60, 40)
    image += np.random.default_rng(0).integers(0, 6, image.shape, dtype=np.uint8)
    found = minimum_barrier_saliency(image)
    assert found.shape == size and found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    assert found[height // 2, width // 2] > 0.9 and found[2, 2] < 0.1 and found[height // 2, width - 3] < 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 500), (64, 64)])
def test_nothing_stands_out_where_all_is_alike(size: tuple[int, int]) -> None:
    found = minimum_barrier_saliency(np.full((*size, 3), 77, np.uint8))
    assert found.shape == size and not found.any()
