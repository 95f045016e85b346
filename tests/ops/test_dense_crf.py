from __future__ import annotations

import pickle

import pytest
import torch
from golden import Agreement, load_golden
from torch import Tensor

from afa.ops.dense_crf import DenseCRF

SETTINGS = {
    "afa_test": {},
    "psa_cam": {"bilateral_sxy": 80, "bilateral_srgb": 13, "bilateral_weight": 10},
}


def picture(height: int, width: int, classes: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth colours and smooth scores."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels: int) -> Tensor:
        coarse = torch.rand(batch, channels, 4, 5, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")

    return (smooth(3) * 255).byte(), (smooth(classes) * 4).softmax(dim=1)


def with_negligible_classes(classes: int, present: int) -> tuple[Tensor, Tensor]:
    image, scores = picture(40, 50, classes)
    scores = scores.log()
    scores[:, present:] -= 7
    return image, scores.softmax(dim=1)


@pytest.mark.parametrize("name", SETTINGS)
def test_reference_crf(agreement: Agreement, name: str) -> None:
    golden = load_golden("dense_crf")
    crf = DenseCRF(**SETTINGS[name])  # type: ignore[arg-type]
    found = crf(golden["image"].permute(2, 0, 1), golden["probabilities"])
    expected = golden[f"result/{name}"]
    agreement.values(f"DenseCRF, {name}", found, expected, 1e-4)
    agreement.labels(f"DenseCRF, {name}, arg max", found.argmax(dim=0), expected.argmax(dim=0), 0.005)


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 81])
def test_marginals_sum_to_one(classes: int) -> None:
    image, probabilities = picture(20, 24, classes, batch=2)
    marginals = DenseCRF(iterations=3)(image, probabilities)
    assert marginals.shape == probabilities.shape and marginals.min() >= 0
    torch.testing.assert_close(marginals.sum(dim=1), torch.ones(2, 20, 24))


def test_no_iteration_gives_the_probabilities_back() -> None:
    image, probabilities = picture(10, 12, 5)
    torch.testing.assert_close(DenseCRF(iterations=0)(image, probabilities), probabilities)


def test_no_weight_gives_the_probabilities_back() -> None:
    image, probabilities = picture(10, 12, 5)
    torch.testing.assert_close(DenseCRF(gaussian_weight=0, bilateral_weight=0)(image, probabilities), probabilities)


def test_follows_the_edges_of_the_image() -> None:
    image = torch.zeros(1, 3, 24, 40, dtype=torch.uint8)
    image[..., 20:] = 200
    truth = torch.zeros(1, 24, 40, dtype=torch.long)
    truth[..., 20:] = 1
    # The scores' edge lies 3 pixels off, and some pixels are wrong.
    seen = torch.zeros(1, 24, 40, dtype=torch.long)
    seen[..., 23:] = 1
    seen[0, 5, 5] = seen[0, 12, 10] = 1
    probabilities = torch.nn.functional.one_hot(seen, 2).permute(0, 3, 1, 2) * 0.3 + 0.35
    marginals = DenseCRF()(image, probabilities)
    assert (probabilities.argmax(dim=1) != truth).any() and torch.equal(marginals.argmax(dim=1), truth)


def test_a_batch_gives_what_its_images_give_alone() -> None:
    image, probabilities = picture(24, 30, 6, batch=3)
    for negligible in (None, 0.1):
        crf = DenseCRF(negligible=negligible)
        together = crf(image, probabilities)
        for one in range(3):
            torch.testing.assert_close(together[one], crf(image[one], probabilities[one]), rtol=1e-4, atol=1e-5)


def test_more_pixels_than_are_worked_out_at_once() -> None:
    image, probabilities = picture(190, 180, 3, batch=2)
    crf = DenseCRF(iterations=2)
    together = crf(image, probabilities)
    torch.testing.assert_close(together[1], crf(image[1], probabilities[1]), rtol=1e-4, atol=1e-5)


def test_cached_position_kernel_is_the_right_one() -> None:
    """More sizes than are kept, and back again."""
    crf = DenseCRF(iterations=2)
    pictures = [picture(12 + k, 30 - k, 3) for k in range(7)]
    fresh = [DenseCRF(iterations=2)(*one) for one in pictures]
    for _ in range(2):
        for one, expected in zip(pictures, fresh, strict=True):
            assert torch.equal(crf(*one), expected)


