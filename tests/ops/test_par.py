from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import Agreement, load_golden
from torch import Tensor

from afa.ops.par import PAR


def published(**settings: Any) -> PAR:
    """PAR with the published settings but for those given."""
    usual = {"dilations": (1, 2, 4, 8, 12, 24), "iterations": 10, "temperature": 0.3, "position_weight": 0.01}
    return PAR(**{**usual, **settings})


def random_image(height: int = 20, width: int = 26, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("iterations", [1, 10, 15])
def test_reference_par(agreement: Agreement, iterations: int) -> None:
    golden = load_golden("par")
    par = published(dilations=golden["dilations"].tolist(), iterations=iterations)
    refined = par(golden["images_uint8"].float() / 255, golden["masks"])
    agreement.values(f"PAR, {iterations} iterations", refined, golden[f"refined/{iterations}"], 1e-5)


def test_weights_by_definition() -> None:
    image = random_image(9, 11)
    dilations = (1, 2)
    found = published(dilations=dilations, temperature=0.3, position_weight=0.01).weights(image)[0]
    around = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    offsets = [(dy * dilation, dx * dilation) for dilation in dilations for dy, dx in around]
    distances = torch.tensor([math.hypot(dy, dx) for dy, dx in offsets])
    near = torch.softmax(-((distances / (distances.std() + 1e-8) / 0.3) ** 2), dim=0)
    for y, x in ((0, 0), (4, 5), (8, 10)):
        pixels = [(min(max(y + dy, 0), 8), min(max(x + dx, 0), 10)) for dy, dx in offsets]
        neighbours = torch.stack([image[0, :, row, column] for row, column in pixels])  # [M, 3]
        unlike = (neighbours - image[0, :, y, x]).abs() / (neighbours.std(dim=0) + 1e-8) / 0.3
        like = torch.softmax(-(unlike**2).mean(dim=1), dim=0)
        torch.testing.assert_close(found[:, y, x], like + 0.01 * near)


@pytest.mark.parametrize("size", [(20, 26), (1, 1), (3, 90)])
def test_weights_sum_to_one_and_the_position_weight(size: tuple[int, int]) -> None:
    weights = published().weights(random_image(*size))
    assert weights.shape == (1, 48, *size)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.full((1, *size), 1.01))


def test_constant_masks_stay_constant() -> None:
    masks = torch.tensor([0.2, 0.7])[None, :, None, None].expand(1, 2, 20, 26)
    refined = published(iterations=10)(random_image(), masks)
    torch.testing.assert_close(refined, masks * 1.01**10)


def test_no_iteration_only_resizes() -> None:
    masks = torch.rand(1, 2, 10, 13)
    expected = torch.nn.functional.interpolate(masks, size=(20, 26), mode="bilinear", align_corners=True)
    torch.testing.assert_close(published(iterations=0)(random_image(), masks), expected)


def test_masks_grow_to_the_edges_of_the_image() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 1
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., 4:12, 4:12] = 1
    refined = published(iterations=10)(image, masks)[0, 0]
    assert refined[:, :16].mean() > 10 * refined[:, 17:].mean()


def test_classes_do_not_mix() -> None:
    image, masks = random_image(batch=2), torch.rand(2, 4, 20, 26)
    par = published(iterations=3)
    refined = par(image, masks)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(par(image, masks[:, order]), refined[:, order])
    torch.testing.assert_close(par(image[1:], masks[1:, :1]), refined[1:, :1])


def test_inputs_stay_as_they_are_and_no_gradient_flows() -> None:
    image, masks = random_image(), torch.rand(1, 2, 20, 26, requires_grad=True)
    copies = image.clone(), masks.detach().clone()
    assert not published(iterations=2)(image, masks).requires_grad
    assert torch.equal(image, copies[0])
    assert torch.equal(masks, copies[1])
