from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import ForkedTool
from scored import CLASS_NAMES
from torch import Tensor

from afa.config import config_to_dict
from afa.data.loader import evaluation_loader
from afa.data.samples import EvaluationSample
from afa.data.transforms import normalise
from afa.errors import UserError
from afa.evaluation.metrics import ConfusionMatrix
from afa.maps import present_classes
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.methods.base import SegmentationProtocol
from afa.methods.segmentation import multi_scale_logits
from afa.ops.cam import multi_scale_cam, resize
from afa.ops.random_walk import PairAffinity
from afa.prediction.evaluate import Evaluation, EvaluationStopped, evaluate

NAMES = ["background", *CLASS_NAMES]
ROWS = ("cam", "propagated_cam", "segmentation")


def evaluation_of(method: AFA, config: AFAConfig, **options: Any) -> Evaluation:
    return evaluate(method, evaluation_loader(config.dataset), class_names=CLASS_NAMES, device="cpu", **options)


def table_of(method: AFA, config: AFAConfig, **options: Any) -> dict[str, Any]:
    return evaluation_of(method, config, **options).table


def network_image(seen: EvaluationSample, config: AFAConfig) -> Tensor:
    return normalise(seen.sample.image, config.dataset.image_mean, config.dataset.image_std)[None]


def test_validation_equals_a_plain_computation(method: AFA, config: AFAConfig) -> None:
    network = method.network
    table = table_of(method, config)
    network.eval()
    matrices = {row: ConfusionMatrix(4) for row in ROWS}
    f1 = []
    with torch.no_grad():
        for seen in evaluation_loader(config.dataset):
            image, mask = network_image(seen, config), seen.label
            labels = torch.from_numpy(seen.sample.class_labels)[None]
            size = mask.shape
            output = network(image)
            cams = multi_scale_cam(
                network.cam, image, config.cam.scales, epsilon=config.cam.epsilon, with_affinity=False
            ).cams
            scores, winner = (cams * labels[:, :, None, None]).max(dim=1)
            matrices["cam"].update(mask, torch.where(scores <= 0.45, 0, winner + 1)[0])
            present = present_classes(labels)
            affinity = PairAffinity(output.affinity)
            walked = method.labels.walk(present.maps(present.gather(cams)), affinity, 0.35).dense(4)
            matrices["propagated_cam"].update(mask, resize(walked, size).argmax(dim=1)[0])
            matrices["segmentation"].update(mask, resize(output.seg_logits, size).argmax(dim=1)[0])
            predicted = (output.cls_logits[0] > 0).tolist()
            truth = (labels[0] > 0).tolist()
            hits = sum(p and t for p, t in zip(predicted, truth, strict=True))
            total = sum(predicted) + sum(truth)
            f1.append(2 * hits / total if total else 0.0)
    assert set(table) == {*ROWS, "cls_f1", "images"}
    for row, matrix in matrices.items():
        expected = matrix.scores(NAMES)
        assert table[row]["miou"] == pytest.approx(expected["miou"], abs=2e-3), row
        assert table[row]["pacc"] == pytest.approx(expected["pacc"], abs=2e-3), row
        assert list(table[row]["iou"]) == NAMES
    assert table["cls_f1"] == pytest.approx(np.mean(f1), abs=1e-9)
    assert table["images"] == 5
    # The rows differ: nothing is copied from one to the other.
    assert len({table[row]["pacc"] for row in matrices}) == 3


