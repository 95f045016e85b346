"""MXNet's parameter files: exact in all versions, and a bad one is one line."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import DATA, Agreement

from afa.errors import UserError
from afa.weights import read_tensors

BEGINNING = struct.pack("<3Q", 0x112, 0, 1)
NAMES = struct.pack("<2Q", 1, 1) + b"a"


def array(shape: tuple[int, ...] = (2,), kind: int = 0, data: bytes = bytes(8)) -> bytes:
    """Of version 1."""
    return struct.pack(f"<2I{len(shape)}q3i", 0xF993FAC8, len(shape), *shape, 1, 0, kind) + data


@pytest.mark.parametrize("version", ["legacy", "v1", "v2"])
def test_reference_mxnet_parameters(version: str, agreement: Agreement) -> None:
    found = read_tensors(DATA / f"mxnet_{version}.params")
    with np.load(DATA / "mxnet_params.npz") as arrays:
        expected = {name.replace("|", ":"): arrays[name] for name in arrays.files}
    assert [(name, tensor.shape, tensor.numpy().dtype) for name, tensor in found.items()] == [
        (name, values.shape, values.dtype) for name, values in expected.items()
    ]
    found_numbers, expected_numbers = (
        torch.cat([torch.as_tensor(values).double().flatten() for values in one.values()]) for one in (found, expected)
    )
    agreement.values(f"MXNet's parameters, {version}", found_numbers, expected_numbers, 0)


def test_every_type_of_numbers(tmp_path: Path) -> None:
    types = ["<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8"]
    written = [np.array([[1, 2, 100]]).astype(one) for one in types]
    arrays = b"".join(array(values.shape, kind, values.tobytes()) for kind, values in enumerate(written))
    names = b"".join(struct.pack("<Q", 1) + letter.encode() for letter in "abcdefg")
    count = struct.pack("<Q", len(types))
    (tmp_path / "all.params").write_bytes(BEGINNING[:16] + count + arrays + count + names)
    found = read_tensors(tmp_path / "all.params")
    assert [tensor.numpy().dtype for tensor in found.values()] == [np.dtype(one) for one in types]
    assert all(tensor.tolist() == [[1, 2, 100]] for tensor in found.values())


@pytest.mark.parametrize("version", ["legacy", "v1", "v2"])
def test_a_file_that_is_cut_or_goes_on_is_refused(version: str, tmp_path: Path) -> None:
    whole = (DATA / f"mxnet_{version}.params").read_bytes()
    path = tmp_path / "cut.params"
    for length in (*range(16, 120, 3), *range(120, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.params is damaged .*it ends too early"):
            read_tensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="1 bytes follow its end"):
        read_tensors(path)


def test_flipped_bytes_never_end_in_anything_but_tensors_or_one_line(tmp_path: Path) -> None:
    whole = (DATA / "mxnet_v2.params").read_bytes()
    path, rng = tmp_path / "flipped.params", np.random.default_rng(1)
    for place in (*range(16, 80), *range(len(whole) - 120, len(whole))):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with suppress(UserError):
            assert len(read_tensors(path)) == 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BEGINNING[:16] + struct.pack("<Q", 2**63) + bytes(64), "claims to hold 9223372036854775808 arrays"),
        (BEGINNING[:16] + struct.pack("<Q", 0) + bytes(8), "claims to hold 0 arrays"),
        (BEGINNING + struct.pack("<IiIq3i", 0xF993FAC9, 1, 1, 2, 1, 0, 0) + bytes(8) + NAMES, r"sparse \(by rows\)"),
        (BEGINNING + struct.pack("<IiIq3i", 0xF993FAC9, 2, 1, 2, 1, 0, 0) + bytes(8) + NAMES, r"sparse \(CSR\)"),
        (BEGINNING + struct.pack("<IiIq3i", 0xF993FACA, 0, 1, 2, 1, 0, 0) + bytes(8) + NAMES, "version 3"),
        (BEGINNING + struct.pack("<I9I", 9, *[1] * 9) + bytes(24) + NAMES, "has 9 dimensions"),
        (BEGINNING + struct.pack("<I", 0) + bytes(24) + NAMES, "has 0 dimensions"),
        (BEGINNING + array((2**31, 2**31, 2**31)) + NAMES, "ends too early"),
        (BEGINNING + array((-1, -2)) + NAMES, "a side of -2"),
        (BEGINNING + array((0,), data=b"") + NAMES, "a side of 0"),
        (BEGINNING + array(kind=7) + NAMES, "has the type 7"),
        (BEGINNING + array(kind=-1) + NAMES, "has the type -1"),
        (BEGINNING + array() + struct.pack("<Q", 0), "1 arrays and 0 names"),
        (BEGINNING + array() + struct.pack("<2Q", 1, 2**40), "a name has 1099511627776 bytes"),
        (BEGINNING + array() + struct.pack("<2Q", 1, 2) + b"\xff\xfe", "is damaged"),
        (
            BEGINNING[:16] + struct.pack("<Q", 2) + array() * 2 + struct.pack("<Q", 2) + NAMES[8:] * 2,
            "the name 'a' appears twice",
        ),
        (b"\x13" + bytes(200), "is damaged or no weights file"),
    ],
)
def test_what_cannot_be_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.params"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.params .*{words}") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_the_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    (tmp_path / "renamed.pth").write_bytes(BEGINNING + array() + NAMES)
    assert read_tensors(tmp_path / "renamed.pth")["a"].tolist() == [0, 0]
    torch.save({"a": torch.ones(2)}, tmp_path / "torch.params")
    assert read_tensors(tmp_path / "torch.params")["a"].tolist() == [1, 1]
