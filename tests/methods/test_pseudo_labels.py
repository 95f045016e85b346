from __future__ import annotations

import pytest
import torch
from golden import Agreement, load_golden, normalised
from torch import Tensor

from afa.maps import IGNORE, Maps, present_classes
from afa.methods.afa.config import AFAConfig, AffinityConfig, CamConfig, ParConfig
from afa.methods.afa.labels import PseudoLabels, affinity_label, combine, missing_share, par_image, restore_image
from afa.methods.afa.losses import affinity_loss
from afa.methods.segmentation import segmentation_loss
from afa.ops.cam import resize
from afa.ops.random_walk import PairAffinity, TokenAffinity
from afa.ops.token_pairs import dense

MEAN, STD = AFAConfig().dataset.image_mean, AFAConfig().dataset.image_std
PIXELS = 1e-3  # one in a thousand


def made_with(radius: int = 8, **par: object) -> PseudoLabels:
    """The labels of the published settings but for those given."""
    return PseudoLabels(CamConfig(), AffinityConfig(radius=radius), ParConfig(**par))  # type: ignore[arg-type]


def maps_of(cams: Tensor, class_labels: Tensor) -> Maps:
    present = present_classes(class_labels)
    return present.maps(present.gather(cams))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    values = load_golden("pseudo_label")
    values["image"] = par_image(normalised(values["images_uint8"]), MEAN, STD)
    return values


def test_reference_plain_and_initial_label(agreement: Agreement, golden: dict[str, Tensor]) -> None:
    cams = maps_of(golden["cams"], golden["class_labels"])
    agreement.labels("plain label", cams.label_above(CamConfig().background), golden["eval_label"], PIXELS)
    initial = made_with().initial(cams, golden["boxes"])
    agreement.labels("initial label", initial, golden["initial_label"], PIXELS)


def test_reference_refined_label(agreement: Agreement, golden: dict[str, Tensor]) -> None:
    cams = maps_of(golden["cams"], golden["class_labels"])
    refined = made_with().refined(golden["image"], cams, golden["boxes"])
    agreement.labels("refined label", refined, golden["refined_label"], PIXELS)


def test_reference_affinity_label_and_loss(agreement: Agreement, golden: dict[str, Tensor]) -> None:
    pairs = affinity_label(golden["refined_label"], (8, 8), int(golden["radius"]))
    label = matrix_of(pairs)
    agreement.labels("affinity label", label, golden["affinity_label"], 0)
    assert (label == 1).sum() + 1 == golden["positive_count"]
    assert (label == 0).sum() + 1 == golden["negative_count"]
    affinity = TokenAffinity(golden["affinity"], (8, 8)).within(int(golden["radius"]))
    loss = affinity_loss(affinity.values, pairs, positive_share=0.5)
    agreement.values("affinity loss", loss, golden["affinity_loss"], 1e-4)


@pytest.mark.parametrize(("name", "background"), [("low", "low_thre"), ("high", "high_thre")])
def test_reference_propagation(agreement: Agreement, golden: dict[str, Tensor], name: str, background: str) -> None:
    labels = made_with(int(golden["radius"]))
    cams = maps_of(golden["cams"], golden["class_labels"])
    affinity = TokenAffinity(golden["affinity_infer"], (12, 12)).within(12)
    walked = labels.walk(cams, affinity, float(golden[background])).dense(6)
    agreement.values(f"random walk, {name} background", walked, golden[f"propagated_{name}"], 1e-4)
    refined = labels.refine_inside_box(golden["image"], resize(walked, (128, 128)), golden["boxes"])
    agreement.values(f"PAR inside the box, {name} background", refined[:, :, ::4, ::4], golden[f"refined_{name}"], 1e-4)


def test_reference_propagated_label_and_segmentation_loss(agreement: Agreement, golden: dict[str, Tensor]) -> None:
    cams = maps_of(golden["cams"], golden["class_labels"])
    affinity = TokenAffinity(golden["affinity_infer"], (12, 12)).within(12)
    label = made_with(int(golden["radius"])).propagated(golden["image"], cams, affinity, golden["boxes"])
    agreement.labels("propagated label", label, golden["propagated_label"], PIXELS)
    loss = segmentation_loss(golden["seg_logits"], golden["propagated_label"], background_share=0.5)
    agreement.values("segmentation loss", loss, golden["seg_loss"], 1e-4)


def test_reference_image_for_par_is_truncated(golden: dict[str, Tensor]) -> None:
    seen = (golden["image"] * 255).round()
    dropped = golden["images_uint8"].float() - seen
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert 0.004 < dropped.mean() < 0.010


def matrix_of(pairs: Tensor) -> Tensor:
    """An affinity label as a matrix [B, N, N], 255 where there is no pair."""
    return 255 - dense(255 - pairs)


# A small case with known answers.

