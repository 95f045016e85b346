"""tools/label.py: a folder of maps and labels that later stages read, complete, resumable, and only of one kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_tool import Result, RunTool
from scored import CLASS_NAMES, SIZES, small_config, write_checkpoint

from afa.config import config_to_dict
from afa.data.dataset import EvaluationImages
from afa.data.inputs import Inputs
from afa.data.map_folders import MapFolder
from afa.data.palette import voc_palette
from afa.errors import UserError
from afa.methods import config_from_dict
from afa.methods.afa.config import AFAConfig
from afa.methods.base import Found, SegmentationProtocol
from afa.prediction.labelling import label_split
from afa.prediction.model import Model, load

NAMES = [f"image_{number}" for number in range(5)]
MAPS = ("cam", "propagated_cam", "segmentation")
LABELS = (*MAPS, "refined_label", "propagated_label")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with two checkpoints, ``last`` and ``best``, and its data set."""
    folder = tmp_path_factory.mktemp("made")
    config = small_config(folder / "shapes")
    config.cam.scales, config.test.scales, config.test.mirror = [1.0], [1.0], False
    config.par.iterations, config.par.dilations = 2, [1, 2]
    checkpoints = folder / "run/checkpoints"
    for seed, name in ((1, "last"), (2, "best")):
        write_checkpoint(checkpoints / f"step_{seed:08d}", config, seed, step=seed)
        (checkpoints / name).symlink_to(f"step_{seed:08d}")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy, whose data set lies elsewhere, too."""
    shutil.copytree(made, tmp_path / "place", symlinks=True)
    return tmp_path / "place"


@pytest.fixture
def label(run_tool: RunTool, place: Path) -> RunTool:
    """The command with this run, its data set and its output folder."""

    def call(*arguments: object, run: str = "run", output: str = "labels") -> Result:
        places = (place / run, "--output", place / output, f"dataset.root={place / 'shapes'}")
        return run_tool("label.py", *places, "--device", "cpu", "--workers", 0, *arguments)

    return call  # type: ignore[return-value]


def files(folder: Path) -> dict[str, int]:
    """Every file and when it was written."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def expected_files(
    names: Sequence[str] = NAMES, maps: Sequence[str] = MAPS, labels: Sequence[str] = LABELS
) -> set[str]:
    found = {f"maps/{output}/{name}.npz" for output in maps for name in names}
    return (
        found
        | {f"labels/{output}/{name}.png" for output in labels for name in names}
        | {
            "label.json",
            "manifest.json",
        }
    )


def refusal(result: Result) -> str:
    assert result.returncode == 2, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0], result.stderr
    return errors[0]


def predicted(place: Path) -> tuple[Model, dict[str, Found]]:
    """What the last checkpoint says, without the command. The classes of the masks are those of the images."""
    model = load(place / "run/checkpoints/last", device="cpu", overrides=[f"dataset.root={place / 'shapes'}"])
    images = EvaluationImages(model.config.dataset, split="train")
    with torch.no_grad():
        found = {
            seen.sample.name: model.method.predict([seen.sample], LABELS, model.protocol)[0]
            for seen in (images[index] for index in range(len(images)))
        }
    return model, found


