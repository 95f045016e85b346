from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scored import small_method

from afa.data.transforms import normalise
from afa.maps import present_classes
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.ops.cam import multi_scale_cam
from afa.prediction.predictor import Prediction, Predictor


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    return rng.integers(0, 255, (height // 4, width // 4, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture
def method(config: AFAConfig) -> AFA:
    config.par.iterations, config.par.dilations = 3, [1, 2]
    method = small_method(config)
    method.network.eval()
    return method


@pytest.fixture
def predictor(method: AFA, config: AFAConfig) -> Predictor:
    return Predictor(method, config)


def test_pseudo_labels_are_those_of_training(predictor: Predictor, method: AFA, config: AFAConfig) -> None:
    image, class_labels = picture(48, 64), np.array([1, 0, 1], np.float32)
    seen = predictor.predict(image, class_labels, maps=["cam"], labels=["refined_label", "propagated_label"])
    normalised = normalise(image, config.dataset.image_mean, config.dataset.image_std)[None]
    found = multi_scale_cam(
        method.network.cam, normalised, config.cam.scales, epsilon=config.cam.epsilon, with_affinity=True
    )
    assert found.affinity is not None
    present = present_classes(torch.tensor([[1.0, 0, 1]]))
    cams = present.maps(present.gather(found.cams))
    par_image, box = torch.from_numpy(image).permute(2, 0, 1)[None] / 255, torch.tensor([[0, 48, 0, 64]])
    refined = method.labels.refined(par_image, cams, box)
    propagated = method.labels.propagated(par_image, cams, found.affinity, box)
    assert (seen.labels["refined_label"] != refined[0].numpy()).mean() < 2e-3
    assert (seen.labels["propagated_label"] != propagated[0].numpy()).mean() < 2e-3
    assert (seen.class_ids, seen.class_names) == ((1, 3), ("disc", "ring"))
    assert np.abs(seen.maps["cam"] - found.cams[0, [0, 2]].numpy()).max() < 2e-3
    assert seen.background == {}


def test_maps_with_a_background_bring_it(predictor: Predictor) -> None:
    seen = predictor.predict(picture(48, 64), np.array([1, 0, 1], np.float32), maps=["propagated_cam", "segmentation"])
    for name in ("propagated_cam", "segmentation"):
        assert seen.maps[name].shape == (2, 48, 64) and seen.background[name].shape == (48, 64)
    # A random walk mixes scores that add up to 1 at each token.
    assert seen.maps["propagated_cam"].min() >= 0 and (seen.background["propagated_cam"] > 0).all()


def test_maps_of_logits_are_probabilities(predictor: Predictor) -> None:
    seen = predictor.predict(picture(48, 64), np.ones(3, np.float32), maps=["segmentation"])
    scores = np.concatenate([seen.background["segmentation"][None], seen.maps["segmentation"]]).astype(np.float32)
    assert scores.min() >= 0 and np.allclose(scores.sum(axis=0), 1, atol=2e-3)
    second, first = np.sort(scores, axis=0)[-2:]
    assert ((scores.argmax(axis=0) == seen.mask) | (first - second < 1e-3)).all()
    # Whichever classes are asked for, the others share in the sum.
    one = predictor.predict(picture(48, 64), np.array([0, 1, 0], np.float32), maps=["segmentation"])
    assert (one.maps["segmentation"][0] == seen.maps["segmentation"][1]).all()
    # A class must beat the others, too, also those that nobody asked for.
    assert (one.backgrounds["segmentation"] == seen_maximum(seen, [0, 1, 3])).all()
    assert (seen.backgrounds["segmentation"] == seen.background["segmentation"]).all()


def seen_maximum(seen: Prediction, class_ids: Sequence[int]) -> np.ndarray:
    scores = np.concatenate([seen.background["segmentation"][None], seen.maps["segmentation"]])
    return scores[list(class_ids)].max(axis=0)


def test_what_a_class_must_beat_is_the_threshold_or_the_background(predictor: Predictor, config: AFAConfig) -> None:
    seen = predictor.predict(picture(48, 64), np.ones(3, np.float32), maps=["cam", "propagated_cam"])
    assert seen.backgrounds["cam"] == seen.thresholds["cam"] == config.cam.background
    assert seen.backgrounds["propagated_cam"] is seen.background["propagated_cam"]


def test_without_labels_the_classifier_decides(predictor: Predictor, method: AFA, config: AFAConfig) -> None:
    image = picture(48, 64)
    seen = predictor.predict(image)
    logits = method.network(normalise(image, config.dataset.image_mean, config.dataset.image_std)[None]).cls_logits[0]
    expected = {index + 1 for index, value in enumerate(logits.tolist()) if value > 0} or {int(logits.argmax()) + 1}
    assert set(seen.class_ids) == expected
    assert seen.scores is not None
    assert np.allclose(seen.scores, logits.detach().sigmoid().numpy(), atol=1e-5)


@pytest.mark.parametrize("labels", [(), ("propagated_label",)])
def test_network_never_sees_more_tokens_than_memory_allows(
    predictor: Predictor, method: AFA, labels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afa.methods.afa.method.MOST_TOKENS", 64)
    monkeypatch.setattr("afa.prediction.predictor.DETAIL_LONG_SIDE", 400)
    predictor.config = replace(predictor.config, test=replace(predictor.config.test, long_side=0))
    sizes: list[tuple[int, int]] = []
    method.network.encoder.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    seen = predictor.predict(picture(600, 1200), np.ones(3), labels=labels)
    height, width = sizes[0]
    tokens = height * width / 16**2
    assert 0.9 * 64 < tokens <= 64
    assert width / height == pytest.approx(2, rel=0.1)
    assert seen.mask.shape == (600, 1200)
    assert set(seen.labels) == set(labels)
    assert all(label.shape == (600, 1200) for label in seen.labels.values())


def test_crf_refines_the_mask(predictor: Predictor) -> None:
    class Everything:
        def __call__(self, image: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
            assert image.dtype == torch.uint8
            assert image.shape[1:] == probabilities.shape[2:]
            marginals = torch.zeros_like(probabilities)
            marginals[:, 2] = 1
            return marginals

    predictor.crf = Everything()  # type: ignore[assignment]
    assert (predictor.predict(picture(40, 60)).mask == 2).all()


def test_the_mask_before_crf_is_given_where_it_is_wanted(predictor: Predictor) -> None:
    plain = predictor.predict(picture(40, 60))
    predictor.crf = lambda image, probabilities: probabilities.flip(1)  # type: ignore[assignment]
    seen = predictor.predict(picture(40, 60), unrefined_mask=True)
    assert plain.unrefined_mask is None and seen.unrefined_mask is not None
    assert (seen.unrefined_mask == plain.mask).all() and (seen.mask != plain.mask).any()
