"""Scripts that compare methods or seeds."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from launching import REPOSITORY, calls, finished
from PIL import Image
from scored import CLASS_NAMES, small_config, small_method

from afa.errors import UserError
from afa.weights import pack_metadata, save_network


def test_the_comparison_runs_all_demonstrations_and_says_what_each_was_taught_with(checkout: Path) -> None:
    lists = checkout / "my data" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("1\n")
    finished(checkout, "compare_demo.sh", "train.seed=2", "dataset.root=my data", "train.output=runs")
    trained = [call.split()[2] for call in calls(checkout) if "tools/train.py" in call]
    assert trained == [
        "configs/demo.yaml",
        *(f"configs/psa/demo_{stage}.yaml" for stage in ("1_cam", "2_affinity", "3_segment")),
        *(f"configs/edam/demo_{stage}.yaml" for stage in ("1_edam", "2_segment")),
        "configs/segment/demo.yaml",
    ]
    for call in calls(checkout):
        assert "tools/train.py" not in call or ("train.seed=2" in call and "dataset.root=my data" in call)
    *_, bound, _, sheet, summary = calls(checkout)
    assert sheet == (
        "python launch/compare_sheet.py runs/compare_demo/contact_sheet.png my data AFA=runs/demo "
        "PSA=runs/psa_demo/3_segment EDAM=runs/edam_demo/2_segment true masks=runs/segment_demo"
    )
    assert "dataset.pixel_labels=my data/SegmentationClass train.output=runs/segment_demo" in bound
    assert summary == (
        "python tools/summary.py AFA=runs/demo/evaluation.json PSA=runs/psa_demo/scores/cam_val.json "
        "PSA=runs/psa_demo/scores/affinity_val.json PSA=runs/psa_demo/scores/segment.json "
        "EDAM without saliency=runs/edam_demo/scores/cam_val.json "
        "EDAM without saliency=runs/edam_demo/scores/crf_val.json "
        "EDAM without CRF=runs/edam_demo/scores/saliency_no_crf_val.json "
        "EDAM=runs/edam_demo/scores/saliency_val.json EDAM=runs/edam_demo/scores/segment.json "
        "true masks=runs/segment_demo/evaluation.json --supervision AFA=I PSA=I EDAM without saliency=I "
        "EDAM without CRF=I+S EDAM=I+S true masks=pixels --output runs/compare_demo/summary.json"
    )


def test_masks_of_several_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path / "shapes")
    weights, sheet = str(tmp_path / "weights.safetensors"), tmp_path / "sheet.png"
    save_network(small_method(config).network, Path(weights), pack_metadata(config, CLASS_NAMES, 7))
    draw = runpy.run_path(str(REPOSITORY / "launch" / "compare_sheet.py"))["main"]
    draw([str(sheet), str(tmp_path / "shapes"), f"one={weights}", f"the same={weights}"])
    assert "5 images in" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.width == 2 * 20 + 4 * 160 + 3 * 10
        columns = [np.array(image)[190:600, 20 + at * 170 : 20 + at * 170 + 160] for at in range(1, 4)]
    assert (columns[1] == columns[2]).all() and (columns[0] != columns[1]).any()
    with pytest.raises(UserError, match=r"give OUTPUT.png DATA TITLE=RUN"):
        draw([str(sheet), "data", weights])


def seed_calls(folder: str, *seeds: int, train: str = "python", batch: str = "") -> list[str]:
    found = ["python launch/recipe.py my recipe.yaml a.b=1 dataset.root=my data"]
    for seed in seeds:
        run, given = f"{folder}/seed_{seed}", f"a.b=1 dataset.root=my data {batch}train.seed={seed}"
        found += [
            f"{train} tools/train.py my recipe.yaml {given} train.output={run}",
            f"python tools/eval.py {run}/checkpoints/last dataset.root=my data --output {run}/evaluation.json",
        ]
    runs = " ".join(f"{folder}/seed_{seed}" for seed in seeds)
    output = f"--output {folder}/comparison.json {folder}/comparison.md"
    return [*found, f"python tools/compare.py {runs} {output}"]


def test_seeds_are_trained_evaluated_and_compared(checkout: Path) -> None:
    settings = ("a.b=1", "dataset.root=my data")
    finished(checkout, "seeds.sh", "my recipe.yaml", "1", "20", *settings)
    assert calls(checkout) == seed_calls("work_dirs/own_seeds", 1, 20)
    (checkout / "calls").unlink()
    # Again, with one more: what was scored is not scored again, and trainings end at once.
    finished(checkout, "seeds.sh", "my recipe.yaml", "1", "20", "3", *settings)
    expected = seed_calls("work_dirs/own_seeds", 1, 20, 3)
    assert calls(checkout) == [call for call in expected if "eval.py" not in call or "seed_3" in call]


def test_seeds_lie_in_the_named_folder_and_share_the_gpus(checkout: Path) -> None:
    settings = ("a.b=1", "train.output=my runs", "dataset.root=my data")
    finished(checkout, "seeds.sh", "my recipe.yaml", "7", *settings, FOUND_GPUS="3")
    start, batch = "torchrun --standalone --nproc-per-node 2 --max-restarts 0", "train.batch_size=4 train.accumulate=1 "
    assert calls(checkout) == seed_calls("my runs", 7, train=start, batch=batch)
    (checkout / "calls").unlink()
    finished(checkout, "seeds.sh", "my recipe.yaml", "7", *settings, FOUND_GPUS="3", FACTS="4x2 8 x")
    batch = "train.batch_size=4 train.accumulate=1 "
    assert [call for call in calls(checkout) if "train.py" in call] == [
        call for call in seed_calls("my runs", 7, train=start, batch=batch) if "train.py" in call
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a recipe and seeds"),
        (["a.yaml"], "give seeds after the recipe"),
        (["a.yaml", "a.b=1"], "give seeds after the recipe"),
        (["a.yaml", "1", "1"], "the seed 1 is given twice"),
        (["a.yaml", "1", "two"], "two: give seeds"),
        (["a.yaml", "1", "-3"], "-3: give seeds"),
        (["a.yaml", "1", "train.seed=3"], "train.seed=3: give the seeds after the recipe"),
    ],
)
def test_a_mistake_in_seeds_is_one_line(checkout: Path, arguments: list[str], said: str) -> None:
    output = finished(checkout, "seeds.sh", *arguments, code=2)
    assert output.startswith(f"error: {said}") and output.count("\n") == 1
    assert not calls(checkout)


def test_a_mistake_in_a_recipe_is_said_before_the_first_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = runpy.run_path(str(REPOSITORY / "launch" / "recipe.py"))["main"]
    root = small_config(tmp_path / "shapes").dataset.root
    recipe = str(REPOSITORY / "configs" / "demo.yaml")
    ask([recipe, f"dataset.root={root}", "train.batch_size=3", "train.accumulate=2", "train.output=my runs"])
    assert capsys.readouterr().out == "6\n3\nmy runs\n"
    edam = str(REPOSITORY / "configs" / "edam" / "demo_1_edam.yaml")
    ask([edam, f"dataset.root={root}", "train.batch_size=4"])
    assert capsys.readouterr().out.startswith("2x2\n4\n")
    segment = str(REPOSITORY / "configs" / "segment" / "demo.yaml")
    for arguments, said in (
        ([recipe, f"dataset.root={root}", "a.b=1"], "a.b"),
        ([recipe, f"dataset.root={tmp_path / 'nothing'}"], "nothing"),
        ([segment, f"dataset.root={root}", f"dataset.pixel_labels={tmp_path / 'none'}"], "there is no folder"),
    ):
        with pytest.raises(UserError, match=said):
            ask(arguments)


@pytest.mark.parametrize("argument", ["cam.scales=[1]", "edam:train.seed=1", "train.seed", "dataset.saliency=null"])
def test_what_is_compared_shares_its_settings(checkout: Path, argument: str) -> None:
    said = finished(checkout, "compare_demo.sh", argument, code=2)
    assert said.startswith(f"error: {argument}: only train.seed=N") and said.count("\n") == 1
    assert not calls(checkout)
