"""What stands on the command line or in a YAML file arrives as it stands, or is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from afa.config import config_to_dict, config_to_yaml, describe_settings
from afa.errors import UserError
from afa.methods import config_from_dict, load_config
from afa.methods.afa.config import AFAConfig

# Texts that YAML takes for something else, or in which it sees more than text.
TEXTS = [
    "2024_01_01", "2024-01-01", "12:30:00", "1e3", "1E+5", "0x10", "0o7", "010", "1_000", "1.5", ".inf", "nan", "null",
    "none", "yes", "on", "True", "exp #2", "{a}", "[x]", "a: b", '"quoted"', "'q'", "- a", "*a", "&a b", "!x", "%", "@",
    "?", "=", "<<", "a=b", " a ", "a\\b", "${oc.env:HOME}", "${", "???", "ä\u2028ö", "$HOME",
]  # fmt: skip
PATHS = [
    "dataset.root", "dataset.name_list_dir", "dataset.mask_dir", "dataset.labels", "dataset.mask_palette",
    "dataset.class_names",
    "model.pretrained", "train.output",
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text("method: afa\n")
    return path


def get(config: AFAConfig, key: str) -> Any:
    value: Any = config_to_dict(config)
    for part in key.split("."):
        value = value[part]
    return value


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        load_config(path, overrides)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_text_on_the_command_line_stays_as_it_stands_also_in_the_runs_folder(file: Path) -> None:
    keys = [*PATHS, "dataset.train_split", "dataset.val_split", "train.device"]
    for first in range(0, len(TEXTS), len(keys)):
        given = dict(zip(keys, TEXTS[first:], strict=False))
        config = load_config(file, [f"{key}={text}" for key, text in given.items()])
        for key, text in given.items():
            unset = text == "null" and key in PATHS and key not in ("dataset.root", "train.output")
            assert get(config, key) == (None if unset else text), key
        if not any("${" in text for text in given.values()):
            file.write_text(config_to_yaml(config_to_dict(config)), encoding="utf-8")
            assert load_config(file) == config


def test_an_optional_text_can_be_unset(file: Path) -> None:
    file.write_text("model: {pretrained: a.pth}")
    for text, expected in (("null", None), ("", None), ("none", "none"), ("a=b", "a=b")):
        assert load_config(file, [f"model.pretrained={text}"]).model.pretrained == expected
    assert "is empty" in refusal(file, "train.output=")


def test_what_yaml_takes_for_another_thing_than_text_is_refused_without_quotes(file: Path) -> None:
    for text in ("2024_01_01", "2024-01-01", "2024-99-99", "12:30:00", "1e3", "5", "0x10", "yes", "1.5", "-.inf"):
        for key in ("output", "device"):
            file.write_text(f"train:\n  {key}: {text}\n")
            message = refusal(file)
            assert f"train.{key}: without quotes, YAML takes '{text}' for" in message
            assert message.endswith("put it in quotes")
    file.write_text("train:\n  output: '2024_01_01'\n  device: \"yes\"\n")
    train = load_config(file).train
    assert (train.output, train.device) == ("2024_01_01", "yes")


def test_a_home_folder_is_expanded_in_what_the_user_wrote(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for text, expected in (("~/x", "/home/me/x"), ("~", "/home/me"), ("./~/x", "./~/x"), ("a~", "a~")):
        config = load_config(file, [f"{key}={text}" for key in PATHS])
        assert {get(config, key) for key in PATHS} == {expected}
    tree: dict[str, dict[str, str]] = {}
    for key in PATHS:
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = "~/x"
    written = config_from_dict(tree)
    # Somebody else's configuration, within a checkpoint, says nothing about this home.
    assert {get(written, key) for key in PATHS} == {"~/x"}
    file.write_text(yaml.safe_dump(tree))
    config = load_config(file)
    assert {get(config, key) for key in PATHS} == {"/home/me/x"}


def test_homes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file.write_text("train: {seed: 7}")
    (tmp_path / "d.yaml").write_text("base: ~/c.yaml\n")
    assert load_config(tmp_path / "d.yaml", ["dataset.val_split=~/x"]).dataset.val_split == "~/x"
    assert load_config(tmp_path / "d.yaml").train.seed == 7
    assert "write ./~nobody_here/x" in refusal(file, "train.output=~nobody_here/x")


@pytest.mark.parametrize("text", ["${oc.env:AFA_SECRET}", "a${oc.env:AFA_SECRET}", "${train.output}", "${"])
def test_nothing_is_put_in_the_place_of_a_name(file: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("AFA_SECRET", "hidden")
    assert config_from_dict({"dataset": {"root": text}}).dataset.root == text
    assert load_config(file, [f"dataset.root={text}"]).dataset.root == text
    assert "optimiser.lr" in refusal(file, f"optimiser.lr={text}")
    with pytest.raises(UserError, match=r"cam.scales: .* is not a number"):
        config_from_dict({"cam": {"scales": [text]}})
    for written in (
        f"dataset:\n  root: '{text}'",
        f"dataset:\n  root: {text}\n",
        f"base: x\ncam:\n  scales: ['{text}']",
    ):
        file.write_text(written)
        message = refusal(file)
        assert f"{file}: not readable as YAML: line {len(written.splitlines())}: nothing is put in" in message
        assert "hidden" not in message


WRONG = {
    "train.steps=true": "'true' is not a whole number",
    "train.steps=1.5": "'1.5' is not a whole number",
    "train.steps=1000.0": "'1000.0' is not a whole number",
    "train.steps=1e-1": "'1e-1' is not a whole number",
    "train.steps='5'": "take the quotes off",
    "train.steps=010": "not a plain decimal number",
    "train.steps=0x10": "not a plain decimal number",
    "train.steps=1:30": "not a plain decimal number",
    "train.steps=null": "has no value",
    "train.steps=[5]": "a list is not a whole number",
    "train.steps={a: 5}": "a section is not a whole number",
    f"train.steps={'9' * 5000}": "train.steps",
    f"train.steps={10**30}": "is too large",
    f"optimiser.lr={'9' * 1000}": "is too large",
    "optimiser.lr=1e999": "not a finite number",
    "optimiser.lr=inf": "not a finite number",
    "train.resume=1": "neither true nor false",
    "train.resume=maybe": "neither true nor false",
    "cam.scales=1": "put it in brackets, for example [1.0, 0.5, 1.5]",
    "cam.scales=[1, a]": "'a' is not a number",
    "cam.scales=[[1]]": "a list is not a number",
    "loss={seg: 1}": "'loss' is a section",
    "loss.reg=1": "'loss.reg' is a section",
    "train.steps.more=1": "is a setting, not a section",
    "train.steps=&a [*a]": "aliases (*a) are not read",
    "train.steps=!!python/object/apply:os.getpid []": "tags",
    "train.output=a\x1bb": "characters that no name should have",
    "train.output=\udcff": "characters that no name should have",
    f"train.{'x' * 10_000}=1": "unknown key",
    f"train.steps={'[' * 3000}": "nested too deeply",
}


@pytest.mark.parametrize("override", WRONG, ids=lambda text: text[:30].encode("unicode_escape").decode())
def test_a_wrong_value_on_the_command_line_names_it_not_the_file(file: Path, override: str) -> None:
    message = refusal(file, override)
    assert WRONG[override] in message
    assert " on the command line: " in message
    assert str(file) not in message


def test_numbers_as_people_write_them(file: Path) -> None:
    config = load_config(file, ["train.steps=1e4", "train.seed=1_000", "optimiser.lr=1e-4", "par.dilations=[1, 2e0]"])
    assert (config.train.steps, config.train.seed, config.optimiser.lr) == (10_000, 1000, 1e-4)
    assert config.par.dilations == [1, 2]
    assert all(type(value) is int for value in (config.train.steps, *config.par.dilations))
    config = load_config(file, ["optimiser.lr=1", "cam.scales=[1]", "train.resume=no"])
    assert type(config.optimiser.lr) is float and type(config.cam.scales[0]) is float
    assert config.train.resume is False


def test_a_value_that_contradicts_the_file_names_both(file: Path) -> None:
    file.write_text("cam: {low: 0.5}")
    assert refusal(file, "cam.high=0.4").startswith(
        f"'cam.high=0.4' on the command line, with {file}: cam.low 0.5 is above cam.high 0.4"
    )


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty"),
    "comment": ("# nothing\n", "is empty"),
    "twice": ("train:\n  steps: 5\n  seed: 1\n  steps: 6", "'steps' appears twice, in lines 2 and 4"),
    "section twice": ("train: {steps: 5}\ntrain: {seed: 1}", "'train' appears twice, in lines 1 and 2"),
    "bomb": ("a: &a [1, 1]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(90)), "aliases"),
    "merge": ("train:\n  <<: {steps: 5}", "merge keys"),
    "tag": ("train: {steps: !!int '5'}", "tags"),
    "code": ("!!python/object/apply:os.system ['true']", "tags"),
    "deep": ("[" * 3000, "nested too deeply"),
    "huge": ("x" * 100_000, "at most 64 KiB"),
    "binary": (b"\x00\xff\x89PNG", "not readable as YAML"),
    "not UTF-8": (b"train: {output: \xe4}", "not readable as YAML"),
    "tab": ("train:\n\tsteps: 5", "line 2"),
    "two documents": ("train: {steps: 5}\n---\ntrain: {steps: 6}", "line 2"),
    "key": ("? [a]\n: 5", "a key must be a word"),
    "no text": ('train: {output: "a\\0b"}', "characters that no name should have"),
    "null": ("train: {output: null}", "train.output: has no value"),
    "no section": ("train:", "'train' is a section: give its settings below it, not nothing"),
    "number for a section": ("train: 5", "'train' is a section"),
    "quoted number": ("train: {steps: '5'}", "take the quotes off"),
    "base": ("base: [a]", "is no file name"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(file: Path, kind: str) -> None:
    data, part = BROKEN[kind]
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    message = refusal(file)
    assert part in message
    assert message.startswith(f"{file}: ")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "it is not a file" in refusal(tmp_path / "pipe")
    assert "it is not a file" in refusal(Path("/dev/zero"))


def test_a_file_with_a_byte_order_mark_is_read(file: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes("train: {steps: 5000}".encode(encoding))
        assert load_config(file).train.steps == 5000


@pytest.mark.parametrize(
    "tree",
    [
        {"train": {"output": 5}}, {"train": {"output": ["a"]}}, {"train": {"output": "a\0"}}, {"train": {"steps": "5"}},
        {"train": {"steps": True}}, {"train": {"steps": 10**500}}, {"train": {"resume": 1}}, {"cam": {"scales": 1}},
        {"cam": {"scales": None}}, {"optimiser": {"lr": float("nan")}}, {5: 3}, {"train": None}, {"train": []},
    ],
)  # fmt: skip
def test_a_wrong_value_of_another_program_is_one_line(tree: dict[Any, Any]) -> None:
    with pytest.raises(UserError, match=r"^made elsewhere: ") as raised:
        config_from_dict(tree, source="made elsewhere")
    assert "\n" not in str(raised.value)


def test_own_files_can_be_read_by_any_yaml_reader() -> None:
    settings = config_to_dict(AFAConfig())
    assert yaml.safe_load(config_to_yaml({"train": settings["train"]})) == {"train": settings["train"]}
    assert describe_settings(AFAConfig)
