"""test.precision: the network's passes alone are rounded, the device must be able to do it, and results say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from psa_files import SMALL_RESNET38
from run_tool import RunTool
from scored import small_config, small_method, write_checkpoint
from torch import nn

from afa.benchmarks import precision as benchmark
from afa.commands.benchmark import parse
from afa.data.samples import Sample
from afa.device import at_precision, require_precision
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import build_method, config_from_dict
from afa.methods.afa.method import AFA
from afa.methods.base import Method, SegmentationProtocol, SingleProcess
from afa.ops.random_walk import PairAffinity, TokenAffinity
from afa.prediction.model import load

METHODS: dict[str, dict[str, Any]] = {
    "afa": {},
    "segment": {"model": {**SMALL_RESNET38, "decoder": "deeplab_largefov"}, "dataset": {"pixel_labels": "labels"}},
    "psa_cam": {"model": SMALL_RESNET38},
    "psa_affinity": {"model": SMALL_RESNET38},
    "edam": {"model": {**SMALL_RESNET38, "attention_width": 8}, "cam": {"scales": [1.0, 0.5]}},
}


def built(name: str, tmp_path: Path) -> Method:
    if name == "afa":
        method: Method = small_method(small_config(tmp_path / "shapes"))
    else:
        torch.manual_seed(0)
        config = config_from_dict({"method": name, **METHODS[name]})
        method = build_method(config, ["disc", "bar", "ring"], SingleProcess())
    method.network.eval()
    return method


def sample() -> Sample:
    rng = np.random.default_rng(0)
    cams = Maps(
        torch.from_numpy(rng.random((1, 2, 88, 104), np.float32)),
        torch.tensor([[1, 3]]),
        torch.ones(1, 2, dtype=torch.bool),
        has_background=False,
    )
    inputs = {"maps/cam": cams, "saliency": rng.integers(0, 256, (88, 104), np.uint8)}
    return Sample("a", rng.integers(0, 256, (88, 104, 3), np.uint8), np.array([1, 0, 1], np.float32), inputs)


@pytest.mark.parametrize("name", METHODS)
def test_the_network_is_rounded_and_nothing_after_it(name: str, tmp_path: Path) -> None:
    method = built(name, tmp_path)
    seen: list[torch.dtype] = []
    for layer in method.network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    wanted = [output.name for output in method.outputs]
    protocol = SegmentationProtocol(scales=(1.0, 0.5), mirror=True)
    found = {}
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        seen.clear()
        method.precision = precision
        found[precision] = method.predict([sample()], wanted, protocol)[0]
        assert set(seen) == {dtype}
    exact, rounded = found["float32"], found["bf16"]
    assert rounded.class_ids == exact.class_ids and set(rounded.outputs) == set(exact.outputs) == set(wanted)
    changed = False
    for output, value in rounded.outputs.items():
        other = exact.outputs[output]
        if isinstance(value, Maps):
            assert isinstance(other, Maps) and value.scores.dtype == torch.float32
            scale = other.scores.abs().max()
            if "crf" not in output:  # DenseCRF sharpens an untrained network's noise
                assert (value.scores - other.scores).abs().mean() < 0.05 * scale, output
            changed |= not torch.equal(value.scores, other.scores)
        elif isinstance(value, (TokenAffinity, PairAffinity)):
            assert value.values.dtype == torch.float32
            changed |= not torch.equal(value.values, other.values)  # type: ignore[union-attr]
    assert changed
    for one in (exact, rounded):
        assert one.class_logits is None or one.class_logits.dtype == torch.float32


def test_validation_is_float32_whatever_the_test_settings_say(tmp_path: Path) -> None:
    config = small_config(tmp_path / "shapes")
    config.test.precision = "bf16"
    assert small_method(config).precision == "float32"
    write_checkpoint(tmp_path / "run", config, 1, step=1)
    assert load(tmp_path / "run", device="cpu").method.precision == "bf16"


@pytest.mark.parametrize(
    ("capability", "device", "possible"),
    [((8, 0), "cuda:0", True), ((9, 0), "cuda:0", True), ((7, 5), "cuda:0", False), (None, "cpu", False)],
)
def test_tf32_needs_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: Any, device: str, possible: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if possible:
        require_precision("tf32", torch.device(device), "--precision")
        return
    with pytest.raises(UserError, match="--precision=tf32 needs a GPU of NVIDIA's from Ampere") as found:
        require_precision("tf32", torch.device(device), "--precision")
    assert device in str(found.value)


def test_tf32_is_allowed_inside_alone() -> None:
    def allowed() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = allowed()
    with at_precision("tf32", torch.device("cpu")):
        assert allowed() == (True, True)
    assert allowed() == before

    def fails() -> None:
        with at_precision("tf32", torch.device("cpu")):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert allowed() == before


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = small_config(tmp_path / "shapes")
    config.cam.scales, config.test.scales, config.test.mirror = [1.0], [1.0], False
    write_checkpoint(tmp_path / "run/checkpoints/step_00000001", config, 1, step=1)
    (tmp_path / "run/checkpoints/last").symlink_to("step_00000001")
    return tmp_path / "run"


def test_what_cannot_be_done_is_one_line(run: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(tool: str, *arguments: object) -> str:
        result = run_tool(tool, run, "--device", "cpu", *arguments)
        assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
        return result.stderr

    image = run.parent / "shapes/JPEGImages/image_0.jpg"
    for tool, arguments in (
        ("eval.py", ["--output", run / "new.json"]),
        ("label.py", ["--output", run / "new"]),
        ("infer.py", [image, "--output", run / "new"]),
    ):
        assert "test.precision=tf32 needs a GPU" in refused(tool, *arguments, "--precision", "tf32")
        assert "'half' is none of float32, tf32, bf16" in refused(tool, *arguments, "test.precision=half")
        monkeypatch.setattr(AFA, "low_precision", False)
        assert "the method 'afa' predicts in float32 alone" in refused(tool, *arguments, "--precision", "bf16")
        monkeypatch.undo()
    assert not list(run.glob("new*"))


def test_scores_of_another_precision_stand_beside_the_others(run: Path, run_tool: RunTool) -> None:
    for options in ([], ["--precision", "bf16"], ["test.precision=float32"]):
        result = run_tool("eval.py", run, "--device", "cpu", "--workers", 0, *options)
        assert result.returncode == 0, result.stderr
    exact, rounded = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert rounded["protocol"] == {**exact["protocol"], "precision": "bf16"} and "precision" not in exact["protocol"]
    assert exact["per_image"] != rounded["per_image"]
    assert exact["table"]["segmentation"]["iou"] != rounded["table"]["segmentation"]["iou"]


def test_labels_of_another_precision_are_not_mixed_in(run: Path, run_tool: RunTool) -> None:
    def label(*options: str) -> Any:
        return run_tool("label.py", run, "--output", run / "labels", "--device", "cpu", "--workers", 0, *options)

    assert label("--outputs", "cam").returncode == 0
    facts = run / "labels/label.json"
    written = json.loads(facts.read_text())
    assert written["config"]["test"]["precision"] == "float32"
    for _ in range(2):
        result = label("--outputs", "cam", "--precision", "bf16")
        assert result.returncode == 2 and "config.test.precision: float32 -> bf16" in result.stderr, result.stderr
        del written["config"]["test"]["precision"]  # as earlier versions wrote it
        facts.write_text(json.dumps(written))
        again = label("--outputs", "cam")
        assert again.returncode == 0 and "5 images, 0 of them now" in again.stdout, again.stderr
        written["config"]["test"]["precision"] = "float32"


def test_predictions_take_it_too(run: Path, run_tool: RunTool) -> None:
    image = run.parent / "shapes/JPEGImages/image_0.jpg"
    cams = {}
    for precision in ("float32", "bf16"):
        folder = run / precision
        result = run_tool("infer.py", run, image, "--output", folder, "--device", "cpu", "--precision", precision)
        assert result.returncode == 0, result.stderr
        with np.load(folder / "cams/image_0.npz") as stored:
            cams[precision] = stored["cams"].astype(np.float32)
    difference = np.abs(cams["float32"] - cams["bf16"])
    assert difference.max() > 0 and difference.mean() < 0.05


def test_the_comparison_of_the_two(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = benchmark.run(parse(["precision", str(run), "--device", "cpu", "--limit", "3"]))
    assert set(figures) == {"cam", "propagated_cam", "segmentation", "time_ratio"}
    for name in ("cam", "propagated_cam", "segmentation"):
        row = figures[name]
        assert 0 <= row["changed"] < 0.5 and 0 < row["difference"] <= 1
        assert abs(row["miou"] - row["miou_float32"]) < 0.2
    assert figures["time_ratio"] > 0
    assert "bf16 compared with float32" in capsys.readouterr().out
    with pytest.raises(UserError, match="--precision=tf32 needs a GPU"):
        benchmark.run(parse(["precision", str(run), "--device", "cpu", "--precision", "tf32"]))
