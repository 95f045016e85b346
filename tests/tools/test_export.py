from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import SMALL_MODEL
from PIL import Image
from psa_files import SMALL_RESNET38
from run_tool import RunTool
from scored import small_config, small_method

from afa.config import config_to_dict
from afa.data.classes import VOC_CLASS_NAMES
from afa.data.files import read_json
from afa.data.map_files import label_path, maps_path, write_maps
from afa.data.map_folders import MapFolder
from afa.data.palette import palette_image, voc_palette
from afa.maps import Maps
from afa.methods import build_method, config_from_dict
from afa.methods.base import SingleProcess
from afa.prediction.model import load
from afa.weights import pack_metadata, save_network
from afa.weights.facts import FACTS_FILE, WEIGHTS_FILE, pack_facts
from afa.weights.reading import file_checksum

NAMES = {"2008_000001": (20, 31), "2008_000002": (33, 24)}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC's layout with two images; the list 'test' has no masks."""
    root = tmp_path / "VOC 2012"
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, size in NAMES.items():
        pixels = np.random.default_rng(size[0]).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root


@pytest.fixture
def export(run_tool: RunTool) -> RunTool:
    return partial(run_tool, "export.py")


def mask_of(name: str, highest: int = 20) -> np.ndarray:
    return np.random.default_rng(len(name) + NAMES[name][1]).integers(0, highest + 1, NAMES[name]).astype(np.uint8)


