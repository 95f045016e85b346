"""Fully connected CRF by mean field (Kraehenbuehl & Koltun, NIPS 2011) on the permutohedral lattice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afa.ops.permutohedral import PermutohedralLattice
from afa.ops.sparse import SparseRows

_MIN_PROBABILITY = 1e-5
_MAX_CACHED_SIZES = 4
# Pixels whose new marginals are worked out together: their intermediate values stay in a CPU's cache.
_CHUNK = 32768


@dataclass(frozen=True)
class _Kernel:
    """``weight * n * G(n * q)`` with n = (G 1)^(-1/2), all factors folded into the splat and slice weights."""

    splat_rows: SparseRows
    blur_rows: list[SparseRows]
    slice_chunks: list[SparseRows]

    @classmethod
    def build(cls, features: Tensor, weight: float) -> _Kernel:
        """Make the kernel of points with features [B, d, N]."""
        lattice = PermutohedralLattice(features)
        ones = features.new_ones(features.shape[0], 1, features.shape[2])
        norm = (lattice.filter(ones) + 1e-20).rsqrt().flatten()  # [BN]
        splat, slice_ = lattice.splat_rows, lattice.slice_rows
        corners = features.shape[1] + 1
        outer = (norm * (weight * lattice.scale)).repeat_interleave(corners).mul_(slice_.weights)
        # Every point has d + 1 slice entries, one after another, so that all chunks begin with the same offsets.
        chunks = zip(slice_.columns.split(_CHUNK * corners), outer.split(_CHUNK * corners), strict=True)
        return cls(
            SparseRows(splat.columns, splat.offsets, splat.weights * norm.index_select(0, splat.columns)),
            lattice.blur_rows,
            [SparseRows(columns, slice_.offsets[: len(columns) // corners], weights) for columns, weights in chunks],
        )

    def blurred(self, q: Tensor) -> Tensor:
        """Splat the marginals [BN, C] and blur them; returns the values at the lattice's vertices."""
        vertices = self.splat_rows @ q
        for blur in self.blur_rows:
            vertices = blur @ vertices
        return vertices


