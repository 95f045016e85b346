from __future__ import annotations

import pytest
import torch
from golden import Agreement, load_golden, normalised
from torch import Tensor

from afa.methods.afa.config import AFAConfig
from afa.methods.afa.labels import restore_image
from afa.ops.dense_energy import dense_energy_loss
from afa.ops.permutohedral import PermutohedralLattice


def inputs(height: int = 16, width: int = 20, classes: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, logits, mask of the valid box, label with ignored pixels; two images."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, height, width, generator=generator) * 255
    logits = torch.randn(2, classes, height, width, generator=generator) * 2
    mask = torch.ones(2, height, width)
    mask[1, :, width // 2 :] = 0
    label = torch.randint(0, classes, (2, height, width), generator=generator)
    label[0, : height // 2] = 255
    label[1, :, width // 2 :] = 255
    return image, logits, mask, label


def gradient(logits: Tensor, *others: Tensor, **settings: float) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient in the probabilities."""
    image, mask, label = others
    probabilities = logits.softmax(dim=1).requires_grad_()
    loss = dense_energy_loss(image, probabilities, mask, label, **settings)  # type: ignore[arg-type]
    loss.backward()
    assert probabilities.grad is not None
    return loss.detach(), probabilities.grad


def test_reference_energy(agreement: Agreement) -> None:
    golden = load_golden("dense_energy")
    dataset = AFAConfig().dataset
    image = restore_image(normalised(golden["images_uint8"]), dataset.image_mean, dataset.image_std)
    mask = torch.zeros(golden["label"].shape)
    for one, (y0, y1, x0, x1) in enumerate(golden["boxes"].tolist()):
        mask[one, y0:y1, x0:x1] = 1
    logits = golden["logits"].requires_grad_()
    loss = dense_energy_loss(
        image,
        logits.softmax(dim=1),
        mask,
        golden["label"],
        weight=golden["weight"].item(),
        sigma_rgb=golden["sigma_rgb"].item(),
        sigma_xy=golden["sigma_xy"].item(),
        scale=golden["scale_factor"].item(),
    )
    loss.backward()
    assert logits.grad is not None
    expected = golden["grad_logits"]
    one = torch.ones(1)
    agreement.values("dense energy", loss.detach() / golden["loss"], one, 1e-4, "relative")
    largest = expected.abs().max()
    agreement.values(
        "dense energy, gradient", logits.grad / largest, expected / largest, 1e-4, "relative to the largest"
    )


def test_by_definition_at_full_size() -> None:
    image, logits, mask, label = inputs()
    loss, grad = gradient(logits, image, mask, label, scale=1, weight=1, sigma_rgb=40, sigma_xy=6)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(20), indexing="ij")
    positions = torch.stack([x, y]).float().expand(2, -1, -1, -1)
    lattice = PermutohedralLattice(torch.cat([positions / 6, image / 40], dim=1).flatten(2))
    probabilities = logits.softmax(dim=1)
    masked = probabilities * mask[:, None]
    gate = (mask - probabilities.max(dim=1).values).clamp(min=0)
    gate = torch.where(label == 255, 1, gate)[:, None]
    filtered = lattice.filter(masked.flatten(2)).view_as(masked)
    torch.testing.assert_close(loss, -(masked * gate * filtered).sum() / 2)
    torch.testing.assert_close(grad, -(filtered * gate) * mask[:, None])


def test_padding_has_no_part() -> None:
    image, logits, mask, label = inputs()
    loss, grad = gradient(logits, image, mask, label)
    assert grad[1, :, :, 11:].abs().max() == 0 and grad[1, :, :, :9].abs().min() > 0
    other = logits.clone()
    other[1, :, :, 11:] = torch.randn(4, 16, 9) * 5
    image[1, :, :, 11:] = 3
    # The padding's colours may add vertices to the lattice, no more.
    torch.testing.assert_close(gradient(other, image, mask, label)[0], loss, rtol=0.1, atol=0)


def test_sure_pixels_count_only_where_the_label_is_ignored() -> None:
    image, _, mask, label = inputs()
    sure = torch.full((2, 4, 16, 20), -60.0)
    sure[:, 1] = 60
    _, grad = gradient(sure, image, mask, label)
    assert grad[0, :, 8:].abs().max() == 0 and (grad[0, 1, :7] < 0).all()


def test_alike_predictions_of_alike_pixels_cost_less() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 200
    mask, label = torch.ones(1, 16, 16), torch.full((1, 16, 16), 255)
    side = torch.zeros(1, 16, 16, dtype=torch.long)
    side[..., 8:] = 1
    aligned = torch.nn.functional.one_hot(side, 2).permute(0, 3, 1, 2).float()
    across = torch.nn.functional.one_hot(side.transpose(1, 2), 2).permute(0, 3, 1, 2).float()
    assert dense_energy_loss(image, aligned, mask, label) < dense_energy_loss(image, across, mask, label) < 0


def test_weight_scales_and_the_mean_is_over_images() -> None:
    image, logits, mask, label = inputs()
    loss, grad = gradient(logits, image, mask, label, weight=1)
    tenth, tenth_grad = gradient(logits, image, mask, label, weight=0.1)
    torch.testing.assert_close((tenth, tenth_grad), (loss / 10, grad / 10))
    alone = [gradient(*(part[one : one + 1] for part in (logits, image, mask, label)), weight=1)[0] for one in (0, 1)]
    torch.testing.assert_close(loss, sum(alone, start=torch.zeros(())) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    image, logits, mask, label = inputs()
    probabilities = logits.softmax(dim=1).to(dtype)
    expected = dense_energy_loss(image, probabilities.float(), mask, label)
    probabilities.requires_grad_()
    loss = dense_energy_loss(image, probabilities, mask, label)
    assert torch.equal(loss, expected)
    loss.backward()
    assert probabilities.grad is not None and probabilities.grad.dtype == dtype


@pytest.mark.parametrize(("height", "width", "classes"), [(1, 1, 1), (1, 9, 2), (17, 1, 81), (15, 13, 3)])
def test_odd_sizes(height: int, width: int, classes: int) -> None:
    image, logits, mask, label = inputs(height, width, classes)
    loss, grad = gradient(logits, image, mask, label)
    assert loss.isfinite() and grad.isfinite().all()


def test_sizes_that_differ_are_refused() -> None:
    image, logits, mask, label = inputs()
    probabilities = logits.softmax(dim=1)
    for name, others in {
        "image": (image[..., 1:], mask, label),
        "valid_box_mask": (image, mask[:1], label),
        "label": (image, mask, label[:, 1:]),
    }.items():
        with pytest.raises(ValueError, match=name):
            dense_energy_loss(others[0], probabilities, *others[1:])
