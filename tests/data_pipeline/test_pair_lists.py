"""Pairs of images: EDAM's own lists, and their place in the stream of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afa.data.pair_lists import read_pairs
from afa.data.sampler import ListedPairSampler, PairSampler
from afa.errors import UserError

NAMES = ["a", "sub/b", "c"]
LABELS = np.array([[1, 0], [1, 1], [0, 1]], np.float32)


def read(tmp_path: Path, text: str) -> list[list[int]]:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    pairs: list[list[int]] = read_pairs(path, NAMES, LABELS, ["cat", "dog"], "train").tolist()
    return pairs


def test_pairs_keep_their_order(tmp_path: Path) -> None:
    lines = "/JPEGImages/sub/b.jpg /JPEGImages/a.jpg 0\r\n\nc.png\tsub/b 1\na a 0\n"
    assert read(tmp_path, lines) == [[1, 0], [2, 1], [0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: write two images and a class index per line"),
        ("a sub/b\n", "line 1: write two images and the index of a class"),
        ("\na sub/b cat\n", "line 2: write two images and the index of a class"),
        ("a sub/b 2\n", "there is no class 2: the indices go from 0 to 1"),
        ("a /JPEGImages/d.jpg 0\n", r"'/JPEGImages/d.jpg' is no image of 'train'"),
        ("a sub/b 0\na c 0\n", r"line 2: 'c' does not show the class 0 \(cat\)"),
    ],
)
def test_lists_with_mistakes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_a_list_s_pairs_follow_each_other_over_processes_and_starts() -> None:
    pairs = np.array([[1, 0], [2, 1], [0, 0]])
    settings = {"seed": 1, "global_batch": 4, "batch_size": 2}
    both = [
        list(ListedPairSampler(pairs, **settings, steps=3, rank=rank, world_size=2)) for rank in range(2)
    ]  # fmt: skip
    seen = [[index for _, index in part] for step in zip(*both, strict=True) for part in step]
    assert seen == [[1, 0], [2, 1], [0, 0], [1, 0], [2, 1], [0, 0]]
    later = list(ListedPairSampler(pairs, **settings, steps=1, start_step=2, rank=1, world_size=2))
    assert later == [[(10, 0), (11, 0)]]


def test_pairs_need_an_even_batch() -> None:
    settings = {"seed": 1, "global_batch": 3, "batch_size": 3, "steps": 1}
    for build in (lambda: ListedPairSampler(np.array([[0, 1]]), **settings), lambda: PairSampler(LABELS, **settings)):
        with pytest.raises(UserError, match="pairs need an even number: 3 is odd"):
            build()
