from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from golden import golden_network, load_golden, normalised, small_config, small_method
from torch import Tensor

from afa.data.samples import Sample
from afa.data.transforms import normalise
from afa.maps import Maps, present_classes
from afa.methods.afa.labels import par_image
from afa.methods.afa.method import AFA
from afa.methods.base import Found, SegmentationProtocol
from afa.methods.classification import choose_classes
from afa.methods.segmentation import multi_scale_logits
from afa.ops.cam import MultiScaleCam, long_side_size, multi_scale_cam, resize
from afa.ops.random_walk import PairAffinity, TokenAffinity
from afa.ops.token_pairs import dense

SCALES = (1.0, 0.5, 0.75)
ALL = ("cam", "propagated_cam", "refined_label", "propagated_label", "affinity", "segmentation")
LABELLED = [name for name in ALL if name != "affinity"]
EVERY_CLASS = [1.0] * 5


@pytest.fixture
def method() -> AFA:
    torch.manual_seed(3)
    method = small_method(small_config(par={"iterations": 2, "dilations": [1, 2]}))
    method.network.eval()
    return method


def sample(height: int, width: int, labels: Sequence[float] | None = None, seed: int = 0) -> Sample:
    image = np.random.default_rng((height, width, seed)).integers(0, 256, (height, width, 3), np.uint8)
    return Sample("image", image, None if labels is None else np.array(labels, np.float32))


def network_image(one: Sample, method: AFA) -> Tensor:
    dataset = method.config.dataset
    return normalise(one.image, dataset.image_mean, dataset.image_std)[None]


def predict_one(method: AFA, one: Sample, wanted: Sequence[str], protocol: SegmentationProtocol | None = None) -> Found:
    return method.predict([one], wanted, protocol or SegmentationProtocol())[0]


def maps_of(found: Found, name: str) -> Maps:
    maps = found.outputs[name]
    assert isinstance(maps, Maps)
    return maps


def label_of(method: AFA, found: Found, name: str, size: tuple[int, int]) -> Tensor:
    return method.output(name).label(found.outputs[name], size)


def reference_cams(method: AFA, image: Tensor) -> MultiScaleCam:
    """CAMs of all classes and the affinity of the largest scale, each pass on its own."""
    settings = method.config.cam
    return multi_scale_cam(method.network.cam, image, settings.scales, epsilon=settings.epsilon, with_affinity=True)


def test_long_side_and_scales_agree_with_the_released_program() -> None:
    network, data = golden_network(), load_golden("test_time")
    image = normalised(data["images_uint8"])[:1]
    size = long_side_size(image.shape[-2:], int(data["resize_long"]))
    assert size == (96, 128)
    resized = resize(image, size)
    single = multi_scale_logits(network.segment, resized, SegmentationProtocol())
    protocol = SegmentationProtocol(scales=tuple(data["scales"].tolist()), mirror=True)
    multi = multi_scale_logits(network.segment, resized, protocol)
    assert (single - data["single_scale_logits"]).abs().max() < 1e-4
    assert (multi - data["multi_scale_logits"]).abs().max() < 1e-4


