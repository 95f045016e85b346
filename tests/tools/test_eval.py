from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from run_tool import RunTool
from scored import CLASS_NAMES, small_config, small_method

from afa.commands.eval import default_report_path
from afa.config import config_to_dict
from afa.data.loader import evaluation_loader
from afa.evaluation.tables import read_image_counts
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.methods.base import SegmentationProtocol
from afa.prediction.evaluate import evaluate
from afa.weights import pack_metadata, save_network
from afa.weights.facts import FACTS_FILE, WEIGHTS_FILE, pack_facts
from afa.weights.reading import file_checksum

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> AFAConfig:
    return small_config(tmp_path / "shapes")


@pytest.fixture
def method(config: AFAConfig) -> AFA:
    method = small_method(config)
    method.network.eval()
    return method


@pytest.fixture
def run(tmp_path: Path, config: AFAConfig, method: AFA) -> Path:
    """A run's output folder with one checkpoint, as training leaves it."""
    folder = tmp_path / "run/checkpoints/step_00000007"
    weights = folder / WEIGHTS_FILE
    save_network(method.network, weights, pack_metadata(config, CLASS_NAMES, 7))
    facts = {"step": 7, "config": config_to_dict(config), "class_names": list(CLASS_NAMES)}
    (folder / FACTS_FILE).write_text(pack_facts(facts, {WEIGHTS_FILE: file_checksum(weights)}))
    (folder.parent / "best").symlink_to(folder.name)
    return tmp_path / "run"


@pytest.fixture
def score(run_tool: RunTool) -> RunTool:
    return partial(run_tool, "eval.py", "--device", "cpu", "--workers", 0)


def test_table_and_json_of_a_run(run: Path, config: AFAConfig, method: AFA) -> None:
    command = [sys.executable, "-X", "importtime", "tools/eval.py", run, "--device", "cpu", "--workers", "1"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "torch" in imported and "torch._dynamo" not in imported, "PyTorch's compiler takes as long to import again"
    entry = only_entry(run / "evaluation.json")
    table = entry["table"]
    loader = evaluation_loader(config.dataset)
    protocol = SegmentationProtocol(config.test.long_side, tuple(config.test.scales), config.test.mirror)
    expected = evaluate(method, loader, class_names=CLASS_NAMES, device="cpu", protocol=protocol).table
    for row in ("cam", "propagated_cam", "segmentation"):
        assert table[row]["miou"] == pytest.approx(expected[row]["miou"], abs=2e-3)
        assert list(table[row]["iou"]) == ["background", *CLASS_NAMES]
        assert f"{100 * table[row]['miou']:.1f}" in result.stdout
    assert 0 < table["segmentation"]["miou"] < 1
    test = {"long_side": 64, "scales": [1.0, 0.5, 0.75], "mirror": True}
    assert entry["protocol"] == {"split": "val", "step": 7, **test, "crf": None, "limit": None}
    assert [len(row) for row in entry["confusion"]["segmentation"]] == [5] * 4
    assert set(entry["image_iou"]["cam"]) == {f"image_{number}" for number in range(5)}
    counts, names = read_image_counts(run / entry["per_image"])
    assert names == ("background", *CLASS_NAMES)
    for row in ("cam", "propagated_cam", "segmentation"):
        assert counts[row].stacked().total().scores(names) == table[row]
    for word in ("CAM", "propagated CAM", "segmentation", "mIoU", "pAcc", "mAcc", "ring"):
        assert word in result.stdout


def only_entry(path: Path) -> dict[str, Any]:
    (entry,) = json.loads(path.read_text())["evaluations"]
    return entry


def test_options(score: RunTool, run: Path, tmp_path: Path) -> None:
    tables, protocols = {}, {}
    for name, options in {
        "default": [],
        "single": ["--scales", 1, "--no-mirror"],
        "native": ["--long-side", 0],
        "crf": ["--crf"],
        "limited": ["--limit", 2],
    }.items():
        output = tmp_path / f"{name}.json"
        result = score(run, "--no-cams", "--output", output, *options)
        assert result.returncode == 0, result.stderr
        entry = only_entry(output)
        tables[name], protocols[name] = entry["table"], entry["protocol"]
        assert entry["partial"] is (name == "limited")
        assert "cam" not in tables[name]
    assert len({tables[name]["segmentation"]["pacc"] for name in ("default", "single", "native")}) == 3
    default = protocols["default"]
    assert protocols["single"] == {**default, "scales": [1.0], "mirror": False}
    assert protocols["native"] == {**default, "long_side": 0}
    assert protocols["limited"] == {**default, "limit": 2}
    assert protocols["crf"]["crf"]["crf_iterations"] == 10
    assert tables["crf"]["segmentation"] == tables["default"]["segmentation"]
    assert tables["crf"]["segmentation_crf"] != tables["crf"]["segmentation"]
    assert [tables[name]["images"] for name in ("default", "limited")] == [5, 2]
    assert not (run / "evaluation.json").exists()


def test_evaluations_of_other_protocols_stay(score: RunTool, run: Path) -> None:
    for options in (["--scales", 1], ["--scales", 1, "--limit", 2], ["--scales", 1, "--limit", 5]):
        result = score(run, "--no-cams", *options)
        assert result.returncode == 0, result.stderr
        assert ("only the first 2 of the list" in result.stdout) is (2 in options)
    entries = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert [(entry["protocol"]["limit"], entry["table"]["images"]) for entry in entries] == [(None, 5), (2, 2)]
    (run / "evaluation.json").write_text("[]")
    result = score(run, "--no-cams")
    assert result.returncode == 2 and "holds no evaluations" in result.stderr and result.stderr.count("\n") == 1
    assert (run / "evaluation.json").read_text() == "[]"


def test_settings_may_stand_anywhere(score: RunTool, run: Path, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    (tmp_path / "shapes").rename(root)
    for arguments in (
        [run, f"dataset.root={root}", "--scales", 1],
        [run, "--scales", 1, 0.5, f"dataset.root={root}", "cam.background=0.3"],
    ):
        assert score(*arguments).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "test.txt"),
        (["dataset.root=/nowhere"], "/nowhere does not exist"),
        (["train.steps=3"], "train is fixed by the checkpoint"),
        (["test.scale=[1]"], "did you mean 'test.scales'"),
        (["--limit", "0"], "--limit 0"),
        (["--scales", "one"], "--scales needs numbers"),
        (["cam.background"], "have the form key=value"),
        (["--output", "/proc/evaluation.json"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(score: RunTool, run: Path, arguments: list[str], message: str) -> None:
    result = score(run, "--no-cams", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    "given", ["", "checkpoints", "checkpoints/best", "checkpoints/step_00000007/weights.safetensors"]
)
def test_report_lies_in_the_folder_of_the_run(run: Path, given: str) -> None:
    assert default_report_path(run / given) == run / "evaluation.json"


def test_no_checkpoint(score: RunTool, tmp_path: Path) -> None:
    result = score(tmp_path / "nothing")
    assert result.returncode == 2
    assert "nothing" in result.stderr


def test_other_classes_are_refused(score: RunTool, run: Path, config: AFAConfig) -> None:
    (Path(config.dataset.root) / "classes.txt").write_text("disc\nbar\nring\nstar\n")
    result = score(run)
    assert result.returncode == 2
    assert "knows 3 classes" in result.stderr
