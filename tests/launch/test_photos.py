"""launch/photos.sh: which network gets which weights, what is scored, and mistakes in its arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import REPOSITORY, calls, finished

from afa.methods import load_config


@pytest.fixture
def given(checkout: Path) -> list[str]:
    """The three arguments: data, and two files of weights."""
    (checkout / "my data" / "SegmentationClass").mkdir(parents=True)
    for name in ("cnn.pth", "vit.onnx"):
        (checkout / name).touch()
    return ["my data", "cnn.pth", "vit.onnx"]


def of(checkout: Path, tool: str) -> list[str]:
    return [call for call in calls(checkout) if f" {tool} " in call]


def test_each_network_gets_its_weights_and_everything_is_compared(checkout: Path, given: list[str]) -> None:
    (checkout / "elsewhere").mkdir()
    spelled = ["my data/", "elsewhere/../cnn.pth", "./vit.onnx"]  # a run knows its weights by their path: one spelling
    said = finished(checkout, "photos.sh", *spelled, "train.seed=2", "afa:train.steps=9", "train.output=runs")
    data, cnn, vit = (f"{checkout}/{name}" for name in given)
    trained = of(checkout, "tools/train.py")
    assert [call.split()[2].removeprefix("configs/photos/") for call in trained] == [
        "afa.yaml",
        "psa_1_cam.yaml",
        "psa_2_affinity.yaml",
        "psa_3_segment.yaml",
        "edam_1_edam.yaml",
        "edam_2_segment.yaml",
        "supervised.yaml",
    ]
    for call in trained:
        weights = cnn if any(name in call for name in ("/psa_1", "/psa_2", "/edam_1")) else vit
        assert f"model.pretrained={weights}" in call and f"dataset.root={data}" in call and "train.seed=2" in call
        assert ("train.steps=9" in call) == ("/afa.yaml" in call)
    assert f"dataset.pixel_labels={data}/SegmentationClass train.output=runs/supervised" in trained[-1]
    saliency = "dataset.saliency=runs/saliency"
    assert [saliency in call for call in trained] == [False, False, False, False, True, False, False]
    train, val = of(checkout, "tools/make_saliency.py")
    assert train.endswith(f"{saliency} --network {vit} --output runs/saliency") and "--split" not in train
    assert val.endswith(f"{saliency} --split val --network {vit} --output runs/saliency")
    (summary,) = (call for call in of(checkout, "tools/summary.py") if "runs/summary.json" in call)
    scored = {
        call.rpartition(" --output ")[2] for tool in ("score", "eval") for call in of(checkout, f"tools/{tool}.py")
    }
    rows = [
        word.partition("=")[2] for word in summary.split() if word.startswith(("AFA=runs", "PSA=runs", "EDAM=runs"))
    ]
    assert len(rows) == 10 and set(rows) <= scored
    assert "true masks=runs/scores/supervised.json --supervision AFA=I PSA=I EDAM=I+S true masks=pixels" in summary
    assert calls(checkout)[-1] == summary and "runs/report.html" in said


@pytest.mark.parametrize("gpus", [1, 2])
def test_on_gpus_a_step_has_as_many_images_as_the_recipe_says(checkout: Path, given: list[str], gpus: int) -> None:
    finished(checkout, "photos.sh", *given, FOUND_GPUS=str(gpus))
    trained = of(checkout, "tools/train.py")
    for call in trained:
        recipe = call.partition("tools/train.py ")[2].split()[0]
        (share,) = (int(word.partition("=")[2]) for word in call.split() if word.startswith("train.batch_size="))
        assert share * gpus == load_config(REPOSITORY / recipe).train.batch_size, recipe
    assert len(trained) == 7


def test_again_it_trains_on_what_is_there_and_scores_nothing_twice(checkout: Path, given: list[str]) -> None:
    finished(checkout, "photos.sh", *given)
    first = calls(checkout)
    (checkout / "calls").unlink()
    finished(checkout, "photos.sh", *given)
    again = calls(checkout)
    assert [call for call in first if "score.py" not in call and "eval.py" not in call] == again


def test_saliency_of_the_users_own_is_not_made(checkout: Path, given: list[str]) -> None:
    finished(checkout, "photos.sh", *given, "dataset.saliency=mine")
    assert not of(checkout, "tools/make_saliency.py")
    assert all("dataset.saliency=mine" in call for call in of(checkout, "tools/train.py"))


def test_without_masks_of_the_training_images_there_is_no_bound(checkout: Path, given: list[str]) -> None:
    finished(checkout, "photos.sh", *given, LISTS="val val - train val")
    assert not any("supervised.yaml" in call for call in of(checkout, "tools/train.py"))
    assert "true masks" not in calls(checkout)[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give DATA CNN VIT"),
        (["my data", "cnn.pth", "train.seed=2"], "give DATA CNN VIT"),
        (["cnn.pth", "cnn.pth", "vit.onnx"], "give DATA CNN VIT"),
        (["my data", "cnn.pth", "other.onnx"], "other.onnx: there is no such file or folder"),
        (["my data", "cnn.pth", "vit.onnx", "dataset.root=x"], "dataset.root=x: give the data and the weights as"),
        (["my data", "cnn.pth", "vit.onnx", "afa:model.pretrained=x"], "afa:model.pretrained=x: give the data and"),
        (
            ["my data", "cnn.pth", "vit.onnx", "bound:train.steps=1"],
            "bound:train.steps=1: 'bound' is no stage of this pipeline",
        ),
    ],
)
def test_a_mistake_is_one_line(checkout: Path, given: list[str], arguments: list[str], said: str) -> None:
    output = finished(checkout, "photos.sh", *arguments, code=2)
    assert output.startswith(f"error: {said}") and output.count("\n") == 1
    assert not calls(checkout)


def test_nothing_starts_where_the_validation_list_has_no_masks(checkout: Path, given: list[str]) -> None:
    output = finished(checkout, "photos.sh", *given, LISTS="val - train train val", code=2)
    assert "error: there is nothing to compare: the images of the list 'val'" in output
    assert not of(checkout, "tools/train.py")
