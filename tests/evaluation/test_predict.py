from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afa.config import AffinityConfig, CamConfig, ModelConfig, TestConfig
from afa.data.transforms import normalise
from afa.evaluation.predict import (
    ImagePrediction,
    arg_max_at,
    choose_classes,
    long_side_size,
    multi_scale_logits,
    predict_images,
)
from afa.methods.pseudo_labels import plain_label, propagate_cams
from afa.models import AFANet, build_network
from afa.ops.cam import multi_scale_cam, resize

GOLDEN = Path(__file__).parents[1] / "data" / "test_time.npz"
SMALL = ModelConfig(
    encoder="custom",
    widths=[8, 16, 20, 32],
    depths=[1, 1, 1, 2],
    heads=[1, 2, 5, 8],
    decoder_width=16,
    drop_path=0.1,
)


@pytest.fixture
def network() -> AFANet:
    torch.manual_seed(3)
    return build_network(SMALL, 6).eval()


def random_image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def predict_one(network: AFANet, image: Tensor, class_labels: Tensor | None, **wanted: Any) -> ImagePrediction:
    return predict_images(network, image, None if class_labels is None else class_labels[None], **wanted)[0]


def golden() -> tuple[AFANet, Tensor, dict[str, np.ndarray]]:
    data = dict(np.load(GOLDEN))
    network = build_network(SMALL, 6)
    state = {key.removeprefix("state/"): torch.from_numpy(data[key]) for key in data if key.startswith("state/")}
    network.load_state_dict(state)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return network.eval(), normalise(data["images_uint8"][0].transpose(1, 2, 0), mean, std)[None], data


def test_long_side_and_scales_agree_with_the_released_program() -> None:
    network, image, data = golden()
    size = long_side_size(image.shape[-2:], int(data["resize_long"]))
    assert size == (96, 128)
    resized = resize(image, size)
    single = multi_scale_logits(network, resized, [1.0], mirror=False)
    multi = multi_scale_logits(network, resized, data["scales"].tolist(), mirror=True)
    assert np.abs(single.numpy() - data["single_scale_logits"]).max() < 1e-4
    assert np.abs(multi.numpy() - data["multi_scale_logits"]).max() < 1e-4


def test_predict_image_follows_the_test_protocol() -> None:
    network, image, data = golden()
    test = TestConfig(long_side=128, scales=[0.5, 1.0, 0.75])
    seen = predict_one(network, image, torch.ones(5), cam=CamConfig(), test=test)
    assert seen.seg_logits is not None
    assert np.abs(seen.seg_logits.numpy() - data["multi_scale_logits"]).max() < 1e-4


@pytest.mark.parametrize("mirror", [True, False])
def test_shared_passes_change_nothing(network: AFANet, mirror: bool) -> None:
    image = random_image(48, 64)
    test = TestConfig(long_side=0, scales=[1.0, 0.5, 0.75], mirror=mirror)
    seen = predict_one(network, image, torch.ones(5), cam=CamConfig(), test=test, largest_affinity=True)
    alone = multi_scale_logits(network, image, test.scales, mirror)
    reference = multi_scale_cam(network, image)
    assert seen.seg_logits is not None
    assert seen.cams is not None
    assert seen.largest_affinity is not None
    torch.testing.assert_close(seen.seg_logits, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.cams, reference.cams, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.largest_affinity, reference.affinity, atol=1e-5, rtol=0)
    assert seen.largest_grid == reference.token_grid == (5, 6)


def test_no_pass_runs_twice(network: AFANet) -> None:
    images = []
    network.encoder.register_forward_pre_hook(lambda _, args: images.extend(args[0]))
    predict_one(network, random_image(48, 64), torch.ones(5), cam=CamConfig(), test=TestConfig(long_side=0))
    # CAM at 1, 0.5, 1.5 and segmentation at 1, 0.5, 0.75, each with its mirror image: four sizes.
    assert len(images) == 8
    unique = {image.numpy().tobytes() for image in images}
    assert len(unique) == 8


def test_only_some_classes_count(network: AFANet) -> None:
    image = random_image(50, 70)
    class_labels = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    settings = AffinityConfig(radius=2)
    seen = predict_one(network, image, class_labels, cam=CamConfig(), test=None)
    cams = multi_scale_cam(network, image).cams
    first = network(image)
    assert first.affinity is not None
    expected = plain_label(resize(cams, (40, 60)), class_labels[None], 0.45)[0]
    assert (seen.cam_label((40, 60), 0.45).long() != expected).float().mean() < 1e-3
    scores = propagate_cams(cams, first.affinity, (4, 5), class_labels[None], background=0.35, radius=2)
    expected = resize(scores, (40, 60)).argmax(dim=1)[0]
    found = seen.propagated_label((40, 60), 0.35, settings).long()
    assert (found != expected).float().mean() < 1e-3
    assert set(found.unique().tolist()) <= {0, 2, 5}
    assert seen.classes.tolist() == [1, 4]