def test_every_file_is_there_and_holds_what_the_method_says(label: RunTool, place: Path) -> None:
    result = label()
    assert result.returncode == 0, result.stderr
    assert f"5 images, 5 of them now, in {place / 'labels'}: cam, propagated_cam, " in result.stdout
    assert set(files(place / "labels")) == expected_files()
    folder = MapFolder(place / "labels")
    assert (set(folder.map_outputs), set(folder.label_outputs)) == (set(MAPS), set(LABELS))
    folder.require_labels(NAMES, "refined_label")
    model, found = predicted(place)
    for name, size in zip(NAMES, SIZES, strict=True):
        folder.require_maps([name], output="cam")
        for output in MAPS:
            maps, seen = folder.read(name, output=output, size=size), found[name].outputs[output]
            assert torch.equal(maps.class_ids, seen.class_ids) and maps.has_background is (output != "cam")
            torch.testing.assert_close(maps.scores, seen.scores, atol=1e-5, rtol=0)
            # The label is what the maps in the file say, at the image's size.
            own = maps.label_above(0.45, size) if output == "cam" else maps.label(size)
            assert np.array_equal(folder.read_label(name, output), own[0].numpy())
        for output in ("refined_label", "propagated_label"):
            stored = folder.read_label(name, output)
            assert stored.shape == size
            assert (stored != found[name].outputs[output].numpy()).mean() < 2e-3
    with Image.open(place / "labels/labels/cam/image_0.png") as image:
        assert image.mode == "P" and image.getpalette() == voc_palette().flatten().tolist()
    assert {1, 2, 3} <= {int(value) for name in NAMES for value in np.unique(folder.read_label(name, "cam"))}
    facts = json.loads((place / "labels/label.json").read_text())
    assert (facts["method"], facts["step"], facts["split"], facts["class_names"]) == (
        "afa", 1, "train", list(CLASS_NAMES),
    )  # fmt: skip
    assert str(place) not in json.dumps(facts), "a folder that is moved stays what it is"
    manifest = json.loads((place / "labels/manifest.json").read_text())
    assert (manifest["images"], manifest["failures"], set(manifest["outputs"])) == (5, [], set(LABELS))
    assert model.step == 1


def test_started_again_it_does_what_is_missing(label: RunTool, place: Path) -> None:
    options = ("--outputs", "cam", "segmentation")
    assert label(*options).returncode == 0
    before = files(place / "labels")
    result = label(*options)
    assert result.returncode == 0 and "5 images, 0 of them now" in result.stdout
    assert files(place / "labels") == before
    content = {path: (place / "labels" / path).read_bytes() for path in before}
    gone = ["maps/cam/image_1.npz", "labels/segmentation/image_3.png", "manifest.json"]
    for path in gone:
        (place / "labels" / path).unlink()
    (place / "labels/maps/cam/.image_1.npz.abc.tmp").write_bytes(b"of a killed process")
    # The data set may lie elsewhere now.
    (place / "shapes").rename(place / "moved")
    result = label(*options, f"dataset.root={place / 'moved'}")
    assert result.returncode == 0, result.stderr
    assert "5 images, 2 of them now" in result.stdout
    after = files(place / "labels")
    assert set(before) <= set(after)
    kept = {path for path in before if "image_1" not in path and "image_3" not in path and path not in gone}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    for path in set(content) - {"manifest.json"}:
        assert (place / "labels" / path).read_bytes() == content[path], path


