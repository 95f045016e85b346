"""Large labels are made in tiles; here they are made the plain way, too: all scores resized, then compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afa.maps import Maps
from afa.ops.enlarged_label import enlarged_label

LARGE = (300, 420)


def resized(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """[c, h, w] -> [c, H, W], each channel alone."""
    return torch.cat([F.interpolate(channel[None, None], size=size, mode="bilinear")[0] for channel in scores])


def plain(scores: Tensor, size: tuple[int, int], ids: Tensor) -> Tensor:
    # Of equal scores numpy takes the first.
    return ids[torch.from_numpy(resized(scores, size).numpy().argmax(axis=0))]


def random_scores(kind: str, channels: int, size: tuple[int, int], seed: int) -> Tensor:
    scores = torch.randn(channels, *size, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        return scores.round() / 2
    if kind == "smooth":
        coarse = (max(1, size[0] // 12), max(1, size[1] // 12))
        return 4 * F.interpolate(scores[:, : coarse[0], : coarse[1]][None], size=size, mode="bilinear")[0]
    if kind == "cams":
        return scores.relu() / scores.relu().amax().clamp(min=1e-5)
    return scores


@pytest.mark.parametrize("kind", ["noise", "ties", "smooth", "cams"])
@pytest.mark.parametrize("seed", range(6))
def test_label_is_that_of_resized_scores_to_the_pixel(kind: str, seed: int) -> None:
    rng = np.random.default_rng([seed, len(kind)])
    channels = [1, 2, 3, 5, 21, 81][seed]
    small = (int(rng.integers(1, 140)), int(rng.integers(1, 140)))
    # Larger, smaller, narrower, and of few pixels.
    sizes = [(257 + 2 * seed, 411 - seed), (int(rng.integers(1, 70)), 1200), (999, 131), (40, 50)]
    scores = random_scores(kind, channels, small, seed)
    maps = Maps.of_all_classes(scores[None], has_background=True)
    of_slices = Maps.of_all_classes(scores[None].contiguous(memory_format=torch.channels_last), has_background=True)
    for size in sizes:
        expected = plain(scores, size, torch.arange(channels))
        assert torch.equal(maps.label(size)[0], expected)
        assert torch.equal(of_slices.label(size)[0], expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 2.0])
def test_label_above_a_threshold_to_the_pixel(channels: int, threshold: float) -> None:
    cams = torch.stack([random_scores(kind, channels, (41, 33), 1) for kind in ("cams", "ties")])
    maps = Maps.of_all_classes(cams, has_background=False)
    scores = F.interpolate(cams, size=LARGE, mode="bilinear")
    expected = torch.from_numpy(scores.numpy().argmax(axis=1)) + 1
    expected[scores.amax(dim=1) <= threshold] = 0
    assert torch.equal(maps.label_above(threshold, LARGE), expected)


def test_two_images_and_their_own_classes() -> None:
    scores = torch.stack([random_scores("noise", 3, (20, 30), seed) for seed in (1, 2)])
    ids = torch.tensor([[0, 4, 200], [0, 1, 2]])
    maps = Maps(scores, ids, torch.tensor([[True, True, True], [True, True, True]]), has_background=True)
    label = maps.label(LARGE, torch.uint8)
    assert label.dtype == torch.uint8 and label.shape == (2, *LARGE)
    for index in range(2):
        assert torch.equal(label[index].long(), plain(scores[index], LARGE, ids[index]))


def test_channels_that_do_not_count_and_ids_that_do_not_rise() -> None:
    scores = random_scores("cams", 3, (20, 30), 3)[None]
    maps = Maps(scores, torch.tensor([[2, 5, 1]]), torch.tensor([[True, True, False]]), has_background=False)
    counted = Maps(scores[:, :2], torch.tensor([[2, 5]]), torch.tensor([[True, True]]), has_background=False)
    assert torch.equal(maps.label_above(0.3, LARGE), counted.label_above(0.3, LARGE))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    scores = random_scores("noise", 4, (20, 30), 3)
    scores[1, 3:6, 4:9] = bad
    label = Maps.of_all_classes(scores[None], has_background=True).label(LARGE)[0]
    of_each = resized(scores, LARGE)
    best, expected = of_each[0], torch.zeros(LARGE, dtype=torch.int64)
    for index in range(1, 4):
        expected = torch.where(of_each[index] > best, index, expected)
        best = torch.maximum(best, of_each[index])
    assert torch.equal(label, expected)


def test_classes_that_can_win_by_rounding_alone_are_not_left_out() -> None:
    # Everywhere equal but for the last bit: only the comparison of all of them finds the winners.
    base = torch.full((1, 30, 40), 0.1)
    steps = torch.randint(-1, 2, (6, 30, 40), generator=torch.Generator().manual_seed(0))
    scores = base + steps * 2.0**-27
    assert scores.unique().numel() > 1
    label = Maps.of_all_classes(scores[None], has_background=True).label(LARGE)[0]
    assert torch.equal(label, plain(scores, LARGE, torch.arange(6)))


def test_a_large_label_is_made_without_scores_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores("smooth", 21, (60, 80), 0)
    if enlarged_label(scores, torch.arange(21), LARGE) is None:
        # Where the roundings are known, tiles are a promise.
        assert torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
        pytest.skip("this PyTorch rounds in another way: scores are resized one by one")

    def refuse(maps: Tensor, size: object) -> Tensor:
        raise AssertionError("scores were resized")

    monkeypatch.setattr("afa.maps.resize", refuse)
    assert Maps.of_all_classes(scores[None], has_background=True).label(LARGE).shape == (1, *LARGE)
    assert Maps.of_all_classes(scores[None], has_background=False).label_above(0.2, LARGE).shape == (1, *LARGE)
