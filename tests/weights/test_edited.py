"""Checkpoints that are whole but other: edited by hand, by another program, or made to do harm.

Their checksums are right. Each is refused in one line, or gives a right value; nothing else ever comes out.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import NAMES, same, small_network, small_settings
from torch import Tensor

from afa.config import config_to_dict
from afa.engine.checkpoint import CheckpointStore, restore
from afa.errors import UserError
from afa.methods.afa.config import AFAConfig
from afa.models import AFANet
from afa.weights import load_encoder, load_network, open_checkpoint, pack_metadata, read_tensors, save_network
from afa.weights.facts import CHECKSUMS, FACTS_FILE, TRAINING_FILE, WEIGHTS_FILE, pack_facts
from afa.weights.reading import file_checksum

REMOVED = object()
# A part of a table's rows, spread over all of it; all of them where time counts less.
SOME = pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
MANY = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
DEEP = "[" * 100_000 + "]" * 100_000

# What a run's checkpoint says beside configuration and class names.
FACTS: dict[str, Any] = {
    "step": 1,
    "class_names": NAMES,
    "global_batch": 4,
    "world_size": 1,
    "recorded": True,
    "best": 0.5,
    "best_step": 1,
    "seconds": 2.5,
    "recorded_step": 3,
    "seconds_since_record": 0.5,
    "meters": [{"names": ["loss/total", "steps"], "sums": [1.5, 2.0]}],
    "scaler": {},
    "non_finite": {"skipped": 0, "overflows": 0},
    "versions": {"torch": "2"},
}
# One key of the facts and what somebody made of it.
EDITED_FACTS: list[tuple[str, Any]] = [
    *(("step", value) for value in (True, 1.0, -1, 2**60, "1", None, [], {}, REMOVED)),
    *(("best", value) for value in ("0.5", [], {}, True)),
    *(("best_step", value) for value in (-1, "x", 1.5, [1], True)),
    *(("recorded", value) for value in (0, "yes", None)),
    *(("seconds", value) for value in (-1, "1", None, float("nan"), float("inf"))),
    *(("recorded_step", value) for value in (-1, 1.5, "3", None)),
    *(("seconds_since_record", value) for value in (-1, "1", None)),
    *(("world_size", value) for value in (0, -1, "1", 1.5)),
    *(("global_batch", value) for value in (0, "4", None, True)),
    *(("meters", value) for value in (None, [], {}, [1], [{}], [{"names": ["a"], "sums": [1]}])),
    *(("meters", value) for value in ([{"names": ["steps"], "sums": []}], [{"names": ["steps"], "sums": ["1"]}])),
    ("meters", [{"names": ["steps"], "sums": [1]}, {"names": [], "sums": []}]),
    *(("scaler", value) for value in (None, [], {"scale": 1}, "x")),
    *(("non_finite", value) for value in (None, {}, {"skipped": "0", "overflows": 0}, [0, 0])),
    ("versions", "2"),
    *(("class_names", value) for value in (5, "cat", {}, [], [1, 2], NAMES[:4], [*NAMES[:4], ""], [*NAMES[:4], "cat"])),
    *(("class_names", [*NAMES[:4], name]) for name in ("a\nb", "\x1b[31mred", "\ud800", "x" * 5000, "\x00", None)),
    ("class_names", [f"n{index}" for index in range(300)]),
    *(("config", value) for value in (None, [], "x", 5, {"model": []}, {"train": None}, {"nothing": 1})),
]
# One setting of the configuration in somebody's weights.
EDITED_SETTINGS: list[tuple[str, Any]] = [
    *(("depths", value) for value in ([1, 1, 1, 10**7], [10**7] * 4, [1, 1, 1, 3], [0, 1, 1, 2], [-1, 1, 1, 2])),
    *(("depths", value) for value in ([1.5, 1, 1, 2], ["1", 1, 1, 2], [1, 1, 2], [1] * 1000, None, "1", 5, [[1]])),
    *(("widths", value) for value in ([10**9] * 4, [10**18] * 4, [8, 16, 20, 64], [0] * 4, [-8] * 4, ["a"] * 4, None)),
    *(("heads", value) for value in ([0] * 4, [10**9] * 4, [1, 2, 5, 7], [1.5] * 4, [], None)),
    *(("reductions", value) for value in ([10**9, 4, 2, 1], [8, 4, 2, 2], [0] * 4, [])),
    *(("strides", value) for value in ([0] * 4, [10**9] * 4, [4, 2, 2], "4")),
    *(("mlp_ratio", value) for value in (1e300, 0, -1, 3.0, "x", 10**400, float("inf"), float("nan"))),
    *(("decoder_width", value) for value in (10**9, 10**18, 0, 15, None, 1.5, "wide", True)),
    *(("affinity_blocks", value) for value in (0, 3, 10**9, -1)),
    *(("encoder", value) for value in ("mit_b5", "resnet", None, 5, [], "${oc.env:HOME}", "???")),
    *(("pooling", value) for value in ("max", None, 1)),
    *(("cam_block", value) for value in (1, -1, "last", None)),
    *(("pooling_share", value) for value in (0, 1.5, -1, "wide", None, float("nan"))),
    *(("pretrained", value) for value in ("${oc.env:HOME}", "a${b}", {"a": 1}, ["${x}"])),
]


def edited_tensors(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What somebody can do to named tensors."""
    fusion, block = "decoder.linear_fuse.conv.weight", "encoder.block4.1.mlp.fc1.weight"
    changed: dict[str, dict[str, Tensor]] = {}
    for name in (
        "encoder.patch_embed1.proj.weight", "encoder.block1.0.mlp.fc1.weight", "encoder.block1.0.attn.sr.weight",
        "decoder.linear_pred.weight", "attn_proj.weight", "classifier.weight", fusion, "encoder.norm4.bias",
    ):  # fmt: skip
        for value in (
            torch.zeros(()), torch.zeros(0), torch.zeros(0, 0, 0, 0), torch.zeros(3), torch.zeros(2, 3, 1, 1),
            torch.zeros(1, 10**4, 1, 1), state[name].int(), state[name].bool(), state[name].to(torch.complex64),
            state[name].to(torch.float8_e4m3fn), state[name].double() + 1e300, state[name] * float("nan"),
        ):  # fmt: skip
            changed[f"{name} {value.dtype} {list(value.shape)} {value.flatten()[:1].tolist()}"] = {**state, name: value}
        changed[f"without {name}"] = {key: value for key, value in state.items() if key != name}
    for name in ("encoder.block4.99999999.x", "encoder.block4.9999999999999999999999.x", "encoder.block4.٣.x"):
        changed[name] = {**state, name: torch.zeros(1)}
    changed["control characters"] = {**state, "\x1b[2J\nerror: nothing": torch.zeros(1)}
    changed["endless name"] = {**state, "x" * 100_000: torch.zeros(1)}
    changed["one tensor"] = {block: state[block]}
    changed["hundred classes"] = {**state, "decoder.linear_pred.weight": torch.zeros(100, 16, 1, 1)}
    changed["one class"] = {**state, "decoder.linear_pred.weight": torch.zeros(1, 16, 1, 1)}
    theirs = "segformer.encoder.patch_embeddings.0.proj.weight"
    keys = {f"segformer.encoder.block.0.0.attention.self.{part}.weight": torch.zeros(()) for part in ("key", "value")}
    changed["keys and values without dimensions"] = {theirs: torch.zeros(1), **keys}
    changed["a name of a name"] = {theirs: torch.zeros(1), "a.k.b.attn.k.weight": torch.zeros(1)}
    return changed