def masks(folder: Path, highest: int = 20, **special: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for name in NAMES:
        palette_image(special.get(name.replace("2008_", "_"), mask_of(name, highest))).save(folder / f"{name}.png")
    return folder


def checkpoint(folder: Path, method: str, class_names: tuple[str, ...], root: Path, **model: object) -> Path:
    config = config_from_dict(
        {
            "method": method,
            "model": model,
            "dataset": {"root": str(root), "pixel_labels": str(root)},
            "test": {"long_side": 48, "mirror": False},
        }
    )
    built = build_method(config, class_names, SingleProcess())
    folder.mkdir(parents=True)
    save_network(built.network, folder / WEIGHTS_FILE, pack_metadata(config, class_names, 3))
    facts = {"step": 3, "config": config_to_dict(config), "class_names": list(class_names)}
    (folder / FACTS_FILE).write_text(pack_facts(facts, {WEIGHTS_FILE: file_checksum(folder / WEIGHTS_FILE)}))
    return folder


def archived(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with tarfile.open(path) as archive:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None and entry.mode == 0o644 and not entry.name.startswith("/")
            with Image.open(io.BytesIO(file.read())) as image:
                assert image.mode == "P" and image.getpalette() == voc_palette().flatten().tolist()
                found[entry.name] = np.array(image)
    return found


def test_masks_for_vocs_server(voc: Path, tmp_path: Path, export: RunTool) -> None:
    folder, output = masks(tmp_path / "masks"), tmp_path / "new/results.tar.gz"
    done = export("voc", folder, f"dataset.root={voc}", "--output", output, "--competition", "comp5")
    assert done.returncode == 0, done.stderr
    assert "2 masks of 'test'" in done.stdout
    found = archived(output)
    assert list(found) == [f"results/VOC2012/Segmentation/comp5_test_cls/{name}.png" for name in NAMES]
    assert all(np.array_equal(mask, mask_of(name)) for mask, name in zip(found.values(), NAMES, strict=True))
    before = output.read_bytes()
    again = export("voc", folder, f"dataset.root={voc}", "--output", output, "--competition", "comp5")
    assert again.returncode == 0 and output.read_bytes() == before


def test_a_networks_masks_for_vocs_server(voc: Path, tmp_path: Path, export: RunTool) -> None:
    run = checkpoint(tmp_path / "run/checkpoints/last", "afa", VOC_CLASS_NAMES, voc, **SMALL_MODEL)
    output = tmp_path / "results.tgz"
    done = export("voc", run.parents[1], "--output", output, "--device", "cpu", "test.scales=[1.0]")
    assert done.returncode == 0, done.stderr
    found = archived(output)
    model = load(run, device="cpu", overrides=["test.scales=[1.0]"])
    for name, size in NAMES.items():
        mask = found[f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png"]
        expected = model.predict(voc / f"JPEGImages/{name}.jpg").mask
        assert mask.shape == size and (mask != expected).mean() < 0.01


@pytest.mark.parametrize(
    ("highest", "special", "more", "said"),
    [
        (20, {"_000002": np.full((33, 24), 255, np.uint8)}, [], "leaves pixels open"),
        (20, {"_000002": np.full((33, 24), 21, np.uint8)}, [], "holds 21: VOC's classes are 0 to 20"),
        (20, {"_000002": np.zeros((33, 23), np.uint8)}, [], "has 23 x 33 pixels, its image 24 x 33"),
        (20, {}, ["--split", "other"], "there is no split 'other'"),
        (20, {}, ["--crf"], "--crf refines"),
        (20, {}, ["--output", "{tmp}/x.zip"], "ends in .tgz or .tar.gz"),
        (20, {}, ["dataset.class_names={tmp}/two.txt"], "has 2 classes"),
    ],
)
def test_what_vocs_server_would_refuse_is_one_line(
    voc: Path, tmp_path: Path, export: RunTool, highest: int, special: dict, more: list[str], said: str
) -> None:
    folder = masks(tmp_path / "masks", highest, **special)
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    output = tmp_path / "out/results.tgz"
    more = [text.format(tmp=tmp_path) for text in more]
    done = export("voc", folder, f"dataset.root={voc}", "--output", output, *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ") and said in done.stderr
    assert not output.exists() and not list(tmp_path.glob("out/.*"))


CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path]:
    """A data set of two images, one in a sub-folder, and a label folder of it: CAMs with labels, a label with open
    pixels, and maps with a background."""
    root, folder = tmp_path / "data", tmp_path / "labels"
    (root / "images/sub").mkdir(parents=True)
    names = ("a", "sub/b")
    for name in names:
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(root / f"images/{name}.png")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "train.txt").write_text("a\nsub/b\n")
    folder.mkdir()
    (folder / "label.json").write_text('{"method": "x", "split": "train"}')
    for number, name in enumerate(names):
        ids = torch.tensor([[1 + number, 3]])
        scores = torch.rand(1, 2, 6, 8, generator=torch.Generator().manual_seed(number))
        counted = torch.ones_like(ids, dtype=torch.bool)
        write_maps(maps_path(folder, "cam", name), Maps(scores, ids, counted, False), (12, 16), compress=False)
        whole = Maps(
            torch.cat([scores[:, :1], scores], 1), torch.cat([ids[:, :1] * 0, ids], 1), counted.new_ones(1, 3), True
        )
        write_maps(maps_path(folder, "crf", name), whole, (12, 16), compress=False)
        for output, values in (("cam", (0, 1, 3)), ("refined_label", (0, 2, 255))):
            path = label_path(folder, output, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            palette_image(np.random.default_rng(number).choice(values, (12, 16)).astype(np.uint8)).save(path)
    return root, folder


def settings(root: Path) -> tuple[str, str]:
    return "dataset.type=folder", f"dataset.root={root}"


@pytest.mark.parametrize(("kind", "image", "mask"), [
    ("mmseg", "img_dir/train", "ann_dir/train"), ("deeplab", "JPEGImages", "SegmentationClassAug"),
])  # fmt: skip
def test_pseudo_labels_for_others(
    tmp_path: Path, labelled: tuple[Path, Path], export: RunTool, kind: str, image: str, mask: str
) -> None:
    root, folder = labelled
    for output, more in (("linked", ()), ("copied", ("--copy",))):
        done = export(kind, folder, *settings(root), "--outputs", "refined_label", "--output", tmp_path / output, *more)
        assert done.returncode == 0, done.stderr
        assert "2 images of 'train', 4 files now" in done.stdout
        for name in ("a", "sub/b"):
            picture = tmp_path / output / image / f"{name}.png"
            assert picture.is_symlink() is (output == "linked")
            assert picture.read_bytes() == (root / f"images/{name}.png").read_bytes()
            with Image.open(tmp_path / output / mask / f"{name}.png") as opened:
                assert opened.mode == "L"
                assert np.array_equal(np.array(opened), MapFolder(folder).read_label(name, "refined_label"))
    out = tmp_path / "linked"
    if kind == "mmseg":
        assert (out / "splits/train.txt").read_text() == "a\nsub/b\n"
        space: dict = {}
        exec((out / "dataset.py").read_text(), {"dict": dict}, space)
        assert space["dataset"]["metainfo"]["classes"] == ("background", *CLASSES)
        assert space["dataset"]["img_suffix"] == ".png" and len(space["dataset"]["metainfo"]["palette"]) == 4
    else:
        lines = [f"/JPEGImages/{name}.png /SegmentationClassAug/{name}.png" for name in ("a", "sub/b")]
        assert (out / "list/train.txt").read_text().splitlines() == lines
    # Started again it does what is missing; another export is not written over.
    (out / mask / "a.png").unlink()
    again = export(kind, folder, *settings(root), "--outputs", "refined_label", "--output", out)
    assert "1 files now" in again.stdout
    other = export(kind, folder, *settings(root), "--outputs", "cam", "--output", out)
    assert other.returncode == 2 and "holds another export" in other.stderr
    unnamed = export(kind, folder, *settings(root), "--output", tmp_path / "third")
    assert unnamed.returncode == 2 and "name the one output" in unnamed.stderr and not (tmp_path / "third").exists()


def test_an_export_is_of_one_data_set(tmp_path: Path, labelled: tuple[Path, Path], export: RunTool) -> None:
    """Started again with another data set, links to the images of the first would stay without a word."""
    root, folder = labelled
    other = tmp_path / "moved"
    shutil.copytree(root, other)
    call = ("mmseg", folder, "--outputs", "refined_label", "--output", tmp_path / "out")
    assert export(*call, *settings(root)).returncode == 0
    again = export(*call, *settings(other))
    assert again.returncode == 2 and f"another export (dataset: {root} -> {other})" in again.stderr


@pytest.mark.parametrize("kind", ["mmseg", "deeplab", "psa", "irn"])
def test_what_does_not_fit_is_not_exported(
    tmp_path: Path, labelled: tuple[Path, Path], export: RunTool, kind: str
) -> None:
    root, folder = labelled
    out = tmp_path / "out"
    call = (kind, folder, *settings(root), "--outputs", "cam", "--output")
    inside = export(*call, folder / "labels/new")
    assert inside.returncode == 2 and "a folder outside of it" in inside.stderr

    image = root / "images/a.png"
    content = image.read_bytes()
    image.unlink()
    missing = export(*call, out)
    assert missing.returncode == 2 and "1 of the 2 images are missing" in missing.stderr
    image.write_bytes(content)

    facts = read_json(folder / "label.json")
    (folder / "label.json").write_text(json.dumps({**facts, "class_names": [*CLASSES[1:], CLASSES[0]]}))
    turned = export(*call, out)
    assert turned.returncode == 2 and "is of the classes" in turned.stderr
    assert not out.exists() and not (folder / "labels/new").exists()


def test_maps_of_another_image_are_not_exported(tmp_path: Path, labelled: tuple[Path, Path], export: RunTool) -> None:
    root, folder = labelled
    shutil.rmtree(folder / "labels")
    Image.new("RGB", (30, 20)).save(root / "images/a.png")
    done = export("psa", folder, *settings(root), "--outputs", "cam", "--output", tmp_path / "out")
    assert done.returncode == 2 and "are of an image of 16 x 12 pixels, 'a' has 30 x 20" in done.stderr


def test_maps_and_labels_for_psa_and_irn(tmp_path: Path, labelled: tuple[Path, Path], export: RunTool) -> None:
    root, folder = labelled
    done = export("psa", folder, *settings(root), "--output", tmp_path / "psa")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "psa").iterdir()) == [
        "cam_labels", "cam_maps", "crf", "export.json", "refined_label",
    ]  # fmt: skip
    whole = MapFolder(folder)
    for number, name in enumerate(("a", "sub/b")):
        found = np.load(tmp_path / f"psa/cam_maps/{name}.npy", allow_pickle=True).item()
        expected = whole.read(name, output="cam").resized((12, 16)).scores[0].numpy()
        assert list(found) == [number, 2] and found[2].dtype == np.float32
        assert np.array_equal(np.stack(list(found.values())), expected)
        found = np.load(tmp_path / f"psa/crf/{name}.npy", allow_pickle=True).item()
        assert list(found) == [0, 1 + number, 3]
        # What we read of it is what was there.
        labels = np.zeros(3, np.float32)
        labels[[number, 2]] = 1
        read = MapFolder(tmp_path / "psa/cam_maps").read(name, labels)
        assert read.class_ids.tolist() == [[1 + number, 3]] and np.array_equal(read.scores[0].numpy(), expected)
    refused = export("irn", folder, *settings(root), "--output", tmp_path / "irn")
    assert refused.returncode == 2 and "IRN's have none" in refused.stderr
    done = export("irn", folder, *settings(root), "--outputs", "cam", "refined_label", "--output", tmp_path / "irn2")
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "irn2/cam_maps/sub/b.npy", allow_pickle=True).item()
    assert (
        found["keys"].tolist() == [1, 2] and found["cam"].shape == (2, 3, 4) and found["high_res"].shape == (2, 12, 16)
    )
    with Image.open(tmp_path / "irn2/refined_label/sub/b.png") as opened:
        assert opened.mode == "L" and 255 in np.array(opened)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mmseg", "{labels}", "--output", "{tmp}/o"], "give dataset.root=FOLDER"),
        (
            ["psa", "{labels}", "{type}", "{root}", "--outputs", "none", "--output", "{tmp}/o"],
            "labels holds cam, refined_label, crf",
        ),
        (["psa", "{tmp}/nothing", "{type}", "{root}", "--output", "{tmp}/o"], "does not exist"),
        (["deeplab", "{labels}", "{type}", "{root}", "--outputs", "cam", "--output", "{labels}"], "is not empty"),
        (
            ["deeplab", "{labels}", "{type}", "{root}", "--outputs", "cam", "--output", "{tmp}/data/train.txt/x"],
            "cannot be",
        ),
        (["onnx", "{tmp}/run", "--output", "model.pth"], "ends in .onnx"),
        (["onnx", "{tmp}/run", "--output", "{tmp}/m.onnx", "--size", "0", "64"], "--size 0: give height and width"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, labelled: tuple[Path, Path], export: RunTool, arguments: list[str], said: str
) -> None:
    root, folder = labelled
    type_of, root_of = settings(root)
    done = export(*(text.format(tmp=tmp_path, labels=folder, type=type_of, root=root_of) for text in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr
    assert not (tmp_path / "o").exists() and not (tmp_path / "m.onnx").exists()


TIMM = {"encoder": "timm/lcnet_050", "output_stride": 16}


@pytest.mark.parametrize(("kind", "encoder"), [("afa", {}), ("segment", SMALL_RESNET38), ("segment", TIMM)])
def test_a_network_as_onnx(tmp_path: Path, export: RunTool, kind: str, encoder: dict[str, object]) -> None:
    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    if kind == "afa":
        config = small_config(tmp_path / "shapes")
        folder = tmp_path / "run"
        folder.mkdir()
        save_network(small_method(config).network, folder / WEIGHTS_FILE, pack_metadata(config, CLASSES, 3))
        run = folder / WEIGHTS_FILE
    else:
        run = checkpoint(
            tmp_path / "run", "segment", CLASSES, tmp_path, **encoder, decoder="deeplab_largefov", decoder_width=8
        )
    output = tmp_path / "exported/my model.onnx"
    done = export("onnx", run, "--output", output)
    assert done.returncode == 0, done.stderr
    facts = read_json(output.with_suffix(".json"))
    assert facts["output"]["classes"] == ["background", *CLASSES] and facts["input"]["channels"] == "RGB"
    session = runtime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["input"]) == facts["input"] and metadata["method"] == kind
    # By the description alone: what the program itself says of an image at its size.
    model = load(run, device="cpu", overrides=["test.long_side=0", "test.scales=[1.0]", "test.mirror=false"])
    image = np.random.default_rng(0).integers(0, 255, (75, 90, 3), np.uint8)
    values = (image.astype(np.float32) - facts["input"]["mean"]) / facts["input"]["std"]
    (logits,) = session.run(["logits"], {"image": values.transpose(2, 0, 1)[None].astype(np.float32)})
    resized = torch.nn.functional.interpolate(torch.from_numpy(logits), (75, 90), mode="bilinear")
    assert (resized[0].argmax(0).numpy() != model.predict(image).mask).mean() < 0.005


def test_a_method_without_a_segmentation_is_refused(
    tmp_path: Path, export: RunTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    run = checkpoint(tmp_path / "run", "psa_cam", CLASSES, tmp_path, **SMALL_RESNET38)
    done = export("onnx", run, "--output", tmp_path / "model.onnx")
    assert done.returncode == 2 and "the method 'psa_cam' has no segmentation network" in done.stderr
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = export("onnx", run, "--output", tmp_path / "model.onnx")
    assert done.returncode == 2 and "an ONNX export needs onnxruntime: pip install onnx onnxruntime" in done.stderr
    assert not (tmp_path / "model.onnx").exists()
