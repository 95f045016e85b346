from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import Agreement


@pytest.fixture
def agreement(record_property: Callable[[str, object], None]) -> Agreement:
    """Comparisons with the released program."""
    return Agreement(record_property)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