class Readers:
    """Everything that reads weights, on what somebody edited."""

    def __init__(self) -> None:
        self.network = small_network(8)
        self.untouched = small_network(8)

    def refusals(self, path: Path) -> list[str]:
        """What all readers say who refuse; the others gave a network."""
        readers: list[Callable[[Path], object]] = [
            open_checkpoint,
            lambda path: load_network(self.network, path),
            lambda path: load_encoder(self.network.encoder, path),
        ]
        messages = [refusal(reader, path) for reader in readers]
        if None not in messages:
            assert same(self.network, self.untouched), "what is refused changes nothing"
        self.network.load_state_dict(self.untouched.state_dict())
        return [message for message in messages if message is not None]


def refusal(reader: Callable[[Path], object], path: Path) -> str | None:
    """The one line that a reader refuses with; None where it does not."""
    try:
        reader(path)
    except UserError as error:
        message = str(error)
        assert message.splitlines() == [message] and message.isprintable() and len(message) < 2000, message
        return message
    return None


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny network with one checkpoint."""
    output = tmp_path_factory.mktemp("good")
    network, optimiser = trained()
    facts = {**FACTS, "config": config_to_dict(AFAConfig(model=small_settings()))}
    assert CheckpointStore(output).save(1, network, optimiser, facts)
    return output


def trained(seed: int = 1) -> tuple[AFANet, torch.optim.Optimizer]:
    network = small_network(seed)
    optimiser = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    return network, optimiser


def copy(good: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(good, run, symlinks=True)
    return run / "checkpoints/step_00000001"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change facts, and make the checksums right, as another version of the program would."""
    facts = json.loads((folder / FACTS_FILE).read_text())
    content = {key: value for key, value in {**facts, **changes}.items() if value is not REMOVED and key != CHECKSUMS}
    checksums = {name: file_checksum(folder / name) for name in (WEIGHTS_FILE, TRAINING_FILE)}
    (folder / FACTS_FILE).write_text(pack_facts(content, checksums))


