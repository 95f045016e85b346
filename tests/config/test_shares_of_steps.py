"""Settings that count steps, given as a share of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import is_one_line

from afa.config import config_to_dict, config_to_yaml, describe_settings
from afa.config.settings import RunConfig, each_setting
from afa.errors import UserError
from afa.methods import config_class, load_config, method_names

CONFIGS = Path(__file__).parents[2] / "configs"


def load(*overrides: str, path: Path = CONFIGS / "demo.yaml") -> RunConfig:
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("share", "steps", "expected"),
    [("10%", 1200, 120), ("7.5 %", 20, 2), ("0.1%", 20, 1), ("0%", 20, 0), ("100%", 37, 37), ("33%", 3, 1)],
)
def test_a_share_is_the_nearest_number_of_steps(share: str, steps: int, expected: int) -> None:
    assert load(f"optimiser.warmup_steps={share}", f"train.steps={steps}").optimiser.warmup_steps == expected


def test_every_method_takes_shares_wherever_it_counts_steps() -> None:
    for name in method_names():
        kind = config_class(name)
        keys = [key for key, _, item in each_setting(kind()) if item.metadata["of_steps"]]
        counting = [
            key for key, _, _ in each_setting(kind()) if key.endswith(("_every", ".every", "_until", "up_steps"))
        ]
        assert keys == counting and len(keys) >= 5
        assert describe_settings(kind).count("share of train.steps") == len(keys)


def test_a_file_a_base_and_the_command_line_count_from_the_final_steps(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("validation: {every: 50%}\ntrain: {steps: 10}\n")
    path = tmp_path / "mine.yaml"
    path.write_text("base: base.yaml\nschedule: {cls_until: 10%}\ntrain: {checkpoint_every: '20%'}\n")
    config = load("train.steps=200", "train.log_every=1%", path=path)
    found = config_to_dict(config)
    assert (found["validation"]["every"], found["schedule"]["cls_until"]) == (100, 20)
    assert (found["train"]["checkpoint_every"], found["train"]["log_every"]) == (40, 2)
    assert "%" not in config_to_yaml(found), "the run folder holds numbers"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimiser.warmup_steps=101%", "more than all training steps"),
        ("optimiser.warmup_steps=0.1", "written with %, such as 10%"),
        ("optimiser.warmup_steps=-1%", "written with %, such as 10%"),
        ("optimiser.warmup_steps=1e3%", "not a whole number"),
        ("optimiser.warmup_steps=10%%", "not a whole number"),
        ("optimiser.warmup_steps=٣%", "not a whole number"),
        ("validation.every=0%", "below 1"),
        ("train.steps=10%", "only settings that count steps"),
        ("optimiser.lr=10%", "only settings that count steps"),
        ("train.batch_size=50%", "only settings that count steps"),
    ],
)
def test_what_is_no_share_is_refused(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load(override)
    assert override.partition("=")[0] in str(error.value) and is_one_line(str(error.value))


def test_the_recipe_for_own_images_has_the_proportions_of_the_released_one() -> None:
    own, released = load(path=CONFIGS / "own.yaml"), load(path=CONFIGS / "voc.yaml")
    scaled = load(f"train.steps={released.train.steps}", path=CONFIGS / "own.yaml")
    for section, name in (("schedule", "cls_until"), ("schedule", "refined_until"), ("optimiser", "warmup_steps")):
        assert getattr(getattr(scaled, section), name) == getattr(getattr(released, section), name)
    assert own.train.steps < released.train.steps and own.dataset.type == "folder"
