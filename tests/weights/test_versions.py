"""What people's weights files hold besides the weights, around them, before their names, and instead of them."""

from __future__ import annotations

import argparse
import gzip
import io
import logging
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_tool import RunTool
from safetensors.torch import save_file
from samples import NAMES, same, small_network, small_settings, write_config
from torch import Tensor

from afa.errors import UserError
from afa.weights import find_weights, load_encoder, load_network, load_segmenter, open_checkpoint, read_tensors

WHOLE, WHOLE_OTHER = small_network(1).state_dict(), small_network(2).state_dict()
_SOME = ("encoder.norm1.bias", "encoder.norm1.weight", "classifier.weight", "attn_proj.weight")
STATE, OTHER = ({name: state[name].clone() + 1 for name in _SOME} for state in (WHOLE, WHOLE_OTHER))


def before(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def is_first(path: Path | str) -> bool:
    tensors = read_tensors(path)
    return set(tensors) == set(STATE) and all(torch.equal(tensors[name], STATE[name]) for name in STATE)


def is_second(path: Path | str) -> bool:
    tensors = read_tensors(path)
    return set(tensors) == set(OTHER) and all(torch.equal(tensors[name], OTHER[name]) for name in OTHER)


@pytest.mark.parametrize(
    "entry", ["state_dict", "model", "model_state_dict", "net", "network", "params", "weights", "student", "teacher",
              "ema", "module", "generator_of_somebody"],
)  # fmt: skip
def test_entries_around_the_tensors_are_taken_off(entry: str, tmp_path: Path) -> None:
    beside: dict[str, Any] = {
        "epoch": 3,
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=1e-4, output=Path("runs"), names=["a"]),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"last_epoch": 3},
        "criterion": {"weight": torch.ones(6)},
        "threshold": torch.tensor(0.5),
        "history": [1.0, None, "x"],
    }
    torch.save({**beside, entry: STATE}, tmp_path / "theirs.pth")
    assert is_first(tmp_path / "theirs.pth")
    torch.save({"checkpoint": {**beside, entry: OrderedDict(STATE)}}, tmp_path / "theirs.pth")
    assert is_first(tmp_path / "theirs.pth")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.module.", "module._orig_mod.", "module.module._orig_mod.model.", "model.net.",
               "student.", "_forward_module.model.", "ema_model.module."],
)  # fmt: skip
def test_prefixes_are_taken_off_in_any_order(prefix: str, tmp_path: Path) -> None:
    torch.save(before(prefix), tmp_path / "theirs.pth")
    assert is_first(tmp_path / "theirs.pth")
    save_file(before(prefix), tmp_path / "theirs.safetensors")
    assert is_first(tmp_path / "theirs.safetensors")


