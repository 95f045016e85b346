"""Each measurement runs for real in a tiny setting and writes its figures. No wall time is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden import SMALL_MODEL
from run_tool import Result, RunTool

from afa.benchmarks import crf, training_step
from afa.benchmarks.par import DirectPAR
from afa.benchmarks.training_step import PARTS, floor_flops
from afa.methods import config_from_dict
from afa.ops.par import PAR

TINY = {
    command: arguments.split()
    for command, arguments in {
        "step": "--encoder mit_b0 --crop 64 --batch-size 2 --repeats 1 train.pictures_every=0",
        "par": "--size 24 --repeats 1",
        "growth": "--encoder mit_b0 --batch-size 1 --repeats 1 --vary crop --values 32 64",
        "crf": "--size 24 32 --classes 4 --present 2 --iterations 2 --repeats 1 --threads 1",
    }.items()
}


class Bench:
    """The tool, and a folder of its own."""

    def __init__(self, run_tool: RunTool, folder: Path) -> None:
        self.run_tool, self.folder = run_tool, folder

    def __call__(self, command: str, *arguments: str) -> Result:
        return self.run_tool("benchmark.py", command, *arguments)

    def figures(self, command: str, *arguments: str) -> dict:
        """What a measurement writes; it leaves nothing else behind. What it prints is in ``printed``."""
        file = self.folder / "figures.json"
        done = self(command, *arguments, "--output", str(file))
        assert done.returncode == 0, done.stderr
        assert [path.name for path in self.folder.iterdir()] == ["figures.json"]
        self.printed = done.stdout
        return json.loads(file.read_text())


@pytest.fixture
def bench(run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    # The machine's speed is measured briefly.
    monkeypatch.setattr(training_step, "MATRIX_SIDE", 256)
    monkeypatch.setattr(training_step, "MATRIX_SECONDS", 0.05)
    return Bench(run_tool, tmp_path)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration whose network takes no time."""
    path = tmp_path_factory.mktemp("benchmarks") / "mine.yaml"
    settings = {
        "model": SMALL_MODEL,
        "augmentation": {"crop_size": 32},
        "train": {"batch_size": 1, "pictures_every": 0},
        "test": {"long_side": 32},
    }
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_crf(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf, "peak_memory", lambda *_: None)  # has a test, and takes a process, of its own
    assert bench.figures("crf", *TINY["crf"])
    assert "all classes" in bench.printed


def test_step(bench: Bench) -> None:
    figures = bench.figures("step", *TINY["step"])
    assert set(figures["parts_s"]) == {"data", *PARTS}
    assert all(seconds > 0 for seconds in figures["parts_s"].values())
    assert figures["encoder"] == "mit_b0"
    assert (figures["crop"], figures["batch"], figures["classes"]) == (64, 2, 21)
    assert figures["images_per_s"] == pytest.approx(2 / figures["step_s"])
    assert 0 < figures["care_s"] < figures["step_s"]
    assert figures["sheet_s"] is None
    # A process that has trained keeps its memory (afa.engine.memory): after other tests, a step may need nothing more.
    assert 0 <= figures["memory_gb"]["beyond_start"] < figures["memory_gb"]["process_peak"]
    # The step repeats none of the floor's work: it even takes one pass from the training forward.
    assert 0.8 * figures["floor_gflop"] < figures["step_gflop"] < 1.2 * figures["floor_gflop"]
    assert figures["uncounted"] == []


def test_classification_step_makes_no_labels(bench: Bench, small_model: str) -> None:
    figures = bench.figures(
        "step", "--config", small_model, "--repeats", "1", "--stage", "classification", "--precision", "bf16"
    )
    assert figures["precision"] == "bf16"
    for part, seconds in figures["parts_s"].items():
        assert (seconds == 0) == (part in ("cam", "propagation", "par", "labels"))
    assert figures["step_gflop"] < 1.2 * figures["floor_gflop"]


def test_operators_add_up(bench: Bench, small_model: str) -> None:
    figures = bench.figures("operators", "--config", small_model, "--repeats", "2")
    assert (figures["encoder"], figures["crop"], figures["batch"], figures["repeats"]) == ("custom", 32, 1, 2)
    rows = figures["operators"]
    assert figures["uncounted"] == []
    assert sum(row["s"] for row in rows.values()) == pytest.approx(figures["sum_s"])
    assert {"aten.addmm", "aten.convolution", "aten.convolution_backward", "aten.native_layer_norm"} <= set(rows)
    assert rows["aten.addmm"]["gflop"] > 0 == rows["aten.native_layer_norm"]["gflop"]
    # All that is counted belongs to an operator that was timed, and makes up about the floor.
    assert 0.8 < sum(row["gflop"] for row in rows.values()) / figures["floor_gflop"] < 1.2
    assert figures["ratio_to_floor"] == pytest.approx(figures["sum_s"] / figures["floor_s"])
    assert " more " in bench.printed


