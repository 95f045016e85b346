from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from afa.data.transforms import normalise, resize, training_transform
from afa.methods.afa.labels import restore_image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    # No value is 0: padding can be told from image.
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("seed", range(40))
def test_box_shows_the_image_and_everything_else_is_zero(seed: int) -> None:
    rng = np.random.default_rng((seed, 1))
    image = picture(int(rng.integers(20, 90)), int(rng.integers(20, 90)))
    crop, (y0, y1, x0, x1) = training_transform(image, np.random.default_rng(seed), crop_size=64)
    assert crop.shape == (64, 64, 3) and crop.dtype == np.uint8
    assert 0 <= y0 < y1 <= 64 and 0 <= x0 < x1 <= 64
    inside = np.zeros((64, 64), bool)
    inside[y0:y1, x0:x1] = True
    assert (crop[inside] > 0).all() and (crop[~inside] == 0).all()


@pytest.mark.parametrize("mirrored", [False, True])
def test_crop_is_a_window_of_the_resized_image(mirrored: bool) -> None:
    image = picture(50, 60)
    crop, (y0, y1, x0, x1) = training_transform(
        image, np.random.default_rng(3), crop_size=40, scale_range=(1.5, 1.5), mirror_probability=float(mirrored)
    )
    assert (y0, y1, x0, x1) == (0, 40, 0, 40)
    whole = np.asarray(Image.fromarray(image).resize((90, 75), Image.Resampling.BILINEAR))
    whole = whole[:, ::-1] if mirrored else whole
    windows = np.lib.stride_tricks.sliding_window_view(whole, (40, 40, 3))[:, :, 0]
    assert (windows == crop).all(axis=(2, 3, 4)).sum() == 1


def test_sides_are_cut_to_integers() -> None:
    _, box = training_transform(picture(33, 47), np.random.default_rng(0), crop_size=64, scale_range=(0.77, 0.77))
    assert box[1] - box[0] == int(0.77 * 33) and box[3] - box[2] == int(0.77 * 47)


def test_it_is_a_function_of_image_and_generator_only() -> None:
    image = picture(70, 50)
    before = image.copy()
    first = training_transform(image, np.random.default_rng(5), crop_size=48)
    again = training_transform(image, np.random.default_rng(5), crop_size=48)
    other = training_transform(image, np.random.default_rng(6), crop_size=48)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and np.array_equal(image, before)


def test_distribution_of_scale_mirror_and_place() -> None:
    # Columns rise in brightness, so that a mirror shows.
    image = np.repeat(np.repeat(np.arange(1, 31, dtype=np.uint8)[None, :, None] * 8, 20, 0), 3, 2)
    heights, mirrored, tops = [], [], []
    for seed in range(600):
        crop, (y0, y1, x0, x1) = training_transform(image, np.random.default_rng(seed), crop_size=64)
        heights.append(y1 - y0)
        tops.append(y0 / (64 - (y1 - y0)))
        mirrored.append(crop[y0, x0, 0] > crop[y0, x1 - 1, 0])
    # Uniform in 0.5 to 2 times 20 rows, less half a pixel by the cut.
    assert min(heights) in (10, 11) and max(heights) in (38, 39) and abs(np.mean(heights) - 24.5) < 1.2
    assert 0.43 < np.mean(mirrored) < 0.57
    assert 0.45 < np.mean(tops) < 0.55 and min(tops) < 0.05 and max(tops) > 0.95


def test_pil_antialiases_and_opencv_does_not() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize(stripes, (16, 16), "pil")[:, 2:-2]) <= 2
    assert np.array_equal(resize(stripes, (64, 64), "opencv"), stripes)
    assert not np.array_equal(resize(stripes, (20, 21), "opencv"), resize(stripes, (20, 21), "pil"))


def test_normalising_rounds_subtraction_and_division_on_their_own() -> None:
    image = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)
    tensor = normalise(image, MEAN, STD)
    assert tensor.shape == (3, 256, 1) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    for channel in range(3):
        for value in range(256):
            expected = np.float32(np.float32(value) - np.float32(MEAN[channel])) / np.float32(STD[channel])
            assert tensor[channel, value, 0].item() == expected
    back = restore_image(tensor[None], MEAN, STD)[0]
    dropped = (back.to(torch.uint8) != torch.arange(256)[None, :, None]).float().mean().item()
    # Truncation after two roundings: the known share of values that fall by one.
    assert 0.002 < dropped < 0.02
    assert (back - torch.arange(256.0)[None, :, None]).abs().max() < 1e-4
