from __future__ import annotations

from pathlib import Path

import faults
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.make_data(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = faults.write_config(folder / "config.yaml", data, folder / "run")
    run = faults.Run(config, folder / "log")
    assert run.wait() == 0, run.text()
    return folder / "run"


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    """The tiny run, in a folder of its own: ``tmp_path / "run"``."""
    return faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run")
