"""PAR alone, beside a direct version whose neighbours are made by convolutions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.benchmarks.pictures import noise_image
from afa.benchmarks.timing import time_in_turn
from afa.device import choose_device
from afa.engine.memory import keep_freed_memory
from afa.methods.afa.config import ParConfig
from afa.ops.par import PAR


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        Seconds (medians of interleaved runs) of PAR, of its weights alone and of the direct version; how many times
        faster PAR is; the largest difference of the results.

    Raises:
        UserError: There is no such device.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device, "--device")
    if device.type == "cpu":
        # The direct version gains from it, too.
        keep_freed_memory()
    pictures = [noise_image(args.size, args.size, seed) for seed in range(args.batch_size)]
    image = torch.stack(pictures).float().div(255).to(device)
    masks = torch.rand(args.batch_size, args.channels, args.size // 8 + 1, args.size // 8 + 1)
    masks = F.interpolate(masks, size=(args.size, args.size), mode="bilinear").softmax(dim=1).to(device)

    usual = ParConfig()
    settings: dict[str, Any] = {
        "dilations": usual.dilations,
        "iterations": args.iterations,
        "temperature": usual.temperature,
        "position_weight": usual.position_weight,
    }
    par, direct = PAR(**settings), DirectPAR(**settings)
    runs: dict[str, Callable[[], Tensor]] = {
        "par": lambda: par(image, masks),
        "weights": lambda: par.weights(image),
        "direct": lambda: direct(image, masks),
    }
    seconds, _, results = time_in_turn(runs, args.repeats, device)
    result = {
        "size": args.size,
        "channels": args.channels,
        "batch": args.batch_size,
        "iterations": args.iterations,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{f"{name}_s": median(times) for name, times in seconds.items()},
        "times_faster": median(theirs / ours for ours, theirs in zip(seconds["par"], seconds["direct"], strict=True)),
        "difference": (results["par"] - results["direct"]).abs().max().item(),
    }
    print(
        f"PAR, {args.size} x {args.size}, {args.channels} channels, batch {args.batch_size}, "
        f"{args.iterations} iterations, {args.device}, {result['threads']} threads, torch {torch.__version__}"
    )
    print(f"PAR                 {1e3 * result['par_s']:8.1f} ms, of which weights {1e3 * result['weights_s']:.1f} ms")
    print(f"by convolutions     {1e3 * result['direct_s']:8.1f} ms")
    print(f"{result['times_faster']:.1f} times faster, values differ by {result['difference']:.1e} at most")
    return result


class DirectPAR:
    """PAR by its definition: every neighbour is a dilated 3 x 3 convolution with a single 1, all are stacked.

    Args:
        dilations, iterations, temperature, position_weight: See :class:`afa.ops.par.PAR`.
    """

    def __init__(
        self, *, dilations: Sequence[int], iterations: int, temperature: float, position_weight: float
    ) -> None:
        self.dilations, self.iterations = dilations, iterations
        self.temperature, self.position_weight = temperature, position_weight
        positions = [position for position in range(9) if position != 4]
        self.kernel = torch.zeros(8, 1, 3, 3)
        for index, position in enumerate(positions):
            self.kernel[index, 0, position // 3, position % 3] = 1

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Tensor) -> Tensor:
        """Refine masks [B, C, h, w] with an image [B, 3, h, w] in 0..1."""
        neighbours = self._neighbours(image)
        spread = neighbours.std(dim=2, keepdim=True)
        colour = -(((neighbours - image[:, :, None]).abs() / (spread + 1e-8) / self.temperature) ** 2)
        distances = torch.tensor([dilation * length for dilation in self.dilations for length in self._lengths()])
        position = -((distances / (distances.std() + 1e-8) / self.temperature) ** 2)
        weights = colour.mean(dim=1, keepdim=True).softmax(dim=2)
        weights = weights + self.position_weight * position.softmax(dim=0).to(image.device)[:, None, None]
        for _ in range(self.iterations):
            masks = (self._neighbours(masks) * weights).sum(dim=2)
        return masks

    def _neighbours(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, M, h, w]."""
        batch, channels, height, width = maps.shape
        single = maps.reshape(batch * channels, 1, height, width)
        kernel = self.kernel.to(maps.device)
        parts = [
            F.conv2d(F.pad(single, (dilation,) * 4, mode="replicate"), kernel, dilation=dilation)
            for dilation in self.dilations
        ]
        return torch.cat(parts, dim=1).view(batch, channels, -1, height, width)

    def _lengths(self) -> list[float]:
        return [(row**2 + column**2) ** 0.5 for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]
