from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import ForkedTool
from scored import CLASS_NAMES
from torch import Tensor

from afa.config import Config, config_to_dict
from afa.data.loader import evaluation_loader
from afa.errors import UserError
from afa.evaluation.evaluate import Validator, evaluate
from afa.evaluation.metrics import ConfusionMatrix
from afa.evaluation.predict import multi_scale_logits
from afa.methods.pseudo_labels import plain_label, propagate_cams
from afa.models import AFANet
from afa.ops.cam import multi_scale_cam, resize

NAMES = ["background", *CLASS_NAMES]


def table_of(network: AFANet, config: Config, **options) -> dict:
    loader = evaluation_loader(config.dataset)
    return evaluate(network, loader, config=config, class_names=CLASS_NAMES, device="cpu", **options)


def test_validation_equals_a_plain_computation(network: AFANet, config: Config) -> None:
    table = Validator(config, CLASS_NAMES, device="cpu", workers=0)(network)
    network.eval()
    matrices = {row: ConfusionMatrix(4) for row in ("cam", "propagated_cam", "segmentation")}
    f1 = []
    with torch.no_grad():
        for sample in evaluation_loader(config.dataset):
            image, labels, mask = sample["image"][None], sample["class_labels"][None], sample["label"]
            size = mask.shape
            output = network(image)
            cams = multi_scale_cam(network, image, config.cam.scales).cams
            matrices["cam"].update(mask, plain_label(cams, labels, 0.45)[0])
            grid = output.cam.shape[-2:]
            scores = propagate_cams(cams, output.affinity, grid, labels, background=0.35, radius=2)
            matrices["propagated_cam"].update(mask, resize(scores, size).argmax(dim=1)[0])
            matrices["segmentation"].update(mask, resize(output.seg_logits, size).argmax(dim=1)[0])
            predicted = (output.cls_logits[0] > 0).tolist()
            truth = (labels[0] > 0).tolist()
            hits = sum(p and t for p, t in zip(predicted, truth, strict=True))
            total = sum(predicted) + sum(truth)
            f1.append(2 * hits / total if total else 0.0)
    assert set(table) == {"cam", "propagated_cam", "segmentation", "cls_f1", "images"}
    for row, matrix in matrices.items():
        expected = matrix.scores(NAMES)
        assert table[row]["miou"] == pytest.approx(expected["miou"], abs=2e-3), row
        assert table[row]["pacc"] == pytest.approx(expected["pacc"], abs=2e-3), row
        assert list(table[row]["iou"]) == NAMES
    assert table["cls_f1"] == pytest.approx(np.mean(f1), abs=1e-9)
    assert table["images"] == 5
    # The rows differ: nothing is copied from one to the other.
    assert len({table[row]["pacc"] for row in matrices}) == 3


