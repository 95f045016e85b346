from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from scored import CLASS_NAMES
from torch import Tensor, nn

from afa.data.loader import evaluation_loader
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.methods.base import SegmentationProtocol
from afa.prediction import batching
from afa.prediction.evaluate import evaluate


class Item(NamedTuple):
    size: tuple[int, int]
    name: int


by_size = partial(batching.by_size, size=lambda item: item.size)

SIZES = [(4, 6), (6, 4), (4, 6), (5, 5), (4, 6), (6, 4), (4, 6), (6, 4), (7, 7)]


def samples(sizes: list[tuple[int, int]]) -> list[Item]:
    return [Item(size, index) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_each_sample_comes_once_with_others_of_its_size(batch_size: int) -> None:
    groups = list(by_size(samples(SIZES), batch_size))
    assert sorted(sample.name for group in groups for sample in group) == list(range(len(SIZES)))
    for group in groups:
        assert 1 <= len(group) <= batch_size
        assert len({SIZES[sample.name] for sample in group}) == 1


def test_full_groups_do_not_wait() -> None:
    groups = by_size(samples(SIZES), 2)
    assert [sample.name for sample in next(groups)] == [0, 2]
    assert [[sample.name for sample in group] for group in by_size(samples(SIZES[:3]), 1)] == [[0], [1], [2]]


def test_few_samples_wait_whatever_their_sizes() -> None:
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            yield Item((1 + taken, 2), taken)

    groups, given = by_size(endless(), 3), 0
    for _ in range(50):
        given += len(next(groups))
        assert taken - given < 4 * 3


def test_evaluation_in_batches_gives_the_same_table(method: AFA, config: AFAConfig) -> None:
    loader = [sample for _ in range(2) for sample in evaluation_loader(config.dataset)]
    protocol = SegmentationProtocol(config.test.long_side, tuple(config.test.scales), config.test.mirror)

    def table(batch_size: int) -> tuple[dict[str, Any], list[int]]:
        passes: list[int] = []

        def note(_: nn.Module, args: tuple[Tensor]) -> None:
            passes.append(len(args[0]))

        hook = method.network.encoder.register_forward_pre_hook(note)
        options: dict[str, Any] = {"class_names": CLASS_NAMES, "device": "cpu", "protocol": protocol}
        found = evaluate(method, loader, batch_size=batch_size, refinement=lambda _, scores: scores, **options)
        hook.remove()
        return found.table, passes

    (alone, single_passes), (together, passes) = table(1), table(2)
    assert together["images"] == alone["images"] == 10
    assert len(passes) == len(single_passes) / 2
    assert sum(passes) == sum(single_passes)
    assert together["cls_f1"] == alone["cls_f1"]
    for row in ("cam", "propagated_cam", "segmentation", "segmentation_crf"):
        assert together[row]["pacc"] == pytest.approx(alone[row]["pacc"], abs=1e-3), row