CAMS = torch.tensor([[[0.6, 0.5, 0.4, 0.3]], [[0.1, 0.9, 0.35, 0.36]], [[1.0, 1.0, 1.0, 1.0]]])[None]  # [1, 3, 1, 4]
PRESENT = torch.tensor([[1.0, 1.0, 0.0]])
WHOLE = torch.tensor([[0, 1, 0, 4]])


def test_plain_label_by_hand() -> None:
    cams = maps_of(CAMS, PRESENT)
    assert cams.label_above(0.45).tolist() == [[[1, 2, 0, 0]]]
    assert cams.label_above(0.6).tolist() == [[[0, 2, 0, 0]]]
    assert maps_of(CAMS, torch.zeros(1, 3)).label_above(0.45).tolist() == [[[0, 0, 0, 0]]]


def test_initial_label_by_hand() -> None:
    labels, cams = made_with(), maps_of(CAMS, PRESENT)
    assert labels.initial(cams, WHOLE).tolist() == [[[1, 2, 255, 255]]]
    assert labels.initial(cams, torch.tensor([[0, 1, 1, 3]])).tolist() == [[[255, 2, 255, 255]]]
    assert labels.initial(maps_of(CAMS / 3, PRESENT), WHOLE).tolist() == [[[0, 0, 0, 0]]]


def test_combine_by_hand() -> None:
    high, low = torch.tensor([[[0, 0, 2, 0]]]), torch.tensor([[[0, 1, 2, 3]]])
    assert combine(high, low, WHOLE).tolist() == [[[0, 255, 2, 255]]]
    assert combine(high, low, torch.tensor([[0, 1, 0, 1]])).tolist() == [[[0, 255, 255, 255]]]


def test_restored_image_is_the_image() -> None:
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    restored = restore_image(normalised(image), MEAN, STD)
    assert (restored - image).abs().max() < 1e-3
    assert ((par_image(normalised(image), MEAN, STD) * 255).round() - image).abs().max() <= 1


# Properties of all the labels.


class Case:
    """Random CAMs of two images of a crop of which a part is padding."""

    def __init__(self, classes: int = 7, size: int = 48, grid: int = 6, batch: int = 2) -> None:
        generator = torch.Generator().manual_seed(5)
        self.size, self.grid = size, (grid, grid)
        self.image = torch.rand(batch, 3, size, size, generator=generator)
        cams = resize(torch.rand(batch, classes, 5, 5, generator=generator), (size, size))
        self.cams = (cams - 0.3).clamp(min=0) / 0.7
        self.class_labels = torch.zeros(batch, classes)
        self.class_labels[0, [1, 4]] = 1
        self.class_labels[1, 3] = 1
        self.boxes = torch.tensor([[0, size, 5, size - 4], [7, size, 0, size]])[:batch]
        affinity = torch.rand(batch, grid**2, grid**2, generator=generator)
        matrix = 0.1 * (affinity + affinity.transpose(1, 2)) + 0.8 * torch.eye(grid**2)
        self.affinity = TokenAffinity(matrix, self.grid).within(grid).values
        self.made_with = made_with(radius=2, dilations=[1, 2, 4], iterations=3)

    @property
    def maps(self) -> Maps:
        return maps_of(self.cams, self.class_labels)

    def labels(self, name: str) -> Tensor:
        if name == "initial":
            return self.made_with.initial(self.maps, self.boxes)
        if name == "refined":
            return self.made_with.refined(self.image, self.maps, self.boxes)
        return self.made_with.propagated(self.image, self.maps, PairAffinity(self.affinity), self.boxes)

    def only(self, index: int) -> Case:
        case = Case()
        for name in ("image", "cams", "class_labels", "boxes", "affinity"):
            setattr(case, name, getattr(self, name)[index : index + 1])
        return case


LABELS = pytest.mark.parametrize("name", ["initial", "refined", "propagated"])


@LABELS
def test_absent_classes_never_appear(name: str) -> None:
    label = Case().labels(name)
    assert set(label[0].unique().tolist()) <= {0, 2, 5, 255}
    assert set(label[1].unique().tolist()) <= {0, 4, 255}
    assert len(label.unique()) > 2, "the case should not be trivial"


@LABELS
def test_outside_the_box_is_ignored(name: str) -> None:
    case = Case()
    label = case.labels(name)
    assert (label[0, :, :5] == 255).all()
    assert (label[0, :, 44:] == 255).all()
    assert (label[1, :7] == 255).all()
    assert (label[0, :, 5:44] != 255).any()


@LABELS
def test_what_absent_classes_score_does_not_matter(name: str) -> None:
    case, other = Case(), Case()
    absent = (other.class_labels == 0)[:, :, None, None]
    other.cams = torch.where(absent, torch.rand_like(other.cams), other.cams)
    assert torch.equal(case.labels(name), other.labels(name))


