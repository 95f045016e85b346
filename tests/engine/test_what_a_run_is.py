"""What makes one run: what may change between two of its starts, what may not, and what would be no run at all."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from PIL import Image

from afa.config import config_to_dict
from afa.data.dataset import Split
from afa.engine.output import check_output
from afa.engine.training import train
from afa.errors import UserError
from afa.methods import config_from_dict, load_config
from afa.methods.afa.config import AFAConfig
from afa.weights.facts import CHECKSUMS, pack_facts, read_facts

# Where things lie, how the work is done, what is recorded when: the weights do not notice.
FREE = {
    "dataset.root", "dataset.name_list_dir", "dataset.mask_dir", "dataset.labels", "dataset.class_names",
    "dataset.mask_palette", "dataset.max_pixels", "dataset.bad_image", "dataset.read_timeout", "train.output",
    "train.batch_size", "train.accumulate", "train.workers", "train.device", "train.threads", "train.compile",
    "train.channels_last", "train.non_finite", "train.non_finite_limit", "train.log_every", "train.pictures_every",
    "train.checkpoint_every", "train.keep_checkpoints", "train.resume", "validation.every", "validation.outputs",
    "validation.batch_size", "dataset.pixel_labels", "dataset.maps", "dataset.saliency", "dataset.pairs",
}  # fmt: skip


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [*value, 1] if isinstance(value, list) else f"{value}_"


def changed(config: AFAConfig, keys: set[str]) -> dict[str, Any]:
    tree = config_to_dict(config)
    for key in keys:
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = another(node[name])
    return tree


def facts_of(config: Path, tree: dict[str, Any] | None = None) -> dict[str, Any]:
    settings = load_config(config)
    images = Split(settings.dataset, settings.dataset.train_split, inputs=["class_labels"])
    return {
        "config": tree or config_to_dict(settings),
        "class_names": list(images.layout.class_names),
        "global_batch": 4,
        "images": images.fingerprint,
    }


def test_every_setting_either_may_change_or_is_named_in_the_refusal(config: Path, undisturbed: Path) -> None:
    settings = load_config(config)
    keys = set(flat(config_to_dict(settings)))
    free = {key for key in keys if key in FREE or key.startswith("test.")}
    assert check_output(undisturbed, facts_of(config, changed(settings, free)), resume=True)
    with pytest.raises(UserError, match="holds a run of another configuration") as refused:
        check_output(undisturbed, facts_of(config, changed(settings, keys)), resume=True)
    more = re.search(r"and (\d+) more", str(refused.value))
    assert more is not None and int(more[1]) + 5 == len(keys - free - {"train.steps"})  # more steps extend a run


def test_records_and_validations_may_come_at_other_steps(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    shutil.rmtree(run / "checkpoints" / f"step_{faults.STEPS:08d}")
    (run / "result.json").unlink()
    overrides = ["train.log_every=5", "validation.every=13", "validation.cam=false", "train.keep_checkpoints=1"]
    assert train(load_config(config, overrides)) == 0
    assert [line["step"] for line in faults.records(run)][-2:] == [13, 14]
    for part in ("weights", "training"):
        assert faults.outcome(run)[part] == faults.outcome(undisturbed)[part]


def move_first_line_to_the_end(data: Path) -> None:
    path = data / "ImageSets" / "Segmentation" / "train.txt"
    first, *others = path.read_text().splitlines()
    path.write_text("".join(f"{name}\n" for name in [*others, first]))


def change_one_label(data: Path) -> None:
    table = label_ids(data)
    table["train_00000"] = [number for number in (1, 2) if number not in table["train_00000"]]
    (data / "class_labels.json").write_text(json.dumps(table))


def write_the_labels_into_a_file(data: Path) -> None:
    (data / "class_labels.json").write_text(json.dumps(label_ids(data)))


def label_ids(data: Path) -> dict[str, list[int]]:
    """The labels as numbers, which the data set's own file gives by name."""
    found = {}
    for path in (data / "SegmentationClass").glob("*.png"):
        found[path.stem] = sorted(set(np.unique(np.array(Image.open(path))).tolist()) - {0, 255})
    return found


@pytest.mark.parametrize(
    ("change", "refused"),
    [(move_first_line_to_the_end, True), (change_one_label, True), (write_the_labels_into_a_file, False)],
)
def test_a_run_goes_on_with_the_images_and_labels_of_its_start_alone(
    data: Path, config: Path, tmp_path: Path, undisturbed: Path, change: Any, refused: bool
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    own = shutil.copytree(data, tmp_path / "data")
    change(own)
    given = load_config(config, [f"dataset.root={own}"])
    if refused:
        with pytest.raises(UserError, match="another training list, other labels or other maps"):
            train(given)
    else:
        assert train(given) == 0


def test_a_run_of_an_older_version_goes_on_with_a_warning(
    config: Path, tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    for folder in (run / "checkpoints").glob("step_*"):
        facts = read_facts(folder)
        checksums = facts.pop(CHECKSUMS)
        del facts["images"]
        del checksums["checkpoint.json"]
        (folder / "checkpoint.json").write_text(pack_facts(facts, checksums))
    assert train(load_config(config)) == 0
    assert "it was not checked whether they are still the same" in caplog.text


POINTLESS = {
    ("train.steps=4",): "train.steps=4 .* after 4 steps .*schedule.cls_until=3.* raise train.steps .* or lower",
    ("train.steps=14", "schedule.cls_until=13"): "schedule.cls_until",
    ("train.steps=1", "schedule.cls_until=0"): "schedule.cls_until",
    ("loss.seg=0",): "loss.seg=0: the decoder would never be trained",
    ("loss.cls=0",): "loss.cls=0: the classifier would never be trained",
    ("loss.aff=0",): "loss.aff=0: .* raise schedule.refined_until to 13",
}


@pytest.mark.parametrize("overrides", POINTLESS)
def test_a_run_that_would_leave_a_part_untrained_is_refused(
    config: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=POINTLESS[overrides]):
        train(load_config(config, overrides))
    assert not (tmp_path / "run").exists()
    # What was trained so by another version can still be read and used.
    assert config_from_dict(config_to_dict(load_config(config, overrides))).train.steps


def test_what_is_rarely_meant_is_remarked(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "afa")
    overrides = ["train.steps=1", "schedule.cls_until=-1", "schedule.refined_until=-2", "loss.aff=0"]
    with pytest.raises(UserError, match=r"loss.aff=0: .* after 0 steps"):
        train(load_config(config, overrides))
    assert train(load_config(config, [*overrides[:3], "validation.cam=false", "model.pooling_share=0.2"])) == 0
    assert "model.pooling_share changes nothing with model.pooling=gmp" in caplog.text
    assert "the refined label is never used" in caplog.text
    assert "the learning rate never reaches optimiser.lr" in caplog.text
