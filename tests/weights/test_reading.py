"""Files that are damaged or could run code are refused in one line; what is written is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import MEAN, NAMES, STD, same, small_network

from afa.errors import UserError
from afa.weights import load_network, load_segmenter, read_tensors, save_huggingface, save_network


def test_suffix_does_not_decide_the_format(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "really_safetensors.pth")
    assert torch.equal(read_tensors(tmp_path / "really_safetensors.pth")["a"], torch.ones(3))


def test_what_is_not_named_tensors_is_refused_with_the_way_out(tmp_path: Path) -> None:
    for content, message in (
        (torch.ones(3), "holds Tensor, not named tensors"),
        ({"a": torch.ones(3), "epoch": 4}, r"holds 'epoch' \(int\) among its tensors"),
        ({}, "holds no tensors"),
    ):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=message):
            read_tensors(tmp_path / "odd.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"'torch\.nn\.modules\.linear\.Linear'.*state_dict"):
        read_tensors(tmp_path / "module.pth")


def test_every_flipped_bit_of_our_files_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_network(small_network(), path, {"step": "12"})
    content = path.read_bytes()
    for position in [*range(0, 4000, 251), *range(4000, len(content), len(content) // 20)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 7)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_tensors(path)


def test_saving_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    save_network(small_network(1), tmp_path / "weights.safetensors", {})
    save_network(small_network(2), tmp_path / "weights.safetensors", {})
    target = small_network(3)
    load_network(target, tmp_path / "weights.safetensors")
    assert same(target, small_network(2))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_hugging_face_folder_is_replaced_but_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    for seed in (1, 2):
        save_huggingface(small_network(seed), folder, class_names=NAMES, image_mean=MEAN, image_std=STD)
    target = small_network(3)
    load_segmenter(target, folder)
    assert same(target.decoder, small_network(2).decoder)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        save_huggingface(small_network(), folder, class_names=NAMES, image_mean=MEAN, image_std=STD)
    assert (folder / "notes.txt").read_text() == "mine"