def test_a_folder_of_a_version_without_some_settings_is_gone_on_with(label: RunTool, place: Path) -> None:
    assert label("--outputs", "cam", "--no-maps").returncode == 0
    facts = place / "labels/label.json"
    written = json.loads(facts.read_text())

    def without_defaults(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        return {
            key: without_defaults(value, defaults[key]) if isinstance(value, dict) else value
            for key, value in tree.items()
            if isinstance(value, dict) or value != defaults[key]
        }

    left = without_defaults(written["config"], json.loads(json.dumps(config_to_dict(AFAConfig()))))
    assert "token_stride" in written["config"]["model"] and "token_stride" not in left["model"]
    facts.write_text(json.dumps({**written, "config": left}))
    again = label("--outputs", "cam", "--no-maps")
    assert again.returncode == 0 and "5 images, 0 of them now" in again.stdout, again.stderr
    line = refusal(label("--outputs", "cam", "--no-maps", "--precision", "bf16"))
    assert "config.test.precision: float32 -> bf16" in line and "token_stride" not in line


def test_images_in_batches_and_other_choices(label: RunTool, place: Path) -> None:
    assert label("--outputs", "segmentation", "--no-maps", "--limit", 2).returncode == 0
    assert set(files(place / "labels")) == expected_files(NAMES[:2], maps=(), labels=["segmentation"])
    for name, options in {"alone": (), "together": ("test.batch_size=3", "--compress")}.items():
        result = label("--outputs", "propagated_cam", *options, output=name)
        assert result.returncode == 0, result.stderr
    alone, together = MapFolder(place / "alone"), MapFolder(place / "together")
    for name in NAMES:
        torch.testing.assert_close(
            alone.read(name, output="propagated_cam").scores, together.read(name, output="propagated_cam").scores,
            atol=1e-4, rtol=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run=run/checkpoints/best"], ["weights_sha256", "step: 1 -> 2"]),
        (["cam.background=0.3"], ["config.cam.background: 0.45 -> 0.3", "outputs.cam.threshold"]),
        (["--limit", "3"], ["limit: None -> 3"]),
        (["--outputs", "cam"], ["outputs.segmentation"]),
    ],
)
def test_other_labels_are_not_mixed_in(label: RunTool, place: Path, arguments: list[str], said: list[str]) -> None:
    options = ("--outputs", "cam", "segmentation", "--no-maps")
    assert label(*options).returncode == 0
    before = files(place / "labels")
    run = next((text.removeprefix("run=") for text in arguments if text.startswith("run=")), "run")
    given = [text for text in arguments if not text.startswith("run=")]
    line = refusal(label(*options, *given, run=run))  # type: ignore[call-arg]
    assert "holds labels made otherwise" in line and "name another --output" in line
    for part in said:
        assert part in line
    assert files(place / "labels") == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--outputs", "crf"], "--outputs: 'crf' is none of cam, propagated_cam, "),
        (["--outputs", "test.scales=[1]"], "--outputs: expected at least one argument"),
        (["--outputs", "affinity"], "--outputs: 'affinity' is none of cam"),
        (["--split", "nothing"], "nothing.txt"),
        (["--limit", "0"], "--limit 0: at least 1 image"),
        (["--workers", "-1"], "--workers -1 is below 0"),
        (["train.steps=5"], "train is fixed by the checkpoint"),
        (["--output", "/proc/labels"], "/proc/labels cannot be written"),
    ],
)
def test_mistakes_are_one_line(label: RunTool, place: Path, arguments: list[str], said: str) -> None:
    assert said in refusal(label(*arguments))
    assert not (place / "labels").exists()


def test_a_foreign_folder_is_left_alone(label: RunTool, place: Path) -> None:
    (place / "labels").mkdir()
    (place / "labels/notes.txt").write_text("mine")
    line = refusal(label())
    assert "is not empty and holds no label.json: name a new folder as --output" in line
    assert set(files(place / "labels")) == {"notes.txt"}


def test_other_classes_are_refused(label: RunTool, place: Path) -> None:
    (place / "shapes/classes.txt").write_text("disc\nbar\nring\nstar\n")
    assert "the network knows 3 classes, the data set" in refusal(label())


def test_a_damaged_image_stops_or_is_listed(label: RunTool, place: Path) -> None:
    (place / "shapes/JPEGImages/image_2.jpg").write_bytes(b"damaged")
    options = ("--outputs", "segmentation", "--no-maps")
    line = refusal(label(*options))
    assert "image_2.jpg" in line and "dataset.bad_image=skip goes on" in line
    (place / "labels").rename(place / "labels0")
    done = [path for path in files(place / "labels0") if path.endswith(".png")]
    assert len(done) == 2 and "image_2" not in str(done)
    for workers, written in ((0, 2), (1, 4)):
        result = label(*options, "dataset.bad_image=skip", "--workers", workers, output=f"labels{workers}")
        assert result.returncode == 1, result.stderr
        assert f"4 images, {written} of them now" in result.stdout
        assert "Traceback" not in result.stderr and "image_2.jpg" in result.stderr.splitlines()[-1]
        rest = [name for name in NAMES if name != "image_2"]
        assert set(files(place / f"labels{workers}")) == expected_files(rest, maps=(), labels=["segmentation"])
        manifest = json.loads((place / f"labels{workers}/manifest.json").read_text())
        assert manifest["images"] == 4
        (failure,) = manifest["failures"]
        assert "image_2.jpg" in failure


