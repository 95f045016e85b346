"""What a pipeline asks before its first stage."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from launching import REPOSITORY
from PIL import Image

from afa.errors import UserError


def own_data(root: Path, **lists: str) -> list[str]:
    """A configuration of own data with two images of which ``a`` has a mask."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for name in ("a", "b") if folder == "images" else ("a",):
            Image.new("RGB" if folder == "images" else "L", (8, 8)).save(root / folder / f"{name}.png")
    (root / "classes.txt").write_text("cat\n")
    for name, text in lists.items():
        (root / f"{name}.txt").write_text(text)
    (root / "own.yaml").write_text(f"dataset: {{type: folder, root: {root}, train_split: train, val_split: held_out}}")
    return [str(root / "own.yaml")]


def test_a_pipeline_asks_which_lists_have_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = own_data(tmp_path, train="a\nb\n", held_out="a\n")
    stages = runpy.run_path(str(REPOSITORY / "launch" / "stages.py"))["main"]
    stages([*config, "--", *config, "train.seed=2"])
    said = capsys.readouterr()
    assert said.out.splitlines() == ["held_out", "held_out", "-", "-", "-"]
    assert said.err.startswith("note: 'train' gets no scores: 1 of the 2 true masks are missing")


def test_a_pipeline_asks_which_lists_have_saliency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = own_data(tmp_path, train="a\n", held_out="b\n")
    folder = tmp_path / "maps"
    folder.mkdir()
    stages = runpy.run_path(str(REPOSITORY / "launch" / "stages.py"))["main"]
    with pytest.raises(UserError, match="1 of the 1 images of 'train' have no saliency map"):
        stages([*config, f"dataset.saliency={folder}"])
    assert not capsys.readouterr().out
    Image.new("L", (8, 8)).save(folder / "a.png")
    stages([*config, f"dataset.saliency={folder}"])
    said = capsys.readouterr()
    assert said.out.splitlines()[3:] == ["train", "-"]
    assert "note: 'held_out' is labelled without saliency: 1 of the 1 images" in said.err
    Image.new("L", (8, 8)).save(folder / "b.png")
    stages([*config, f"dataset.saliency={folder}"])
    assert capsys.readouterr().out.splitlines()[3:] == ["train", "held_out"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--", "CONFIG", "train.sead=2"], "did you mean 'train.seed'"),
        (["--", "CONFIG", "dataset.bad_image=jump"], "none of stop, skip"),
        (
            ["dataset.train_split=other"],
            "there is no split 'other': .*images.other holds no images, and the list .*other.txt is missing",
        ),
        (["dataset.root=nowhere"], "the data set folder nowhere does not exist"),
    ],
)
def test_a_mistake_in_the_last_stage_is_said_before_the_first(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    config = own_data(tmp_path, train="a\n", held_out="a\n")
    stages = runpy.run_path(str(REPOSITORY / "launch" / "stages.py"))["main"]
    with pytest.raises(UserError, match=message):
        stages([*config, *(config[0] if item == "CONFIG" else item for item in settings)])
