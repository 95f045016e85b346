"""High-dimensional Gaussian filtering on the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010).

Filtering N points with d features each costs O(N d) instead of O(N^2). Everything is sorting, searching and sparse row
sums, so that nothing has to be compiled and nothing loops over pixels. See docs/lattice.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.ops.sparse import SparseRows

_MAX_CODE_BITS = 62


class PermutohedralLattice:
    """The lattice of a set of points, built once and used to filter any number of values.

    The filter is ``G = W B_d ... B_0 W^T / (1 + 2^-d)``: W^T splats each point's value on the d + 1 vertices of the
    simplex around it by barycentric weights, B_j blurs with (1/2, 1, 1/2) along lattice direction j, W slices. It
    approximates the unnormalised Gaussian ``exp(-|f_i - f_j|^2 / 2)``. As the blurs do not commute, G is not symmetric.

    Args:
        features: [B, d, N] float, each feature divided by its standard deviation. The order of the features changes the
            result. Half precision is computed in float32. The points of different images never meet.

    Raises:
        ValueError: If ``features`` has another shape, or spans too many standard deviations for a 64-bit vertex code.

    Attributes:
        num_vertices: Number V of lattice vertices, all images together.
        splat_rows: W^T, [V + 1, B * N]. Vertex V stands for all that are missing: its value is always 0.
        blur_rows: B_0 ... B_d, each [V + 1, V + 1]; on the V vertices symmetric.
        slice_rows: W, [B * N, V + 1].
        scale: 1 / (1 + 2^-d).
    """

    def __init__(self, features: Tensor) -> None:
        if features.dim() != 3 or 0 in features.shape:
            raise ValueError(f"features must be [B, d, N] and not empty, got {tuple(features.shape)}")
        features = features.detach()
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        self._batch, self._dim, self._points = features.shape
        self.scale = 1.0 / (1.0 + 2.0**-self._dim)

        base, rank, barycentric = _enclosing_simplex(features)
        codes, radix = _vertex_codes(base, rank)
        vertex_codes = self._connect(codes, barycentric)
        self.num_vertices = vertex_codes.shape[0]
        self.blur_rows = self._blur_rows(vertex_codes, radix, barycentric.dtype)

    def _connect(self, codes: Tensor, barycentric: Tensor) -> Tensor:
        """Make the splat and slice matrices.

        Args:
            codes: [BN, d + 1], the codes of each point's vertices.
            barycentric: [B, N, d + 1], their weights.

        Returns:
            The codes of all vertices, sorted.
        """
        corners = self._dim + 1
        sorted_codes, order = sort_with_order(codes.flatten())
        first = torch.ones_like(sorted_codes, dtype=torch.bool)
        torch.ne(sorted_codes[1:], sorted_codes[:-1], out=first[1:])
        starts = first.nonzero().flatten()
        vertex_codes = sorted_codes.index_select(0, starts)
        del sorted_codes

        weights = barycentric.flatten()
        point = torch.div(order, corners, rounding_mode="floor").int()
        # The empty last row is the missing vertex.
        offsets = F.pad(starts.int(), (0, 1), value=weights.shape[0])
        self.splat_rows = SparseRows(point, offsets, weights.index_select(0, order))
        vertex_of_sorted = torch.cumsum(first, 0, dtype=torch.int32).sub_(1)
        vertex = torch.empty_like(vertex_of_sorted).scatter_(0, order, vertex_of_sorted)
        every = torch.arange(0, weights.shape[0], corners, dtype=torch.int32, device=codes.device)
        self.slice_rows = SparseRows(vertex, every, weights)
        return vertex_codes

    def _blur_rows(self, codes: Tensor, radix: Sequence[int], dtype: torch.dtype) -> list[SparseRows]:
        """Make B_0 ... B_d: each vertex with its two neighbours along a direction, either of them maybe missing."""
        count, dim = codes.shape[0], self._dim
        vertex = torch.arange(count + 1, dtype=torch.int32, device=codes.device)
        every = torch.arange(0, 3 * count + 3, 3, dtype=torch.int32, device=codes.device)
        weights = torch.tensor([0.5, 1.0, 0.5], dtype=dtype, device=codes.device).repeat(count + 1)
        last_remainder = codes % (dim + 1) == dim
        rows = []
        for direction in range(dim + 1):
            # The neighbour's coordinates are +1 everywhere but -d at `direction`. In a code (coordinates divided by
            # d + 1, and the remainder k as the last digit) that is k + 1 with `direction` one lower, and a carry into
            # every coordinate where k was d.
            step = 1 - (radix[direction] if direction < dim else 0)
            carry = sum(radix) - (dim + 1)
            wanted = codes + torch.where(last_remainder, step + carry, step)
            nearest = torch.searchsorted(codes, wanted).clamp_(max=count - 1)
            missing = codes.index_select(0, nearest) != wanted
            nearest.masked_fill_(missing, count)

            columns = vertex.new_full((count + 1, 3), count)
            columns[:, 1] = vertex
            columns[:count, 2] = nearest
            below = vertex.new_full((count + 1,), count).scatter_(0, nearest, vertex[:count])
            columns[:count, 0] = below[:count]
            rows.append(SparseRows(columns.flatten(), every, weights))
        return rows

    def filter(self, values: Tensor) -> Tensor:
        """Filter values; differentiable in them any number of times, with the exact transpose as gradient.

        Args:
            values: [B, C, N] float.

        Returns:
            [B, C, N] G values: float64 for float64 values, else float32 (the unnormalised sums exceed half precision).

        Raises:
            ValueError: If the batch or the number of points is not the lattice's.
        """
        if values.dim() != 3 or values.shape[0] != self._batch or values.shape[2] != self._points:
            raise ValueError(f"values must be [{self._batch}, C, {self._points}], got {tuple(values.shape)}")
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return _Filter.apply(values, self, False)

    def _filter(self, values: Tensor, transposed: bool) -> Tensor:
        rows = values.transpose(1, 2).reshape(self._batch * self._points, -1)  # [BN, C]
        vertices = self.splat_rows @ rows
        for blur in reversed(self.blur_rows) if transposed else self.blur_rows:
            vertices = blur @ vertices
        rows = (self.slice_rows @ vertices).mul_(self.scale)
        return rows.view(self._batch, self._points, -1).transpose(1, 2).contiguous()


class _Filter(torch.autograd.Function):
    """G or its transpose (the same with the symmetric blurs in reverse order), each the other's gradient."""

    @staticmethod
    def forward(ctx, values: Tensor, lattice: PermutohedralLattice, transposed: bool) -> Tensor:
        ctx.lattice, ctx.transposed = lattice, transposed
        return lattice._filter(values, transposed)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(grad, ctx.lattice, not ctx.transposed), None, None


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex around each point (paper, section 3.1).

    Args:
        features: [B, d, N].

    Returns:
        The remainder-0 vertex divided by d + 1 [B, d + 1, N] (whole numbers as floats), the rank of each coordinate's
        residue [B, d + 1, N] (0 is the largest), and the barycentric weights by remainder [B, N, d + 1].
    """
    batch, dim, points = features.shape
    elevated = features.new_empty(batch, dim + 1, points)
    total = torch.zeros_like(features[:, 0])
    for i in range(dim, 0, -1):
        # Scaled so that the blur's variance is that of a unit Gaussian.
        scaled = features[:, i - 1] * (math.sqrt(2.0 / 3.0) * (dim + 1) / math.sqrt(i * (i + 1)))
        elevated[:, i] = total - i * scaled
        total = total + scaled
    elevated[:, 0] = total

    base = torch.round(elevated / (dim + 1))
    residue = elevated - base * (dim + 1)
    rank = torch.zeros_like(base)
    for i in range(dim):
        for j in range(i + 1, dim + 1):
            # On a tie the larger index gets the higher rank.
            lower = (residue[:, i] < residue[:, j]).to(rank.dtype)
            rank[:, i] += lower
            rank[:, j] += 1 - lower

    # The rounded coordinates may miss the plane of sum 0: move those with the largest error to the next multiple.
    rank += base.sum(dim=1, keepdim=True)
    shift = (rank < 0).to(base.dtype) - (rank > dim).to(base.dtype)
    rank += shift * (dim + 1)
    base += shift

    by_rank = torch.empty_like(elevated).scatter_(1, rank.long(), (elevated / (dim + 1) - base))
    barycentric = features.new_empty(batch, points, dim + 1)
    barycentric[:, :, 0] = 1 + by_rank[:, dim] - by_rank[:, 0]
    for k in range(1, dim + 1):
        barycentric[:, :, k] = by_rank[:, dim - k] - by_rank[:, dim - k + 1]
    return base, rank, barycentric


def _vertex_codes(base: Tensor, rank: Tensor) -> tuple[Tensor, list[int]]:
    """Number the vertices of each point's simplex by one integer each.

    The digits are: image, d coordinates (the last one follows from the sum 0) divided by d + 1, remainder k.

    Returns:
        Codes [BN, d + 1] int64 by remainder, and each coordinate's place value.
    """
    batch, corners, points = base.shape
    dim = corners - 1
    # A vertex lies up to 1 below its base, a neighbour up to 1 beyond a vertex: a margin keeps the digits apart.
    low = base[:, :dim].amin(dim=(0, 2)) - 2
    spans = (base[:, :dim].amax(dim=(0, 2)) - low + 2).tolist()
    radix: list[int] = []
    place = corners
    for span in spans:
        radix.append(place)
        place *= int(span)
    if math.log2(place) + math.log2(batch) > _MAX_CODE_BITS:
        raise ValueError("the features span too many standard deviations for the lattice: use larger sigmas")

    places = torch.tensor(radix, device=base.device).view(1, dim, 1)
    digits = (base[:, :dim] - low.view(1, dim, 1)).long()
    code = (digits * places).sum(dim=1) + torch.arange(batch, device=base.device).view(batch, 1) * place
    codes = torch.empty(batch, points, corners, dtype=torch.int64, device=base.device)
    for k in range(corners):
        codes[:, :, k] = code + k
        if k < dim:
            # From remainder k to k + 1 the coordinate of rank d - k goes down by d + 1, the others up by 1.
            code = code - ((rank[:, :dim] == dim - k) * places).sum(dim=1)
    return codes.view(batch * points, corners), radix


def sort_with_order(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Sort non-negative int64 codes [E]; returns them with their former places, equal codes in their former order."""
    place_bits = max(1, (codes.shape[0] - 1).bit_length())
    if codes.device.type == "cpu" and int(codes.max()) < 1 << (63 - place_bits):
        # NumPy sorts plain integers faster than torch sorts with indices, so the place goes into the low bits.
        packed = (codes << place_bits).bitwise_or_(torch.arange(codes.shape[0]))
        packed.numpy().sort()
        return packed >> place_bits, packed.bitwise_and_((1 << place_bits) - 1)
    return torch.sort(codes, stable=True)
