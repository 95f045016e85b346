"""Images, labels and maps go through one draw of scale, mirror and crop, and stay aligned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afa.data.transforms import draw_crop, training_transform
from afa.maps import Maps

HEIGHT, WIDTH = 57, 73
SEEDS = range(24)


def ramps() -> np.ndarray:
    """Red rises from left to right, green from top to bottom; no value is 0."""
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    image[..., 0] = np.linspace(20, 235, WIDTH)[None].round()
    image[..., 1] = np.linspace(20, 235, HEIGHT)[:, None].round()
    return image


def label_of(image: np.ndarray) -> np.ndarray:
    """A quarter of the image per class, told from its colours."""
    return ((image[..., 0] >= 128) + 2 * (image[..., 1] >= 128)).astype(np.uint8)


@pytest.mark.parametrize("resampling", ["pil", "opencv"])
def test_label_fits_the_image_after_any_draw(resampling: str) -> None:
    image = ramps()
    label = label_of(image)
    mirrored = set()
    for seed in SEEDS:
        crop = draw_crop(image.shape, np.random.default_rng(seed), crop_size=64, scale_range=(0.4, 2.0))
        seen, seen_label = crop.image(image, resampling), crop.label(label)
        outside = (seen == 0).all(axis=2)
        assert np.array_equal(seen_label == 255, outside)
        # Where the colours change, the nearest pixel may be one on either side: one pixel's step in colour.
        step = 215 / (HEIGHT - 1) + 1
        sure = ~outside & (np.abs(seen[..., :2].astype(float) - 127.5) > step).all(axis=2)
        assert np.array_equal(label_of(seen)[sure], seen_label[sure])
        mirrored.add(crop.mirrored)
    assert mirrored == {False, True}


def test_maps_fit_the_image_after_any_draw() -> None:
    image = ramps()
    scores = torch.from_numpy(image[..., :2].astype(np.float32)).permute(2, 0, 1)[None]
    maps = Maps.of_all_classes(scores, has_background=False)
    for seed in SEEDS:
        crop = draw_crop(image.shape, np.random.default_rng(seed), crop_size=64, scale_range=(0.4, 2.0))
        seen, found = crop.image(image, "pil"), crop.maps(maps)
        assert found.scores.shape == (1, 2, 64, 64)
        assert torch.equal(found.class_ids, maps.class_ids)
        outside = torch.from_numpy((seen == 0).all(axis=2))
        assert not found.scores[:, :, outside].any()
        expected = torch.from_numpy(seen[..., :2].astype(np.float32)).permute(2, 0, 1)[None]
        # Antialiasing bends the ramps at the image's borders by less than two pixels' steps.
        assert (found.scores - expected).abs().max() < 2 * 215 / (HEIGHT - 1)


def test_small_objects_keep_their_class_and_no_other_appears() -> None:
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[20:30, 40:50], label[35:45, 10:20] = 7, 255
    for seed in SEEDS:
        crop = draw_crop(label.shape, np.random.default_rng(seed), crop_size=160, scale_range=(0.4, 2.0))
        assert set(np.unique(crop.label(label))) == {0, 7, 255}


def test_label_and_image_do_not_change_the_draw() -> None:
    image = ramps()
    crop = draw_crop(image.shape, np.random.default_rng(5), crop_size=48)
    alone, box = training_transform(image, np.random.default_rng(5), crop_size=48)
    assert np.array_equal(crop.image(image, "pil"), alone)
    assert tuple(box) == crop.box
    before = label_of(image)
    crop.label(before)
    assert np.array_equal(crop.image(image, "pil"), alone) and np.array_equal(before, label_of(image))