def test_classes_come_from_labels_from_masks_or_from_the_classifier(label: RunTool, place: Path) -> None:
    def classes(output: str) -> list[list[int]]:
        folder = MapFolder(place / output)
        return [folder.read(name).class_ids[0].tolist() for name in NAMES]

    options = ("--outputs", "cam")
    assert label(*options, output="of_masks").returncode == 0
    assert classes("of_masks") == [[1, 2], [2, 3], [1, 3], [1, 2], [2, 3]]
    (place / "labels.json").write_text(json.dumps({name: ["ring"] for name in NAMES}))
    file = f"dataset.labels={place / 'labels.json'}"
    assert label(*options, file, output="of_file").returncode == 0
    assert classes("of_file") == [[3]] * 5
    (place / "labels.json").write_text(json.dumps({name: ["ring"] for name in NAMES[:3]}))
    line = refusal(label(*options, file, output="of_part"))
    assert "has no labels for 2 of the 5 images of 'train', the first is 'image_3'" in line
    assert not (place / "of_part").exists()
    shutil.rmtree(place / "shapes/SegmentationClass")
    result = label(*options, output="of_classifier")
    assert result.returncode == 0, result.stderr
    assert all(ids for ids in classes("of_classifier"))


class TwoProcesses:
    """One of two processes that share the work; what they have in common, this test's loop does."""

    world_size = 2

    def __init__(self, rank: int) -> None:
        self.rank, self.is_main = rank, rank == 0

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def on_main(self, function: Any) -> Any:
        return function()


def test_processes_share_the_images_out(place: Path) -> None:
    model = load(place / "run", device="cpu", overrides=[f"dataset.root={place / 'shapes'}"])
    outputs = [model.method.output("segmentation")]
    work = partial(
        label_split, model, split="train", output=place / "labels", outputs=outputs, maps=True, compress=False,
        limit=None, workers=0,
    )  # fmt: skip
    assert [work(processes=TwoProcesses(rank)).written for rank in (0, 1)] == [3, 2]
    assert set(files(place / "labels")) == expected_files(maps=["segmentation"], labels=["segmentation"])


def test_the_protocol_is_that_of_the_test_settings(place: Path) -> None:
    model = load(place / "run", device="cpu", overrides=["test.scales=[1, 0.5]", "test.long_side=48"])
    assert model.protocol == replace(SegmentationProtocol(), long_side=48, scales=(1.0, 0.5))


def test_small_maps_for_looking_are_no_ones_input(label: RunTool, place: Path, run_tool: RunTool) -> None:
    small = ("--outputs", "cam", "--maps-size", 16, "--maps-bits", 8)
    assert label(*small, output="small").returncode == 0
    assert label("--outputs", "cam", output="whole").returncode == 0
    small_folder, whole = MapFolder(place / "small"), MapFolder(place / "whole")
    for name, size in zip(NAMES, SIZES, strict=True):
        few, many = (folder.read(name, size=size) for folder in (small_folder, whole))
        assert max(few.size) == 16 and many.size == size
        shrunk = torch.nn.functional.interpolate(many.scores, size=few.size, mode="area")
        torch.testing.assert_close(few.scores, shrunk, atol=1 / 500, rtol=0)
        # Labels are made of the whole maps.
        assert np.array_equal(small_folder.read_label(name), whole.read_label(name))
    assert small_folder.bits == 8 and whole.bits == 32
    assert json.loads((place / "small/label.json").read_text())["maps"] == {"long_side": 16, "bits": 8}
    assert "maps" not in json.loads((place / "whole/label.json").read_text())
    again = label("--outputs", "cam", output="small")
    assert again.returncode == 2 and "holds labels made otherwise" in again.stderr
    config = config_from_dict({}, overrides=[f"dataset.root={place / 'shapes'}"]).dataset
    for folder, refused in (("small", True), ("whole", False)):
        config.maps = str(place / folder)
        if refused:
            with pytest.raises(UserError, match="have 8 bits, which are for viewing only"):
                Inputs(config, ["maps/cam"], CLASS_NAMES)
        else:
            Inputs(config, ["maps/cam"], CLASS_NAMES)
    scored = run_tool("score.py", "maps", place / "small", f"dataset.root={place / 'shapes'}", "--split", "train")
    assert scored.returncode == 0 and "have 8 bits: a score is off by up to half a step" in scored.stderr
    assert label("--maps-size", -1, output="other").returncode == 2 and not (place / "other").exists()
