from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from golden import Agreement, golden_network, load_golden, normalised, random_image, small_network
from torch import Tensor

from afa.models import AFANet
from afa.ops.cam import MultiScaleCam, multi_scale_cam, normalise_cams, resize
from afa.ops.token_pairs import dense

SCALES = (1.0, 0.5, 1.5)


def fused(network: AFANet, image: Tensor, scales: Sequence[float] = SCALES, **settings: Any) -> MultiScaleCam:
    return multi_scale_cam(network.cam, image, scales, **{"epsilon": 1e-5, "with_affinity": True, **settings})


@pytest.mark.parametrize("reuse", [False, True])
def test_reference_multi_scale_cam(agreement: Agreement, reuse: bool) -> None:
    golden = load_golden("multi_scale_cam")
    network, image = golden_network(), normalised(golden["images_uint8"])
    with torch.no_grad():
        first_cam = network(image).cam if reuse else None
    result = fused(network, image, golden["scales"].tolist(), first_cam=first_cam)
    how = ", scale 1 from the training forward" if reuse else ""
    agreement.values(f"CAM over scales and mirrors{how}", result.cams, golden["cams"], 1e-4)
    expected = golden["affinity_at_largest_scale"]
    agreement.values(f"affinity at the largest scale{how}", dense(result.affinity.values), expected, 1e-4)
    assert result.affinity.grid == (6, 6)


def test_equals_a_plain_loop() -> None:
    network, image = small_network(), random_image(2, 3, 40, 56)
    total = torch.zeros(2, 5, 40, 56)
    for scale in (1.0, 0.5, 1.5):
        scaled = resize(image, (int(scale * 40), int(scale * 56)))
        plain = resize(network.cam(scaled, 0)[0], (40, 56))
        mirrored = resize(network.cam(scaled.flip(3), 0)[0], (40, 56)).flip(3)
        total += torch.maximum(plain, mirrored).clamp(min=0)
    torch.testing.assert_close(fused(network, image).cams, normalise_cams(total, 1e-5), atol=1e-4, rtol=0)


def test_centred_maps_lose_what_is_the_same_everywhere() -> None:
    network, image = small_network(), random_image(2, 3, 40, 56)
    plain = fused(network, image, (1.0,), centred=True).cams
    total = torch.zeros(2, 5, 40, 56)
    for one in (image, image.flip(3)):
        cam = network.cam(one, 0)[0]
        both = resize(cam - cam.mean(dim=(2, 3), keepdim=True), (40, 56))
        total = torch.maximum(total, both if one is image else both.flip(3))
    torch.testing.assert_close(plain, normalise_cams(total, 1e-5), atol=1e-4, rtol=0)

    def shifted(images: Tensor, affinity_of: int) -> tuple[Tensor, Tensor | None]:
        cam, affinity = network.cam(images, affinity_of)
        return cam + torch.linspace(-50, 50, 5).view(1, 5, 1, 1), affinity

    settings = {"epsilon": 1e-5, "with_affinity": False, "centred": True}
    torch.testing.assert_close(multi_scale_cam(shifted, image, (1.0,), **settings).cams, plain, atol=1e-3, rtol=0)


def test_two_images_equal_one_and_one() -> None:
    network, image = small_network(), random_image(2, 3, 48, 64)
    both = fused(network, image)
    alone = [fused(network, image[index : index + 1]) for index in range(2)]
    torch.testing.assert_close(both.cams, torch.cat([one.cams for one in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        both.affinity.values, torch.cat([one.affinity.values for one in alone]), atol=1e-5, rtol=0
    )


def test_cams_of_the_mirror_image_are_mirrored() -> None:
    network, image = small_network(), random_image(1, 3, 64, 64)
    cams = fused(network, image).cams
    torch.testing.assert_close(fused(network, image.flip(3)).cams.flip(3), cams, atol=1e-4, rtol=0)


def test_range_and_no_gradient() -> None:
    cams = fused(small_network().train(), random_image(2, 3, 48, 48)).cams
    assert not cams.requires_grad
    assert cams.min() >= 0
    assert cams.max() < 1
    assert normalise_cams(torch.full((1, 2, 4, 4), 3.0), 1e-5).abs().max() == 0


@pytest.mark.parametrize("size", [(33, 47), (50, 31)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    result = fused(small_network(), random_image(1, 3, *size))
    assert result.cams.shape[-2:] == size
    height, width = (-(-int(1.5 * side) // 16) for side in size)
    assert result.affinity.grid == (height, width)


def test_order_of_the_passes_and_nothing_superfluous() -> None:
    network, image = small_network(), random_image(2, 3, 32, 32)
    calls: list[tuple[int, int, int]] = []

    def counted(images: Tensor, affinity_of: int) -> tuple[Tensor, Tensor | None]:
        calls.append((len(images), images.shape[-1], affinity_of))
        return network.cam(images, affinity_of)

    multi_scale_cam(counted, image, SCALES, epsilon=1e-5, with_affinity=True)
    assert calls == [(4, 32, 0), (4, 16, 0), (4, 48, 2)]

    calls.clear()
    result = multi_scale_cam(counted, image, SCALES, epsilon=1e-5, with_affinity=False)
    assert result.affinity is None
    assert [call[2] for call in calls] == [0, 0, 0]

    calls.clear()
    multi_scale_cam(counted, image, SCALES, epsilon=1e-5, with_affinity=True, first_cam=network(image).cam)
    assert calls == [(2, 32, 0), (4, 16, 0), (4, 48, 2)]


def test_an_affinity_of_scale_1_that_the_caller_has_saves_its_pass() -> None:
    network, image, calls = small_network(), random_image(2, 3, 32, 32), []

    def counted(images: Tensor, affinity_of: int) -> tuple[Tensor, Tensor | None]:
        calls.append((len(images), images.shape[-1], affinity_of))
        return network.cam(images, affinity_of)

    known = network(image)
    settings = {"epsilon": 1e-5, "with_affinity": True, "first_cam": known.cam}
    alone = multi_scale_cam(counted, image, (1.0, 0.5), **settings)
    shared = multi_scale_cam(counted, image, (1.0, 0.5), **settings, first_affinity=known.affinity)
    assert calls == [(4, 32, 2), (4, 16, 0), (2, 32, 0), (4, 16, 0)]
    torch.testing.assert_close(shared.affinity.values, alone.affinity.values)
    torch.testing.assert_close(shared.cams, alone.cams)

    calls.clear()
    multi_scale_cam(counted, image, (1.0, 1.5), **settings, first_affinity=known.affinity)
    assert calls == [(2, 32, 0), (4, 48, 2)]


def test_affinity_comes_from_the_largest_scale_wherever_it_stands() -> None:
    network, image = small_network(), random_image(1, 3, 64, 64)
    one = fused(network, image, (1.0, 0.5, 1.5))
    other = fused(network, image, (1.5, 1.0, 0.5))
    assert one.affinity.grid == other.affinity.grid == (6, 6)
    torch.testing.assert_close(one.affinity.values, other.affinity.values)
    torch.testing.assert_close(one.cams, other.cams, atol=1e-5, rtol=0)


def test_no_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one scale"):
        fused(small_network(), random_image(1, 3, 32, 32), [])