def test_counters_of_others_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(small_network(1))
    torch.save(averaged.state_dict(), tmp_path / "averaged.pth")
    profiled = {name: torch.zeros(1, dtype=torch.float64) for name in ("total_ops", "encoder.norm1.total_params")}
    torch.save({**WHOLE, **profiled}, tmp_path / "profiled.pth")
    torch.save({"ema": {**averaged.state_dict(), **before("module.", profiled)}}, tmp_path / "both.pth")
    network = small_network(3)
    for name, said in (("averaged", "n_averaged"), ("profiled", "total_ops"), ("both", "encoder.norm1.total_params")):
        with caplog.at_level(logging.INFO, logger="afa"):
            load_network(network, tmp_path / f"{name}.pth")
        assert torch.equal(network.classifier.weight, WHOLE["classifier.weight"]) and said in caplog.text
    torch.save({**WHOLE, "encoder.total_ops": torch.zeros(2)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"left over \(1\): encoder.total_ops"):
        load_network(network, tmp_path / "odd.pth")


def test_batches_that_were_not_counted_do_not_matter(tmp_path: Path) -> None:
    torch.save({name: value for name, value in WHOLE.items() if "num_batches" not in name}, tmp_path / "old.pth")
    network = small_network(3)
    load_network(network, tmp_path / "old.pth")
    assert same(network, small_network(1))


def test_files_of_before_pytorch_1_6_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert is_first(tmp_path / "old.pth.tar") and find_weights(tmp_path) == tmp_path / "old.pth.tar"
    torch.save(STATE, tmp_path / "new.pth", pickle_protocol=3)
    assert is_first(tmp_path / "new.pth")
    torch.save(STATE, tmp_path / "newer.pth", pickle_protocol=5)
    with pytest.raises(UserError, match="pickle protocol 4 or newer, which PyTorch's safe reader does not know"):
        read_tensors(tmp_path / "newer.pth")


def test_an_encoder_of_mmsegmentation_with_the_released_names_is_read(tmp_path: Path) -> None:
    names = {"encoder.": "backbone.", "decoder.": "decode_head."}
    theirs = {
        theirs + name.removeprefix(ours): tensor
        for ours, theirs in names.items()
        for name, tensor in WHOLE.items()
        if name.startswith(ours)
    }
    theirs |= {"decode_head.conv_seg.weight": torch.zeros(6, 16, 1, 1), "decode_head.conv_seg.bias": torch.zeros(6)}
    torch.save({"meta": {"mmseg_version": "0.11"}, "state_dict": theirs}, tmp_path / "theirs.pth")
    network, source = small_network(3), small_network(1)
    load_encoder(network.encoder, tmp_path / "theirs.pth")
    assert same(network.encoder, source.encoder)
    load_segmenter(network, tmp_path / "theirs.pth")
    assert same(network.decoder, source.decoder)
    with pytest.raises(UserError, match="seems to be a SegFormer trained with mmsegmentation"):
        open_checkpoint(tmp_path / "theirs.pth")


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "ema"), ("params", "params_ema"),
     ("model_state_dict", "ema_state_dict"), ("model", "teacher")],
)  # fmt: skip
@pytest.mark.parametrize("flat", [False, True])
def test_of_several_versions_the_plain_one_is_taken_unless_one_is_named(
    plain: str, averaged: str, flat: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "both.pth"
    entries = {averaged: {"module." + name: value for name, value in OTHER.items()}, plain: STATE}
    whole = before(f"{averaged}.", OTHER) | before(f"{plain}.")
    torch.save(whole if flat else {**entries, "epoch": 2}, path)
    assert is_first(path)
    assert f"'{plain}' is taken; {path}#{averaged} would take '{averaged}'" in caplog.text
    caplog.clear()
    assert is_first(f"{path}#{plain}") and is_second(f"{path}#{averaged}") and not caplog.text
    with pytest.raises(UserError, match=rf"both.pth has no entry 'other'; it has .*{averaged}"):
        read_tensors(f"{path}#other")


def test_versions_that_are_all_alike_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    for content in (
        {"student": STATE, "teacher": OTHER},
        {"generator": STATE, "teacher": OTHER},
        {"model": STATE, "net": OTHER, "teacher": OTHER},
        before("student.") | before("teacher.", OTHER),
        {"state": {"student": STATE, "teacher": OTHER}},
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=rf"several sets of weights \(.*\), .* not clear: name it, .*{path}#"):
            read_tensors(path)
        assert is_second(f"{path}#teacher")


def test_a_version_is_named_wherever_weights_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "both.pth"
    torch.save({"model": WHOLE, "ema": {"shadow": WHOLE_OTHER, "decay": 0.99}}, path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    config = tmp_path / "custom.yaml"
    write_config(config, small_settings(), type="folder", class_names=str(tmp_path / "names.txt"))
    for source in (f"{path}#ema", f"{tmp_path}#ema", f"{path}#shadow", f"{path}#ema.shadow"):
        network = small_network(3)
        with caplog.at_level(logging.INFO, logger="afa"):
            load_encoder(network.encoder, source)
        assert same(network.encoder, small_network(2).encoder)
        assert f"encoder from {path} (ema.shadow): " in caplog.text
    assert same(open_checkpoint(f"{path}#ema", config).method.network, small_network(2))


def test_command_converts_the_version_that_is_named(tmp_path: Path, run_tool: RunTool) -> None:
    torch.save({"model": WHOLE, "model_ema": WHOLE_OTHER}, tmp_path / "both.pth")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    config = tmp_path / "custom.yaml"
    write_config(config, small_settings(), type="folder", class_names=str(tmp_path / "names.txt"))
    source, target = f"{tmp_path}/both.pth#model_ema", tmp_path / "out.pth"
    result = run_tool("convert_weights.py", source, target, "--format", "released", "--config", config)
    assert result.returncode == 0, result.stderr
    written = read_tensors(target)
    assert set(written) == set(WHOLE) and all(torch.equal(written[name], WHOLE_OTHER[name]) for name in WHOLE)


def test_a_file_with_that_name_wins(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "exp#2.pth")
    assert is_first(tmp_path / "exp#2.pth")
    (tmp_path / "run#1").mkdir()
    torch.save({"model": OTHER, "ema": STATE}, tmp_path / "run#1/both.pth")
    assert is_first(f"{tmp_path}/run#1/both.pth#ema")
    for source in (f"{tmp_path}/run#2/both.pth", f"{tmp_path}/none.pth#ema"):
        with pytest.raises(UserError, match="no such file"):
            load_network(small_network(), source)
    with pytest.raises(UserError, match="give a file and one of its entries"):
        read_tensors(f"{tmp_path}/run#1/both.pth#")


def test_two_names_for_one_place_are_left_over(tmp_path: Path) -> None:
    old, new = "encoder.block.0.0.layer_norm_1.weight", "stages.0.blocks.0.layernorm_before.weight"
    embedding = {"encoder.patch_embeddings.0.proj.weight": torch.zeros(8, 3, 7, 7)}
    torch.save({**embedding, old: torch.zeros(8), new: torch.ones(8)}, tmp_path / "twice.pth")
    with pytest.raises(UserError, match=rf"left over \(1\): .*{new}"):
        load_encoder(small_network().encoder, tmp_path / "twice.pth")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "a Keras"),
        ("m.pth", b"\x89HDF\r\n\x1a\n" + bytes(64), "a Keras"),
        ("model.ckpt.index", bytes(64), "a TensorFlow checkpoint"),
        ("model.ckpt.data-00000-of-00001", b"\x01" * 64, "a TensorFlow checkpoint"),
        ("m.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        ("m.pdparams", pickle.dumps({"a": np.ones(2)}, protocol=2), "PaddlePaddle parameters"),
        ("m.msgpack", b"\x82\xa1a", "Flax parameters"),
        ("m.npy", b"\x93NUMPY\x01\0", "a numpy array"),
        ("m.pth.gz", gzip.compress(b"weights", mtime=0), "a compressed file"),
        ("m.json", b"{}", "a JSON file"),
        ("m.pth", b"GGUF" + bytes(16), "a GGUF model"),
    ],
)
def test_other_kinds_of_files_are_called_by_their_names(name: str, content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: this kind of file is not read \({kind}") as caught:
        load_network(small_network(), tmp_path / name)
    assert "damaged" not in str(caught.value)


def test_archives_of_others_are_not_called_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("a.jpg", b"image")
    torch.save(STATE, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as packed:
        for member in plain.namelist():
            packed.writestr(member, bytes(10**6), zipfile.ZIP_DEFLATED)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with tarfile.open(tmp_path / "ancient.pth", "w") as tar:
        for member in ("storages", "tensors", "pickle"):
            information = tarfile.TarInfo(member)
            data = pickle.dumps(0, protocol=2)
            information.size = len(data)
            tar.addfile(information, io.BytesIO(data))
    for name, words in {
        "arrays.npz": "an archive of numpy arrays",
        "photos.pth": "another archive",
        "bomb.pth": "is compressed, which torch.save never does",
        "script.pt": "is a TorchScript program",
        "pointer.pth": "git lfs pull",
        "ancient.pth": "first versions of PyTorch",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            load_network(small_network(), tmp_path / name)
        assert "damaged" not in str(caught.value)


def test_stand_ins_run_nothing_and_are_no_weights(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return argparse.Namespace, (), {"__class__": "x", "trap": os.getcwd()}

    torch.save({"state_dict": STATE, "args": Trap()}, tmp_path / "args.pth")
    assert is_first(tmp_path / "args.pth")
    torch.save({**STATE, "args": Trap()}, tmp_path / "args.pth")
    with pytest.raises(UserError, match=r"holds 'args' \(Unread\) among its tensors"):
        read_tensors(tmp_path / "args.pth")


def test_names_that_are_no_texts_are_one_line(tmp_path: Path) -> None:
    for content in ({1: torch.ones(1)}, {("a", "b"): torch.ones(1), "a": torch.ones(1)}, {None: torch.ones(2)}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match="not named by texts"):
            read_tensors(tmp_path / "odd.pth")
