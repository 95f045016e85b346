"""EDAM's scores and labels: the released program's values, and each rule by hand."""

from __future__ import annotations

import pytest
import torch
from golden import Agreement, load_golden
from torch import Tensor

from afa.maps import Maps, present_classes
from afa.methods.cam_volumes import build_crf
from afa.methods.edam.config import EDAMConfig, EDAMCRFConfig, SaliencyConfig
from afa.methods.edam.labels import (
    algorithm_1,
    crf_scores,
    fused_distribution,
    label_with_saliency,
    released_rule,
)

CLASSES = 20


def golden_passes(golden: dict[str, Tensor], index: int) -> list[Tensor]:
    """The stored channels in their places; of the background and of absent classes nothing is stored."""
    passes = []
    for number in range(0, 8, 2):
        stored = torch.stack([golden[f"pass{index}_{number}"], golden[f"pass{index}_{number + 1}"]])
        whole = stored.new_zeros(2, CLASSES + 1, *stored.shape[-2:])
        whole[:, golden[f"present{index}"]] = stored
        passes.append(whole)
    return passes


def stored_maps(golden: dict[str, Tensor], index: int, scores: Tensor) -> Maps:
    """[1, 1 + m, H, W] of stored scores; a background of 0 where they have none."""
    maps = present_classes(golden[f"label{index}"][None]).maps(scores[None, -len(golden[f"present{index}"]) :])
    with_background = maps.with_background(0.0)
    return (
        with_background if len(scores) < with_background.scores.shape[1] else with_background.with_scores(scores[None])
    )


@pytest.mark.parametrize("index", range(2))
def test_reference_scores_of_edam(agreement: Agreement, index: int) -> None:
    golden = load_golden("edam_labels")
    image = golden[f"image{index}"]
    present = present_classes(golden[f"label{index}"][None])
    fused = fused_distribution(golden_passes(golden, index), present, (image.shape[0], image.shape[1]))
    assert fused.class_ids.tolist() == [[0, *(golden[f"present{index}"] + 1).tolist()]]
    assert fused.scores[0].amax(dim=(1, 2)).tolist() == [0.0] + [1.0] * len(golden[f"present{index}"])
    cams = fused.without_background()
    agreement.values("EDAM: scores", cams.scores[0], golden[f"cam{index}"], 1e-5)
    refined = crf_scores(build_crf(EDAMCRFConfig()), image.permute(2, 0, 1).contiguous(), cams, 1.0)
    agreement.values("EDAM: CRF", refined.scores[0], golden[f"crf{index}"], 1e-2)
    agreement.labels("EDAM: CRF, arg max", refined.label()[0], golden[f"label_crf{index}"], 5e-3)


@pytest.mark.parametrize("index", range(2))
def test_reference_labels_of_edam(agreement: Agreement, index: int) -> None:
    golden = load_golden("edam_labels")
    saliency = golden[f"saliency{index}"][None]
    cams, refined = (stored_maps(golden, index, golden[f"{kind}{index}"]) for kind in ("cam", "crf"))
    plain = cams.without_background().label_above(EDAMConfig().cam.background)
    labels = {
        "plain": plain,
        "cam_saliency": label_with_saliency(cams, saliency, SaliencyConfig()),
        "crf": refined.label(),
        "crf_saliency": label_with_saliency(refined, saliency, SaliencyConfig(rule="crf")),
    }
    for kind, label in labels.items():
        agreement.labels(f"EDAM: label_{kind}", label[0], golden[f"label_{kind}{index}"], 0)


def test_defaults_are_the_published_thresholds() -> None:
    golden, config = load_golden("edam_labels"), EDAMConfig()
    settings = config.edam
    found = [settings.theta, settings.alpha, settings.beta, settings.crf_alpha, settings.crf_beta]
    names = ("theta", "cam_alpha", "cam_beta", "crf_alpha", "crf_beta")
    assert [*found, config.cam.background, config.crf.iterations] == [
        float(golden[name]) for name in (*names, "plain_theta", "crf_iterations")
    ]


def row(*columns: list[float], background: float = 0.0) -> Maps:
    """An image of one row: the scores of the classes 3, 5, .. at each of its pixels."""
    scores = torch.tensor(columns).T[None, :, None]
    ids = torch.tensor([[3, 5, 9][: scores.shape[1]]])
    return Maps(scores, ids, torch.ones_like(ids, dtype=torch.bool), has_background=False).with_background(background)


