"""Archives from anywhere: damaged, hostile, or in the way of what is there."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from afa.data.archives import MEMBER_BYTES, below, extract
from afa.errors import UserError

CONTENT = {"a.txt": b"first", "b.txt": b"x" * 70_000, "c.txt": b""}


def make(path: Path, plant: Callable[[tarfile.TarFile], object] = lambda tar: None, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in CONTENT.items():
            add(tar, name, content)
        plant(tar)
        add(tar, "last.txt", b"last")
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **changes: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def unpack(archive: Path, root: Path) -> dict[str, bytes]:
    extract(archive, below(r"(.+\.txt)", root), root=root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_whole_archives_are_unpacked(tmp_path: Path, mode: str) -> None:
    archive = make(tmp_path / "whole.tar", mode=mode)
    assert unpack(archive, tmp_path / "out") == {**CONTENT, "last.txt": b"last"}


@pytest.mark.parametrize(
    "plant",
    [
        lambda tar: add(tar, "../up.txt", b"up"),
        lambda tar: add(tar, "d/../../up.txt", b"up"),
        lambda tar: add(tar, "up\n.txt", b"up"),
        lambda tar: add(tar, "link.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        lambda tar: add(tar, "hard.txt", type=tarfile.LNKTYPE, linkname="a.txt"),
        lambda tar: add(tar, "pipe.txt", type=tarfile.FIFOTYPE),
        lambda tar: add(tar, "device.txt", type=tarfile.CHRTYPE),
    ],
)
def test_members_that_are_passed_over(tmp_path: Path, plant: Callable[[tarfile.TarFile], object]) -> None:
    (tmp_path / "deep").mkdir()
    found = unpack(make(tmp_path / "deep/a.tgz", plant, "w:gz"), tmp_path / "deep/out")
    assert found == {**CONTENT, "last.txt": b"last"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*found, "deep", "out", "a.tgz"])


def test_an_absolute_path_stays_inside_or_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    archive = make(tmp_path / "a.tar", lambda tar: add(tar, str(outside), b"out"))
    with pytest.raises(UserError, match="leads out"):
        unpack(archive, tmp_path / "out")
    assert not outside.exists()


@pytest.mark.parametrize(
    "plant",
    [
        lambda tar: add(tar, "big.txt", size=MEMBER_BYTES + 1),
        lambda tar: add(tar, "big.txt", size=2**62),
        lambda tar: add(tar, "negative.txt", size=-512),
        lambda tar: add(tar, "x", b"9 path=a\n", type=tarfile.XHDTYPE, size=2**40),
        lambda tar: add(tar, "x", b"20 size=-1000000000\n", type=tarfile.XHDTYPE),
        lambda tar: add(tar, "x", b"name", type=tarfile.GNUTYPE_LONGNAME, size=2**40),
        lambda tar: [add(tar, "x", b"name", type=tarfile.GNUTYPE_LONGNAME) for _ in range(3000)],
    ],
    ids=["large", "huge", "negative", "header", "negative-in-header", "name", "nested"],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_claims_that_cannot_be_true(tmp_path: Path, plant: Callable[[tarfile.TarFile], object], mode: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "a.txt", b"first")
        with contextlib.suppress(OSError):  # It finds less to copy than the header claims; the header is written.
            plant(tar)
    content = buffer.getvalue() + b"left\0" * 300 + bytes(1024)
    (tmp_path / "a.tar").write_bytes(gzip.compress(content) if mode == "w:gz" else content)
    with pytest.raises(UserError, match=r"a\.tar cannot be unpacked"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_damage_is_one_line_or_no_damage(tmp_path: Path, mode: str) -> None:
    whole = make(tmp_path / "a.tar", mode=mode).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        content = bytearray(whole[: rng.integers(len(whole))] if number % 2 else whole)
        for place in rng.integers(0, max(1, min(len(content), 3000)), 4):
            content[place : place + 1] = bytes([rng.integers(256)])
        (tmp_path / "a.tar").write_bytes(content)
        with contextlib.suppress(UserError):
            unpack(tmp_path / "a.tar", tmp_path / str(number))


def test_a_broken_header_between_two_files_is_no_end(tmp_path: Path) -> None:
    content = bytearray(make(tmp_path / "a.tar").read_bytes())
    content[1024:1536] = b"?" * 512  # the header of the second file
    for stored in (content, gzip.compress(bytes(content))):
        (tmp_path / "a.tar").write_bytes(stored)
        with pytest.raises(UserError, match="breaks off"):
            unpack(tmp_path / "a.tar", tmp_path / "out")


def test_other_files_in_the_way_stay(tmp_path: Path) -> None:
    archive, out = make(tmp_path / "a.tar"), tmp_path / "out"
    out.mkdir()
    (out / "b.txt").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"b\.txt is there"):
        unpack(archive, out)
    assert (out / "b.txt").read_bytes() == b"mine"
    (out / "b.txt").write_bytes(b"")  # what a loss of power leaves
    assert unpack(archive, out)["b.txt"] == CONTENT["b.txt"]
    (tmp_path / "lent").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/folder").symlink_to(tmp_path / "lent")
    archive = make(tmp_path / "b.tar", lambda tar: add(tar, "folder/d.txt", b"d"))
    with pytest.raises(UserError, match="through a link"):
        unpack(archive, tmp_path / "linked")
    assert not list((tmp_path / "lent").iterdir())
