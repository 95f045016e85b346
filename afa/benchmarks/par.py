"""PAR alone, beside a direct version whose neighbours are made by convolutions."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.benchmarks.pictures import noise_image
from afa.benchmarks.timing import time_in_turn
from afa.device import choose_device
from afa.engine.memory import keep_freed_memory
from afa.errors import UserError
from afa.ops.par import PAR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's command-line arguments."""
    parser.add_argument("--size", type=int, default=256, help="side of image and masks (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=3, help="of the masks (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved runs (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0: as torch chooses (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`add_arguments` gives them.

    Returns:
        Seconds (medians of interleaved runs) of PAR, of its weights alone and of the direct version; how many times
        faster PAR is; the largest difference of the results.

    Raises:
        UserError: An argument makes no sense.
    """
    if min(args.size, args.channels, args.batch, args.iterations, args.repeats) < 1 or args.threads < 0:
        raise UserError("--size, --channels, --batch, --iterations and --repeats begin at 1, --threads at 0")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device, "--device")
    if device.type == "cpu":
        # The direct version gains from it, too.
        keep_freed_memory()
    pictures = [noise_image(args.size, args.size, seed) for seed in range(args.batch)]
    image = torch.stack(pictures).float().div(255).to(device)
    masks = torch.rand(args.batch, args.channels, args.size // 8 + 1, args.size // 8 + 1)
    masks = F.interpolate(masks, size=(args.size, args.size), mode="bilinear").softmax(dim=1).to(device)

    par, direct = PAR(iterations=args.iterations), DirectPAR(iterations=args.iterations)
    runs: dict[str, Callable[[], Tensor]] = {
        "par": lambda: par(image, masks),
        "weights": lambda: par.weights(image),
        "direct": lambda: direct(image, masks),
    }
    seconds, _, results = time_in_turn(runs, args.repeats, device)
    result = {
        "size": args.size,
        "channels": args.channels,
        "batch": args.batch,
        "iterations": args.iterations,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{f"{name}_s": median(times) for name, times in seconds.items()},
        "times_faster": median(theirs / ours for ours, theirs in zip(seconds["par"], seconds["direct"], strict=True)),
        "difference": (results["par"] - results["direct"]).abs().max().item(),
    }
    print(
        f"PAR, {args.size} x {args.size}, {args.channels} channels, batch {args.batch}, {args.iterations} iterations, "
        f"{args.device}, {result['threads']} threads, torch {torch.__version__}"
    )
    print(f"PAR                 {1e3 * result['par_s']:8.1f} ms, of which weights {1e3 * result['weights_s']:.1f} ms")
    print(f"by convolutions     {1e3 * result['direct_s']:8.1f} ms")
    print(f"{result['times_faster']:.1f} times faster, values differ by {result['difference']:.1e} at most")
    return result


class DirectPAR:
    """PAR by its definition: every neighbour is a dilated 3 x 3 convolution with a single 1, all are stacked.

    Args:
        dilations: Distances of the 8 neighbours.
        iterations: How often the scores are replaced.
    """

    def __init__(self, dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24), iterations: int = 10) -> None:
        self.dilations = dilations
        self.iterations = iterations
        positions = [position for position in range(9) if position != 4]
        self.kernel = torch.zeros(8, 1, 3, 3)
        for index, position in enumerate(positions):
            self.kernel[index, 0, position // 3, position % 3] = 1

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Tensor) -> Tensor:
        """Refine masks [B, C, h, w] with an image [B, 3, h, w] in 0..1."""
        neighbours = self._neighbours(image)
        spread = neighbours.std(dim=2, keepdim=True)
        colour = -(((neighbours - image[:, :, None]).abs() / (spread + 1e-8) / 0.3) ** 2)
        distances = torch.tensor([dilation * length for dilation in self.dilations for length in self._lengths()])
        position = -((distances / (distances.std() + 1e-8) / 0.3) ** 2)
        weights = colour.mean(dim=1, keepdim=True).softmax(dim=2)
        weights = weights + 0.01 * position.softmax(dim=0).to(image.device)[:, None, None]
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
