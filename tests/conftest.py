from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


class Agreement:
    """Compares with the released program, and notes how far it is away for ``tools/fidelity.py``.

    Args:
        record: Keeps a pair of name and value with the test's report.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self.record = record

    def values(self, part: str, found: Tensor, expected: Tensor, tolerance: float, unit: str = "absolute") -> None:
        """The largest absolute difference is at most ``tolerance``."""
        assert found.shape == expected.shape
        difference = (found.double() - expected.double()).abs().max().item()
        self._note(part, difference, tolerance, unit)

    def labels(self, part: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
        """At most this share of the pixels differs."""
        assert found.shape == expected.shape
        share = (found.long() != expected.long()).double().mean().item()
        self._note(part, share, tolerance, "share of pixels")

    def _note(self, part: str, difference: float, tolerance: float, unit: str) -> None:
        self.record(
            "agreement", json.dumps({"part": part, "difference": difference, "tolerance": tolerance, "unit": unit})
        )
        assert difference <= tolerance, f"{part}: {difference:.3g} away from the released program"


@pytest.fixture
def agreement(record_property: Callable[[str, object], None]) -> Agreement:
    """Comparisons with the released program."""
    return Agreement(record_property)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