GREY = torch.tensor([[[20, 21, 255, 255, 255, 0, 0, 0, 0, 255]]], dtype=torch.uint8)
SCORES = row(
    [0.9, 0.3],  # as salient as theta: not salient as released
    [0.9, 0.3],  # more
    [0.2, 0.24],  # all below alpha
    [0.2, 0.25],  # alpha itself counts
    [0.6, 0.6],  # of two equal ones the first
    [0.96, 0.1],  # above beta without saliency
    [0.95, 0.1],  # beta itself does not count
    [0.96, 0.99],  # two above beta
    [0.1, 0.97],  # one of them
    [0.96, 0.99],  # two above beta, salient
)


def test_released_rule() -> None:
    label = released_rule(SCORES, GREY, grey=20, alpha=0.25, beta=0.95)
    assert label.dtype == torch.int64 and label.tolist() == [[[0, 3, 0, 5, 3, 3, 0, 3, 5, 3]]]


def test_released_rule_with_the_strongest() -> None:
    label = released_rule(SCORES, GREY, grey=20, alpha=0.25, beta=0.95, strongest=True)
    assert label.tolist() == [[[0, 3, 0, 5, 3, 3, 0, 5, 5, 5]]]


def test_the_background_of_the_scores_counts_for_nothing_as_released() -> None:
    loud = row(*SCORES.scores[0, 1:, 0].T.tolist(), background=1.0)
    label = released_rule(loud, GREY, grey=20, alpha=0.25, beta=0.95)
    assert torch.equal(label, released_rule(SCORES, GREY, grey=20, alpha=0.25, beta=0.95))


def test_alpha_0_and_beta_1_leave_saliency_alone() -> None:
    scores = row([0.0, 0.0], [0.0, 1e-9], [1.0, 0.2], [1.0, 1.0])
    grey = torch.tensor([[[255, 255, 0, 255]]], dtype=torch.uint8)
    assert released_rule(scores, grey, grey=50, alpha=0.0, beta=1.0).tolist() == [[[0, 5, 0, 3]]]


def test_the_released_order_of_operations_gives_the_same() -> None:
    random = torch.Generator().manual_seed(3)
    scores = torch.rand(1, 4, 40, 40, generator=random).mul(20).round().div(20)  # with ties, and at the thresholds
    saliency = torch.randint(0, 256, (1, 40, 40), generator=random, dtype=torch.uint8)
    maps = Maps(scores, torch.tensor([[0, 2, 3, 7]]), torch.ones(1, 4, dtype=torch.bool), has_background=True)
    for alpha, beta in ((0.25, 0.95), (0.3, 0.5), (0.0, 1.0)):
        volume = scores.clone()
        volume[scores < alpha] = -2
        volume[volume > beta] = 2
        volume[:, 0] = (saliency <= 100.0 * 0.7).float()
        expected = maps.class_ids[0][volume[0].argmax(dim=0)]
        settings = SaliencyConfig(theta=0.7, alpha=alpha, beta=beta)
        assert torch.equal(label_with_saliency(maps, saliency, settings)[0], expected)


def test_algorithm_1() -> None:
    scores = row(
        [0.9, 0.3],  # the background is stronger
        [0.96, 0.3],  # as salient as theta is salient
        [0.97, 0.2],  # less: only above beta
        [0.2, 0.24],  # the background wins before alpha is asked
        [0.96, 0.99],  # the strongest, above beta
        background=0.95,
    )
    grey = torch.tensor([[[255, 20, 19, 255, 0]]], dtype=torch.uint8)
    assert algorithm_1(scores, grey, grey=20, alpha=0.25, beta=0.97).tolist() == [[[0, 3, 0, 0, 5]]]
    weak = row([0.25, 0.1], [0.24, 0.1], [0.95, 0.1], [0.96, 0.1], background=0.0)
    grey = torch.tensor([[[255, 255, 0, 0]]], dtype=torch.uint8)
    assert algorithm_1(weak, grey, grey=20, alpha=0.25, beta=0.95).tolist() == [[[3, 0, 0, 3]]]
    assert label_with_saliency(weak, grey, SaliencyConfig(rule="algorithm1")).tolist() == [[[3, 0, 0, 3]]]


def test_thresholds_follow_the_setting_of_full_saliency() -> None:
    grey = torch.tensor([[[28, 29, 73, 74]]], dtype=torch.uint8)
    scores = row([0.5, 0.1], [0.5, 0.1], [0.5, 0.1], [0.5, 0.1])
    of = lambda **settings: label_with_saliency(scores, grey, SaliencyConfig(**settings))[0, 0].tolist()  # noqa: E731
    assert of(theta=0.28) == [0, 3, 3, 3]
    assert of(theta=0.29) == [0, 3, 3, 3], "100 * 0.29 is a little less than 29, in double precision as released"
    assert of(theta=0.29, saliency_maximum=255) == [0, 0, 0, 3]  # 73.95
    assert of(theta=0.29, saliency_maximum=255, rule="algorithm1") == [0, 0, 0, 3]
    assert label_with_saliency(scores, (grey > 50).byte(), SaliencyConfig(saliency_maximum=1)).tolist() == [
        [[0, 0, 3, 3]]
    ]