def test_validation_leaves_no_trace(method: AFA, config: AFAConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, network = evaluation_loader(config.dataset, workers=1), method.network
    validate = partial(evaluate, method, loader, class_names=CLASS_NAMES, device="cpu")
    network.train()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = torch.get_rng_state()
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    first = validate().table
    second = validate().table
    assert first == second
    assert network.training
    assert network.decoder.training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.backends.cudnn.benchmark
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    network.eval()
    validate()
    assert not network.training


def test_mode_is_restored_after_an_error(method: AFA, config: AFAConfig) -> None:
    mask = Path(config.dataset.root) / "SegmentationClass/image_3.png"
    mask.write_bytes(b"")
    method.network.train()
    with pytest.raises(UserError, match=r"image_3\.png"):
        table_of(method, config)
    assert method.network.training


def test_nothing_to_score_is_no_score_of_zero(method: AFA, config: AFAConfig) -> None:
    for path in (Path(config.dataset.root) / "SegmentationClass").iterdir():
        path.write_bytes(b"")
    config.dataset.bad_image = "skip"
    with pytest.raises(UserError, match="no image could be scored"):
        table_of(method, config)


def test_test_protocol_concerns_the_segmentation_only(method: AFA, config: AFAConfig) -> None:
    method.network.eval()
    scales = tuple(config.test.scales)
    training = table_of(method, config)
    test = table_of(method, config, protocol=SegmentationProtocol(config.test.long_side, scales, mirror=True))
    assert test["cam"] == training["cam"]
    assert test["propagated_cam"]["miou"] == pytest.approx(training["propagated_cam"]["miou"], abs=2e-3)
    matrix = ConfusionMatrix(4)
    for seen in evaluation_loader(config.dataset):
        image, size = network_image(seen, config), seen.label.shape
        ratio = 64 / max(size)
        resized = resize(image, (int(size[0] * ratio), int(size[1] * ratio)))
        logits = multi_scale_logits(method.network.segment, resized, SegmentationProtocol(0, scales, mirror=True))
        matrix.update(seen.label, resize(logits, size).argmax(dim=1)[0])
    assert test["segmentation"]["pacc"] == pytest.approx(matrix.scores(NAMES)["pacc"], abs=1e-3)
    assert test["segmentation"] != training["segmentation"]


def test_rows_that_nobody_wants_cost_nothing(method: AFA, config: AFAConfig) -> None:
    passes: list[int] = []
    method.network.encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    table = table_of(method, config, outputs=["segmentation"])
    assert set(table) == {"segmentation", "cls_f1", "images"}
    assert sum(passes) == 5
    assert set(table_of(method, config, outputs=["segmentation"])) == set(table)


def test_each_image_is_counted_apart(method: AFA, config: AFAConfig) -> None:
    found = evaluation_of(method, config, outputs=["segmentation"], refinement=lambda image, scores: scores)
    for row in ("segmentation", "segmentation_crf"):
        counts = found.per_image[row]
        assert sorted(counts.names) == [f"image_{number}" for number in range(5)]
        assert counts.stacked().total().scores(NAMES) == found.table[row]


def test_a_stop_gives_the_evaluation_up(method: AFA, config: AFAConfig) -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    method.network.train()
    with pytest.raises(EvaluationStopped):
        table_of(method, config, outputs=["segmentation"], stop=stop)
    assert len(asked) == 3 and method.network.training


def test_refinement_sees_image_and_probabilities(method: AFA, config: AFAConfig) -> None:
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

    table = table_of(method, config, outputs=["segmentation"], refinement=first_class)
    assert sorted(seen) == sorted([(40, 56), (64, 48), (33, 47), (50, 50), (48, 64)])
    iou = table["segmentation_crf"]["iou"]
    assert iou["disc"] > 0
    assert iou["background"] == iou["bar"] == iou["ring"] == 0
    unchanged = table_of(
        method, config, outputs=["segmentation"], refinement=lambda image, probabilities: probabilities
    )
    assert unchanged["segmentation_crf"] == unchanged["segmentation"]


def test_with_known_classes_the_label_is_among_those_of_the_image(method: AFA, config: AFAConfig) -> None:
    table = table_of(method, config, outputs=[], known_classes=True)
    assert "segmentation" not in table
    matrix = ConfusionMatrix(4)
    method.network.eval()
    for seen in evaluation_loader(config.dataset):
        (found,) = method.predict([seen.sample], ["segmentation"], SegmentationProtocol())
        scores = resize(found.outputs["segmentation"].scores, seen.label.shape)[0]
        present = [0, *(seen.sample.class_labels.nonzero()[0] + 1)]
        matrix.update(seen.label, torch.tensor(present)[scores[present].argmax(dim=0)])
    assert table["segmentation_known"] == matrix.scores(NAMES)


def test_a_refinement_works_in_one_thread_whatever_others_set(method: AFA, config: AFAConfig) -> None:
    seen = []

    def refine(image: Tensor, probabilities: Tensor) -> Tensor:
        other = threading.Thread(target=torch.set_num_threads, args=(2,))  # as the threads that predict do
        other.start()
        other.join()
        seen.append(torch.get_num_threads())
        return probabilities

    before = torch.get_num_threads()
    try:
        table_of(method, config, outputs=[], refinement=refine)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1} and len(seen) == 5


def test_an_error_in_the_refinement_is_not_lost(method: AFA, config: AFAConfig) -> None:
    def broken(image: Tensor, probabilities: Tensor) -> Tensor:
        raise RuntimeError("no lattice")

    with pytest.raises(RuntimeError, match="no lattice"):
        table_of(method, config, outputs=["segmentation"], refinement=broken)


PROCESS = """
import json, os, sys
import torch, torch.distributed as dist
from afa.data.loader import evaluation_loader
from afa.methods import config_from_dict
from afa.prediction.evaluate import evaluate
from scored import CLASS_NAMES, small_method

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
config = config_from_dict(json.load(open(f"{folder}/config.json")))
method = small_method(config)
if rank == 1:  # each process gathers its own BatchNorm statistics in training
    method.network.decoder.linear_fuse.bn.running_mean.add_(1)
samples = evaluation_loader(config.dataset, rank=rank, world_size=2)
table = evaluate(method, samples, class_names=CLASS_NAMES, device="cpu").table
json.dump(table, open(f"{folder}/table_{rank}.json", "w"))
dist.destroy_process_group()
"""


def test_two_processes_give_the_same_table(method: AFA, config: AFAConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    (tmp_path / "process.py").write_text(PROCESS)
    for process in [ForkedTool(tmp_path / "process.py", rank, tmp_path) for rank in (0, 1)]:
        done = process.wait()
        assert done.returncode == 0, done.stderr
    tables = [json.loads((tmp_path / f"table_{rank}.json").read_text()) for rank in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = table_of(method, config)
    torch.set_num_threads(threads)
    assert tables[0] == tables[1] == json.loads(json.dumps(alone))
