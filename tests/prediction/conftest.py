from __future__ import annotations

from pathlib import Path

import pytest
from scored import small_config, small_method

from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA


@pytest.fixture
def config(tmp_path: Path) -> AFAConfig:
    return small_config(tmp_path / "shapes")


@pytest.fixture
def method(config: AFAConfig) -> AFA:
    return small_method(config)