def test_single_forward_is_the_plain_network(network: AFANet) -> None:
    image = random_image(33, 47)
    seen = predict_one(network, image, None)
    output = network(image)
    assert seen.seg_logits is not None
    assert output.seg_logits is not None
    torch.testing.assert_close(seen.cls_logits, output.cls_logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.seg_logits, output.seg_logits, atol=1e-5, rtol=0)
    assert torch.equal(seen.segmentation((33, 47)).long(), resize(seen.seg_logits, (33, 47)).argmax(dim=1)[0])
    assert seen.cams is None


def test_images_of_a_batch_are_as_alone(network: AFANet) -> None:
    images = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(2))
    class_labels = torch.tensor([[0.0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    test, settings = TestConfig(long_side=0, scales=[1.0, 0.5, 0.75]), AffinityConfig(radius=2)
    for known in (class_labels, None):
        together = predict_images(network, images, known, cam=CamConfig(), test=test, largest_affinity=True)
        for index, seen in enumerate(together):
            labels = None if known is None else known[index]
            alone = predict_one(
                network, images[index : index + 1], labels, cam=CamConfig(), test=test, largest_affinity=True
            )
            for name in ("cls_logits", "classes", "class_labels", "cams", "affinity", "largest_affinity", "seg_logits"):
                torch.testing.assert_close(getattr(seen, name), getattr(alone, name), atol=1e-4, rtol=0, msg=name)
            assert (seen.token_grid, seen.largest_grid) == (alone.token_grid, alone.largest_grid)
            assert torch.equal(seen.cam_label((48, 64), 0.45), alone.cam_label((48, 64), 0.45))
            walked = [one.propagated_label((48, 64), 0.35, settings) for one in (seen, alone)]
            assert (walked[0] != walked[1]).float().mean() < 1e-3
            segmented = [one.segmentation((48, 64)) for one in (seen, alone)]
            assert (segmented[0] != segmented[1]).float().mean() < 1e-3


def test_a_batch_runs_as_many_passes_as_one_image(network: AFANet) -> None:
    passes: list[int] = []
    network.encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    predict_images(network, torch.randn(4, 3, 48, 64), torch.ones(4, 5), cam=CamConfig(), test=TestConfig(long_side=0))
    # Scale 1, its mirror images, the other CAM scales with mirrors, segmentation at 0.75 with mirrors.
    assert passes == [4, 4, 8, 8, 8]


def test_image_without_any_class_is_background(network: AFANet) -> None:
    seen = predict_one(network, random_image(40, 40), torch.zeros(5), cam=CamConfig())
    assert not seen.cam_label((40, 40), 0.45).any()
    assert not seen.propagated_label((40, 40), 0.35, AffinityConfig()).any()


@pytest.mark.parametrize("size", [(20, 20), (3, 7), (17, 400)])
def test_tiny_and_narrow_images(network: AFANet, size: tuple[int, int]) -> None:
    seen = predict_one(network, random_image(*size), None, cam=CamConfig(), test=TestConfig(long_side=0))
    assert seen.cams is not None
    assert seen.cams.shape[-2:] == size
    assert seen.segmentation(size).shape == size
    assert seen.propagated_label(size, 0.35, AffinityConfig()).shape == size


def test_choose_classes_takes_at_least_the_best() -> None:
    chosen = choose_classes(torch.tensor([[-3.0, -1.0, -2.0], [0.5, -1.0, 2.0]]))
    assert chosen.tolist() == [[0, 1, 0], [1, 0, 1]]


def test_arg_max_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(2, 7, 5, 6)
    scores[:, 3] = scores[:, 2]
    whole = resize(scores, (31, 20)).argmax(dim=1)
    monkeypatch.setattr("afa.evaluation.predict.VALUES_AT_ONCE", 2 * 2 * 31 * 20)
    assert torch.equal(arg_max_at(scores, (31, 20)), whole)


def test_long_side() -> None:
    assert long_side_size((375, 500), 512) == (384, 512)
    assert long_side_size((500, 334), 512) == (512, 342)
    assert long_side_size((4000, 10), 512) == (512, 1)
    assert long_side_size((4000, 10), 512, smallest=4) == (512, 4)
    assert long_side_size((30, 40), 0) == (30, 40)
