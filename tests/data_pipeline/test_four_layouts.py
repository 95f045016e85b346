"""A few steps of training and an evaluation on each layout, from the sources to the table, by the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from data_sources import make_coco_source, make_folder_source, make_voc_source, training_images

SETTINGS = """
augmentation: {{crop_size: 64}}
model: {{encoder: custom, widths: [8, 16, 20, 32], depths: [1, 1, 1, 2], heads: [1, 2, 5, 8], decoder_width: 16}}
affinity: {{radius: 2}}
par: {{iterations: 1, dilations: [1, 2]}}
schedule: {{cls_until: 0, refined_until: 1}}
optimiser: {{freeze_norms: false, warmup_steps: 1}}
train: {{output: {output}, steps: 3, batch_size: 2, workers: 1, device: cpu, log_every: 1, pictures_every: 0}}
test: {{long_side: 64}}
dataset: {dataset}
"""


def prepare(layout: str, root: Path, run_tool) -> dict[str, str]:
    """Make a data set of a layout by its real tools; returns the settings that name it."""
    if layout == "voc":
        run_tool("prepare_voc.py", make_voc_source(root))
        return {"type": "voc", "root": str(root)}
    if layout == "coco":
        run_tool("prepare_coco.py", make_coco_source(root))
        return {"type": "coco", "root": str(root), "train_split": "train"}
    if layout == "folder":
        make_folder_source(root)
        run_tool("make_labels.py", root / "class_labels.csv", "--masks", root / "masks")
        return {"type": "folder", "root": str(root), "train_split": "train"}
    run_tool("make_shapes.py", root, "--train", 6, "--val", 2, "--size", 64)
    return {"type": "voc", "root": str(root), "train_split": "train"}


@pytest.mark.parametrize("layout", ["voc", "coco", "folder", "shapes"])
def test_training_and_evaluation(tmp_path: Path, run_tool, layout: str) -> None:
    dataset = prepare(layout, tmp_path / "data", run_tool)
    config, output = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(SETTINGS.format(output=output, dataset=json.dumps(dataset)))
    run_tool("check_data.py", config)
    run_tool("train.py", config)
    report = tmp_path / "evaluation.json"
    run_tool("eval.py", output, "--device", "cpu", "--workers", 0, "--output", report)
    (entry,) = json.loads(report.read_text())["evaluations"]
    table = entry["table"]
    for row in ("cam", "propagated_cam", "segmentation"):
        assert 0 <= table[row]["miou"] <= 1
    names = set(table["segmentation"]["iou"])
    expected = {"voc": "pottedplant", "coco": "stop sign", "folder": "red panda", "shapes": "triangle"}
    assert expected[layout] in names
    assert entry["protocol"]["step"] == 3


def test_own_data_without_masks_is_trained_on_and_not_scored(tmp_path: Path, run_tool) -> None:
    root = tmp_path / "data"
    dataset = prepare("folder", root, run_tool)
    shutil.rmtree(root / "masks")
    config, output = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(SETTINGS.format(output=output, dataset=json.dumps(dataset)))
    assert "without validation" in run_tool("train.py", config).stderr
    assert (output / "checkpoints/last/weights.safetensors").is_file()
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    run_tool("infer.py", output, root / "images/val", "--output", tmp_path / "out", "--device", "cpu")
    assert "masks" in run_tool("eval.py", output, "--device", "cpu", code=2).stderr


def test_labels_from_class_folders(tmp_path: Path, run_tool) -> None:
    root = make_folder_source(tmp_path / "mine")
    (root / "classes.txt").unlink()
    for number, name in enumerate(sorted(path.name for path in (root / "images/train").iterdir())):
        target = root / "images/train" / ("cat", "red panda")[number % 2]
        target.mkdir(exist_ok=True)
        shutil.move(root / "images/train" / name, target / name)
    shutil.rmtree(root / "images/val")
    done = run_tool("make_labels.py", root / "class_labels.json", "--folders", root / "images")
    assert "5 images, 2 classes" in done.stdout
    assert (root / "classes.txt").read_text().splitlines() == ["cat", "red panda"]
    labels = json.loads((root / "class_labels.json").read_text())
    assert labels["train/cat/picture 0"] == ["cat"] and labels["train/red panda/picture 1"] == ["red panda"]
    from afa.config import DatasetConfig

    config = DatasetConfig(type="folder", root=str(root), train_split="train")
    assert training_images(config).class_labels.sum(0).tolist() == [3, 2]


def test_mistakes_when_making_labels(tmp_path: Path, run_tool) -> None:
    root = make_folder_source(tmp_path / "mine")
    output = root / "class_labels.json"
    (root / "classes.txt").write_text("cat\n")
    error = run_tool("make_labels.py", output, "--masks", root / "masks", code=2).stderr
    assert "picture 1.png" in error and "value 2" in error
    (root / "classes.txt").unlink()
    assert "classes.txt" in run_tool("make_labels.py", output, "--masks", root / "masks", code=2).stderr
    (root / "images/loose.jpg").write_bytes(b"")
    assert "loose.jpg" in run_tool("make_labels.py", output, "--folders", root / "images", code=2).stderr
    for folder, suffix in (("images/same", "jpg"), ("images/same", "png")):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f"a.{suffix}").write_bytes(b"")
    (root / "images/loose.jpg").unlink()
    error = run_tool("make_labels.py", output, "--folders", root / "images", code=2).stderr
    assert "same/a.png" in error and "same/a.jpg" in error
    assert ".csv" in run_tool("make_labels.py", root / "labels.xlsx", "--masks", root / "masks", code=2).stderr
    assert "does not exist" in run_tool("make_labels.py", output, "--folders", root / "nothing", code=2).stderr
    assert not output.exists() and not (root / "classes.txt").exists()