def test_thresholds_after_crf_are_those_of_float32() -> None:
    nearly = torch.tensor(0.99999)
    scores = row(
        [float(nearly), 0.0], [float(torch.nextafter(nearly, torch.tensor(2.0))), 0.0], [0.0, 1e-6], [0.0, 9e-7]
    )
    grey = torch.tensor([[[0, 0, 255, 255]]], dtype=torch.uint8)
    assert label_with_saliency(scores, grey, SaliencyConfig(rule="crf")).tolist() == [[[0, 3, 5, 0]]]


@pytest.mark.parametrize("rule", ["released", "algorithm1", "crf"])
def test_images_without_classes_are_background_in_any_company(rule: str) -> None:
    present = present_classes(torch.tensor([[0, 0, 0], [1, 0, 1]]))
    passes = [torch.rand(4, 4, 6, 6, generator=torch.Generator().manual_seed(1))]
    fused = fused_distribution(passes, present, (6, 6))
    assert fused.scores.shape == (2, 3, 6, 6)
    saliency = torch.full((2, 6, 6), 255, dtype=torch.uint8)
    label = label_with_saliency(fused, saliency, SaliencyConfig(rule=rule))
    assert not label[0].any() and set(label[1].unique().tolist()) <= {0, 1, 3} and label[1].any()
    empty, _ = fused.images()
    image = torch.zeros(3, 6, 6, dtype=torch.uint8)
    cams, _ = fused.without_background().images()
    refined = crf_scores(build_crf(EDAMCRFConfig()), image, cams, 1.0)
    assert not refined.label().any()
    assert not label_with_saliency(empty, saliency[:1], SaliencyConfig(rule=rule)).any()


def test_passes_are_summed_with_their_mirrors_and_a_silent_channel_stays_silent() -> None:
    present = present_classes(torch.tensor([[1, 0, 1]]))
    plain = torch.zeros(1, 4, 1, 4)
    plain[0, :, 0] = torch.tensor([[0.2, 0.0, 0.0, 0.4], [9, 9, 9, 9], [0, 0, 0, 0], [0.1, 0.1, 0.1, 0.2]])
    fused = fused_distribution([torch.cat([plain, plain.flip(-1)])] * 2, present, (1, 4))
    assert fused.class_ids.tolist() == [[0, 1, 3]]
    assert torch.allclose(fused.scores[0, :, 0], torch.tensor([[0.5, 0.5, 0.5, 1], [0.5, 0, 0, 1], [0, 0, 0, 0]]))
    assert fused.scores[0, :2].amax(dim=(1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize("exponent", [0.2, 1.0])
def test_the_exponent_makes_the_background_larger_or_smaller(exponent: float) -> None:
    cams = row([0.75, 0.1]).without_background()
    image = torch.zeros(3, 1, 1, dtype=torch.uint8)
    crf = build_crf(EDAMCRFConfig(gaussian_weight=0, bilateral_weight=0))
    scores = crf_scores(crf, image, cams, exponent).scores[0, :, 0, 0]
    expected = torch.tensor([0.25**exponent, 0.75, 0.1])
    assert torch.allclose(scores, expected / expected.sum(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"edam": SaliencyConfig(alpha=0.96)}, "edam.alpha 0.96 is above edam.beta 0.95"),
        ({"edam": SaliencyConfig(crf_alpha=1.0)}, "edam.crf_alpha 1.0 is above edam.crf_beta 0.99999"),
        ({"edam": SaliencyConfig(theta=2.6)}, "set edam.theta below 2.55"),
        ({"edam": SaliencyConfig(theta=1, saliency_maximum=255)}, "set edam.theta below 1"),
        ({"edam": SaliencyConfig(rule="algorithm1", above_beta="strongest")}, "edam.above_beta is a setting of"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(settings: dict[str, object], said: str) -> None:
    (problem,) = EDAMConfig(**settings).problems()  # type: ignore[arg-type]
    assert said in problem


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("encoder", "mit_b1", "EDAM needs a convolutional network"),
        ("attention_heads", 3, "cannot be shared out"),
        ("attention_width", 126, None),
        ("attention_width", 129, "is odd"),
    ],
)
def test_networks_that_cannot_be_built_are_one_line(name: str, value: object, said: str | None) -> None:
    config = EDAMConfig()
    setattr(config.model, name, value)
    problems = list(config.problems())
    assert not problems if said is None else any(said in problem for problem in problems)
