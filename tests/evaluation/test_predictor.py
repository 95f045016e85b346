from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scored import CLASS_NAMES

from afa.config import Config
from afa.data.transforms import normalise
from afa.evaluation.predictor import Predictor
from afa.methods.pseudo_labels import propagated_label, refined_label
from afa.models import AFANet
from afa.ops.cam import multi_scale_cam
from afa.ops.par import PAR


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    return rng.integers(0, 255, (height // 4, width // 4, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture
def predictor(network: AFANet, config: Config) -> Predictor:
    config.par.iterations, config.par.dilations = 3, [1, 2]
    return Predictor(network.eval(), config, CLASS_NAMES)


def test_pseudo_labels_are_those_of_training(predictor: Predictor, network: AFANet, config: Config) -> None:
    image, class_labels = picture(48, 64), np.array([1, 0, 1], np.float32)
    seen = predictor.predict(image, class_labels, pseudo_labels=("refined", "propagated"))
    normalised = normalise(image, config.dataset.image_mean, config.dataset.image_std)[None]
    cams = multi_scale_cam(network, normalised)
    assert cams.affinity is not None
    assert cams.token_grid is not None
    par_image = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    box, labels, par = torch.tensor([[0, 48, 0, 64]]), torch.tensor([[1.0, 0, 1]]), PAR(dilations=[1, 2], iterations=3)
    refined = refined_label(par_image, cams.cams, labels, box, par)
    propagated = propagated_label(
        par_image, cams.cams, cams.affinity, cams.token_grid, labels, box, par, radius=config.affinity.radius
    )
    assert (seen.pseudo_labels["refined"] != refined[0].numpy()).mean() < 2e-3
    assert (seen.pseudo_labels["propagated"] != propagated[0].numpy()).mean() < 2e-3
    assert seen.class_names == ["disc", "ring"]
    assert seen.cams is not None
    assert np.abs(seen.cams - cams.cams[0, [0, 2]].numpy()).max() < 2e-3


def test_without_labels_the_classifier_decides(predictor: Predictor, network: AFANet, config: Config) -> None:
    image = picture(48, 64)
    seen = predictor.predict(image)
    logits = network(normalise(image, config.dataset.image_mean, config.dataset.image_std)[None]).cls_logits[0]
    expected = {index + 1 for index, value in enumerate(logits.tolist()) if value > 0} or {int(logits.argmax()) + 1}
    assert set(seen.class_ids) == expected
    assert np.allclose(seen.scores, logits.detach().sigmoid().numpy(), atol=1e-5)


@pytest.mark.parametrize(("kinds", "most"), [((), 64.0), (("propagated",), 64 / 1.5**2)])
def test_network_never_sees_more_tokens_than_memory_allows(
    predictor: Predictor, network: AFANet, kinds: tuple[str, ...], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afa.evaluation.predictor.MOST_TOKENS", 64)
    monkeypatch.setattr("afa.evaluation.predictor.DETAIL_LONG_SIDE", 400)
    predictor.config = replace(predictor.config, test=replace(predictor.config.test, long_side=0))
    sizes: list[tuple[int, int]] = []
    network.encoder.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    seen = predictor.predict(picture(600, 1200), np.ones(3), pseudo_labels=kinds)
    height, width = sizes[0]
    tokens = height * width / 16**2
    assert 0.9 * most < tokens <= most
    assert width / height == pytest.approx(2, rel=0.1)
    assert seen.mask.shape == (600, 1200)
    assert all(label.shape == (600, 1200) for label in seen.pseudo_labels.values())


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
