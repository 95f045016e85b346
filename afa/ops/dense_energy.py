"""Dense energy: a regularised loss that asks alike pixels for alike predictions (Tang et al., ECCV 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.ops.cam import scaled_size
from afa.ops.permutohedral import PermutohedralLattice


class _DenseEnergy(torch.autograd.Function):
    """``-sum S * gate * (G S) / B``. The gradient takes G for its own transpose and the gate for a constant."""

    @staticmethod
    def forward(ctx, segmentation: Tensor, gate: Tensor, lattice: PermutohedralLattice) -> Tensor:
        batch = segmentation.shape[0]
        filtered = lattice.filter(segmentation.flatten(2)).view_as(segmentation)
        gated = filtered.mul_(gate.unsqueeze(1)).div_(-batch)
        ctx.save_for_backward(gated)
        return (segmentation * gated).sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (gated,) = ctx.saved_tensors
        return 2 * grad * gated, None, None


def dense_energy_loss(
    image: Tensor,
    probabilities: Tensor,
    valid_box_mask: Tensor,
    label: Tensor,
    *,
    weight: float = 1e-7,
    sigma_rgb: float = 15,
    sigma_xy: float = 100,
    scale: float = 0.5,
    ignore_index: int = 255,
) -> Tensor:
    """Compute the regularised loss of AFA (sec. 3.4: the dense energy loss).

    All inputs are resized by ``scale`` first: probabilities bilinearly, the others to the nearest pixel. A pixel counts
    as much as its prediction is unsure (1 minus the largest probability), fully where the label says ignore, and not
    at all outside the image. Negative values are normal.

    Args:
        image: [B, 3, H, W] float RGB in 0..255.
        probabilities: [B, C, H, W] softmax output.
        valid_box_mask: [B, H, W], 1 where the crop shows image, 0 where it shows padding.
        label: [B, H, W] the decoder's target.
        weight: Factor of the result.
        sigma_rgb: Standard deviation of the kernel in colour, in levels of 0..255.
        sigma_xy: Standard deviation of the kernel in position, in pixels at full size.
        scale: Size to compute at, as a share of H and W.
        ignore_index: Label value of pixels without a target.

    Returns:
        Scalar float32 loss, differentiable in ``probabilities``.

    Raises:
        ValueError: If the shapes do not agree.
    """
    batch, _, height, width = probabilities.shape
    wanted = (batch, height, width)
    shapes = {"image": (image.shape[0], *image.shape[2:]), "valid_box_mask": valid_box_mask.shape, "label": label.shape}
    for name, shape in shapes.items():
        if tuple(shape) != wanted:
            raise ValueError(f"{name} is of batch and size {tuple(shape)}, the probabilities of {wanted}")

    size = scaled_size((height, width), scale)
    probabilities = F.interpolate(probabilities.float(), size=size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        image = F.interpolate(image.float(), size=size, mode="nearest")
        mask = F.interpolate(valid_box_mask.float().unsqueeze(1), size=size, mode="nearest").squeeze(1)
        label = F.interpolate(label.float().unsqueeze(1), size=size, mode="nearest").squeeze(1)
        gate = (mask - probabilities.amax(dim=1)).clamp_(min=0)
        gate[label == ignore_index] = 1

        y, x = torch.meshgrid(
            torch.arange(size[0], dtype=torch.float32, device=image.device),
            torch.arange(size[1], dtype=torch.float32, device=image.device),
            indexing="ij",
        )
        positions = torch.stack([x, y]).expand(batch, -1, -1, -1) / (sigma_xy * scale)
        features = torch.cat([positions, image / sigma_rgb], dim=1)
        lattice = PermutohedralLattice(features.flatten(2))
    return weight * _DenseEnergy.apply(probabilities * mask.unsqueeze(1), gate, lattice)