class DenseCRF:
    """Refine class probabilities so that they follow the image's edges.

    Mean-field inference with a Gaussian kernel on positions and a bilateral one on positions and colours, Potts
    compatibility and symmetric kernel normalisation. One iteration is
    ``q = softmax(log p + sum over the kernels of weight * n * G(n * q))``, with ``n = (G 1)^(-1/2)``.
    The defaults are AFA's test settings. The position kernel is kept for the image sizes used last.

    Args:
        iterations: Number of mean-field updates.
        gaussian_sxy: Standard deviation of the position kernel, in pixels.
        gaussian_weight: Weight of the position kernel.
        bilateral_sxy: Standard deviation of the bilateral kernel in position, in pixels.
        bilateral_srgb: Standard deviation of the bilateral kernel in colour, in levels of 0..255.
        bilateral_weight: Weight of the bilateral kernel.
        negligible: Classes whose probability stays below this everywhere in an image are merged into one rest class,
            whose marginal is given back to them in proportion to their probabilities at each pixel. This saves time
            with many classes; docs/lattice.md says what it costs in accuracy. None keeps every class apart.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self,
        *,
        iterations: int = 10,
        gaussian_sxy: float = 3,
        gaussian_weight: float = 3,
        bilateral_sxy: float = 64,
        bilateral_srgb: float = 5,
        bilateral_weight: float = 4,
        negligible: float | None = None,
    ) -> None:
        if iterations < 0:
            raise ValueError(f"iterations must be at least 0, got {iterations}")
        sigmas = {"gaussian_sxy": gaussian_sxy, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
        for name, sigma in sigmas.items():
            if not sigma > 0:
                raise ValueError(f"{name} must be greater than 0, got {sigma}")
        if negligible is not None and not 0 <= negligible < 1:
            raise ValueError(f"negligible must be at least 0 and less than 1, got {negligible}")
        self.iterations = iterations
        self.gaussian_sxy = gaussian_sxy
        self.gaussian_weight = gaussian_weight
        self.bilateral_sxy = bilateral_sxy
        self.bilateral_srgb = bilateral_srgb
        self.bilateral_weight = bilateral_weight
        self.negligible = negligible
        self._position_kernels: dict[tuple[int, int, int, torch.device], _Kernel] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Infer the marginals.

        Args:
            image: [B, 3, H, W] or [3, H, W] uint8 RGB.
            probabilities: [B, C, H, W] (or [C, H, W]) in 0..1, of the same size and on the same device. Or [B, V, C, H,
                W]: V sets for each image, which share its kernels.

        Returns:
            Marginals float32, shaped as ``probabilities``; they sum to 1 over the classes.

        Raises:
            ValueError: If the image is not 8-bit RGB, or the sizes differ.
        """
        if image.dtype != torch.uint8:
            raise ValueError(f"the image must be uint8, got {image.dtype}")
        shape = probabilities.shape
        if image.dim() == 3:
            image = image.unsqueeze(0)
        if probabilities.dim() == 3:
            probabilities = probabilities.unsqueeze(0)
        if image.dim() != 4 or image.shape[1] != 3 or probabilities.dim() not in (4, 5):
            raise ValueError(f"expected [B, 3, H, W] and [B, C, H, W], got {[*image.shape]} and {[*shape]}")
        if image.shape[0] != probabilities.shape[0] or image.shape[2:] != probabilities.shape[-2:]:
            raise ValueError(f"image and probabilities differ in size: {[*image.shape]} and {[*probabilities.shape]}")

        probabilities = probabilities.float().reshape(-1, *probabilities.shape[-3:])
        if self.negligible is None:
            marginals = self._infer(image, probabilities)
        else:
            # Which classes are negligible is each image's own matter, so that a batch gives what its images give alone.
            sets = len(probabilities) // len(image)
            pairs = zip(image.repeat_interleave(sets, dim=0).split(1), probabilities.split(1), strict=True)
            marginals = torch.cat([self._infer_merged(one, p, self.negligible) for one, p in pairs])
        return marginals.view(shape)

    def _infer_merged(self, image: Tensor, probabilities: Tensor, negligible: float) -> Tensor:
        kept = probabilities.amax(dim=(0, 2, 3)) >= negligible
        if int((~kept).sum()) < 2:
            return self._infer(image, probabilities)
        dropped = probabilities[:, ~kept].clamp(_MIN_PROBABILITY, 1)
        rest = dropped.sum(dim=1, keepdim=True)
        merged = self._infer(image, torch.cat([probabilities[:, kept], rest], dim=1))
        marginals = torch.empty_like(probabilities)
        marginals[:, kept] = merged[:, :-1]
        marginals[:, ~kept] = dropped.mul_(merged[:, -1:] / rest)
        return marginals

    def _infer(self, image: Tensor, probabilities: Tensor) -> Tensor:
        batch, sets = len(image), len(probabilities) // len(image)
        classes, height, width = probabilities.shape[1:]
        log_p = probabilities.new_empty(batch, height * width, sets, classes)
        log_p.copy_(probabilities.reshape(batch, sets, classes, -1).permute(0, 3, 1, 2))
        log_p.clamp_(_MIN_PROBABILITY, 1).log_()
        log_p = log_p.view(-1, sets * classes)  # [BN, VC]
        q = torch.empty_like(log_p)
        for q_chunk, log_p_chunk in zip(q.split(_CHUNK), log_p.split(_CHUNK), strict=True):
            _softmax(log_p_chunk.clone().view(-1, classes), out=q_chunk.view(-1, classes))
        if self.iterations > 0:
            kernels = self._position_kernel(image), self._bilateral_kernel(image)
            for _ in range(self.iterations):
                self._update(q, log_p, classes, *kernels)
        return q.view(batch, -1, sets, classes).permute(0, 2, 3, 1).reshape(probabilities.shape)

    def _update(self, q: Tensor, log_p: Tensor, classes: int, position: _Kernel, bilateral: _Kernel) -> None:
        """Replace the marginals q [BN, VC] by those of the next iteration."""
        near, alike = position.blurred(q), bilateral.blurred(q)
        slices = zip(position.slice_chunks, bilateral.slice_chunks, strict=True)
        for q_chunk, log_p_chunk, (near_rows, alike_rows) in zip(
            q.split(_CHUNK), log_p.split(_CHUNK), slices, strict=True
        ):
            logits = (near_rows @ near).add_(alike_rows @ alike).add_(log_p_chunk)
            _softmax(logits.view(-1, classes), out=q_chunk.view(-1, classes))

    def _position_kernel(self, image: Tensor) -> _Kernel:
        batch, _, height, width = image.shape
        key = (batch, height, width, image.device)
        kernel = self._position_kernels.get(key)
        if kernel is None:
            kernel = _Kernel.build(_positions(image) / self.gaussian_sxy, self.gaussian_weight)
        # The one used last lies last. Other threads may be doing the same.
        self._position_kernels.pop(key, None)
        self._position_kernels[key] = kernel
        if len(self._position_kernels) > _MAX_CACHED_SIZES:
            oldest, *_ = list(self._position_kernels)
            self._position_kernels.pop(oldest, None)
        return kernel

    def _bilateral_kernel(self, image: Tensor) -> _Kernel:
        colours = image.flatten(2).float() / self.bilateral_srgb
        features = torch.cat([_positions(image) / self.bilateral_sxy, colours], dim=1)
        return _Kernel.build(features, self.bilateral_weight)


def _positions(image: Tensor) -> Tensor:
    """Give the x and y of every pixel of images [B, 3, H, W] as [B, 2, N] float32."""
    batch, _, height, width = image.shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=image.device),
        torch.arange(width, dtype=torch.float32, device=image.device),
        indexing="ij",
    )
    return torch.stack([x, y]).flatten(1).expand(batch, -1, -1)


def _softmax(logits: Tensor, out: Tensor) -> None:
    """Write the softmax of each row [N, C] into ``out``; overwrites ``logits``."""
    if logits.shape[1] >= 16:
        torch.softmax(logits, dim=1, out=out)
    else:
        # On the CPU torch.softmax works row by row, which is slow for short rows.
        logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
        torch.div(logits, logits.sum(dim=1, keepdim=True), out=out)
