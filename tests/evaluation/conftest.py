from __future__ import annotations

from pathlib import Path

import pytest
from scored import small_config, small_network

from afa.config import Config
from afa.models import AFANet


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return small_config(tmp_path / "shapes")


@pytest.fixture
def network(config: Config) -> AFANet:
    return small_network(config.model)