def resume(folder: Path) -> str | None:
    """Go on from a checkpoint as a training does; what was said where it is refused."""
    try:
        checkpoint = CheckpointStore(folder.parent.parent).load_latest()
    except UserError as error:
        return str(error)
    assert checkpoint is not None
    network, optimiser = trained(seed=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        restore(checkpoint, network, optimiser)
    except UserError as error:
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        return str(error)
    optimiser.step()
    return None


def test_the_good_one_is_taken(good: Path, tmp_path: Path) -> None:
    folder = copy(good, tmp_path)
    rewrite(folder)
    assert open_checkpoint(folder).step == 1
    assert resume(folder) is None


@MANY
def test_facts_that_cannot_be_are_one_line(every: int, good: Path, tmp_path: Path) -> None:
    folder = copy(good, tmp_path)
    original = (folder / FACTS_FILE).read_text()
    for key, value in EDITED_FACTS[::every]:
        (folder / FACTS_FILE).write_text(original)
        rewrite(folder, **{key: value})
        # What only the network's size contradicts is for those who build it to say.
        if not isinstance(value, dict) and value != NAMES[:4]:
            assert resume(folder) is not None, (key, value)
        assert refusal(open_checkpoint, folder) or value is REMOVED, (key, value)


def test_keys_that_are_missing_are_named(good: Path, tmp_path: Path) -> None:
    folder = copy(good, tmp_path)
    keys = ("best", "best_step", "meters", "scaler", "non_finite", "config")
    rewrite(folder, **dict.fromkeys(keys, REMOVED))
    checkpoint = CheckpointStore(folder.parent.parent).load_latest()
    for key in keys:
        assert checkpoint is not None
        with pytest.raises(UserError, match=f"another version or edited: checkpoint.json says no '{key}'"):
            checkpoint.facts[key]


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "5", DEEP, '{"a":' + DEEP + "}", '{"step": 1, "step": 2}', '{"step": ' + "9" * 5000 + "}",
     '{"sha256": {"checkpoint.json": ""}}', '{"sha256": []}', "\ufeff{}", "{'a': 1}"],
)  # fmt: skip
def test_facts_that_are_no_facts_are_damage(text: str, good: Path, tmp_path: Path) -> None:
    folder = copy(good, tmp_path)
    (folder / FACTS_FILE).write_text(text)
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        CheckpointStore(folder.parent.parent).load_latest()
    with pytest.raises(UserError, match=r"checkpoint\.json"):
        open_checkpoint(folder)


