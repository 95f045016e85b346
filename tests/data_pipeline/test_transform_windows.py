"""A part of a resized image, made alone, is what the whole would show there."""

from __future__ import annotations

import numpy as np
import pytest

from afa.data.transforms import resize, resize_window


@pytest.mark.parametrize("resampling", ["pil", "opencv"])
@pytest.mark.parametrize("size", [(61, 97), (40, 63), (17, 30), (7, 5), (40, 200)])
def test_a_window_is_the_part_of_the_whole(size: tuple[int, int], resampling: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 63, 3), np.uint8)
    whole = resize(image, size, resampling).astype(int)
    height, width = size
    for rows in ((0, height), (height // 3, height // 3 + 1), (height // 2, height)):
        for columns in ((0, width // 2), (width // 4, width), (width - 1, width)):
            window = resize_window(image, size, rows, columns, resampling)
            assert np.abs(window - whole[slice(*rows), slice(*columns)]).max() <= 1