def test_validation_leaves_no_trace(network: AFANet, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    validator = Validator(config, CLASS_NAMES, device="cpu", workers=1)
    network.train()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = torch.get_rng_state()
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    first = validator(network)
    second = validator(network)
    assert first == second
    assert network.training
    assert network.decoder.training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.backends.cudnn.benchmark
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    network.eval()
    validator(network)
    assert not network.training


def test_mode_is_restored_after_an_error(network: AFANet, config: Config) -> None:
    mask = Path(config.dataset.root) / "SegmentationClass/image_3.png"
    mask.write_bytes(b"")
    network.train()
    with pytest.raises(UserError, match=r"image_3\.png"):
        table_of(network, config)
    assert network.training


def test_nothing_to_score_is_no_score_of_zero(network: AFANet, config: Config) -> None:
    for path in (Path(config.dataset.root) / "SegmentationClass").iterdir():
        path.write_bytes(b"")
    config.dataset.bad_image = "skip"
    with pytest.raises(UserError, match="no image could be scored"):
        table_of(network, config)


def test_test_protocol_concerns_the_segmentation_only(network: AFANet, config: Config) -> None:
    network.eval()
    training, test = table_of(network, config), table_of(network, config, test=config.test)
    assert test["cam"] == training["cam"]
    assert test["propagated_cam"]["miou"] == pytest.approx(training["propagated_cam"]["miou"], abs=2e-3)
    matrix = ConfusionMatrix(4)
    for sample in evaluation_loader(config.dataset):
        image, size = sample["image"][None], sample["label"].shape
        ratio = 64 / max(size)
        resized = resize(image, (int(size[0] * ratio), int(size[1] * ratio)))
        logits = multi_scale_logits(network, resized, config.test.scales)
        matrix.update(sample["label"], resize(logits, size).argmax(dim=1)[0])
    assert test["segmentation"]["pacc"] == pytest.approx(matrix.scores(NAMES)["pacc"], abs=1e-3)
    assert test["segmentation"] != training["segmentation"]


def test_rows_that_nobody_wants_cost_nothing(network: AFANet, config: Config) -> None:
    passes: list[int] = []
    network.encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    table = table_of(network, config, cams=False)
    assert set(table) == {"segmentation", "cls_f1", "images"}
    assert sum(passes) == 5
    config = replace(config, validation=replace(config.validation, cam=False))
    assert "cam" not in Validator(config, CLASS_NAMES, device="cpu", workers=0)(network)


def test_refinement_sees_image_and_probabilities(network: AFANet, config: Config) -> None:
    seen = []

    def first_class(image: Tensor, probabilities: Tensor) -> Tensor:
        assert image.dtype == torch.uint8
        assert image.shape[1:] == probabilities.shape[2:]
        assert image.shape[0] == 3
        assert probabilities.shape[:2] == (1, 4)
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones_like(probabilities[:, 0]))
        seen.append(tuple(image.shape[1:]))
        one = torch.zeros_like(probabilities)
        one[:, 1] = 1
        return one

    table = table_of(network, config, cams=False, refinement=first_class)
    assert sorted(seen) == sorted([(40, 56), (64, 48), (33, 47), (50, 50), (48, 64)])
    iou = table["segmentation_crf"]["iou"]
    assert iou["disc"] > 0
    assert iou["background"] == iou["bar"] == iou["ring"] == 0
    unchanged = table_of(network, config, cams=False, refinement=lambda image, probabilities: probabilities)
    assert unchanged["segmentation_crf"] == unchanged["segmentation"]


def test_an_error_in_the_refinement_is_not_lost(network: AFANet, config: Config) -> None:
    def broken(image: Tensor, probabilities: Tensor) -> Tensor:
        raise RuntimeError("no lattice")

    with pytest.raises(RuntimeError, match="no lattice"):
        table_of(network, config, cams=False, refinement=broken)


PROCESS = """
import json, os, sys
import torch, torch.distributed as dist
from afa.config import config_from_dict
from afa.evaluation.evaluate import Validator
from scored import CLASS_NAMES, small_network

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
config = config_from_dict(json.load(open(f"{folder}/config.json")))
network = small_network(config.model)
if rank == 1:  # each process gathers its own BatchNorm statistics in training
    network.decoder.linear_fuse.bn.running_mean.add_(1)
table = Validator(config, CLASS_NAMES, device="cpu", rank=rank, world_size=2, workers=0)(network)
json.dump(table, open(f"{folder}/table_{rank}.json", "w"))
dist.destroy_process_group()
"""


def test_two_processes_give_the_same_table(network: AFANet, config: Config, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    (tmp_path / "process.py").write_text(PROCESS)
    for process in [ForkedTool(tmp_path / "process.py", rank, tmp_path) for rank in (0, 1)]:
        done = process.wait()
        assert done.returncode == 0, done.stderr
    tables = [json.loads((tmp_path / f"table_{rank}.json").read_text()) for rank in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = Validator(config, CLASS_NAMES, device="cpu", workers=0)(network)
    torch.set_num_threads(threads)
    assert tables[0] == tables[1] == json.loads(json.dumps(alone))
