from __future__ import annotations

import pytest
import torch
from golden import Agreement, load_golden
from torch import Tensor

from afa.ops.permutohedral import PermutohedralLattice, sort_with_order


def random_features(batch: int, dim: int, points: int, spread: float = 2.0, **kwargs: object) -> Tensor:
    generator = torch.Generator().manual_seed(dim * points)
    return (torch.randn(batch, dim, points, generator=generator) * spread).to(**kwargs)  # type: ignore[call-overload]


def image_features(image: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """x, y, r, g, b of [B, 3, H, W] over their sigmas: [B, 5, N]."""
    batch, _, height, width = image.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([x, y]).float().expand(batch, -1, -1, -1)
    return torch.cat([positions / sigma_xy, image.float() / sigma_rgb], dim=1).flatten(2)


def as_matrix(lattice: PermutohedralLattice, points: int) -> Tensor:
    """G of one image's lattice, column by column."""
    return lattice.filter(torch.eye(points, dtype=torch.float64)[None])[0].T


def test_reference_filter(agreement: Agreement) -> None:
    golden = load_golden("dense_energy")
    lattice = PermutohedralLattice(image_features(golden["images_uint8"], 100, 15))
    expected = golden["filtered_probabilities"]
    found = lattice.filter(golden["logits"].softmax(dim=1).flatten(2)).view_as(expected)
    largest = expected.abs().max()
    agreement.values("lattice filter", found / largest, expected / largest, 1e-5, "relative to the largest")


def test_one_dimension_by_hand() -> None:
    # With d = 1 the vertices lie sqrt(3) / 2 standard deviations apart. The points lie in the middle between vertices
    # 0 and 1, 1 and 2, 5 and 6.
    points = torch.tensor([[[0.5, 1.5, 5.5]]], dtype=torch.float64) * 3**0.5 / 2
    share = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.float64) / 2
    near = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]])
    blur = (near + torch.eye(5)).double() / 2
    # Both directions are the same line.
    expected = share @ blur @ blur @ share.T / 1.5
    torch.testing.assert_close(as_matrix(PermutohedralLattice(points), 3), expected)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 7])
def test_splatting_shares_out_and_slicing_puts_together(dim: int) -> None:
    features = random_features(2, dim, 50, dtype=torch.float64)
    lattice = PermutohedralLattice(features)
    ones = torch.ones(100, 1, dtype=torch.float64)
    splat = lattice.splat_rows @ ones
    torch.testing.assert_close(splat.sum(), torch.tensor(100.0, dtype=torch.float64))
    assert splat.min() >= -1e-9 and splat.shape[0] == lattice.num_vertices + 1
    torch.testing.assert_close(lattice.slice_rows @ torch.ones_like(splat), ones)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_barycentric_weights_give_the_point_back(dim: int) -> None:
    """The weights of a point's vertices depend linearly on the point while it stays in its simplex."""
    start = random_features(1, dim, 40, dtype=torch.float64)
    nudge = random_features(1, dim, 40, 1e-7, dtype=torch.float64)
    slices = [PermutohedralLattice(start + k * nudge).slice_rows.weights for k in range(3)]
    torch.testing.assert_close(slices[2] - slices[1], slices[1] - slices[0], rtol=0, atol=1e-12)
    assert (slices[1] - slices[0]).abs().max() > 1e-9


def test_blurs_are_symmetric_and_their_product_is_not() -> None:
    features = random_features(1, 5, 60, dtype=torch.float64)
    lattice = PermutohedralLattice(features)
    vertices = lattice.num_vertices
    identity = torch.eye(vertices + 1, dtype=torch.float64)
    identity[vertices] = 0
    links = 0
    for blur in lattice.blur_rows:
        matrix = (blur @ identity)[:vertices, :vertices]
        torch.testing.assert_close(matrix, matrix.T)
        assert (matrix.diagonal() == 1).all()
        assert set(matrix.unique().tolist()) <= {0.0, 0.5, 1.0} and (matrix == 0.5).sum(dim=1).max() <= 2
        assert (blur @ identity)[vertices].abs().max() == 0
        links += int((matrix == 0.5).sum())
    assert links > 0
    full = as_matrix(lattice, 60)
    assert (full - full.T).abs().max() > 1e-3


@pytest.mark.parametrize("dim", [2, 5])
def test_gradient_is_the_exact_transpose(dim: int) -> None:
    lattice = PermutohedralLattice(random_features(1, dim, 30, dtype=torch.float64))
    values = torch.zeros(1, 30, 30, dtype=torch.float64, requires_grad=True)
    lattice.filter(values).backward(torch.eye(30, dtype=torch.float64)[None])
    assert values.grad is not None
    torch.testing.assert_close(values.grad[0].T, as_matrix(lattice, 30).T)


def test_gradcheck() -> None:
    lattice = PermutohedralLattice(random_features(2, 3, 12, dtype=torch.float64))
    values = torch.randn(2, 2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lattice.filter, values)
    assert torch.autograd.gradgradcheck(lattice.filter, values)


