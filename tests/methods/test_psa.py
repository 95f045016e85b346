"""PSA's two methods: labels and walk by hand, transforms, prediction and settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from psa_files import SMALL_RESNET38

from afa.data.samples import Sample
from afa.data.transforms import ColourJitter, draw_place, place_crop
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import build_method, config_from_dict
from afa.methods.base import Method, SegmentationProtocol, SingleProcess
from afa.methods.cam_volumes import build_crf, refined, with_background
from afa.methods.psa.affinity import affinity_losses
from afa.methods.psa.config import CAMCRFConfig
from afa.methods.psa.labels import affinity_map, pair_labels
from afa.ops.random_walk import PairAffinity, walk

CLASS_NAMES = ["disc", "bar", "ring"]
ANY = SegmentationProtocol()


def method(name: str, **sections: Any) -> Method:
    torch.manual_seed(0)
    built = build_method(
        config_from_dict({"method": name, "model": SMALL_RESNET38, **sections}), CLASS_NAMES, SingleProcess()
    )
    built.network.eval()
    return built


def maps_of(scores: torch.Tensor, class_ids: list[int]) -> Maps:
    counted = torch.ones(1, len(class_ids), dtype=torch.bool)
    return Maps(scores[None].float(), torch.tensor([class_ids]), counted, has_background=class_ids[0] == 0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# -- labels and walk by hand


def test_background_is_what_the_strongest_class_leaves() -> None:
    cams = maps_of(torch.tensor([[[0.0, 0.5, 1.0]], [[0.25, 0.1, 0.0]]]), [2, 3])
    found = with_background(cams, 2.0)
    assert found.has_background and found.class_ids.tolist() == [[0, 2, 3]]
    torch.testing.assert_close(found.scores[0, :, 0], torch.tensor([[0.5625, 0.25, 0], [0, 0.5, 1], [0.25, 0.1, 0]]))


def test_an_image_without_classes_is_all_background() -> None:
    nothing = Maps(torch.zeros(1, 1, 8, 8), torch.tensor([[1]]), torch.tensor([[False]]), has_background=False)
    (volume,) = refined(
        build_crf(CAMCRFConfig()), torch.zeros(3, 8, 8, dtype=torch.uint8), [with_background(nothing, 4)]
    )
    assert volume.class_ids.tolist() == [[0]] and bool((volume.scores == 1).all())


def test_positions_are_labelled_where_both_volumes_are_sure() -> None:
    # Cells of one pixel; background, class 4, class 9. In turn: sure object, sure background, neither, outside.
    low = maps_of(torch.tensor([[[0.2, 0.8, 0.6, 0.0]], [[0.7, 0.1, 0.4, 0.0]], [[0.1, 0.1, 0.0, 0.0]]]), [0, 4, 9])
    high = maps_of(torch.tensor([[[0.1, 0.6, 0.3, 0.0]], [[0.8, 0.3, 0.7, 0.0]], [[0.1, 0.1, 0.0, 0.0]]]), [0, 4, 9])
    assert affinity_map(low, high, 1).tolist() == [[1, 0, 255, 255]]
    sure_of_background = maps_of(torch.tensor([[[0.9]], [[0.1]], [[0.0]]]), [0, 4, 9])
    sure_of_an_object = maps_of(torch.tensor([[[0.1]], [[0.9]], [[0.0]]]), [0, 4, 9])
    assert affinity_map(sure_of_an_object, sure_of_background, 1).item() == 0, "sure background wins over an object"


def test_pairs_of_one_class_of_background_and_of_two_classes() -> None:
    label = torch.full((1, 2, 3), 255)
    label[0] = torch.tensor([[1, 0, 2], [1, 0, 255]])
    # Radius 2: the one anchor is the middle of the first row; its partners are right, and the three below.
    background, foreground, negative = pair_labels(label, 2)
    assert background.flatten().tolist() == [False, False, True, False]
    assert not foreground.any()
    assert negative.flatten().tolist() == [True, True, False, False]


def test_losses_of_pairs_by_hand() -> None:
    affinity = torch.tensor([[[0.5, 0.25, 0.9, 0.1]]])
    pairs = pair_labels(torch.full((1, 5, 9), 255), 5)
    none = affinity_losses(torch.full(pairs.negative.shape, 0.3), pairs, epsilon=1e-5)
    assert all(float(value) == 0 for value in none.values()), "a kind without pairs costs nothing"
    kinds = [torch.tensor([[[index == place for index in (0, 1, 2, 2)]]]) for place in range(3)]
    losses = affinity_losses(affinity, type(pairs)(*kinds), epsilon=1e-5)
    expected = {"bg": -np.log(0.5), "fg": -np.log(0.25), "neg": -(np.log(0.1) + np.log(0.9)) / 2}
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, abs=1e-4)


def test_a_walk_keeps_sums_still_without_affinity_and_stays_within_a_wall() -> None:
    scores = torch.rand(1, 3, 8, 12)
    still = PairAffinity.without_pairs((8, 12), 5, torch.device("cpu"))
    torch.testing.assert_close(walk(scores, still, power=8, steps=16), scores)
    flat = torch.ones(1, 2, 8, 12) / 2
    affinity = PairAffinity.of_pairs(torch.rand(34, 16), (8, 12), 5)
    torch.testing.assert_close(walk(flat, affinity, power=2, steps=64), flat)
    # A wall between columns 5 and 6: no affinity across.
    values = torch.zeros(1, 1, 3, 1, 12)
    values[0, 0, 1] = 1
    values[0, 0, 2, 0, :11] = 1
    values[0, 0, 2, 0, 5] = 0
    start = torch.zeros(1, 1, 1, 12)
    start[..., 0] = 1
    ended = walk(start, PairAffinity(values), power=1, steps=500)[0, 0, 0]
    assert float(ended[:6].min()) > 0.05 and float(ended[6:].max()) == 0


def test_affinity_of_a_position_is_symmetric_and_beyond_the_grid_an_error() -> None:
    affinity = PairAffinity.of_pairs(torch.rand(34, 15), (9, 11), 5)
    rows = torch.stack([affinity.of(y, x).flatten() for y in range(9) for x in range(11)])
    assert torch.equal(rows, rows.T) and bool((rows.diagonal() == 1).all())
    with pytest.raises(IndexError, match="no position"):
        affinity.of(9, 0)


# -- transforms


def test_crops_are_drawn_width_first_and_mirrored_after_the_cut() -> None:
    image = noise(20, 30)

    class Draws:
        def __init__(self, *numbers: int) -> None:
            self.numbers, self.asked = list(numbers), []

        def integers(self, end: int) -> int:
            self.asked.append(end)
            return self.numbers.pop(0)

        def random(self) -> float:
            return 0.0

    rng = Draws(3, 5)
    crop = draw_place(image.shape, rng, crop_size=24, mirror_probability=1.0)  # type: ignore[arg-type]
    assert rng.asked == [7, 5], "30 - 24 + 1 places in the width, then 24 - 20 + 1 for the height"
    plain = place_crop((20, 30), (3, 4), 24).image(image, "pil")
    assert np.array_equal(place_crop((20, 30), (3, 4), 24, mirrored=True).image(image, "pil"), plain[:, ::-1])
    assert np.array_equal(plain[4:24], image[:, 3:27]) and not plain[:4].any()
    assert crop.mirrored


def test_colour_jitter_is_that_of_torchvision() -> None:
    image = noise(10, 12)
    assert ColourJitter()(image, np.random.default_rng(0)) is image
    darker = ColourJitter(brightness=0.5)(image, np.random.default_rng(3))
    factor = np.random.default_rng(3).uniform(0.5, 1.5)
    np.testing.assert_allclose(darker, np.clip(image * factor, 0, 255), atol=1)
    grey = np.repeat(image[..., :1], 3, axis=2)
    assert np.array_equal(ColourJitter(saturation=1.0)(grey, np.random.default_rng(1)), grey)
    assert np.array_equal(ColourJitter(hue=0.5)(grey, np.random.default_rng(1)), grey)
    assert (
        len({ColourJitter(0.3, 0.3, 0.3, 0.1)(image, np.random.default_rng(seed)).tobytes() for seed in range(5)}) == 5
    )


def test_padding_is_the_mean_colour_for_the_cam_network_and_black_for_affinity_net() -> None:
    settings: dict[str, Any] = {"augmentation": {"crop_size": 96, "mirror_probability": 0.0, **no_jitter()}}
    image = np.full((40, 50, 3), 200, np.uint8)
    cam = method("psa_cam", augmentation={**settings["augmentation"], "long_side_min": 50, "long_side_max": 50})
    found = cam.transform()(Sample("a", image, np.ones(3, np.float32)), np.random.default_rng(0))
    assert found["image"][0].unique().tolist() == pytest.approx([0, (200 - 123.675) / 58.395])
    volume = maps_of(torch.ones(2, 40, 50) * torch.tensor([0.9, 0.1])[:, None, None], [0, 2])
    sample = Sample("a", image, inputs={"maps/crf_low": volume, "maps/crf_high": volume})
    found = method("psa_affinity", **settings).transform()(sample, np.random.default_rng(0))
    assert float(found["image"][0].min()) == pytest.approx(-123.675 / 58.395)
    assert set(found["label"].unique().tolist()) == {0, 255}


def no_jitter() -> dict[str, float]:
    return {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def sample_of(low: Maps, high: Maps) -> Sample:
    return Sample("a", noise(40, 50), inputs={"maps/crf_low": low, "maps/crf_high": high})


def test_volumes_of_different_classes_are_refused() -> None:
    one, other = (maps_of(torch.ones(2, 40, 50), ids) for ids in ([0, 1], [0, 2]))
    transform = method("psa_affinity").transform()
    with pytest.raises(UserError, match=r"of 'a' are of different classes, \[0, 1\] and \[0, 2\]"):
        transform(
            Sample("a", noise(40, 50), inputs={"maps/crf_low": one, "maps/crf_high": other}), np.random.default_rng(0)
        )
    cams = maps_of(torch.ones(2, 40, 50), [1, 2])
    with pytest.raises(UserError, match="crf_low of 'a' have no background"):
        transform(
            Sample("a", noise(40, 50), inputs={"maps/crf_low": cams, "maps/crf_high": one}), np.random.default_rng(0)
        )


# -- prediction


def test_cams_of_the_mirror_image_are_mirrored_and_batches_change_nothing() -> None:
    cam = method("psa_cam")
    labels = np.array([1, 0, 1], np.float32)
    images = [noise(41, 50, seed) for seed in range(2)]
    alone = [cam.predict([Sample("a", image, labels)], ["cam"], ANY)[0].outputs["cam"] for image in images]
    together = cam.predict([Sample("a", image, labels) for image in images], ["cam"], ANY)
    mirrored = cam.predict([Sample("a", np.ascontiguousarray(images[0][:, ::-1]), labels)], ["cam"], ANY)[0]
    for one, found in zip(alone, together, strict=True):
        assert one.class_ids.tolist() == [[1, 3]] and float(one.scores.max()) == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(found.outputs["cam"].scores, one.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored.outputs["cam"].scores.flip(-1), alone[0].scores, atol=1e-4, rtol=0)


def test_images_seen_at_another_size_give_maps_for_their_own() -> None:
    cam = method("psa_cam")
    found = cam.predict([Sample("a", noise(60, 80), None, network_size=(30, 40))], ["cam", "crf_high"], ANY)[0]
    assert found.outputs["cam"].size == (30, 40) and found.outputs["crf_high"].size == (60, 80)
    assert found.class_logits is not None and len(found.class_ids) >= 1, "the classifier's own classes"


def test_images_too_small_for_a_pair_keep_their_cams() -> None:
    walker = method("psa_affinity")
    cams = maps_of(torch.rand(1, 24, 40), [2])
    found = walker.predict([Sample("a", noise(24, 40), inputs={"maps/cam": cams})], ["propagated", "affinity"], ANY)[0]
    assert torch.equal(found.outputs["affinity"].all_pairs().values, torch.eye(3 * 5)[None])
    assert found.outputs["propagated"].class_ids.tolist() == [[0, 2]] and found.outputs["propagated"].size == (24, 40)


def test_cams_with_a_background_are_not_walked() -> None:
    walker = method("psa_affinity")
    sample = Sample("a", noise(48, 80), inputs={"maps/cam": maps_of(torch.rand(2, 48, 80), [0, 2])})
    with pytest.raises(UserError, match="have a background, which the random walk adds itself"):
        walker.predict([sample], ["propagated"], ANY)


@pytest.mark.parametrize("factor", [5.0, -1.0])
def test_cams_that_are_no_shares_are_not_walked(factor: float) -> None:
    walker = method("psa_affinity")
    cams = maps_of(factor * torch.ones(1, 48, 80), [2])
    with pytest.raises(UserError, match="CAMs are in 0 to 1: divide each by its maximum"):
        walker.predict([Sample("a", noise(48, 80), inputs={"maps/cam": cams})], ["propagated"], ANY)


def test_an_image_without_classes_teaches_background() -> None:
    nothing = Maps(torch.zeros(1, 1, 1, 1), torch.tensor([[1]]), torch.tensor([[False]]), has_background=False)
    sizes = {"crop_size": 80, **no_jitter()}
    found = method("psa_affinity", augmentation=sizes).transform()(
        Sample("a", noise(80, 80), inputs={"maps/crf_low": nothing, "maps/crf_high": nothing}), np.random.default_rng(0)
    )
    assert set(found["label"].unique().tolist()) == {0}


@pytest.mark.slow
def test_compiling_reaches_the_encoder() -> None:
    nodes = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        nodes.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward

    network = method("psa_cam").network
    for child in network.children():
        child.compile(backend=count)
    network(torch.randn(1, 3, 40, 40))
    assert sum(nodes) > 40


@pytest.mark.parametrize("name", ["psa_cam", "psa_affinity"])
def test_what_the_released_program_freezes_does_not_move(name: str) -> None:
    built = method(name, augmentation={"crop_size": 80})
    built.network.train()
    trained = {id(parameter) for group in built.parameter_groups() for parameter in group["params"]}
    for key, parameter in built.network.named_parameters():
        frozen = key.startswith(("encoder.conv1a", "encoder.b2.")) or ".bn" in key
        assert (id(parameter) in trained) != frozen, key
    free = method(name, augmentation={"crop_size": 80}, optimiser={"freeze": "none"})
    groups = {group["name"]: group for group in free.parameter_groups()}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(free.network.parameters()))
    assert groups["encoder_biases"]["weight_decay"] == 0
    assert groups["encoder_biases"]["base_lr"] == pytest.approx(2 * groups["encoder"]["base_lr"])


@pytest.mark.parametrize(
    ("name", "sections", "message"),
    [
        ("psa_cam", {"model": {"encoder": "mit_b0"}}, "model.encoder: PSA needs a convolutional network"),
        ("psa_cam", {"model": {"encoder": "resnet83"}}, "did you mean 'resnet38'"),
        ("psa_cam", {"crf": {"low_alpha": 40.0}}, "crf.low_alpha 40.0 is not below crf.high_alpha 32.0"),
        ("psa_cam", {"augmentation": {"long_side_min": 600}}, "long_side_min 600 is above long_side_max 512"),
        ("psa_affinity", {"augmentation": {"crop_size": 60}}, "crop_size: 60 is not a multiple of 8"),
        ("psa_affinity", {"augmentation": {"crop_size": 64}}, "too few for pairs of radius 5; set 72 or more"),
        ("psa_affinity", {"model": {**SMALL_RESNET38, "head_widths": [2, 4]}}, "model.head_widths needs three values"),
    ],
)
def test_settings_that_contradict_each_other(name: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_dict({"method": name, "model": SMALL_RESNET38, **sections})