def test_step_of_a_configuration(bench: Bench, small_model: str) -> None:
    options = ["--repeats", "1", "--classes", "4", "--set", "train.pictures_every=10"]
    done = bench("step", "--config", small_model, *options)
    assert done.returncode == 0, done.stderr
    assert "custom, crop 32, batch 1, 4 classes" in done.stdout
    assert "for TensorBoard, every 10 steps: " in done.stdout


def test_par(bench: Bench) -> None:
    figures = bench.figures("par", *TINY["par"])
    assert "times faster" in bench.printed
    assert figures["size"] == 24
    assert figures["difference"] < 1e-5
    assert figures["times_faster"] > 0


@pytest.mark.slow
def test_growth(bench: Bench) -> None:
    small, large = bench.figures("growth", *TINY["growth"])["crop"]
    assert (small["crop"], large["crop"]) == (32, 64)
    assert all(row["memory_gb"]["beyond_start"] > 0 for row in (small, large))  # each in a process of its own
    assert 2 < large["floor_gflop"] / small["floor_gflop"] < 8


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("step", "--repeats", "0"), "--repeats"),
        (("step", "--crop", "100"), "crop_size"),
        (("step", "--classes", "3", "--present", "3"), "--present"),
        (("step", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("par", "--size", "0"), "--size"),
        (("step", "--batch-size", "0"), "batch_size"),
        (("step", "--precision", "int8"), "precision"),
        (("step", "--stage", "classification", "schedule.cls_until=-1"), "cls_until"),
        (("step", "--stage", "classification", "method=psa_cam"), "'psa_cam' are all alike"),
        (("reg", "method=psa_cam"), "'psa_cam' has no regularised loss"),
        (("operators", "--threads", "few"), "--threads"),
        (("reg", "--crop", "0"), "crop_size"),
        (("data", "--limit", "0"), "--limit"),
        (("crf", "--repeats", "0"), "--repeats"),
        (("eval", "--repeats", "0"), "--repeats"),
        (("par", "--output", "/proc/figures.json"), "cannot be written"),
        (("par", "--output", "."), "Is a directory"),
        (("growth", "--values", "32"), "--vary"),
        (("growth", "--vary", "crop", "--values", "big"), "big"),
        (("growth", "--vary", "crop", "--values", "100"), "crop_size"),
    ],
)
def test_mistakes(bench: Bench, arguments: tuple[str, ...], complaint: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr


def test_direct_par_is_par() -> None:
    torch.manual_seed(0)
    image, masks = torch.rand(2, 3, 30, 41), torch.rand(2, 4, 30, 41)
    settings: dict[str, Any] = {"dilations": [1, 4, 12], "iterations": 3, "temperature": 0.2, "position_weight": 0.05}
    torch.testing.assert_close(DirectPAR(**settings)(image, masks), PAR(**settings)(image, masks))


def test_floor_counts_the_published_arithmetic() -> None:
    """b1, crop 512, batch 2: 602 GFLOP in the CAM passes, and three times the encoder's forward pass."""
    config = config_from_dict({"method": "afa", "model": {"encoder": "mit_b1"}})
    classification = floor_flops(config, 21, classification=True)
    assert classification == pytest.approx(3 * 73.8e9, rel=0.01)
    everything = floor_flops(config, 21)
    assert everything - classification == pytest.approx(602e9, rel=0.03)


@pytest.mark.parametrize("name", ["1_cam", "2_affinity", "3_segment"])
def test_a_step_of_every_stage_of_psa_is_measured(name: str, bench: Bench) -> None:
    config = Path(__file__).parents[2] / "configs" / "psa" / f"{name}.yaml"
    small = ["model.base_width=2", "model.depths=[1,1,1,1]", "model.pretrained=null", "train.pictures_every=0"]
    sizes = ["--crop", "80", "--batch-size", "2", "--repeats", "1", "--threads", "1"]
    figures = bench.figures("step", "--config", str(config), *sizes, *small)
    assert figures["encoder"] == "resnet38" and 0 < figures["floor_gflop"] <= 1.01 * figures["step_gflop"]
