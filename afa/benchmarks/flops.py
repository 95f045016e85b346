"""Multiplications and additions, counted: those of matrix products, convolutions and attention."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

logger = logging.getLogger(__name__)

Shape = Sequence[int]


def _convolution_backward(gradient: Shape, _: Shape, weight: Shape, *rest: Any, **__: Any) -> int:
    """Operations of a convolution's gradients. PyTorch's own count takes a depth-wise convolution for a full one.

    Args:
        gradient: Shape of the output's gradient.
        weight: [channels out, channels in / groups, *kernel].
    """
    wanted = sum(rest[-1][:2])
    return 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight) * wanted


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Operations of softmax(query key^T) value; shapes [..., positions, channels]."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: Any, **___: Any) -> int:
    """Operations of its gradients: query key^T once more, then two products for each of the forward pass's two."""
    return 2 * math.prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def _sum_and_product(_: Shape, left: Shape, right: Shape, *__: Any, **___: Any) -> int:
    """Operations of left right, which is added to something; shapes [..., m, k] and [..., k, n]."""
    return 2 * math.prod(left) * right[-1]


FORMULAS: dict[str, Callable[..., int]] = {
    "convolution_backward": _convolution_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "addmm_": _sum_and_product,
    "baddbmm_": _sum_and_product,
}
"""Of operators of ``torch.ops.aten`` that PyTorch 2.14 leaves out, or counts otherwise."""

_OF_PRODUCTS = re.compile(r"(^|_)([a-z]*mm|matmul|linear|conv(\dd)?|convolution|attention|gemm)(_|$)")


class FlopCounter:
    """Counts what runs inside, and warns of operators that it cannot count.

    Attributes:
        by_operator: Operator -> its operations.
        unknown: Operators that ran and, as their names say, are products, but are not known to PyTorch's counter.
    """

    def __init__(self) -> None:
        known = {getattr(torch.ops.aten, name): formula for name, formula in FORMULAS.items()}
        self._counter = FlopCounterMode(display=False, custom_mapping=known)
        self._names = _Names()
        self.by_operator: dict[str, int] = {}
        self.unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.by_operator.values())

    def __enter__(self) -> Self:
        self._names.__enter__()
        self._counter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counter.__exit__(kind, error, trace)
        self._names.__exit__(kind, error, trace)
        counts = self._counter.get_flop_counts().get("Global", {})
        self.by_operator = {str(operator): count for operator, count in counts.items()}
        known = {str(operator) for operator in self._counter.flop_registry}
        self.unknown = tuple(sorted(name for name in self._names.seen - known if is_of_products(name)))
        if self.unknown:
            logger.warning(
                "GFLOP are too low: this version of PyTorch (%s) has operators that are not counted: %s",
                torch.__version__,
                ", ".join(self.unknown),
            )


def is_of_products(operator: str) -> bool:
    """Whether an operator's name, such as ``aten.bmm``, says that it multiplies matrices, convolves or attends."""
    return _OF_PRODUCTS.search(operator.removeprefix("aten.")) is not None


class _Names(TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))
