"""What ``pip install`` gives: the command ``afa``, with recipes, in any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from afa import __version__

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(REPOSITORY / "configs") for path in (REPOSITORY / "configs").rglob("*.yaml"))
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from a copy of the repository and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in ("afa", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "setup.py",
        "pyproject.toml",
        "requirements.txt",
        "constraints.txt",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(REPOSITORY / name, source / name)
    stale = source / "build/lib/afa/recipes/removed.yaml"  # of an earlier build
    stale.parent.mkdir(parents=True)
    stale.write_text("train: {steps: 1}\n")
    wheel = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(wheel, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    target = folder / "installed"
    subprocess.run([*PIP, "install", "--no-deps", "--no-compile", "--target", str(target), str(file)], check=True)
    return target


def afa(installed: Path, folder: Path, *arguments: str, script: bool = False) -> subprocess.CompletedProcess[str]:
    start = [installed / "bin" / "afa"] if script else ["-m", "afa"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_what_the_repository_says(installed: Path) -> None:
    recipes = installed / "afa" / "recipes"
    assert sorted(path.relative_to(recipes) for path in recipes.rglob("*.yaml")) == RECIPES
    for name in RECIPES:
        assert (recipes / name).read_bytes() == (REPOSITORY / "configs" / name).read_bytes()
    assert (installed / "afa" / "py.typed").is_file()
    (facts,) = installed.glob("afa-*.dist-info")
    metadata = PathDistribution(facts).metadata
    assert metadata["Version"] == __version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "# AFA" in str(metadata)  # the README is the description


def test_the_command_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = afa(installed, tmp_path, "--version", script=True)
    assert (done.returncode, done.stdout) == (0, f"afa {__version__}\n")
    # The recipe was found, as only then is a wrong key of it noticed.
    for name in ("psa/1_cam", "configs/psa/1_cam.yaml"):
        done = afa(installed, tmp_path, "train", name, "train.stepz=3")
        assert done.returncode == 2 and "did you mean 'train.steps'?" in done.stderr
        assert done.stderr.count("\n") == 1
    done = afa(installed, tmp_path, "train", "psa/1_cm")
    assert done.stderr.startswith("error: psa/1_cm: neither a file nor a recipe; did you mean psa/1_cam")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_empty_folder_is_all_that_training_needs(installed: Path, tmp_path: Path) -> None:
    small = ["train.steps=2", "schedule.cls_until=0", "schedule.refined_until=1", "augmentation.crop_size=32"]
    small += ["train.batch_size=2", "train.log_every=1"]
    made = afa(
        installed, tmp_path, "prepare", "shapes", "--output", "data", "--train", "4", "--val", "2", "--size", "64"
    )
    assert made.returncode == 0, made.stderr
    trained = afa(installed, tmp_path, "train", "demo", "dataset.root=data", "--output", "run", *small)
    assert trained.returncode == 0, trained.stderr
    scored = afa(installed, tmp_path, "eval", "run", "--split", "val")
    assert scored.returncode == 0 and "mAcc" in scored.stdout, scored.stderr
    found = afa(installed, tmp_path, "predict", "run", "data/JPEGImages", "--output", "found")
    assert found.returncode == 0, found.stderr