@pytest.mark.parametrize(("sigma_xy", "sigma_rgb", "within"), [(4.0, 60.0, 0.15), (8.0, 30.0, 0.2)])
def test_normalised_filter_is_near_the_gaussian(sigma_xy: float, sigma_rgb: float, within: float) -> None:
    """Coarsely, and only after normalising: the lattice's own error (docs/lattice.md) is no error of ours."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 5, 6, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, size=(24, 30), mode="bilinear")
    features = image_features(image, sigma_xy, sigma_rgb)
    values = torch.rand(1, 2, 24 * 30, generator=generator)
    values[:, :, ::3] = 0
    gaussian = torch.exp(-(torch.cdist(features.transpose(1, 2), features.transpose(1, 2)) ** 2) / 2)
    expected = (values @ gaussian) / gaussian.sum(dim=2)
    lattice = PermutohedralLattice(features)
    found = lattice.filter(values) / lattice.filter(torch.ones(1, 1, 24 * 30))
    assert (found - expected).abs().mean() < within * expected.abs().mean()


def test_images_of_a_batch_never_meet() -> None:
    features = random_features(3, 5, 40)
    features[2] = features[0]
    values = torch.rand(3, 4, 40)
    together = PermutohedralLattice(features).filter(values)
    for one in range(3):
        alone = PermutohedralLattice(features[one : one + 1]).filter(values[one : one + 1])
        torch.testing.assert_close(together[one], alone[0])


def test_distant_points_never_meet() -> None:
    features = random_features(1, 2, 60, dtype=torch.float64)
    features[:, :, 30:] += 1e6
    values = torch.rand(1, 2, 60, dtype=torch.float64)
    halves = zip(features.split(30, dim=2), values.split(30, dim=2), strict=True)
    alone = [PermutohedralLattice(half).filter(its_values) for half, its_values in halves]
    torch.testing.assert_close(PermutohedralLattice(features).filter(values), torch.cat(alone, dim=2))


@pytest.mark.parametrize("bits", [8, 40, 62])
def test_sort_keeps_equal_codes_in_order(bits: int) -> None:
    codes = torch.randint(0, 50, (3000,), generator=torch.Generator().manual_seed(bits)) * (2**bits // 50)
    before = codes.clone()
    found, order = sort_with_order(codes)
    expected, expected_order = torch.sort(before, stable=True)
    assert torch.equal(found, expected) and torch.equal(order, expected_order)


def test_constant_stays_constant_after_normalising() -> None:
    lattice = PermutohedralLattice(random_features(1, 5, 80))
    norm = lattice.filter(torch.ones(1, 1, 80))
    torch.testing.assert_close(lattice.filter(torch.full((1, 3, 80), 7.0)) / norm, torch.full((1, 3, 80), 7.0))
    assert norm.min() > 0


def test_linear() -> None:
    lattice = PermutohedralLattice(random_features(1, 5, 80))
    one, other = torch.rand(2, 1, 3, 80)
    torch.testing.assert_close(lattice.filter(2 * one - other), 2 * lattice.filter(one) - lattice.filter(other))


@pytest.mark.parametrize("channels", [1, 2, 16, 81])
def test_channels_are_independent(channels: int) -> None:
    lattice = PermutohedralLattice(random_features(1, 5, 70))
    values = torch.rand(1, channels, 70)
    found = lattice.filter(values)
    for channel in {0, channels // 2, channels - 1}:
        torch.testing.assert_close(found[:, channel], lattice.filter(values[:, channel : channel + 1])[:, 0])


def test_a_single_point_and_equal_points() -> None:
    alone = PermutohedralLattice(torch.zeros(1, 5, 1)).filter(torch.ones(1, 1, 1))
    assert alone.isfinite().all() and 0 < alone.item() < 2
    five = PermutohedralLattice(torch.zeros(1, 5, 5)).filter(torch.ones(1, 1, 5))
    torch.testing.assert_close(five, 5 * alone.expand(1, 1, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    features, values = random_features(1, 5, 50).to(dtype), torch.rand(1, 3, 50).to(dtype)
    expected = PermutohedralLattice(features.float()).filter(values.float())
    values.requires_grad_()
    found = PermutohedralLattice(features).filter(values)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    found.sum().backward()
    assert values.grad is not None and values.grad.dtype == dtype and values.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    lattice, values = PermutohedralLattice(random_features(1, 5, 50)), torch.rand(1, 3, 50)
    expected = lattice.filter(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PermutohedralLattice(random_features(1, 5, 50)).filter(values), expected)


@pytest.mark.parametrize("shape", [(5, 10), (1, 5, 0), (0, 5, 3), (1, 0, 3)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="features must be"):
        PermutohedralLattice(torch.zeros(shape))


def test_values_of_another_size_are_refused() -> None:
    lattice = PermutohedralLattice(torch.zeros(2, 5, 3))
    for shape in [(2, 1, 4), (1, 1, 3), (2, 3)]:
        with pytest.raises(ValueError, match="values must be"):
            lattice.filter(torch.zeros(shape))


def test_features_that_span_too_much_are_refused() -> None:
    with pytest.raises(ValueError, match="larger sigmas"):
        PermutohedralLattice(random_features(1, 5, 50) * 1e6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    features, values = random_features(2, 5, 500), torch.rand(2, 7, 500)
    found = PermutohedralLattice(features.cuda()).filter(values.cuda()).cpu()
    torch.testing.assert_close(found, PermutohedralLattice(features).filter(values), rtol=1e-4, atol=1e-4)
