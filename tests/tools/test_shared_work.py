"""afa eval and afa score by several processes: the files of one process, written by one of them, or none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from faults import group_variables
from forked import ForkedTool
from PIL import Image
from run_tool import RunTool
from scored import small_config, write_checkpoint

from afa.data.map_files import maps_path, write_maps
from afa.maps import Maps


def in_group(tool: str, processes: int, *arguments: object) -> list[tuple[int, str, str]]:
    """The code and the output of each process."""
    group = [ForkedTool(tool, *arguments, variables=variables) for variables in group_variables(processes)]
    return [(done.returncode, done.stdout, done.stderr) for done in [process.wait() for process in group]]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = small_config(tmp_path / "shapes")
    config.cam.scales, config.test.scales, config.test.mirror = [1.0], [1.0], False
    write_checkpoint(tmp_path / "run/checkpoints/step_00000001", config, 1, step=1)
    (tmp_path / "run/checkpoints/best").symlink_to("step_00000001")
    return tmp_path / "run"


def test_an_evaluation(run: Path, run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    places = {}
    said = {}
    for name in ("alone", "group"):
        places[name] = tmp_path / name
        places[name].mkdir()
        command = [run, "--device", "cpu", "--workers", 0, "--crf", "--output", places[name] / "scores.json"]
        command += ["--csv", places[name] / "scores.csv", "test.crf_iterations=2"]
        if name == "alone":
            result = run_tool("eval.py", *command)
            assert result.returncode == 0, result.stderr
            said[name] = result.stdout
            continue
        (first, second) = in_group("eval.py", 2, *command)
        assert (first[0], second[0]) == (0, 0), first[2] + second[2]
        assert second[1] == "" and "written to" not in second[2]
        said[name] = first[1]
    assert said["alone"] == said["group"]
    alone = files(places["alone"])
    assert alone == files(places["group"]) and len(alone) == 4


def test_a_process_that_fails_ends_all_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "shapes/SegmentationClass/image_1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    output = tmp_path / "scores.json"
    command = [run, "--device", "cpu", "--workers", 0, "--no-cams", "--output", output]
    first, second = in_group("eval.py", 2, *command)
    assert (first[0], second[0]) == (2, 2)
    assert second[2].count("error: ") == 1 and "image_1.png cannot be read" in second[2].splitlines()[-1]
    assert first[2].splitlines()[-1].startswith("error: another process of this job has ended early")
    assert "Traceback" not in first[2] + second[2]
    assert not list(tmp_path.glob("scores*"))


def test_scores_of_maps_by_more_processes_than_images(tmp_path: Path, run_tool: RunTool) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    for name in ("a", "b"):
        (tmp_path / "truth").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 3, (12, 10), np.uint8)).save(tmp_path / "truth" / f"{name}.png")
        for output, ids in (("cam", [1, 2]), ("walked", [0, 1, 2])):
            maps = Maps(
                torch.from_numpy(rng.random((1, len(ids), 12, 10), np.float32)),
                torch.tensor([ids]),
                torch.ones(1, len(ids), dtype=torch.bool),
                has_background=ids[0] == 0,
            )
            write_maps(maps_path(tmp_path / "made", output, name), maps, (12, 10), compress=False)
    (tmp_path / "made/label.json").write_text("{}")
    truth = ["--truth", tmp_path / "truth", "--class-names", tmp_path / "classes.txt"]
    said, places = {}, {}
    for name in ("alone", "group"):
        places[name] = tmp_path / name
        places[name].mkdir()
        command = ["maps", tmp_path / "made", *truth]
        for option, suffix in (("--output", "json"), ("--csv", "csv"), ("--plot", "svg")):
            command += [option, places[name] / f"scores.{suffix}"]
        if name == "alone":
            result = run_tool("score.py", *command)
            assert result.returncode == 0, result.stderr
            said[name] = result.stdout
            continue
        first, *others = in_group("score.py", 3, *command)
        assert [code for code, _, _ in (first, *others)] == [0, 0, 0], first[2]
        assert {text for _, text, _ in others} == {""}
        said[name] = first[1]
    assert said["alone"] == said["group"] and "cam >" in said["alone"]
    assert files(places["alone"]) == files(places["group"])
