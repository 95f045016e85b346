from __future__ import annotations

import shutil
from pathlib import Path

import faults
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.make_data(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run that nothing happened to: for all tests, which only read it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = faults.write_config(folder / "config.yaml", data, folder / "run")
    run = faults.run_here(config)
    assert run.code == 0, run.text
    return folder / "run"


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    """The tiny run, in a folder of its own: ``tmp_path / "run"``."""
    return faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run")


@pytest.fixture
def copied_run(undisturbed: Path, config: Path) -> Path:
    """A whole run in a folder of the test's own, which ``config`` belongs to."""
    return Path(shutil.copytree(undisturbed, config.parent / "run", symlinks=True))
