"""Mistyped configurations, damaged images, folders of other runs: one line each, before anything is lost."""

from __future__ import annotations

import copy
import json
import logging
import random
import shutil
import string
from collections import Counter
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
import yaml
from data_sources import training_images
from forked import Forked

import afa
from afa.config import config_to_dict
from afa.data.dataset import EvaluationImages
from afa.data.images import DamagedImage
from afa.data.layout import find_layout
from afa.engine.training import train
from afa.errors import UserError
from afa.methods import config_from_dict, load_config

MUTATED_CONFIGS, MUTATED_IMAGES = 60, 200
WRONG_VALUES: list[Any] = [
    -1, 0, -0.5, 1.5, 3, 1e9, float("nan"), float("inf"), "many", "", None, True, [], [1], [1, 2, 3, 4], [[1]],
    {"a": 1}, "${a}", "???", "ä\u2028ö",
]  # fmt: skip


def mutate_settings(settings: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Make one mistake in a configuration; returns which, and the result."""
    settings = copy.deepcopy(settings)
    section = rng.choice([name for name, value in settings.items() if isinstance(value, dict)])
    key = rng.choice(list(settings[section]))
    kind = rng.choice(["mistyped key", "wrong value", "wrong value", "wrong section", "section is no section"])
    if kind == "mistyped key":
        place = rng.randrange(len(key))
        wrong = key[:place] + rng.choice(string.ascii_lowercase) + key[place + rng.randint(0, 1) :]
        settings[section][wrong] = settings[section].pop(key)
    elif kind == "wrong value":
        settings[section][key] = rng.choice(WRONG_VALUES)
    elif kind == "wrong section":
        other = rng.choice([name for name, value in settings.items() if isinstance(value, dict) and name != section])
        settings[other][key] = settings[section].pop(key)
    else:
        settings[section] = rng.choice(WRONG_VALUES)
    return kind, settings


def config_count(data: Path, folder: Path, cases: int, seed: int = 0) -> Counter[str]:
    """Make mistakes in configurations: each is one line before anything is created, or harmless and trains."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for case in range(cases):
        output, path = folder / f"run{case}", folder / f"{case}.yaml"
        settings = config_to_dict(config_from_dict(faults.tiny_settings(data, output)))  # every setting there is
        if rng.random() < 0.2:
            kind, text = faults.mutate(yaml.safe_dump(settings).encode(), rng)
            kind = f"file {kind}"
            path.write_bytes(text)
        else:
            kind, settings = mutate_settings(settings, rng)
            path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
        # What a mutation leaves alone must not make the trial long.
        trial = [
            "train.steps=1",
            "schedule.cls_until=-1",
            f"train.output={output}",
            "train.device=cpu",
            "validation.cam=false",
        ]
        trial += ["train.compile=false", "train.workers=0"]
        trial += ["dataset.max_pixels=65000000"]  # that an image is too large is known when it is read
        refusal = None
        try:
            load_config(path)
            assert train(load_config(path, trial)) == 0
        except UserError as error:
            refusal = str(error)
        if refusal is None:
            counts[f"{kind}: still a valid run, trained"] += 1
        else:
            assert faults.is_one_line(refusal), refusal
            assert not output.exists(), f"{kind}: refused after something was created: {refusal}"
            counts[f"{kind}: refused in one line"] += 1
        shutil.rmtree(output, ignore_errors=True)
    return counts


def image_count(data: Path, folder: Path, cases: int, seed: int = 0) -> Counter[str]:
    """Damage images and masks: each is read, or one line that names it."""
    rng = random.Random(seed)
    own = shutil.copytree(data, folder / "data")
    config = load_config(faults.write_config(folder / "c.yaml", own, folder / "run"))
    training = training_images(config.dataset, crop_size=config.augmentation.crop_size, seed=1)
    evaluation = EvaluationImages(config.dataset)
    counts: Counter[str] = Counter()
    for case in range(cases):
        is_mask = rng.random() < 0.25
        names = (evaluation if is_mask else training).images.names
        index = rng.randrange(len(names))
        folder_name, suffix = ("SegmentationClass", "png") if is_mask else ("JPEGImages", "jpg")
        file = own / folder_name / f"{names[index]}.{suffix}"
        before = file.read_bytes()
        kind, after = faults.mutate(before, rng)
        file.write_bytes(after)
        what = "mask" if is_mask else "image"
        refusal = None
        try:
            if is_mask:
                assert evaluation[index].label.max() <= 255
            else:
                assert np.isfinite(training[(case, index)]["image"].numpy()).all()
        except DamagedImage as error:
            refusal = str(error)
        if refusal is None:
            counts[f"{what} {kind}: still readable"] += 1
        else:
            assert faults.is_one_line(refusal), refusal
            assert file.name in refusal
            counts[f"{what} {kind}: one line that names it"] += 1
        file.write_bytes(before)
    return counts


def test_mistaken_configurations(data: Path, tmp_path: Path) -> None:
    counts = config_count(data, tmp_path, MUTATED_CONFIGS)
    assert counts.total() == MUTATED_CONFIGS
    mistyped = {name: count for name, count in counts.items() if name.startswith("mistyped")}
    assert mistyped["mistyped key: refused in one line"] > 0.8 * sum(mistyped.values()) > 4, counts


def test_damaged_images(data: Path, tmp_path: Path) -> None:
    counts = image_count(data, tmp_path, MUTATED_IMAGES)
    assert counts.total() == MUTATED_IMAGES


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_a_run_that_goes_on_once_it_is_mended(
    data: Path, tmp_path: Path, undisturbed: Path, workers: int
) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    config = faults.write_config(tmp_path / "config.yaml", own, tmp_path / "run", train={"workers": workers})
    # Seen at step 4 for the first time.
    dataset = load_config(config).dataset
    names = find_layout(dataset).names(dataset.train_split)
    permutation = np.random.default_rng((1, 0, 1)).permutation(len(names))
    file = own / "JPEGImages" / f"{names[permutation[4 * 4 + 1]]}.jpg"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])
    run = faults.run_here(config)
    assert run.code == 2, run.text
    last = run.text.strip().splitlines()[-1]
    assert last.startswith(f"error: the image {file} cannot be read")
    assert "dataset.bad_image=skip" in last
    assert "stopped after step 4; the same command goes on from there" in last
    assert "Traceback" not in run.text
    file.write_bytes(content)
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert "going on from step 4" in again.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_a_damaged_image_may_be_skipped(data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    config = faults.write_config(
        tmp_path / "config.yaml", own, tmp_path / "run", train={"workers": 1, "steps": 7}, dataset={"bad_image": "skip"}
    )
    file = own / "JPEGImages" / "train_00003.jpg"
    file.write_bytes(b"")
    run = faults.Run(config, tmp_path / "log")  # whose loader process says it
    assert run.wait() == 0, run.text()
    assert f"{file} is an empty file; another image takes its place" in run.text()


def test_a_damaged_picture_of_a_validation_may_be_skipped(data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    config = faults.write_config(
        tmp_path / "config.yaml",
        own,
        tmp_path / "run",
        train={"steps": 2},
        schedule={"cls_until": 0},
        dataset={"bad_image": "skip"},
    )
    mask = own / "SegmentationClass" / "val_00002.png"
    mask.write_bytes(b"")
    run = faults.run_here(config)
    assert run.code == 0, run.text
    assert f"{mask} is an empty file; it is left out" in run.text
    assert json.loads((tmp_path / "run" / "result.json").read_text())["validation"]["images"] == 3


def test_labels_that_lack_an_image_are_said_before_anything_is_created(data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    (own / "class_labels.json").write_text(json.dumps({"train_00000": []}))
    config = faults.write_config(tmp_path / "config.yaml", own, tmp_path / "run")
    with pytest.raises(UserError, match=r"class_labels.json has no labels for 23 of the 24 images of 'train'"):
        train(load_config(config))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [("[nothing]", "validation.outputs: 'nothing' is none of cam, "), ("[]", "validation.outputs is empty: name")],
)
def test_what_is_validated_is_an_output(names: str, said: str, config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(load_config(config, [f"validation.outputs={names}"]))
    assert not (tmp_path / "run").exists()


def test_a_missing_mask_is_said_before_anything_is_created(data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    (own / "SegmentationClass" / "val_00002.png").unlink()
    config = faults.write_config(tmp_path / "config.yaml", own, tmp_path / "run")
    with pytest.raises(UserError, match=r"1 of the 4 masks of 'val' are missing, the first is .*val_00002\.png"):
        train(load_config(config))
    assert not (tmp_path / "run").exists()


def test_a_damaged_mask_in_a_validation_loses_nothing(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    config = faults.write_config(tmp_path / "config.yaml", own, tmp_path / "run", train={"checkpoint_every": 1000})
    mask = own / "SegmentationClass" / "val_00002.png"
    content = mask.read_bytes()
    mask.write_bytes(b"")
    run = faults.run_here(config)
    assert run.code == 2
    assert run.text.strip().splitlines()[-1].startswith(f"error: the mask {mask} is an empty file")
    assert "Traceback" not in run.text
    mask.write_bytes(content)
    again = faults.run_here(config)
    assert again.code == 0
    assert "going on from step 7" in again.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


def test_a_folder_of_another_configuration_is_refused_with_the_difference(
    config: Path, tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for change, shown in (
        (["optimiser.lr=0.002"], "optimiser.lr: 0.001 -> 0.002"),
        (["train.steps=20", "loss.seg=0.3"], "loss.seg: 0.1 -> 0.3"),  # more steps alone extend it
        (["train.steps=12", "loss.seg=0.3"], "loss.seg: 0.1 -> 0.3; train.steps: 14 -> 12"),
        (["train.accumulate=2"], "global_batch: 4 -> 8"),
    ):
        with pytest.raises(UserError) as refused:
            train(load_config(config, change))
        assert f"holds a run of another configuration ({shown})" in str(refused.value)
    with pytest.raises(UserError, match=r"already holds a run, and train.resume=false"):
        train(load_config(config, ["train.resume=false"]))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_folder_without_a_checkpoint_yet_is_refused_too(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(undisturbed / "config.yaml", tmp_path / "run" / "config.yaml")
    with pytest.raises(UserError, match=r"another configuration \(optimiser.lr: 0.001 -> 0.002\)"):
        train(load_config(config, ["optimiser.lr=0.002"]))


def test_what_does_not_change_the_outcome_may_change(
    config: Path, tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "afa")
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    assert train(load_config(config, ["train.workers=1", "train.batch_size=2", "train.accumulate=2"])) == 0
    assert "already trained" in caplog.text


def run_torchrun(arguments: list[str]) -> None:
    """What the command ``torchrun`` does."""
    from torch.distributed.run import main

    main(arguments)


def test_a_mistake_is_one_line_under_torchrun(config: Path) -> None:
    _, _, _, *arguments = faults.command(config, "train.batch_sise=3", processes=2)
    done = Forked(run_torchrun, arguments, variables=faults.environment()).wait()
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: 'train.batch_sise=3' on the command line: unknown key 'train.batch_sise'; did you mean "
        "'train.batch_size'?"
    ]
    assert "exitcode  : 2" in done.stderr
    assert f'File "{Path(afa.__file__).parent}/' not in done.stderr, "a traceback through the package"


def test_a_mistake_that_the_main_process_finds_is_said_by_it_alone(config: Path, tmp_path: Path) -> None:
    group = faults.start_group(config, tmp_path / "log", 2, [f"train.output={config}/run"])
    assert [run.wait() for run in group] == [2, 2]
    said = [run.text() for run in group]
    assert faults.is_one_line(said[0]) and "cannot be written" in said[0]
    assert said[1] == ""
