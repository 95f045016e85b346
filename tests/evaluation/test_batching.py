from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scored import CLASS_NAMES
from torch import Tensor, nn

from afa.config import Config
from afa.data.loader import evaluation_loader
from afa.evaluation.batching import by_size
from afa.evaluation.evaluate import evaluate
from afa.models import AFANet

SIZES = [(4, 6), (6, 4), (4, 6), (5, 5), (4, 6), (6, 4), (4, 6), (6, 4), (7, 7)]


def samples(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    return [{"image": torch.zeros(3, *size), "name": index} for index, size in enumerate(sizes)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_each_sample_comes_once_with_others_of_its_size(batch_size: int) -> None:
    groups = list(by_size(samples(SIZES), batch_size))
    assert sorted(sample["name"] for group in groups for sample in group) == list(range(len(SIZES)))
    for group in groups:
        assert 1 <= len(group) <= batch_size
        assert len({SIZES[sample["name"]] for sample in group}) == 1


def test_full_groups_do_not_wait() -> None:
    groups = by_size(samples(SIZES), 2)
    assert [sample["name"] for sample in next(groups)] == [0, 2]
    assert [[sample["name"] for sample in group] for group in by_size(samples(SIZES[:3]), 1)] == [[0], [1], [2]]


def test_few_samples_wait_whatever_their_sizes() -> None:
    taken = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"image": torch.zeros(3, 1 + taken, 2), "name": taken}

    groups, given = by_size(endless(), 3), 0
    for _ in range(50):
        given += len(next(groups))
        assert taken - given < 4 * 3


def test_evaluation_in_batches_gives_the_same_table(network: AFANet, config: Config) -> None:
    loader = [sample for _ in range(2) for sample in evaluation_loader(config.dataset)]

    def table(batch_size: int) -> tuple[dict[str, Any], list[int]]:
        passes: list[int] = []

        def note(_: nn.Module, args: tuple[Tensor]) -> None:
            passes.append(len(args[0]))

        hook = network.encoder.register_forward_pre_hook(note)
        options = {"config": config, "class_names": CLASS_NAMES, "device": "cpu", "test": config.test}
        found = evaluate(network, loader, batch_size=batch_size, refinement=lambda _, scores: scores, **options)
        hook.remove()
        return found, passes

    (alone, single_passes), (together, passes) = table(1), table(2)
    assert together["images"] == alone["images"] == 10
    assert len(passes) == len(single_passes) / 2
    assert sum(passes) == sum(single_passes)
    assert together["cls_f1"] == alone["cls_f1"]
    for row in ("cam", "propagated_cam", "segmentation", "segmentation_crf"):
        assert together[row]["pacc"] == pytest.approx(alone[row]["pacc"], abs=1e-3), row
