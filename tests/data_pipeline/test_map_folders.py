from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afa.data.map_files import (
    LABEL_FACTS,
    LABEL_MANIFEST,
    StoredForm,
    label_path,
    maps_path,
    read_maps,
    write_maps,
)
from afa.data.map_folders import MapFolder
from afa.data.palette import palette_image
from afa.errors import UserError
from afa.maps import Maps

SIZE = (6, 8)
LABELS = np.array([0, 1, 0, 1, 0], np.float32)  # the classes 2 and 4, in files that begin with 0: 1 and 3


def maps_of(ids: list[int], size: tuple[int, int] = SIZE, seed: int = 0) -> Maps:
    index = torch.tensor([ids])
    scores = torch.rand(1, len(ids), *size, generator=torch.Generator().manual_seed(seed))
    return Maps(scores, index, torch.ones_like(index, dtype=torch.bool), has_background=ids[:1] == [0])


def same(found: Maps, expected: Maps) -> bool:
    return found.has_background == expected.has_background and all(
        torch.equal(getattr(found, part), getattr(expected, part)) for part in ("scores", "class_ids", "counted")
    )


def save(path: Path, content: object) -> Path:
    """As PSA and IRN write their dictionaries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content)  # type: ignore[arg-type]
    return path


def arrays(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *size), np.float32)


# Files of maps.


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ids", [[0, 2, 4], [3], [0]])
def test_maps_come_back_as_they_were(tmp_path: Path, ids: list[int], compress: bool) -> None:
    maps = maps_of(ids)
    maps.scores[0, 0, 0, 0] = 0.99999  # float16 would make it 1
    path = tmp_path / "deep" / "a.b.npz"
    write_maps(path, maps, (33, 44), compress=compress)
    found, size = read_maps(path)
    assert same(found, maps) and size == (33, 44)
    before = path.read_bytes()
    write_maps(path, maps, (33, 44), compress=compress)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["a.b.npz"]


def test_fillers_are_not_written_and_no_class_is_all_background(tmp_path: Path) -> None:
    filled = maps_of([2, 4])
    filled.counted[0, 1] = False
    write_maps(tmp_path / "a.npz", filled, SIZE, compress=False)
    assert read_maps(tmp_path / "a.npz").maps.class_ids.tolist() == [[2]]
    filled.counted[0, 0] = False
    write_maps(tmp_path / "b.npz", filled, SIZE, compress=False)
    nothing = read_maps(tmp_path / "b.npz").maps
    assert not nothing.counted.any() and nothing.label_above(0.0, (9, 9)).sum() == 0


def test_broken_scores_are_not_written(tmp_path: Path) -> None:
    maps = maps_of([1])
    maps.scores[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        write_maps(tmp_path / "a.npz", maps, SIZE, compress=False)
    with pytest.raises(ValueError, match="one image"):
        write_maps(
            tmp_path / "a.npz", Maps.of_all_classes(torch.zeros(2, 1, 2, 2), has_background=True), SIZE, compress=False
        )
    assert not list(tmp_path.iterdir())


GOOD = {"scores": arrays(2), "class_ids": np.array([1, 3]), "size": np.array(SIZE)}


def saved(**changes: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value for key, value in {**GOOD, **changes}.items() if value is not None})
    return buffer.getvalue()


def with_header(shape: str, descr: str = "'<f4'") -> bytes:
    """A file whose scores say to have a shape that they have not."""
    buffer = io.BytesIO()
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
        for key in ("class_ids", "size"):
            part = io.BytesIO()
            np.save(part, GOOD[key])
            archive.writestr(f"{key}.npy", part.getvalue())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 no archive",
        saved()[:-40],
        saved()[:200] + b"\xff" * 40 + saved()[240:],
        pickle.dumps(GOOD),
        saved(scores=None),
        saved(size=None),
        saved(scores=np.zeros((2, 6, 8), np.uint8)),
        saved(scores=np.zeros((2, 6, 8), object)),
        saved(scores=np.zeros((6, 8), np.float32)),
        saved(scores=np.zeros((2, 0, 8), np.float32)),
        saved(scores=np.full((2, 6, 8), np.nan, np.float32)),
        saved(scores=np.full((2, 6, 8), 1e300)),
        saved(class_ids=np.array([1])),
        saved(class_ids=np.array([3, 1])),
        saved(class_ids=np.array([1, 1])),
        saved(class_ids=np.array([-1, 1])),
        saved(class_ids=np.array([1, 255])),
        saved(class_ids=np.array([1.0, 3.0])),
        saved(size=np.array([6, 0])),
        saved(size=np.array([6, 8, 3])),
        with_header("(2, 1000000, 1000000)"),
        with_header("(2, 6, 8)"),
        with_header("(2, -6, 8)"),
        with_header(f"(2, {10**400}, 8)"),
        with_header("(2, 6, 8)", "'|O'"),
        with_header("(2, 6", "'<f4'"),
        with_header("(" * 900, "'<f4'"),
        with_header("(0, 6, 8)", "[('a', '<f4')]"),
    ],
)
def test_a_damaged_file_of_maps_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz"):
        read_maps(path)


def test_other_layouts_of_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    scores = np.asfortranarray(GOOD["scores"].astype(">f8"))
    path.write_bytes(saved(scores=scores, class_ids=np.array([1, 3], np.uint8)))
    assert np.array_equal(read_maps(path).maps.scores[0].numpy(), GOOD["scores"])


# Label folders.


def label_folder(root: Path, outputs: tuple[str, ...] = ("cam",), names: tuple[str, ...] = ("a", "sub/b.c")) -> Path:
    root.mkdir(parents=True)
    (root / LABEL_FACTS).write_text('{"outputs": ["cam"], "checkpoint": "12ab"}')
    for output in outputs:
        for name in names:
            write_maps(maps_path(root, output, name), maps_of([2, 4]), (12, 16), compress=False)
            path = label_path(root, output, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            palette_image(np.array([[0, 4], [255, 2]], np.uint8)).save(path)
    return root


def test_a_label_folder_is_read_by_output_and_name(tmp_path: Path) -> None:
    folder = MapFolder(label_folder(tmp_path / "folder"))
    assert (folder.kind, folder.map_outputs, folder.label_outputs) == ("label folder", ("cam",), ("cam",))
    folder.require_maps(["a", "sub/b.c"])
    folder.require_labels(["a", "sub/b.c"])
    assert same(folder.read("sub/b.c"), maps_of([2, 4]))
    assert same(folder.read("sub/b.c", LABELS, "cam", size=(12, 16)), maps_of([2, 4]))
    assert folder.read_label("a").tolist() == [[0, 4], [255, 2]]
    with pytest.raises(UserError, match=r"a\.npz are of an image of 16 x 12 pixels, 'a' has 12 x 16"):
        folder.read("a", size=(16, 12))
    with pytest.raises(UserError, match="no maps of 'crf', only of cam"):
        folder.read("a", output="crf")


def test_several_outputs_must_be_named(tmp_path: Path) -> None:
    folder = MapFolder(label_folder(tmp_path / "folder", ("cam", "crf_low")))
    with pytest.raises(UserError, match="name one of cam, crf_low"):
        folder.read("a")
    with pytest.raises(UserError, match="name one of cam, crf_low"):
        folder.require_labels(["a"])
    assert folder.read_label("a", "crf_low").shape == (2, 2)


def test_missing_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    root = label_folder(tmp_path / "folder")
    with pytest.raises(
        UserError, match=r"2 of the 3 maps are missing, the first is .*x\.npz: its stage has not finished"
    ):
        MapFolder(root).require_maps(["a", "x", "y"])
    (root / LABEL_MANIFEST).write_text("{}")
    with pytest.raises(
        UserError, match=r"1 of the 1 labels are missing, the first is .*x\.png \(missing: 'x\.png'; there: 'a\.png'\)$"
    ):
        MapFolder(root).require_labels(["x"])
    save(tmp_path / "psa" / "2007.npy", {1: arrays(1)[0]})
    with pytest.raises(UserError, match=r"x\.npy \(missing: 'x'; there: '2007'\)"):
        MapFolder(tmp_path / "psa").require_maps(["x"])


@pytest.mark.parametrize("name", ["../a", "/a", "sub/../../a", ""])
def test_a_name_does_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    for path in (maps_path, label_path):
        with pytest.raises(UserError, match="out of the folder"):
            path(tmp_path, "cam", name)


def test_a_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    one, other = label_folder(tmp_path / "one"), label_folder(tmp_path / "other" / "place")
    assert MapFolder(one).fingerprint == MapFolder(other).fingerprint
    (other / LABEL_FACTS).write_text('{"outputs": ["cam"], "checkpoint": "34cd"}')
    assert MapFolder(one).fingerprint != MapFolder(other).fingerprint
    path = save(tmp_path / "psa" / "a.npy", {1: arrays(1)[0]})
    before = MapFolder(path.parent).fingerprint
    assert MapFolder(path.parent).fingerprint == before
    save(tmp_path / "psa" / "b.npy", {1: arrays(1)[0]})
    assert MapFolder(path.parent).fingerprint != before


# Other programs' folders.


def test_both_conventions_of_psa(tmp_path: Path) -> None:
    scores = arrays(3)
    save(tmp_path / "cam" / "a.npy", {1: scores[0], 3: scores[1]})
    save(tmp_path / "crf" / "a.npy", {0: scores[0], 2: scores[1], 4: scores[2]})
    cam, crf = MapFolder(tmp_path / "cam"), MapFolder(tmp_path / "crf")
    assert (cam.kind, cam.map_outputs, cam.names, cam.needs_class_labels) == ("dictionaries", ("cam",), ("a",), True)
    found = cam.read("a", LABELS)
    assert not found.has_background and found.class_ids.tolist() == [[2, 4]]
    assert np.array_equal(found.scores[0].numpy(), scores[:2]) and found.scores.dtype == torch.float32
    found = crf.read("a", LABELS, "crf")
    assert found.has_background and found.class_ids.tolist() == [[0, 2, 4]]
    assert np.array_equal(found.scores[0].numpy(), scores)


@pytest.mark.parametrize("keys", [torch.tensor([1, 3]), np.array([3, 1]), [1, 3]])
@pytest.mark.parametrize("full", [True, False])
def test_irns_dictionaries_with_tensors(tmp_path: Path, keys: Any, full: bool) -> None:
    low, high = arrays(2, (3, 4)), arrays(2, seed=1)
    content = {"keys": keys, "cam": torch.from_numpy(low), **({"high_res": high} if full else {})}
    save(tmp_path / "irn" / "a.npy", content)
    found = MapFolder(tmp_path / "irn").read("a", LABELS)
    expected = high if full else low
    expected = expected[::-1] if isinstance(keys, np.ndarray) else expected
    assert found.class_ids.tolist() == [[2, 4]] and np.array_equal(found.scores[0].numpy(), expected)


def test_irns_keys_with_a_background(tmp_path: Path) -> None:
    save(tmp_path / "irn" / "a.npy", {"keys": np.array([0, 2, 4]), "cam": torch.from_numpy(arrays(3))})
    assert MapFolder(tmp_path / "irn").read("a", LABELS).has_background


def test_the_convention_never_changes_within_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    save(folder / "a.npy", {1: arrays(1)[0], 3: arrays(1)[0]})
    save(folder / "b.npy", {0: arrays(1)[0], 2: arrays(1)[0], 4: arrays(1)[0]})
    for first, second in ("ab", "ba"):
        opened = MapFolder(folder)
        opened.require_maps([first, second], {"a": LABELS, "b": LABELS})
        # As a loader's process would get it.
        opened = pickle.loads(pickle.dumps(opened))
        with pytest.raises(UserError, match=rf"key 0 is .* in .*{second}\.npy, but .* in .*{first}\.npy"):
            opened.read(second, LABELS)


@pytest.mark.parametrize(
    ("keys", "labels"), [((2, 4), LABELS), ((0, 1, 3), LABELS), ((1,), LABELS), ((), LABELS), ((0, 2, 4, 5), LABELS)]
)
def test_keys_that_fit_no_convention_are_refused(tmp_path: Path, keys: tuple[int, ...], labels: np.ndarray) -> None:
    save(tmp_path / "psa" / "a.npy", {key: arrays(1)[0] for key in keys})
    shown = " ".join(map(str, keys)) or "no key"
    with pytest.raises(UserError, match=rf"a\.npy holds the keys {shown}; .* ask for 1 3 .* or 0 2 4"):
        MapFolder(tmp_path / "psa").read("a", labels)


def test_an_image_without_a_class(tmp_path: Path) -> None:
    nothing = np.zeros(5, np.float32)
    save(tmp_path / "cam" / "a.npy", {})
    save(tmp_path / "crf" / "a.npy", {0: arrays(1)[0]})
    found = MapFolder(tmp_path / "cam").read("a", nothing)
    assert not found.counted.any() and found.label_above(0, (4, 4)).sum() == 0
    assert MapFolder(tmp_path / "crf").read("a", nothing).label().sum() == 0


@pytest.mark.parametrize(
    "content",
    [
        {1: arrays(1)[0]},
        {1: arrays(1)[0], 3: arrays(1, (3, 4))[0]},
        {1: arrays(1), 3: arrays(1)},
        {1: arrays(1)[0].astype(np.uint8), 3: arrays(1)[0].astype(np.uint8)},
        {1: np.full(SIZE, np.inf, np.float32), 3: arrays(1)[0]},
        {1: np.zeros((0, 4), np.float32), 3: np.zeros((0, 4), np.float32)},
        {1: 0.5, 3: 0.5},
        {1: "a", 3: "b"},
        {"cat": arrays(1)[0]},
        {-1: arrays(1)[0]},
        {2**63: arrays(1)[0], 1: arrays(1)[0]},
        {1: arrays(1)[0], "keys": [1, 3]},
        {"keys": [1, 3], "cam": arrays(1)},
        {"keys": [1, 1, 3], "cam": arrays(3)},
        {"keys": [[1, 3]], "cam": arrays(2)},
        {"keys": [1.0, 3.0], "cam": arrays(2)},
        {"keys": [1, [3]], "cam": arrays(2)},
        {"keys": [1, 3], "cam": [arrays(1)[0], arrays(1, (3, 4))[0]]},
        {"keys": [1, 3], "cam": {"a": 1}},
        {"keys": [1, 3]},
        {"keys": None, "cam": None},
        [arrays(2)],
        arrays(2),
        7,
    ],
)
def test_an_ill_shaped_dictionary_is_one_line_that_names_it(tmp_path: Path, content: object) -> None:
    path = tmp_path / "psa" / "a.npy"
    save(path, np.array(content, object) if isinstance(content, (dict, int)) else content)
    with pytest.raises(UserError, match=r"a\.npy"):
        MapFolder(tmp_path / "psa").read("a", LABELS)


def test_a_dictionary_needs_labels(tmp_path: Path) -> None:
    save(tmp_path / "psa" / "a.npy", {1: arrays(1)[0], 3: arrays(1)[0]})
    with pytest.raises(UserError, match=r"a\.npy can only be read with the image's labels"):
        MapFolder(tmp_path / "psa").read("a")
    with pytest.raises(UserError, match="holds no labels, only maps"):
        MapFolder(tmp_path / "psa").read_label("a")


def test_masks_keep_their_ids_whatever_their_colours(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 20], [255, 7, 3]], np.uint8)
    for name, image in (("grey", Image.fromarray(mask)), ("sub/colour.jpg", palette_image(mask))):
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    folder = MapFolder(tmp_path / "masks")
    assert (folder.kind, folder.label_outputs, folder.names) == ("masks", ("masks",), ("grey", "sub/colour"))
    folder.require_labels(["grey", "sub/colour"])
    assert all(np.array_equal(folder.read_label(name), mask) for name in folder.names)


def two_kinds(root: Path) -> None:
    save(root / "a.npy", {1: arrays(1)[0]})
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "a.png")


def two_files_of_one_image(root: Path) -> None:
    save(root / "a.npy", {1: arrays(1)[0]})
    save(root / "a.jpg.npy", {1: arrays(1)[0]})


def facts_alone(root: Path) -> None:
    (root / LABEL_FACTS).write_text("{}")


def jpegs(root: Path) -> None:
    (root / "a.jpg").write_bytes(b"")


def inside_a_label_folder(root: Path) -> None:
    (root.parent / LABEL_FACTS).write_text("{}")
    write_maps(root / "a.npz", maps_of([1]), SIZE, compress=False)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda root: root.rmdir(), "does not exist"),
        (lambda root: None, "no .npy and no .png file"),
        (jpegs, r"no .png file, only .jpg"),
        (two_kinds, r"a\.npy\) and .png files .*a\.png\): name the folder of one kind"),
        (two_files_of_one_image, "both belong to the image 'a'"),
        (facts_alone, "holds neither maps nor labels"),
        (inside_a_label_folder, "name the folder that holds label.json"),
    ],
)
def test_a_folder_that_could_be_anything_is_refused(tmp_path: Path, fill: Callable[[Path], object], said: str) -> None:
    root = tmp_path / "folder"
    root.mkdir()
    fill(root)
    with pytest.raises(UserError, match=said):
        MapFolder(root)


def test_maps_of_8_bits_are_near_and_small(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 2, 30, 40, generator=generator)
    for low, high in ((0.0, 1.0), (-3.0, 9.0)):
        ids = torch.tensor([[1, 3]])
        maps = Maps(scores * (high - low) + low, ids, torch.ones_like(ids, dtype=torch.bool), False)
        write_maps(tmp_path / "a.npz", maps, (30, 40), compress=False, form=StoredForm(bits=8))
        found, size = read_maps(tmp_path / "a.npz")
        assert size == (30, 40) and found.class_ids.tolist() == [[1, 3]] and found.scores.dtype == torch.float32
        torch.testing.assert_close(found.scores, maps.scores, atol=(high - low) / 509, rtol=0)
    ends = Maps(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[1]]), torch.tensor([[True]]), False)
    write_maps(tmp_path / "b.npz", ends, (1, 2), compress=False, form=StoredForm(bits=8))
    assert read_maps(tmp_path / "b.npz").maps.scores.flatten().tolist() == [0, 1]
    with np.load(tmp_path / "a.npz") as arrays:
        content = dict(arrays)
    for broken in ({"scale": None}, {"scale": np.zeros(3, np.float32)}, {"offset": np.array(np.inf, np.float32)}):
        np.savez(tmp_path / "c.npz", **{k: v for k, v in {**content, **broken}.items() if v is not None})
        with pytest.raises(UserError, match=r"c\.npz"):
            read_maps(tmp_path / "c.npz")


def test_larger_maps_are_stored_small_with_their_images_size(tmp_path: Path) -> None:
    scores = torch.arange(48.0).view(1, 1, 6, 8) / 48
    maps = Maps(scores, torch.tensor([[2]]), torch.tensor([[True]]), False)
    write_maps(tmp_path / "a.npz", maps, (60, 80), compress=False, form=StoredForm(long_side=4))
    found, size = read_maps(tmp_path / "a.npz")
    assert size == (60, 80) and found.size == (3, 4)
    torch.testing.assert_close(found.scores, scores.view(1, 1, 3, 2, 4, 2).mean(dim=(3, 5)))
    write_maps(tmp_path / "b.npz", maps, (60, 80), compress=False, form=StoredForm(long_side=9))
    assert torch.equal(read_maps(tmp_path / "b.npz").maps.scores, scores)
    without = Maps(scores, torch.tensor([[2]]), torch.tensor([[False]]), False)
    write_maps(tmp_path / "c.npz", without, (60, 80), compress=False, form=StoredForm(4, 8))
    assert not read_maps(tmp_path / "c.npz").maps.counted.any() and read_maps(tmp_path / "c.npz").maps.size == (3, 4)
