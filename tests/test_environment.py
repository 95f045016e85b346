"""What launch/environment.sh makes, uses and deletes, with a stand-in for Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = ("requirements.txt", "setup.py", "constraints.txt")
# As the system's Python it makes environments of itself; there it installs: it notes the call and the constraints.
PYTHON = """#!/bin/bash
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/new" ;;
"-m pip") echo "$*" >> "$CALLS"; while [ "$1" != -c ]; do shift; done; cp "$2" "$CALLS.constraints" ;;
"-m pytest") echo "$*" >> "$CALLS" ;;
esac
"""
WITHOUT_PIP = '#!/bin/bash\n[[ "$*" != *pip* ]]\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    for name in FILES:
        shutil.copy(REPOSITORY / name, folder / name)
    executable(tmp_path / "python3", PYTHON)
    return folder


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def run(checkout: Path, script: str = "source launch/environment.sh '' && command -v python", **variables: str):
    return subprocess.run(
        ["bash", "-c", script],
        cwd=checkout,
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": str(checkout.parent / "python3"),
            "CALLS": str(checkout.parent / "calls"),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def calls(checkout: Path) -> list[str]:
    path = checkout.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_an_environment_is_made_once_and_installed_with_the_tested_versions(checkout: Path) -> None:
    for _ in range(2):
        done = run(checkout)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{checkout}/.venv/bin/python"
    options = f"-c {checkout}/constraints.txt -e {checkout}"
    assert calls(checkout) == [f"-m pip install --quiet --disable-pip-version-check {options}"]
    (checkout / "constraints.txt").write_text("numpy==2.0.0\n")
    run(checkout)
    assert len(calls(checkout)) == 2


@pytest.mark.parametrize("kind", ["folder", "link", "file", "nowhere"])
def test_what_somebody_else_made_is_never_deleted(checkout: Path, kind: str) -> None:
    made, place = checkout.parent / "made", checkout / ".venv"
    executable(made / "bin/python", WITHOUT_PIP)
    (made / "mine").write_text("mine")
    (made / "made_by_afa").touch()  # Behind a link it is not this folder's.
    if kind == "folder":
        (made / "made_by_afa").unlink()
        made.rename(place)
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(made if kind == "link" else checkout / "not there")
    done = run(checkout)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert str(place) in done.stderr and "AFA_VENV" in done.stderr
    assert place.is_symlink() or place.is_file() or (place / "mine").read_text() == "mine"
    assert kind != "link" or (made / "mine").read_text() == "mine"
    assert calls(checkout) == []
    done = run(checkout, AFA_VENV="other")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"{checkout}/other/bin/python"


def test_a_half_made_one_of_its_own_is_made_anew(checkout: Path) -> None:
    executable(checkout / ".venv/bin/python", WITHOUT_PIP)
    (checkout / ".venv/half").touch()
    (checkout / ".venv/made_by_afa").touch()
    done = run(checkout)
    assert done.returncode == 0, done.stderr
    assert not (checkout / ".venv/half").exists() and (checkout / ".venv/new").exists()


def test_an_environment_that_works_is_used_whoever_made_it(checkout: Path) -> None:
    executable(checkout / ".venv/bin/python", PYTHON)
    assert run(checkout).returncode == 0
    assert not (checkout / ".venv/new").exists() and not (checkout / ".venv/made_by_afa").exists()


def test_an_older_python_is_one_line(checkout: Path) -> None:
    executable(checkout / ".venv/bin/python", '#!/bin/bash\n[[ "$*" != *version* ]]\n')
    done = run(checkout)
    assert done.returncode == 2 and "older than 3.11" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_lowest_versions_are_those_of_the_requirements(checkout: Path) -> None:
    done = run(checkout, "bash launch/test_lowest.sh -k reference")
    assert done.returncode == 0, done.stderr
    assert calls(checkout)[-1].endswith("-k reference")
    assert (checkout / ".venv_lowest").is_dir() and not (checkout / ".venv").exists()
    lowest = (checkout.parent / "calls.constraints").read_text()
    wanted = [line for line in (REPOSITORY / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(wanted) > 10
    for line in wanted:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", line), line
        assert line.replace(">=", "==") in lowest.splitlines()


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_the_tested_versions_are_allowed_and_to_be_had_everywhere() -> None:
    tested = dict(
        line.lower().split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    assert all(re.fullmatch(r"[\d.]+", found) for found in tested.values())  # no local versions
    for line in (REPOSITORY / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, lowest = line.lower().split(">=")
            assert version(tested[name]) >= version(lowest), name
