"""A ``~`` in a command's arguments that no shell has seen: the home folder, not a folder of that name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_tool import RunTool

from afa.errors import UserError
from afa.paths import expand_home, given_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "here")
    return home


def test_paths(home: Path) -> None:
    for text, expected in {"~": home, "~/a~b": home / "a~b", "./~": Path("~"), "a/~": Path("a/~"), "": Path()}.items():
        assert given_path(text) == expected
    assert expand_home("nvidia/mit-b1") == "nvidia/mit-b1"
    with pytest.raises(UserError, match=r"no home folder of ~nobody_here; write \./~nobody_here/x"):
        expand_home("~nobody_here/x")


def test_commands(home: Path, run_tool: RunTool) -> None:
    made = run_tool("make_shapes.py", "~/data", "--train", "2", "--val", "2", "--size", "32", "--workers", "1")
    assert made.returncode == 0, made.stderr
    (home / "c.yaml").write_text("dataset: {root: ~/data, train_split: train}\n")
    checked = run_tool("check_data.py", "~/c.yaml", "--workers", "1", "--output=~/report.json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads((home / "report.json").read_text())
    labels = ("--masks=~/data/SegmentationClass", "--class-names=~/data/classes.txt")
    assert run_tool("make_labels.py", "~/labels.json", *labels).returncode == 0
    assert len(json.loads((home / "labels.json").read_text())) == 4
    assert not list(Path().iterdir()), "nothing lies in a folder named ~"


@pytest.mark.parametrize(
    "command",
    [
        ("eval.py", "~nobody_here/run"),
        ("eval.py", "run", "--output=~nobody_here/e.json"),
        ("infer.py", "run", "~nobody_here/a.jpg", "--output", "out"),
        ("infer.py", "run", "a.jpg", "--output=~nobody_here/out"),
        ("infer.py", "run", "a.jpg", "--output=out", "--labels=~nobody_here/l.json"),
        ("contact_sheet.py", "run", "--output=~nobody_here/s.png"),
        ("convert_weights.py", "~nobody_here/a.pth", "b.safetensors", "--format", "afa"),
        ("convert_weights.py", "a.pth", "~nobody_here/b.safetensors", "--format", "afa"),
        ("train.py", "~nobody_here/c.yaml"),
        ("check_data.py", "~nobody_here/c.yaml"),
        ("prepare_voc.py", "~nobody_here/voc"),
        ("prepare_coco.py", "~nobody_here/coco"),
        ("make_labels.py", "~nobody_here/labels.json", "--masks", "masks"),
        ("make_saliency.py", "~nobody_here/a.jpg", "--output", "out"),
        ("make_saliency.py", "a.jpg", "--output=~nobody_here/out"),
    ],
)
def test_a_home_folder_that_is_not_there_is_one_line(run_tool: RunTool, command: tuple[str, ...]) -> None:
    done = run_tool(*command)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ~nobody_here/")
    assert done.stderr.count("\n") == 1