@LABELS
def test_a_batch_of_two_is_two_batches_of_one(name: str) -> None:
    case = Case()
    both = case.labels(name)
    assert torch.equal(both, torch.cat([case.only(0).labels(name), case.only(1).labels(name)]))


@LABELS
def test_boxes_of_one_size_at_different_places(name: str) -> None:
    case = Case()
    case.boxes = torch.tensor([[0, 40, 3, 45], [8, 48, 6, 48]])
    both = case.labels(name)
    assert torch.equal(both, torch.cat([case.only(0).labels(name), case.only(1).labels(name)]))


@LABELS
def test_order_of_the_classes_only_renames_labels(name: str) -> None:
    case, other = Case(), Case()
    order = torch.tensor([6, 4, 0, 3, 1, 5, 2])
    other.cams, other.class_labels = case.cams[:, order], case.class_labels[:, order]
    names = torch.arange(256)
    names[1:8] = order + 1  # class i of the other case is class order[i] of this one
    assert (names[other.labels(name)] != case.labels(name)).float().mean() < 2e-3


@LABELS
def test_image_without_any_class_has_no_foreground(name: str) -> None:
    case = Case()
    case.class_labels[1] = 0
    assert set(case.labels(name)[1].unique().tolist()) <= {0, 255}


@LABELS
def test_odd_sizes(name: str) -> None:
    case = Case(size=45)
    case.boxes = torch.tensor([[0, 45, 0, 31], [11, 44, 0, 45]])
    assert case.labels(name).shape == (2, 45, 45)


@LABELS
def test_box_of_one_pixel(name: str) -> None:
    case = Case()
    case.boxes = torch.tensor([[0, 1, 0, 1], [0, 48, 47, 48]])
    assert ((case.labels(name) != 255).sum(dim=(1, 2)) <= torch.tensor([1, 48])).all()


def test_present_classes_fill_up_with_others_that_stay_zero() -> None:
    case = Case()
    classes = present_classes(case.class_labels)
    assert classes.channels.shape == (2, 2)
    assert classes.counted.tolist() == [[True, True], [True, False]]
    maps = case.maps.softmax(0.45)
    assert not maps.scores[1, 2].any()
    torch.testing.assert_close(maps.scores.sum(dim=1), torch.ones(2, 48, 48))
    full = maps.dense(8)
    assert full.shape == (2, 8, 48, 48)
    assert not full[0, [1, 3, 4, 6, 7]].any()
    assert torch.equal(full[0, 5], maps.scores[0, 2])


def test_propagated_label_is_its_parts() -> None:
    case = Case()
    results = []
    for background in (0.55, 0.35):
        walked = case.made_with.walk(case.maps, PairAffinity(case.affinity), background).dense(8)
        inside = case.made_with.refine_inside_box(case.image, resize(walked, (48, 48)), case.boxes)
        results.append(inside.argmax(dim=1))
    assert torch.equal(combine(results[0], results[1], case.boxes), case.labels("propagated"))


def test_affinity_label_by_hand() -> None:
    label = torch.tensor([[[1, 9, 0, 9], [9, 9, 9, 9], [1, 9, 255, 9], [9, 9, 9, 9]]])
    pairs = matrix_of(affinity_label(label, (2, 2), radius=1))[0]
    # Tokens: 1, 0, 1, ignored; each the top-left pixel of its cell.
    assert pairs.tolist() == [[1, 0, 1, 255], [0, 1, 0, 255], [1, 0, 1, 255], [255, 255, 255, 255]]


def test_affinity_label_keeps_to_its_window() -> None:
    label = torch.ones(1, 32, 48, dtype=torch.long)
    pairs = matrix_of(affinity_label(label, (4, 6), radius=1))[0].view(4, 6, 4, 6)
    assert pairs[0, 0, 1, 1] == 1
    assert pairs[0, 0, 0, 2] == 255
    assert pairs[0, 0, 2, 0] == 255
    assert pairs[1, 3, 1, 3] == 1


def test_affinity_label_of_a_grid_that_does_not_divide_the_label() -> None:
    label = torch.arange(35)[None, :, None].expand(1, 35, 35)
    pairs = matrix_of(affinity_label(label, (3, 3), radius=8))[0]
    assert (pairs.view(3, 3, 3, 3).diagonal(dim1=0, dim2=2) == 1).all()
    assert pairs.sum() == 27


def test_the_share_of_classes_without_a_pixel() -> None:
    present = present_classes(torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    label = torch.zeros(3, 2, 2, dtype=torch.int64)
    label[0, 0, 0], label[0, 1, 1], label[1, 0, 0], label[2] = 3, IGNORE, 3, 2
    # Of the classes 1 and 3 of the first image, 3 has a pixel; class 2 of the second one has none.
    assert missing_share(label, present) == pytest.approx(2 / 3)
    label[1, 1] = 2
    assert missing_share(label, present) == pytest.approx(1 / 3)
    assert missing_share(label[2:], present_classes(torch.zeros(1, 4))) == 0
