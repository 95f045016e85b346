from __future__ import annotations

from pathlib import Path

import faults
import pytest
from pages import OwnData


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.make_data(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a tiny run, which tests only read."""
    folder = tmp_path_factory.mktemp("run")
    done = faults.run_here(faults.write_config(folder / "config.yaml", shapes, folder / "run"))
    assert done.code == 0, done.text
    return folder / "run"


@pytest.fixture(scope="session")
def run_page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the run."""
    from afa.commands.report import main

    page = tmp_path_factory.mktemp("page") / "report.html"
    assert main([str(run), "--device", "cpu", "--output", str(page)]) == 0
    return page


@pytest.fixture
def own(tmp_path: Path) -> OwnData:
    """A data set of somebody's own, and masks that another program made of it: still without images."""
    return OwnData(tmp_path / "own", tmp_path / "masks")
