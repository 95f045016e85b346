from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from afa.data.classes import read_class_names
from afa.data.labels import read_labels, write_labels
from afa.errors import UserError

NAMES = ("cat", "dog", "traffic light")
EXPECTED = {"a/1": [1, 0, 1], "b 2": [0, 1, 0], "c": [0, 0, 0]}


def assert_expected(labels: dict[str, np.ndarray]) -> None:
    assert set(labels) == set(EXPECTED)
    for name, vector in EXPECTED.items():
        assert labels[name].dtype == np.float32 and labels[name].tolist() == vector


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("l.txt", "a/1.jpg\tcat traffic_light\n# comment\nb 2\t2\nc\t\n"),
        ("l.csv", "image,labels\na/1,cat;traffic light\nb 2.png,2\nc,\n"),
        ("l.csv", "image,labels\na/1,1;3\nb 2,dog\nc\n"),
        ("l.csv", "name,traffic light,cat,dog\r\na/1,1,1,0\r\nb 2,0,0,1\r\nc,0,0,\r\n"),
        ("l.csv", "\ufefffile,cat,dog,traffic light\na/1.JPG,1.0,0.0,1.0\nb 2,0,1,0\nc,0,0,0\n"),
        ("l.json", '{"a/1.jpeg": ["cat", 3], "b 2": ["2"], "c": []}'),
    ],
)
def test_text_csv_and_json(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    assert_expected(read_labels(tmp_path / file, NAMES))


def test_text_separated_by_blanks(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("2007_000001 cat 3\n2007_000002\n")
    labels = read_labels(tmp_path / "l.txt", NAMES)
    assert labels["2007_000001"].tolist() == [1, 0, 1] and labels["2007_000002"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels{suffix}"
    write_labels(path, {"a/1": ["cat", "traffic light"], "b 2": ["dog"], "c": []})
    assert_expected(read_labels(path, NAMES))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("l.txt", "a cat\na dog\n", "line 2.*twice"),
        ("l.txt", "a bird\n", "line 1.*'bird'"),
        ("l.txt", "a 4\n", "'4'"),
        ("l.txt", "a 0\n", "'0'"),
        ("l.csv", "a,cat\n", "header"),
        ("l.csv", "", "header"),
        ("l.csv", "image,cat,dog\na,1\n", "line 2"),
        ("l.csv", "image,cat,dog\na,1,2\n", "line 2"),
        ("l.csv", "image,cat,bird\na,1,1\n", "'bird'"),
        ("l.json", "{", "JSON"),
        ("l.json", "[]", "object"),
        ("l.json", '{"a": "cat"}', "'a'"),
        ("l.json", '{"a": [true]}', "'a'"),
        ("l.xml", "", "xml"),
        ("l.npy", "nonsense", "npy"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / file, NAMES)


def save_dictionary(path: Path, content: object, protocol: int | None = None) -> None:
    """As np.save writes a dictionary, with the pickle protocol (and the module names) of a chosen time."""
    header = b"\x93NUMPY\x01\x00"
    description = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    description += b" " * (64 - (len(header) + 2 + len(description) + 1) % 64) + b"\n"
    body = pickle.dumps(np.array(content, dtype=object), protocol)
    if protocol is not None and protocol < 4:
        body = body.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(header + len(description).to_bytes(2, "little") + description + body)


RELEASED = {name: np.array(vector, np.float32) for name, vector in EXPECTED.items()}


def test_released_file_as_numpy_saves_it(tmp_path: Path) -> None:
    np.save(tmp_path / "cls_labels_onehot.npy", RELEASED)  # type: ignore[arg-type]
    assert_expected(read_labels(tmp_path / "cls_labels_onehot.npy", NAMES))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_released_file_of_older_times(tmp_path: Path, protocol: int) -> None:
    save_dictionary(tmp_path / "l.npy", RELEASED, protocol)
    assert_expected(read_labels(tmp_path / "l.npy", NAMES))


def test_released_file_with_lists_and_numbers(tmp_path: Path) -> None:
    content = {"a": [np.float32(1), 0, 0], "b": np.array([0, 1, 1], np.int64)}
    save_dictionary(tmp_path / "l.npy", content)
    labels = read_labels(tmp_path / "l.npy", NAMES)
    assert labels["a"].tolist() == [1, 0, 0] and labels["b"].tolist() == [0, 1, 1]


class Malicious:
    def __init__(self, target: Path, how: str) -> None:
        self.target, self.how = target, how

    def __reduce__(self):
        if self.how == "touch":
            return Path.touch, (self.target,)
        return eval, (f"open({str(self.target)!r}, 'w')",)


@pytest.mark.parametrize("how", ["touch", "eval"])
@pytest.mark.parametrize("place", ["value", "key", "whole"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, how: str, place: str) -> None:
    target = tmp_path / "executed"
    trap = Malicious(target, how)
    content = {"value": {"a": RELEASED["c"], "b": trap}, "key": {(trap,): RELEASED["c"]}, "whole": trap}[place]
    save_dictionary(tmp_path / "l.npy", content)
    with pytest.raises(UserError, match=r"l\.npy cannot be read: it asks for"):
        read_labels(tmp_path / "l.npy", NAMES)
    assert not target.exists()


def test_released_file_must_fit_the_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", RELEASED)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="2 zeros and ones"):
        read_labels(tmp_path / "l.npy", NAMES[:2])
    np.save(tmp_path / "l.npy", {"a": np.array([0, 2, 0])})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'a'"):
        read_labels(tmp_path / "l.npy", NAMES)
    np.save(tmp_path / "l.npy", np.zeros(3))
    with pytest.raises(UserError, match="dictionary"):
        read_labels(tmp_path / "l.npy", NAMES)
    whole = tmp_path / "whole.npy"
    np.save(whole, RELEASED)  # type: ignore[arg-type]
    for length in (5, 60, 140, 200, whole.stat().st_size - 3):
        (tmp_path / "l.npy").write_bytes(whole.read_bytes()[:length])
        with pytest.raises(UserError, match=r"l\.npy"):
            read_labels(tmp_path / "l.npy", NAMES)


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("# mine\ncat\n\n traffic light \n")
    assert read_class_names(path) == ("cat", "traffic light")
    for text, message in (("", "no class name"), ("cat\ncat\n", "twice"), ("background\ncat\n", "leave it out")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_class_names(path)
    with pytest.raises(UserError, match="one name per line"):
        read_class_names(tmp_path / "missing.txt")