def test_inputs_stay_as_they_are() -> None:
    for classes in (1, 3):
        image, probabilities = picture(12, 14, classes)
        copies = image.clone(), probabilities.clone()
        DenseCRF(negligible=0.3)(image, probabilities)
        assert torch.equal(image, copies[0]) and torch.equal(probabilities, copies[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_one_pixel_wide(size: tuple[int, int]) -> None:
    image, probabilities = picture(*size, 4)
    marginals = DenseCRF()(image, probabilities)
    assert marginals.shape == probabilities.shape and marginals.isfinite().all()


def test_constant_image_and_probabilities_keep_their_order() -> None:
    image = torch.full((1, 3, 15, 20), 90, dtype=torch.uint8)
    probabilities = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1).expand(1, 3, 15, 20)
    marginals = DenseCRF()(image, probabilities)
    assert (marginals.argmax(dim=1) == 1).all() and (marginals[:, 1] > 0.5).all()


def test_probabilities_of_zero_and_one() -> None:
    image, _ = picture(10, 12, 2)
    probabilities = torch.zeros(1, 3, 10, 12)
    probabilities[:, 0] = 1
    assert (DenseCRF()(image, probabilities)[:, 0] > 0.999).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(dtype: torch.dtype) -> None:
    image, probabilities = picture(12, 14, 4)
    probabilities = probabilities.to(dtype)
    found = DenseCRF()(image, probabilities)
    assert found.dtype == torch.float32 and torch.equal(found, DenseCRF()(image, probabilities.float()))


def test_merging_negligible_classes_changes_little() -> None:
    image, probabilities = with_negligible_classes(21, 3)
    largest = probabilities.amax(dim=(0, 2, 3))
    assert largest[3:].max() < 5e-3 < largest[:3].min()
    every, merged = DenseCRF()(image, probabilities), DenseCRF(negligible=5e-3)(image, probabilities)
    assert 0 < (every - merged).abs().max() < 1e-3
    torch.testing.assert_close(merged.sum(dim=1), torch.ones(1, 40, 50))


def test_merged_classes_share_in_proportion() -> None:
    image, probabilities = with_negligible_classes(6, 3)
    merged = DenseCRF(negligible=5e-3)(image, probabilities)
    clipped = probabilities[:, 3:].clamp(min=1e-5)
    torch.testing.assert_close(
        merged[:, 3:] / merged[:, 3:].sum(dim=1, keepdim=True), clipped / clipped.sum(dim=1, keepdim=True)
    )


@pytest.mark.parametrize(("negligible", "dropped"), [(0.0, 0), (5e-3, 1)])
def test_fewer_than_two_negligible_classes_are_not_merged(negligible: float, dropped: int) -> None:
    image, probabilities = with_negligible_classes(4, 3)
    assert int((probabilities.amax(dim=(0, 2, 3)) < negligible).sum()) == dropped
    assert torch.equal(DenseCRF(negligible=negligible)(image, probabilities), DenseCRF()(image, probabilities))


def test_travels_to_another_process() -> None:
    image, probabilities = picture(12, 14, 4)
    crf = DenseCRF(iterations=2)
    expected = crf(image, probabilities)
    assert torch.equal(pickle.loads(pickle.dumps(crf))(image, probabilities), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": -1},
        {"gaussian_sxy": 0},
        {"bilateral_srgb": float("nan")},
        {"negligible": 1},
        {"negligible": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DenseCRF(**settings)  # type: ignore[arg-type]


def test_unfit_inputs_are_refused() -> None:
    image, probabilities = picture(10, 12, 3)
    with pytest.raises(ValueError, match="uint8"):
        DenseCRF()(image.float(), probabilities)
    with pytest.raises(ValueError, match="differ in size"):
        DenseCRF()(image, probabilities[..., 1:])
    with pytest.raises(ValueError, match="differ in size"):
        DenseCRF()(image, probabilities.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="expected"):
        DenseCRF()(image[:, :1], probabilities)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("negligible", [None, 5e-3])
def test_gpu_agrees_with_cpu(negligible: float | None) -> None:
    image, probabilities = with_negligible_classes(21, 3)
    crf = DenseCRF(negligible=negligible)
    torch.testing.assert_close(
        crf(image.cuda(), probabilities.cuda()).cpu(), crf(image, probabilities), rtol=0, atol=1e-3
    )


def test_sets_of_one_image_share_its_kernels_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8, generator=generator)
    sets = torch.rand(2, 3, 4, 20, 24, generator=generator)
    crf = DenseCRF(iterations=3)
    together = crf(images, sets)
    for image, of_image, found in zip(images, sets, together, strict=True):
        for probabilities, marginals in zip(of_image, found, strict=True):
            assert torch.allclose(marginals, crf(image, probabilities), atol=1e-6)
