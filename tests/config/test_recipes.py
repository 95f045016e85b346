"""Recipes by name, from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from afa.config.recipes import config_file, recipe_folder, recipe_names, recipe_purpose
from afa.errors import UserError
from afa.methods import load_config


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["voc", "voc.yaml", "configs/voc.yaml", "configs/voc"])
def test_a_name_that_is_no_file_is_a_recipe(name: str, empty: Path) -> None:
    assert config_file(name) == recipe_folder() / "voc.yaml"
    (empty / "voc").mkdir()  # a data set, say
    assert config_file("voc") == recipe_folder() / "voc.yaml"
    assert load_config(name, ["train.steps=5000"]).train.steps == 5000


def test_a_file_goes_before_a_recipe(empty: Path) -> None:
    for name in ("voc", "voc.yaml"):
        (empty / name).write_text("train: {seed: 77}\n")
        assert load_config(name).train.seed == 77


def test_own_files_build_on_recipes(empty: Path) -> None:
    (empty / "mine.yaml").write_text("base: psa/1_cam\ntrain: {seed: 77}\n")
    mine, recipe = load_config("mine.yaml"), load_config("psa/1_cam")
    assert (mine.method, mine.train.seed, mine.train.steps) == ("psa_cam", 77, recipe.train.steps)
    (empty / "mine.yaml").write_text("base: voc.yaml\n")
    assert load_config("mine.yaml") == load_config("voc")
    (empty / "mine.yaml").write_text("base: vox\n")
    with pytest.raises(UserError, match=r"mine\.yaml: base: vox: neither a file nor a recipe; did you mean voc"):
        load_config("mine.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vco", "vco: neither a file nor a recipe; did you mean voc"),
        ("psa", "psa: neither a file nor a recipe; did you mean psa/1_cam or psa/2_affinity or psa/3_segment"),
        ("nothing-like-it.yaml", "neither a file nor a recipe; 'afa list recipes' lists them"),
        ("folder", "folder: a folder, and no recipe of that name"),
        ("", "neither a file nor a recipe|a folder"),
        ("../voc", "../voc: neither a file nor a recipe"),
    ],
)
def test_unknown_names_are_one_line(name: str, message: str, empty: Path) -> None:
    (empty / "folder").mkdir()
    with pytest.raises(UserError, match=message):
        config_file(name)


def test_every_recipe_says_what_it_is_for() -> None:
    assert len(recipe_names()) > 10
    for name in recipe_names():
        assert len(recipe_purpose(name)) > 20
