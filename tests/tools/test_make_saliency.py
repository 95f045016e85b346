"""make_saliency: maps for people's images and for a split, resumed, by a network too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_sources import make_folder_source, tree_bytes, write_image
from PIL import Image
from run_tool import RunTool

from afa.commands.make_saliency import main
from afa.config import DatasetConfig
from afa.data.check import check_data
from afa.data.layout import find_layout
from afa.data.saliency import read_saliency
from afa.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "deep/b")):
        write_image(tmp_path / "photos" / f"{name}.jpg", (30 + number, 40), seed=number)
    return tmp_path / "photos"


def make(photos: Path, output: Path, *more: str) -> int | None:
    return main([str(photos), "--output", str(output), "--workers", "1", *more])


def test_maps_of_a_folder_and_what_is_missing_later(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert make(photos, out) == 0
    assert f"2 images: 2 maps made, 0 there already, 0 failed; in {out}" in capsys.readouterr().out
    whole = tree_bytes(out)
    assert set(whole) == {"saliency.json", "a.png", "deep/b.png"}
    assert read_saliency(out / "a.png").shape == (30, 40) and read_saliency(out / "deep/b.png").shape == (31, 40)
    (out / "a.png").unlink()
    (out / "deep/b.png").write_bytes(b"")  # as a loss of power leaves it
    assert make(photos, out) == 0 and tree_bytes(out) == whole
    time = (out / "a.png").stat().st_mtime_ns
    assert make(photos, out) == 0 and (out / "a.png").stat().st_mtime_ns == time
    assert "0 maps made, 2 there already" in capsys.readouterr().out


def test_maps_of_a_split(tmp_path: Path, run_tool: RunTool) -> None:
    root, out = make_folder_source(tmp_path / "mine"), tmp_path / "saliency"
    config = tmp_path / "config.yaml"
    config.write_text(f"dataset: {{type: folder, root: {root}, train_split: train}}\n")
    done = run_tool("make_saliency.py", "--config", config, "--output", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    settings = DatasetConfig(type="folder", root=str(root), train_split="train", saliency=str(out))
    report = check_data(settings)
    assert report.ok and report.saliency is not None
    assert report.saliency.maps == len(find_layout(settings).names("train"))
    done = run_tool("make_saliency.py", "--config", config, "--split", "nothing", "--output", out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_a_damaged_image_fails_alone(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a.jpg").write_bytes(b"")
    assert make(photos, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "1 maps made, 0 there already, 1 failed" in said.out and f"failed: the image {photos / 'a.jpg'}" in said.err
    assert set(tree_bytes(tmp_path / "out")) == {"saliency.json", "deep/b.png"}


def test_maps_of_another_image_are_not_taken_for_this_one_s(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "out")
    write_image(photos / "a.jpg", (30, 40), seed=9)
    with pytest.raises(UserError, match=r"a\.png is there and was not made of .*a\.jpg"):
        make(photos, tmp_path / "out")


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "train", "photos"], "--split belongs to --config"),
        ([], "no image was named"),
        (["nowhere.jpg"], "nowhere.jpg does not exist"),
        (["photos", "--workers", "-1"], "--workers -1"),
        (["photos", "--network", "nowhere.onnx"], "onnx"),
        (["photos", "--config", "c.yaml"], "with --config the images are those of its data set"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        main([*arguments, "--output", "out"])
    assert not Path("out").exists()


def test_foreign_folders_stay_as_they_are(photos: Path, tmp_path: Path) -> None:
    fill(tmp_path / "full")
    with pytest.raises(UserError, match="not empty"):
        make(photos, tmp_path / "full")
    assert set(tree_bytes(tmp_path / "full")) == {"thesis.txt"}


Network = Callable[[np.ndarray], np.ndarray]


def onnxruntime(monkeypatch: pytest.MonkeyPatch, network: Network, shape: list[object] | None = None) -> None:
    """In place of the library: a network of 8 x 8 pixels."""

    class Session:
        def __init__(self, content: bytes, *_: object, **__: object) -> None:
            if not content.startswith(b"onnx"):
                raise RuntimeError("Protobuf parsing failed.\nreally")

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="image", shape=shape or ["batch", 3, 8, 8])]

        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert given["image"].shape == (1, 3, 8, 8) and given["image"].dtype == np.float32
            return [network(given["image"])]

    module = SimpleNamespace(InferenceSession=Session, SessionOptions=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


def test_a_network_sees_the_whole_image_in_its_proportions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.full((20, 40, 3), (124, 116, 104), np.uint8)  # the mean colour
    image[:, 20:] = 255
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos/wide.png")
    (tmp_path / "net.onnx").write_bytes(b"onnx 1")
    seen: list[np.ndarray] = []

    def network(batch: np.ndarray) -> np.ndarray:
        seen.append(batch[0])
        return (batch[:, :1] > 1).astype(np.float32)  # [1, 1, 8, 8]

    onnxruntime(monkeypatch, network)
    out = tmp_path / "out"
    assert make(tmp_path / "photos", out, "--network", str(tmp_path / "net.onnx")) == 0
    (batch,) = seen
    assert not batch[:, [0, 1, 6, 7]].any() and np.abs(batch[:, 2:6, :4]).max() < 0.02
    assert np.allclose(batch[:, 2, 7], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], atol=1e-5)
    found = read_saliency(out / "wide.png")
    assert found.shape == (20, 40) and not found[:, :16].any() and (found[:, 24:] > 100).all()
    with pytest.raises(UserError, match="were made otherwise"):
        make(tmp_path / "photos", out)
    (tmp_path / "other.onnx").write_bytes(b"onnx 2")
    with pytest.raises(UserError, match="were made otherwise"):
        make(tmp_path / "photos", out, "--network", str(tmp_path / "other.onnx"))


@pytest.mark.parametrize(
    ("content", "shape", "network", "said"),
    [
        (b"zip", None, None, r"onnxruntime cannot read it: Protobuf parsing failed\. really$"),
        (b"onnx", ["batch", 3, "height", "width"], None, r"one that takes \[1, 3, S, S\]"),
        (b"onnx", None, lambda batch: 4 * batch[:, :1], "ends with a sigmoid"),
        (b"onnx", None, lambda batch: batch[:, 0] * np.nan, "ends with a sigmoid"),
        (b"onnx", None, lambda batch: np.zeros((1, 5), np.float32), "one for each pixel"),
    ],
)
def test_networks_of_another_kind_are_one_line(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    shape: list[object] | None,
    network: Network,
    said: str,
) -> None:
    onnxruntime(monkeypatch, network, shape)
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        make(photos, tmp_path / "out", "--network", str(tmp_path / "net.onnx"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.png"))