@SOME
def test_settings_in_somebodys_weights_are_compared_before_anything_is_built(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/secret")
    path = tmp_path / "weights.safetensors"
    taken = []
    for key, value in EDITED_SETTINGS[::every]:
        config = config_to_dict(AFAConfig(model=small_settings()))
        config["model"][key] = value
        names = json.dumps(NAMES)
        save_network(small_network(1), path, {"config": json.dumps(config), "class_names": names, "step": "1"})
        message = refusal(open_checkpoint, path)
        if message is None:
            taken.append((key, value))
        else:
            assert "/secret" not in message
    # It only fills in widths, depths and heads that are not given.
    assert taken in ([], [("encoder", "mit_b5")])


@pytest.mark.parametrize("key", ["config", "class_names", "step"])
@pytest.mark.parametrize("text", ["", "x", DEEP, "NaN", '"x"', "1e999", "-1", "1.5", "true", "9" * 5000, '{"a": 1}'])
def test_metadata_that_cannot_be_is_one_line(key: str, text: str, tmp_path: Path) -> None:
    metadata = {**pack_metadata(AFAConfig(model=small_settings()), NAMES, 3), key: text}
    save_network(small_network(1), tmp_path / "weights.safetensors", metadata)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        open_checkpoint(tmp_path / "weights.safetensors")


def test_nothing_of_this_machine_is_looked_up(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    folder = copy(good, tmp_path)
    for section, key, text in (
        ("dataset", "root", "${oc.env:SECRET}"),
        ("train", "output", "a ${oc.env:SECRET} b"),
        ("model", "pretrained", "${oc.decode:${oc.env:SECRET}}"),
        ("dataset", "labels", "${train.seed}"),
        ("dataset", "image_mean", ["${oc.env:SECRET}", 1, 2]),
        ("dataset", "${oc.env:SECRET}", 1),
    ):
        config = config_to_dict(AFAConfig(model=small_settings()))
        config[section][key] = text
        rewrite(folder, config=config)
        with pytest.raises(UserError, match="read a value of this machine, so it is refused"):
            open_checkpoint(folder)
        assert resume(folder) is not None
        metadata = {"config": json.dumps(config), "class_names": json.dumps(NAMES)}
        save_network(small_network(1), tmp_path / "alone.safetensors", metadata)
        with pytest.raises(UserError, match="read a value of this machine, so it is refused"):
            open_checkpoint(tmp_path / "alone.safetensors")


@SOME
def test_tensors_that_cannot_be_are_one_line(every: int, tmp_path: Path) -> None:
    readers, metadata = Readers(), pack_metadata(AFAConfig(model=small_settings()), NAMES, 1)
    for what, tensors in list(edited_tensors(small_network(1).state_dict()).items())[::every]:
        torch.save(tensors, tmp_path / "edited.pth")
        save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "edited.safetensors", metadata)
        for name in ("edited.safetensors", "edited.pth"):
            assert readers.refusals(tmp_path / name), what


def test_tensors_that_are_no_plain_block_of_numbers_are_named(tmp_path: Path) -> None:
    state = small_network(1).state_dict()
    weight = state["decoder.linear_c1.proj.weight"]
    readers = Readers()
    for kind, value in {
        "sparse": weight.to_sparse(),
        "quantised": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "empty (meta)": weight.to("meta"),
    }.items():
        torch.save({**state, "decoder.linear_c1.proj.weight": value}, tmp_path / "odd.pth")
        messages = readers.refusals(tmp_path / "odd.pth")
        assert all(f"'decoder.linear_c1.proj.weight' as a {kind} tensor" in message for message in messages)
        assert len(messages) == 3
    shared = torch.zeros(1).expand(10**6, 10**6, 1, 1)
    for name in ("decoder.linear_fuse.conv.weight", "decoder.linear_pred.weight", "encoder.patch_embed1.proj.weight"):
        torch.save({**state, name: shared}, tmp_path / "shared.pth")
        assert all("its tensors claim" in message for message in readers.refusals(tmp_path / "shared.pth"))


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TRAINING_FILE])
def test_another_programs_tensors_do_not_resume(name: str, good: Path, tmp_path: Path) -> None:
    whole = load_file(good / "checkpoints/step_00000001" / name)
    key = "exp_avg/classifier.weight" if name == TRAINING_FILE else "classifier.weight"
    changes: list[dict[str, Tensor]] = [
        {**whole, key: value}
        for value in (
            torch.zeros(()), torch.zeros(0), torch.zeros(3), whole[key].int(), whole[key].double(), whole[key].half(),
            whole[key].to(torch.complex64), whole[key].flatten(),
        )
    ]  # fmt: skip
    changes += [{**whole, extra: torch.zeros(1)} for extra in ("strange", "exp_avg/strange", "/", "a/b/c", "\x1b/\n")]
    changes += [{other: value for other, value in whole.items() if other != key}]
    if name == TRAINING_FILE:
        step = "step/classifier.weight"
        changes += [{**whole, step: torch.tensor(value)} for value in (float("nan"), -1.0, float("inf"), 3)]
        changes += [{**whole, "foreign/classifier.weight": whole[key].clone()}, {**whole, step: torch.zeros(2)}]
    folder = copy(good, tmp_path)
    network, optimiser = trained(seed=2)
    before = {parameter: value.clone() for parameter, value in network.state_dict().items()}
    for tensors in changes:
        save_file(tensors, folder / name)
        rewrite(folder)
        checkpoint = CheckpointStore(folder.parent.parent).load_latest()
        assert checkpoint is not None
        with pytest.raises(UserError, match="the checkpoint of step 1 does not fit this network"):
            restore(checkpoint, network, optimiser)
    assert all(torch.equal(value, before[parameter]) for parameter, value in network.state_dict().items())


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TRAINING_FILE])
def test_headers_that_lie_are_damage(name: str, good: Path, tmp_path: Path) -> None:
    def entry(kind: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
        return {"dtype": kind, "shape": shape, "data_offsets": offsets}

    headers: list[object] = [
        {"a": entry(), "b": entry()},
        {"a": entry(offsets=(0, 10**15))},
        {"a": entry(offsets=(4, 0))},
        {"a": entry(offsets=(-4, 0))},
        {"a": entry(shape=(2**62, 2**62))},
        {"a": entry(shape=(10**30,))},
        {"a": entry(shape="x")},
        {"a": entry("F9")},
        {"a": entry("F4")},
        {"a": 5},
        [],
        {"__metadata__": {"a": 1}, "b": entry()},
    ]
    texts = [json.dumps(header).encode() for header in headers]
    texts += [DEEP.encode(), b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}"]
    folder = copy(good, tmp_path)
    for text in texts:
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        rewrite(folder)
        assert resume(folder) is not None
        if name == WEIGHTS_FILE:
            assert refusal(read_tensors, folder / name)
    for length in (0, 1, 2**40, 2**64 - 1):
        (tmp_path / "alone.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        assert refusal(read_tensors, tmp_path / "alone.safetensors")


def test_more_than_a_network_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    readers = Readers()
    for name in ("sparse.pth", "sparse.safetensors"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"PK\x03\x04" if name.endswith("pth") else struct.pack("<Q", 2) + b"{}")
            file.truncate(100 << 30)
        assert all("has 100 GB" in message for message in readers.refusals(tmp_path / name))
    many = {f"{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(20_001)}
    text = json.dumps(many).encode()
    (tmp_path / "many.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError, match="damaged"):
        read_tensors(tmp_path / "many.safetensors")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    readers = Readers()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "to_pipe").symlink_to("pipe")
    for name, words in {
        str(tmp_path / "pipe"): "a named pipe, not a file",
        str(tmp_path / "to_pipe"): "a named pipe, not a file",
        "/dev/zero": "a device, not a file",
        str(tmp_path / "nowhere"): "leads nowhere",
        str(tmp_path / "circle"): "cannot be read (Too many levels of symbolic links)",
        str(tmp_path / ("x" * 300)): "cannot be read (File name too long)",
    }.items():
        messages = [*readers.refusals(Path(name)), refusal(read_tensors, Path(name))]
        assert len(messages) == 4 and all(message and words in message for message in messages), messages
    with pytest.raises(UserError, match="no such file"):
        read_tensors(tmp_path / "a\0b")
