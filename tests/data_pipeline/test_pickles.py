"""Pickled dictionaries of strangers: what such files hold is read, and nothing that they ask for happens."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afa.data.labels import read_labels
from afa.data.pickles import read_pickled
from afa.errors import UserError

HEADER = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(127) + b"\n"
CONTENT: Mapping[str, Any] = {
    "2007_000032": np.array([0, 1, 0.5], np.float32),
    "by column": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "big endian": np.arange(3, dtype=">i4"),
    "narrow": np.arange(4, dtype=np.float16)[::2],
    "truth": np.array([[True], [False]]),
    "nothing": np.zeros((0, 3), np.uint8),
    "a number": np.float32(0.25),
    "Zoë \u65e5": [1, 2.5, True, None, -(2**40), "text", b"bytes\xff", (1, ()), {}],
    "ordered": OrderedDict([(0, np.int64(7)), (3, [])]),
}


def write(path: Path, value: object, protocol: int) -> Path:
    """As ``np.save`` does, with a pickle protocol of one's choice."""
    whole = np.empty((), object)
    whole[()] = value
    path.write_bytes(HEADER + pickle.dumps(whole, protocol))
    return path


def assert_same(read: Any, expected: Any) -> None:
    if isinstance(expected, (np.ndarray, np.generic)):
        assert read.dtype == expected.dtype.newbyteorder("=") and read.dtype.isnative
        assert np.array_equal(read, expected) and read.shape == expected.shape
    elif isinstance(expected, dict):
        assert type(read) is dict and list(read) == list(expected)
        for key in expected:
            assert_same(read[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(read) is type(expected) and len(read) == len(expected)
        for one, other in zip(read, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(read) is type(expected) and read == expected


@pytest.mark.parametrize("protocol", range(6))
def test_what_numpy_saves_is_read(tmp_path: Path, protocol: int) -> None:
    path = write(tmp_path / "l.npy", dict(CONTENT), protocol)
    assert_same(read_pickled(path), CONTENT)
    # The same as a bare pickle, and with the names of NumPy 1.
    bare = pickle.dumps(dict(CONTENT), protocol)
    path.write_bytes(bare)
    assert_same(read_pickled(path), CONTENT)
    if protocol < 4:  # where names stand as lines, whose length is free
        path.write_bytes(bare.replace(b"numpy._core", b"numpy.core"))
        assert_same(read_pickled(path), CONTENT)


def test_numbers_of_numpy_as_keys_and_arrays_in_several_places(tmp_path: Path) -> None:
    vector = np.arange(3)
    table = {np.int32(2007000032): vector, np.str_("b\u00eb"): [vector, vector], np.bytes_(b"c"): vector}
    read = read_pickled(write(tmp_path / "l.npy", table, 4))
    assert_same(read, {2007000032: vector, "b\u00eb": [vector, vector], "c": vector})


def test_python_2(tmp_path: Path) -> None:
    # {'a': numpy.array([1., 2.], '>f4'), 'b': ['x', u'\xeb', 3L]}, as Python 2 wrote it in its protocols 0 and 2.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
        b"(S'f4'\nI0\nI1\ntR(I3\nS'>'\nNNNI-1\nI-1\nI0\ntbI00\nS'?\\x80\\x00\\x00@\\x00\\x00\\x00'\ntb"
    )
    expected = {"a": np.array([1, 2], np.float32), "b": ["x", "ë", 3]}
    (tmp_path / "l.pkl").write_bytes(b"(dS'a'\n" + array + b"sS'b'\n(lS'x'\naV\\u00eb\naL3L\nas.")
    assert_same(read_pickled(tmp_path / "l.pkl"), expected)
    raw = array.replace(b"S'?\\x80\\x00\\x00@\\x00\\x00\\x00'\n", b"U\x08?\x80\0\0@\0\0\0")
    (tmp_path / "l.pkl").write_bytes(
        b"\x80\x02}q\x00(U\x01aq\x01" + raw + b"U\x01b](U\x01xX\x02\0\0\0\xc3\xab\x8a\x01\x03eu."
    )
    assert_same(read_pickled(tmp_path / "l.pkl"), expected)


def test_activation_maps_with_tensors(tmp_path: Path) -> None:
    """As programs save them that pickle tensors inside of a dictionary."""
    cams = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7
    table = {
        "keys": torch.tensor([2, 14]),
        "cam": cams.permute(0, 2, 1)[:, 1:],
        "high_res": cams.numpy(),
        "half": cams.half(),
        "brain": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "truth": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(7, dtype=torch.int16),
    }
    for protocol in (2, 4, 5):
        read = read_pickled(write(tmp_path / "l.npy", table, protocol))
        expected = {name: value.float() if name == "brain" else value for name, value in table.items()}
        assert_same(read, {name: np.asarray(value) for name, value in expected.items()})


def test_labels_with_integer_names_and_in_an_ordered_dictionary(tmp_path: Path) -> None:
    rows = {2007000032: [1, 0], 2011003276: [0, 1]}
    for kind in (dict, OrderedDict):
        for key in (int, np.int32, np.int64):
            table = kind((key(name), np.array(row, np.float32)) for name, row in rows.items())
            labels = read_labels(write(tmp_path / "l.npy", table, 4), ("cat", "dog"))
            assert {name: row.tolist() for name, row in labels.items()} == {
                "2007_000032": [1, 0],
                "2011_003276": [0, 1],
            }
    write(tmp_path / "l.npy", {2007000032: [1, 0], "2007_000032.jpg": [0, 1]}, 4)
    with pytest.raises(UserError, match=r"2007000032.*2007_000032\.jpg"):
        read_labels(tmp_path / "l.npy", ("cat", "dog"))


# What a hostile file may hold. Nothing here does harm: a call would leave a file behind.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(name: str, arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + arguments + b"tR"


def dtype(code: str, order: str = "<", rest: bytes = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00") -> bytes:
    return call("numpy.dtype", text(code) + b"\x89\x88") + b"(K\x03" + text(order) + rest + b"tb"


def array(shape: bytes, kind: bytes, data: bytes) -> bytes:
    made = call("numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\nK\x00\x85C\x01b")
    return made + b"(K\x01(" + shape + b"t" + kind + b"\x89" + data + b"tb"


def storage(
    kind: str = "FloatStorage", count: bytes = b"K\x02", body: bytes = b"\0" * 8, count_there: int = 2
) -> bytes:
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    pid = b"\x80\x02(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + count + b"NtQ."
    content = magic + pid + b"\x80\x02](" + text("0") + b"e." + struct.pack("<q", count_there) + body
    return call("torch.storage._load_from_bytes", b"B" + struct.pack("<I", len(content)) + content)


def tensor(memory: bytes, offset: bytes, shape: bytes, strides: bytes) -> bytes:
    hooks = b"ccollections\nOrderedDict\n)R"
    rest = b"(" + shape + b"t(" + strides + b"t\x89" + hooks
    return call("torch._utils._rebuild_tensor_v2", memory + offset + rest)


COLLIDING = b"".join(b"\x8a\x0c" + (number * (2**61 - 1)).to_bytes(12, "little") + b"N" for number in range(99))
NUMBERS = dtype("f4")
MILLIARDS = b"J" + struct.pack("<i", 2**31 - 1)
HOSTILE: Mapping[str, tuple[bytes, str]] = {
    "an array type that reads an address": (
        call("numpy.ndarray", call("numpy.ndarray", b"K\x01\x85" + text("O") + b"C\x08AAAAAAAA")),
        "no function",
    ),
    "an array of objects whose bytes are an address": (array(b"K\x01", dtype("O8", "|"), b"C\x08AAAAAAAA"), "objects"),
    "an object type that says it is none": (
        array(b"K\x01", dtype("O8", "|", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"), b"](Ne"),
        "several objects|objects",
    ),
    "a compound type": (dtype("f4", "<", b"N" + text("a") + b"\x85}" + b"K\x04K\x01K\x00"), "compound"),
    "an array type in another": (dtype("f4", "|", NUMBERS + b"(K\x02\x85tNNK\x08K\x04K\x00"), "compound"),
    "a type of bare memory": (dtype("V8"), "V8"),
    "a type of dates": (dtype("M8"), "M8"),
    "a size that is not there": (array(MILLIARDS * 2, NUMBERS, b"C\x04\0\0\0\0"), "has 4 bytes"),
    "a negative size": (array(b"J\xff\xff\xff\xff", NUMBERS, b"C\x00"), "no proper shape"),
    "a size of 10^30": (array(b"\x8a\x0d" + b"\xff" * 12 + b"\x00", NUMBERS, b"C\x00"), "64 bits"),
    "numbers of another size": (dtype("f4", "<", b"NNNK\x40K\x01K\x00"), "contradicts"),
    "many arrays of one memory": (
        b"(B\xff\xff\0\0" + b"\1" * 65535 + b"q\x010(" + array(b"M\xff\xff", dtype("u1", "|"), b"h\x01") * 40 + b"l",
        "larger than the file",
    ),
    "a number without its bytes": (call("numpy.core.multiarray.scalar", NUMBERS + b"C\x01\0"), "has 1 bytes"),
    "a number that is an object": (call("numpy.core.multiarray.scalar", dtype("O8") + b"N"), "malformed|objects"),
    "a state for a dictionary": (b"}}b", "state"),
    "a state for a name": (b"cnumpy\nndarray\n}b", "state"),
    "its own storage kind": (storage("UntypedStorage"), "UntypedStorage"),
    "a storage that is not there": (storage(count=MILLIARDS, count_there=2**31 - 1), "has 8 bytes"),
    "two counts": (storage(count=b"K\x01"), "FloatStorage"),
    "a tensor beyond its memory": (tensor(storage(), b"K\x01", b"K\x02", b"K\x01"), "beyond"),
    "a tensor before its memory": (tensor(storage(), b"J\xff\xff\xff\xff", b"K\x01", b"K\x01"), "malformed"),
    "a tensor that walks back": (tensor(storage(), b"K\x01", b"K\x02", b"J\xff\xff\xff\xff"), "no proper shape"),
    "a tensor of one number 10^18 times": (tensor(storage(), b"K\x00", MILLIARDS * 2, b"K\0K\0"), "larger than"),
    "a persistent id": (text("storage") + b"Q", "outside"),
    "a codec": (call("_codecs.encode", text("a") + text("bz2")), "codec 'bz2'"),
    "an object": (b"cos\nsystem\n)\x81", "os.system"),
    "an instance": (b"(" + text("true") + b"ios\nsystem\n", "os.system|object of its own"),
    "an extension": (b"\x82\x01", "object of its own"),
    "a buffer from outside": (b"\x97", "object of its own"),
    "a name made on the stack": (text("builtins") + text("exec") + b"\x93", "builtins.exec"),
    "a name within a name": (text("numpy") + text("ndarray.tofile") + b"\x93", "ndarray.tofile"),
    "a list in itself": (b"]q\x01h\x01a", "holds itself"),
    "a dictionary in itself": (b"}q\x01K\x01h\x01s", "holds itself"),
    "lists of lists of one list": (b"]" + b"q\x010](h\x01h\x01h\x01h\x01e" * 25, "again and again"),
    "depth": (b"]" * 1000 + b"a" * 999, "too deep"),
    "depth of tuples": (b")" + b"\x85" * 1000, "too deep"),
    "a far memory": (b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff", "damaged"),
    "10 GB of text": (b"\x8d" + struct.pack("<Q", 10**10) + b"x", "cut off"),
    "10 GB of bytes": (b"\x96" + struct.pack("<Q", 10**10) + b"x", "cut off"),
    "bytes of a negative number": (b"T\xff\xff\xff\xff", "damaged"),
    "a number of 10^6 digits": (b"I" + b"9" * 10**6 + b"\n", "damaged"),
    "a number of 10^6 bytes": (b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6, "64 bits"),
    "keys of one hash": (b"}(" + COLLIDING + b"u", "64 bits"),
    "a key that is a list": (b"}]Ns", "neither a name"),
    "a key twice": (b"}(" + (text("a") + b"N") * 2 + b"u", "'a' twice"),
    "a tuple of marks": (b"((t1", "damaged"),
    "an empty stack": (b"", "damaged"),
    "a mark alone": (b"(", "damaged"),
    "nothing to call": (b"NNR", "no function"),
    "text that is none": (b"X\x01\0\0\0\xff", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, case: str) -> None:
    content, reason = HOSTILE[case]
    (tmp_path / "l.npy").write_bytes(HEADER + b"\x80\x04" + content + b".")
    with pytest.raises(UserError, match=rf"l\.npy cannot be read: .*({reason})") as caught:
        read_pickled(tmp_path / "l.npy")
    assert len(str(caught.value)) < 600


def test_the_helpers_above_make_sound_pickles_where_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(array(b"K\x02", NUMBERS, b"C\x08\0\0\x80?\0\0\0@") + b".")
    assert read_pickled(tmp_path / "l") is not None and pickle.loads((tmp_path / "l").read_bytes()).tolist() == [1, 2]
    (tmp_path / "l").write_bytes(b"]" + tensor(storage(), b"K\x00", b"K\x02", b"K\x01") + b"a.")
    assert_same(read_pickled(tmp_path / "l"), [np.zeros(2, np.float32)])


HEADERS = {
    "deep": b"(" * 9000 + b"'descr': '|O'",
    "cut off": b"{'descr': '|O'",
    "a call": b"{'descr': '|O', 'shape': __import__('os').system('true'), }",
    "numbers": b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
    "several objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers(tmp_path: Path, case: str) -> None:
    for length in (len(HEADERS[case]), 2**16 - 1):
        header = b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + HEADERS[case]
        (tmp_path / "l.npy").write_bytes(header + b"\n" + pickle.dumps({}))
        with pytest.raises(UserError, match=r"l\.npy cannot be read"):
            read_pickled(tmp_path / "l.npy")
    (tmp_path / "l.npy").write_bytes(b"\x93NUMPY\x03\x00\xff\xff\xff\xff")
    with pytest.raises(UserError, match="header"):
        read_pickled(tmp_path / "l.npy")


class Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    trap = Trap(tmp_path / "executed")
    memory = io.BytesIO()
    torch.save(trap, memory, _use_new_zipfile_serialization=False)
    values = (trap, {"a": [trap]}, {"b": OrderedDict(a=trap)}, np.array([trap, 1], object))
    for value in values:
        with pytest.raises(UserError, match=r"cannot be read: it (asks for|holds|refers|builds)"):
            read_pickled(write(tmp_path / "l.npy", value, protocol))
    inner = call("torch.storage._load_from_bytes", b"B" + struct.pack("<I", len(memory.getvalue())) + memory.getvalue())
    (tmp_path / "l.npy").write_bytes(inner + b".")
    with pytest.raises(UserError, match="asks for"):
        read_pickled(tmp_path / "l.npy")
    assert not (tmp_path / "executed").exists()


def test_every_cut_and_many_changed_bytes_are_one_line(tmp_path: Path) -> None:
    table = {"keys": torch.tensor([2, 14]), "cam": torch.ones(2, 2), 5: np.arange(3.0), "n": OrderedDict(a=np.int8(1))}
    whole = write(tmp_path / "l.npy", table, 4).read_bytes()
    path = tmp_path / "changed.npy"
    rng = np.random.default_rng(0)
    changed = [whole[:length] for length in range(0, len(whole) - 1, 17)]
    for place in rng.integers(0, len(whole), 120):
        copy = bytearray(whole)
        copy[place] = rng.integers(256)
        changed.append(bytes(copy))
    refused = 0
    for content in changed:
        path.write_bytes(content)
        try:
            read_pickled(path)
        except UserError:
            refused += 1
    assert refused > len(whole) // 17
