"""Reading and writing of small files: permissions, and what cannot be right."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from afa.data.files import read_json, read_text, replacing, write_json, write_lines, write_text
from afa.errors import UserError, one_line


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o077, 0o022, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("own_file", [False, True])
def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, umask: int, own_file: bool) -> None:
    with replacing(tmp_path / "new.json") as temporary:
        assert permissions(temporary) & umask == 0
        if own_file:  # a writer that puts a file of its own there
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT, 0o600))
    assert permissions(tmp_path / "new.json") == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "old.txt"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as temporary:
        assert permissions(temporary) & ~(mode | 0o600) == 0
        temporary.write_text("new")
    assert permissions(path) == mode and path.read_text() == "new"


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP])
def test_file_systems_without_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(error, os.strerror(error))

    for name in ("chmod", "fchmod", "lchmod"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_of_full_length_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 251 + ".txt"), "text")
    assert [len(file.name) for file in tmp_path.iterdir()] == [255]


def test_pipes_and_folders_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=name):
            write_text(tmp_path / name, "text")
    assert {file.name for file in tmp_path.iterdir()} == {"pipe", "folder"}


BAD_JSON = {
    "twice": (b'{"a": 1, "b": {"x": 1, "x": 2}}', "the key 'x' appears twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "infinity": (b"[-Infinity]", "-Infinity is not a number"),
    "too large": (b"[1.5e999]", "too large"),
    "a long integer": (b"[" + b"9" * 5000 + b"]", "cannot be right"),
    "depth": (b"[" * 100_000, "nested too deep"),
    "depth of objects": (b'{"a":' * 100_000, "nested too deep"),
    "cut off": (b'{"a": [1,', "not valid JSON.*line 1 column 10"),
    "empty": (b"", "not valid JSON"),
    "binary": (b'{"a": "\xff"}', "no text in UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "UTF-16: save it as UTF-8"),
    "NUL": (b'{"a": "\0"}', "NUL"),
    "size": (b" " * 200_000, "too large: at most 150,000 bytes"),
}


@pytest.mark.parametrize("fault", BAD_JSON)
def test_json_that_cannot_be_right(tmp_path: Path, fault: str) -> None:
    content, message = BAD_JSON[fault]
    (tmp_path / "x.json").write_bytes(content)
    largest = 150_000 if fault == "size" else 2**20
    with pytest.raises(UserError, match=rf"^the table .*x\.json .*{message}"):
        read_json(tmp_path / "x.json", "the table", largest=largest)


def test_json_that_is_right(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, 1e3, 1e-999], "b e999": {"a": null}}')
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, 1e3, 0.0], "b e999": {"a": None}}


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "named pipe"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "nothing", "missing"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (tmp_path / "a\0b", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read_text(path)


def test_names_that_no_text_holds(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {odd: 1})
    assert read_json(tmp_path / "a.json") == {odd: 1}
    with pytest.raises(UserError, match=r"not UTF-8: rename the file of 'caf\\udce9'"):
        write_lines(tmp_path / "a.txt", ["a", odd, "b"])
    with pytest.raises(UserError, match="line break"):
        write_lines(tmp_path / "a.txt", ["a\nb"])
    assert not (tmp_path / "a.txt").exists()


def test_a_message_stays_one_plain_line() -> None:
    shown = str(UserError("the image \x1b[2J\x07\u202egpj.exe\u2066 is\n  odd: rename\tit"))
    assert shown == "the image \\x1b[2J\\x07\\u202egpj.exe\\u2066 is odd: rename it"
    assert str(UserError(shown)) == shown
    long = str(UserError(f"the class '{'x' * 10**6}' is unknown: correct the labels"))
    assert len(long) <= 600 and long.startswith("the class 'xxx") and long.endswith("unknown: correct the labels")
    assert len(one_line("\x1b" * 5000, 100)) <= 100
    assert str(UserError("Zoë 日本 naïve file.jpg")) == "Zoë 日本 naïve file.jpg"
