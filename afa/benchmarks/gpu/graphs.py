"""Whether a training step is faster where CUDA graphs replay its network's passes: no host between the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from afa.benchmarks.gpu.apart import NotHere
from afa.benchmarks.gpu.setting import (
    Setting,
    fastest_precision,
    peak_memory,
    restored_backends,
    spread,
    start_memory,
    step_arguments,
    step_configuration,
    time_by_turns,
)
from afa.benchmarks.gpu.training import first_step
from afa.benchmarks.training_step import TrainingStep
from afa.device import choose_device
from afa.engine.runtime import ProcessRuntime
from afa.engine.trainer import step_seed

IN_A_ROW = 4  # steps of one kind, before another's turn
_WARM_UP = 3  # passes before a capture, as PyTorch asks for


def measure_graphs(setting: Setting) -> Iterator[dict[str, Any]]:
    """Time bare steps with propagated labels by turns: as they are, and with graphs of some of their passes.

    A bare step has no finite guard and no records, so it is a little shorter than that of a training.

    Yields:
        ``precision``; ``losses``: of the first step of each kind, same weights and same random numbers; ``steps``:
        kind -> ``step_s``, ``quartiles_s``, ``turns``; ``ratio_to_plain``: kind -> median ratio, turn by turn; memory.

    Raises:
        NotHere: There are no CUDA graphs.
    """
    device = choose_device(setting.device, "--device")
    if device.type != "cuda":
        raise NotHere("CUDA graphs exist on GPUs alone")
    yield from compare_graphs(setting, device)


def compare_graphs(setting: Setting, device: torch.device) -> Iterator[dict[str, Any]]:
    """:func:`measure_graphs` on a device that has them."""
    precision = fastest_precision(device)
    args = step_arguments(setting, precision)
    config, sizes = step_configuration(args), setting.sizes
    with restored_backends(), ProcessRuntime.start(config.train) as runtime:
        start_memory(device)
        training = TrainingStep(config, runtime, args, setting.folder)
        number = first_step(config, "propagated")
        method, batch, optimiser = training.method, training.batch, training.trainer.optimiser
        network: Any = method.network
        plain_cam = network.cam
        graphed = ReplayedNetwork(network, batch["image"], runtime)
        replayed_cam = ReplayedCams(plain_cam, runtime)

        def loss(whole: nn.Module, cam: Callable[..., Any]) -> Tensor:
            network.cam = cam
            runtime.seed(step_seed(config.train.seed, number, 0))
            optimiser.zero_grad(set_to_none=True)
            total: Tensor = method.training_step(whole, batch, number).total()
            total.backward()
            return total.detach()

        kinds: dict[str, tuple[nn.Module, Callable[..., Any]]] = {
            "plain": (network, plain_cam),
            "CAM passes": (network, replayed_cam),
            "forward and backward": (graphed, plain_cam),
            "both": (graphed, replayed_cam),
        }
        for _ in range(sizes.warm_up):
            loss(network, plain_cam)
        losses = {"plain": float(loss(*kinds["plain"]))}
        yield {"precision": precision, "losses": losses}
        graphed.capture()
        for kind in list(kinds)[1:]:
            loss(*kinds[kind])  # records graphs, which takes random numbers of its own
            losses[kind] = float(loss(*kinds[kind]))
            yield {"losses": losses}

        def step(kind: str) -> None:
            loss(*kinds[kind])
            optimiser.step()

        seconds = time_by_turns({kind: partial(step, kind) for kind in kinds}, sizes, device, in_a_row=IN_A_ROW)
        network.cam = plain_cam
    yield {
        "steps": {
            kind: {"step_s": median(times), **spread(times), "turns": len(times)} for kind, times in seconds.items()
        },
        "ratio_to_plain": {
            kind: median(own / plain for own, plain in zip(times, seconds["plain"], strict=True))
            for kind, times in seconds.items()
        },
        **peak_memory(device),
    }


class ReplayedNetwork(nn.Module):
    """A network whose pass and its gradients are, after :meth:`capture`, each a replay of a CUDA graph.

    Args:
        network: Gives any nest of tensors for one image batch.
        image: A batch of the only shape that is asked for.
        runtime: Its precision.
    """

    def __init__(self, network: nn.Module, image: Tensor, runtime: ProcessRuntime) -> None:
        super().__init__()
        self.network, self.runtime = network, runtime
        self._image = image
        self._shape: Any = None
        self._tensors: Any = None

    def capture(self) -> None:
        """Record the graphs."""
        passes = _Tensors(self.network, self.runtime).train()
        self._tensors = torch.cuda.make_graphed_callables(passes, (self._image.clone(),), num_warmup_iters=_WARM_UP)
        self._shape = passes.shape

    def forward(self, image: Tensor) -> Any:
        """What the network gives."""
        assert self._tensors is not None, "capture first"
        tensors = list(self._tensors(image))
        leaves, spec = self._shape
        return tree_unflatten([tensors.pop(0) if leaf is None else leaf for leaf in leaves], spec)


class _Tensors(nn.Module):
    """A network as graphs want it: tensors in, tensors out, no cache of autocast.

    Attributes:
        shape: What else the network gives, as :class:`ReplayedNetwork` puts it together again.
    """

    def __init__(self, network: nn.Module, runtime: ProcessRuntime) -> None:
        super().__init__()
        self.network, self.runtime = network, runtime
        self.shape: Any = None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with uncached_autocast(self.runtime):
            leaves, spec = tree_flatten(self.network(image))
        self.shape = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


class ReplayedCams:
    """A network's CAM passes, each recorded where its shape comes for the first time, and then replayed.

    What a pass gives is overwritten by the next one of the same shape.

    Args:
        cam: The network's own: images, and of how many the affinity is wanted.
        runtime: Its precision.
    """

    def __init__(self, cam: Callable[..., Any], runtime: ProcessRuntime) -> None:
        self._cam, self._runtime = cam, runtime
        self._graphs: dict[tuple[Any, ...], tuple[Any, Tensor, Any]] = {}

    def __call__(self, images: Tensor, affinity_of: int = 0, *, decode: bool = False) -> Any:
        key = (tuple(images.shape), affinity_of, decode)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(images, affinity_of, decode)
        graph, static, found = self._graphs[key]
        static.copy_(images)
        graph.replay()
        return found

    @torch.no_grad()
    def _recorded(self, images: Tensor, affinity_of: int, decode: bool) -> tuple[Any, Tensor, Any]:
        static = images.detach().clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), uncached_autocast(self._runtime):
            for _ in range(_WARM_UP):
                self._cam(static, affinity_of, decode=decode)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), uncached_autocast(self._runtime):
            found = self._cam(static, affinity_of, decode=decode)
        return graph, static, found


def uncached_autocast(runtime: ProcessRuntime) -> torch.autocast:
    """A run's precision without the cache of converted weights: a graph would keep what the cache frees."""
    half = runtime.dtype != torch.float32
    return torch.autocast(runtime.device.type, dtype=runtime.dtype if half else None, enabled=half, cache_enabled=False)