def test_predict_follows_the_test_protocol() -> None:
    method, data = small_method(small_config(), golden_network()), load_golden("test_time")
    image = data["images_uint8"][0].permute(1, 2, 0).contiguous().numpy()
    one = Sample("image", image, np.array(EVERY_CLASS, np.float32))
    protocol = SegmentationProtocol(long_side=128, scales=(0.5, 1.0, 0.75), mirror=True)
    seen = predict_one(method, one, ("cam", "propagated_cam", "segmentation"), protocol)
    assert (maps_of(seen, "segmentation").scores - data["multi_scale_logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("mirror", [True, False])
def test_shared_passes_change_nothing(method: AFA, mirror: bool) -> None:
    one, protocol = sample(48, 64, EVERY_CLASS), SegmentationProtocol(scales=SCALES, mirror=mirror)
    image = network_image(one, method)
    seen = predict_one(method, one, ALL, protocol)
    alone = multi_scale_logits(method.network.segment, image, protocol)
    reference = reference_cams(method, image)
    torch.testing.assert_close(maps_of(seen, "segmentation").scores, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(maps_of(seen, "cam").scores, reference.cams, atol=1e-4, rtol=0)
    assert reference.affinity is not None
    assert reference.affinity.grid == (5, 6)
    affinity = seen.outputs["affinity"]
    assert isinstance(affinity, TokenAffinity)
    assert affinity.grid == (3, 4)
    expected = dense(method.network(image, all_pairs=True).affinity)
    torch.testing.assert_close(affinity.values, expected, atol=1e-5, rtol=0)
    # The propagated label walks along the affinity of the largest scale.
    dataset = method.config.dataset
    seen_by_par = par_image(image, dataset.image_mean, dataset.image_std)
    cams = present_classes(torch.ones(1, 5)).maps(reference.cams)
    expected = method.labels.propagated(seen_by_par, cams, reference.affinity, torch.tensor([[0, 48, 0, 64]]))[0]
    assert (label_of(method, seen, "propagated_label", (48, 64)) != expected).float().mean() < 2e-3


def test_no_pass_runs_twice(method: AFA) -> None:
    images: list[Tensor] = []
    method.network.encoder.register_forward_pre_hook(lambda _, args: images.extend(args[0]))
    protocol = SegmentationProtocol(scales=SCALES, mirror=True)
    for wanted in (("cam", "propagated_cam", "segmentation"), ALL):
        images.clear()
        predict_one(method, sample(48, 64, EVERY_CLASS), wanted, protocol)
        # CAM at 1, 0.5, 1.5 and segmentation at 1, 0.5, 0.75, each with its mirror image: four sizes.
        assert len(images) == 8
        unique = {image.numpy().tobytes() for image in images}
        assert len(unique) == 8


def test_only_some_classes_count(method: AFA) -> None:
    one = sample(50, 70, [0, 1, 0, 0, 1])
    image, classes = network_image(one, method), torch.tensor([[0.0, 1, 0, 0, 1]])
    seen = predict_one(method, one, ("cam", "propagated_cam"))
    cams = reference_cams(method, image).cams
    first = method.network(image)
    expected = resize(cams[:, [1, 4]], (40, 60))[0]
    plain = torch.where(expected.amax(dim=0) <= 0.45, 0, torch.tensor([2, 5])[expected.argmax(dim=0)])
    assert (label_of(method, seen, "cam", (40, 60)) != plain).float().mean() < 1e-3
    present = present_classes(classes)
    walked = method.labels.walk(present.maps(present.gather(cams)), PairAffinity(first.affinity), 0.35)
    expected = resize(walked.dense(6), (40, 60)).argmax(dim=1)[0]
    found = label_of(method, seen, "propagated_cam", (40, 60))
    assert (found != expected).float().mean() < 1e-3
    assert set(found.unique().tolist()) <= {0, 2, 5}
    assert seen.class_ids == (2, 5)
    assert set(seen.outputs) == {"cam", "propagated_cam"}


def test_single_forward_is_the_plain_network(method: AFA) -> None:
    one = sample(33, 47)
    seen = predict_one(method, one, ("segmentation",))
    output = method.network(network_image(one, method))
    logits = maps_of(seen, "segmentation").scores
    assert output.seg_logits is not None
    assert seen.class_logits is not None
    torch.testing.assert_close(seen.class_logits, output.cls_logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, output.seg_logits, atol=1e-5, rtol=0)
    assert torch.equal(label_of(method, seen, "segmentation", (33, 47)), resize(logits, (33, 47)).argmax(dim=1)[0])
    assert set(seen.outputs) == {"segmentation"}


def test_images_of_a_batch_are_as_alone(method: AFA) -> None:
    class_labels = [[0.0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    protocol = SegmentationProtocol(scales=SCALES, mirror=True)
    for known in (class_labels, [None] * 3):
        samples = [sample(48, 64, labels, seed) for seed, labels in enumerate(known)]
        for one, seen in zip(samples, method.predict(samples, ALL, protocol), strict=True):
            alone = predict_one(method, one, ALL, protocol)
            assert seen.class_ids == alone.class_ids
            assert set(seen.outputs) == set(alone.outputs) == set(ALL)
            torch.testing.assert_close(seen.class_logits, alone.class_logits, atol=1e-4, rtol=0)
            for name in ("cam", "propagated_cam", "segmentation"):
                together, single = maps_of(seen, name), maps_of(alone, name)
                torch.testing.assert_close(together.scores, single.scores, atol=1e-4, rtol=0, msg=name)
                assert torch.equal(together.class_ids, single.class_ids)
                assert torch.equal(together.counted, single.counted)
            affinities = seen.outputs["affinity"], alone.outputs["affinity"]
            torch.testing.assert_close(affinities[0].values, affinities[1].values, atol=1e-4, rtol=0)  # type: ignore[union-attr]
            assert affinities[0].grid == affinities[1].grid  # type: ignore[union-attr]
            for name in LABELLED:
                labels = [label_of(method, found, name, (48, 64)) for found in (seen, alone)]
                assert (labels[0] != labels[1]).float().mean() <= (0 if name == "cam" else 1e-3), name


def test_labels_of_a_part_of_the_batch_are_refused(method: AFA) -> None:
    with pytest.raises(ValueError, match="for all images of a batch or for none"):
        method.predict([sample(48, 64, EVERY_CLASS), sample(48, 64)], ("cam",), SegmentationProtocol())


def test_a_batch_runs_as_many_passes_as_one_image(method: AFA) -> None:
    passes: list[int] = []
    method.network.encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    samples = [sample(48, 64, EVERY_CLASS, seed) for seed in range(4)]
    method.predict(samples, ("cam", "propagated_cam", "segmentation"), SegmentationProtocol(scales=SCALES, mirror=True))
    # Scale 1, its mirror images, the other CAM scales with mirrors, segmentation at 0.75 with mirrors.
    assert passes == [4, 4, 8, 8, 8]


def test_image_without_any_class_is_background(method: AFA) -> None:
    seen = predict_one(method, sample(40, 40, [0.0] * 5), LABELLED)
    assert seen.class_ids == ()
    for name in ("cam", "propagated_cam", "refined_label", "propagated_label"):
        assert not label_of(method, seen, name, (40, 40)).any(), name


@pytest.mark.parametrize("size", [(20, 20), (3, 7), (17, 400)])
def test_tiny_and_narrow_images(method: AFA, size: tuple[int, int]) -> None:
    seen = predict_one(method, sample(*size), ALL, SegmentationProtocol(scales=SCALES, mirror=True))
    assert maps_of(seen, "cam").size == size
    for name in LABELLED:
        assert label_of(method, seen, name, size).shape == size, name


def test_choose_classes_takes_at_least_the_best() -> None:
    chosen = choose_classes(torch.tensor([[-3.0, -1.0, -2.0], [0.5, -1.0, 2.0]]))
    assert chosen.tolist() == [[0, 1, 0], [1, 0, 1]]


def test_arg_max_channel_by_channel_is_that_of_the_whole() -> None:
    scores = torch.randn(2, 7, 5, 6)
    scores[:, 3] = scores[:, 2]
    whole = resize(scores, (31, 20)).argmax(dim=1)
    assert torch.equal(Maps.of_all_classes(scores, has_background=True).label((31, 20)), whole)


def test_long_side() -> None:
    assert long_side_size((375, 500), 512) == (384, 512)
    assert long_side_size((500, 334), 512) == (512, 342)
    assert long_side_size((4000, 10), 512) == (512, 1)
    assert long_side_size((4000, 10), 512, smallest=4) == (512, 4)
    assert long_side_size((30, 40), 0) == (30, 40)
