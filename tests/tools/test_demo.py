"""``afa demo``: its steps, in the current folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from afa.commands import contact_sheet, demo, eval, infer, make_shapes, report, train
from afa.commands.main import main

SMALL = ["train.steps=2", "schedule.cls_until=0", "schedule.refined_until=1", "augmentation.crop_size=32"]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand-ins for the steps, which note what they are called with."""
    monkeypatch.chdir(tmp_path)
    noted: list[list[str]] = []

    def stand_in(name: str) -> Callable[[list[str]], int]:
        def step(arguments: list[str]) -> int:
            noted.append([name, *arguments])
            if name == "shapes":
                names = Path(arguments[1]) / "ImageSets/Segmentation/val.txt"
                names.parent.mkdir(parents=True)
                names.write_text("".join(f"v{number}\n" for number in range(9)))
            return 75 if "train.seed=75" in arguments else 0

        return step

    steps = {
        "shapes": make_shapes,
        "train": train,
        "eval": eval,
        "sheet": contact_sheet,
        "predict": infer,
        "report": report,
    }
    for name, module in steps.items():
        monkeypatch.setattr(module, "main", stand_in(name))
    return noted


def test_the_steps_of_the_demonstration(calls: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "train.seed=2", "dataset.root=my data", "--output", "out"]) == 0
    last, at = "out/checkpoints/last", "dataset.root=my data"
    images = [f"my data/JPEGImages/v{number}.jpg" for number in range(4)]
    assert calls == [
        ["shapes", "--output", "my data"],
        ["train", "demo", "train.seed=2", "dataset.root=my data", "train.output=out"],
        ["eval", last, at, "--output", "out/evaluation.json"],
        ["sheet", last, at, "--output", "out/contact_sheet.png"],
        ["predict", last, *images, "--output", "out/inference"],
        ["report", last, at, "--output", "out/report.html"],
    ]
    assert "out/contact_sheet.png" in capsys.readouterr().out


def test_a_step_that_ends_early_ends_the_demonstration(calls: list[list[str]]) -> None:
    assert main(["demo", "train.seed=75"]) == 75
    assert [name for name, *_ in calls] == ["shapes", "train"]


@pytest.mark.slow
def test_the_demonstration_on_a_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = make_shapes.main
    few = ["--train", "8", "--val", "4", "--size", "64"]
    monkeypatch.setattr(demo.make_shapes, "main", lambda arguments: whole([*arguments, *few]))
    for _ in range(2):  # again: it reuses what is there
        assert main(["demo", *SMALL]) == 0
    assert (tmp_path / "work_dirs/demo/evaluation.json").is_file()
    assert (tmp_path / "work_dirs/demo/contact_sheet.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "work_dirs"}
