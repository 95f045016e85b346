from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_tool import RunTool

from afa.commands.score import main
from afa.data.map_files import label_path, maps_path, write_maps
from afa.data.map_folders import MapFolder
from afa.data.palette import palette_image
from afa.data.true_masks import TrueMasks
from afa.errors import UserError
from afa.evaluation.metrics import ConfusionMatrix
from afa.maps import Maps

CLASSES = ("cat", "dog", "cow")
NAMES = {"a": (10, 12), "b": (8, 9), "sub/c": (7, 7)}


def random_mask(name: str, seed: int, values: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng((seed, len(name), NAMES[name][0])).choice(values, NAMES[name]).astype(np.uint8)


def truth_of(name: str) -> np.ndarray:
    mask = random_mask(name, 0, (0, 0, 1, 2, 255) if name != "b" else (0, 2, 255))
    mask[0, :3] = (0, 1, 2) if name != "b" else (0, 2, 2)
    return mask


def prediction_of(name: str) -> np.ndarray:
    return random_mask(name, 1, (0, 1, 2, 3, 255))


def save_masks(root: Path, masks: Callable[[str], np.ndarray], colours: bool = True) -> Path:
    for name in NAMES:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (palette_image(masks(name)) if colours else Image.fromarray(masks(name))).save(path)
    return root


def cams_of(name: str, classes: list[int]) -> np.ndarray:
    return np.random.default_rng(len(name)).random((len(classes), *NAMES[name])).round(2).astype(np.float32)


def present(name: str) -> list[int]:
    return [int(value) for value in np.unique(truth_of(name)) if value not in (0, 255)]


def save_dictionaries(root: Path, *, background: bool = False) -> Path:
    for name in NAMES:
        classes = present(name)
        keys = [0, *classes] if background else [class_id - 1 for class_id in classes]
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, dict(zip(keys, cams_of(name, keys), strict=True)))  # type: ignore[arg-type]
    return root


@pytest.fixture
def truth(tmp_path: Path) -> list[str]:
    """Arguments that name the true masks."""
    save_masks(tmp_path / "truth", truth_of)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return ["--truth", str(tmp_path / "truth"), "--class-names", str(tmp_path / "classes.txt")]


def expected(label: Callable[[str], np.ndarray], **options: Any) -> dict[str, Any]:
    matrix = ConfusionMatrix(4)
    for name in NAMES:
        matrix.update(torch.from_numpy(truth_of(name)), torch.from_numpy(label(name)))
    return matrix.scores(["background", *CLASSES], **options)


def scored(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    output = tmp_path / "scores" / "scores.json"
    assert main([*map(str, arguments), "--output", str(output)]) == 0
    return json.loads(output.read_text())


def assert_confusion(rows: list[list[int]], label: Callable[[str], np.ndarray]) -> None:
    """As counted pixel by pixel; the last column is of open pixels."""
    counts = np.zeros((4, 5), int)
    for name in NAMES:
        for true, said in zip(truth_of(name).flat, label(name).flat, strict=True):
            if true != 255:
                counts[true, 4 if said == 255 else said] += 1
    assert rows == counts.tolist()


def assert_image_iou(found: dict[str, Any], label: Callable[[str], np.ndarray]) -> None:
    """As sets of pixels of each image have it, of the classes that truth or prediction shows."""
    assert list(found) == list(NAMES)
    for name in NAMES:
        truth, said = truth_of(name), label(name)
        values = {}
        for class_id, class_name in enumerate(("background", *CLASSES)):
            true, predicted = truth == class_id, (said == class_id) & (truth != 255)
            if (true | predicted).any():
                values[class_name] = (true & predicted).sum() / (true | predicted).sum()
        assert found[name]["iou"] == pytest.approx(values, abs=1e-6)
        assert found[name]["miou"] == pytest.approx(np.mean(list(values.values())), abs=1e-6)


@pytest.mark.parametrize("colours", [True, False])
def test_masks_made_elsewhere(tmp_path: Path, truth: list[str], colours: bool, capsys: Any) -> None:
    folder = save_masks(tmp_path / "found", prediction_of, colours)
    content = scored(tmp_path, "masks", folder, *truth, "--csv", tmp_path / "iou.csv")
    assert content["rows"] == {"found": expected(prediction_of)}
    assert (content["kind"], content["images"], content["absent_class"]) == ("masks", 3, "skip")
    printed = capsys.readouterr()
    assert f"{100 * content['rows']['found']['miou']:.1f}" in printed.out and "left open" in printed.out
    files = (tmp_path / "scores/scores.json", tmp_path / "iou.csv", tmp_path / "iou_confusion.csv")
    assert printed.err.splitlines()[-1] == f"written to {', '.join(map(str, files))}"
    rows = list(csv.DictReader((tmp_path / "iou.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == ["*", *NAMES]
    assert_confusion(content["confusion"]["found"], prediction_of)
    matrix = list(csv.reader((tmp_path / "iou_confusion.csv").read_text().splitlines()))
    assert matrix[0] == ["output", "true class", "background", *CLASSES, "left open"]
    assert [list(map(int, line[2:])) for line in matrix[1:]] == content["confusion"]["found"]
    assert_image_iou(content["image_iou"]["found"], prediction_of)
    for row in rows[1:]:
        values = content["image_iou"]["found"][row["image"]]
        assert float(row["miou"]) == values["miou"]
        assert {name: float(row[name]) for name in ("background", *CLASSES) if row[name]} == values["iou"]
    assert float(rows[0]["dog"]) == pytest.approx(content["rows"]["found"]["iou"]["dog"], abs=1e-6)


def test_a_class_that_occurs_nowhere_may_count_as_0(tmp_path: Path, truth: list[str]) -> None:
    folder = save_masks(tmp_path / "found", truth_of)
    assert scored(tmp_path, "masks", folder, *truth)["rows"]["found"]["miou"] == 1
    content = scored(tmp_path, "masks", folder, *truth, "--absent-class", "zero")
    assert content["rows"]["found"]["miou"] == 0.75 and content["rows"]["found"]["iou"]["cow"] is None


def test_the_masks_of_a_configuration(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for name, size in NAMES.items():
        path = root / "images" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    save_masks(root / "masks", lambda name: np.where(truth_of(name) == 255, np.uint8(77), truth_of(name)))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "all.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (tmp_path / "some.txt").write_text("a\n")
    config = tmp_path / "own.yaml"
    config.write_text("dataset:\n  type: folder\n  val_split: none\n")
    settings = [f"dataset.root={root}", "dataset.ignore_index=77"]
    folder = save_masks(tmp_path / "found", prediction_of)
    content = scored(tmp_path, "masks", folder, "--config", config, "--split", "all", *settings)
    assert content["rows"]["found"] == expected(prediction_of)
    capsys.readouterr()
    without = scored(tmp_path, "masks", folder, "dataset.type=folder", *settings, "--split", "all")
    assert without == content
    content = scored(tmp_path, "masks", folder, *settings, "--config", config, "--list", tmp_path / "some.txt")
    assert content["images"] == 1 and "2 further files" in capsys.readouterr().err


@pytest.mark.parametrize("own", [True, False])
def test_maps_over_thresholds(tmp_path: Path, truth: list[str], own: bool, capsys: Any) -> None:
    folder = tmp_path / "cam"
    if own:
        (folder / "maps").mkdir(parents=True)
        (folder / "label.json").write_text("{}")
        for name, size in NAMES.items():
            ids = torch.tensor([present(name)])
            scores = torch.from_numpy(cams_of(name, present(name)))[None]
            maps = Maps(scores, ids, torch.ones_like(ids, dtype=torch.bool), False)
            write_maps(maps_path(folder, "cam", name), maps, size, compress=False)
    else:
        save_dictionaries(folder)
    plot, table = tmp_path / "plot.svg", tmp_path / "iou.csv"
    content = scored(tmp_path, "maps", folder, *truth, "--plot", plot, "--csv", table)

    def label(threshold: float) -> Callable[[str], np.ndarray]:
        def of(name: str) -> np.ndarray:
            cams = cams_of(name, present(name))
            ids = np.array(present(name), np.uint8)[cams.argmax(0)]
            return np.where(cams.max(0) > np.float32(threshold), ids, np.uint8(0))

        return of

    row = content["rows"]["cam"]
    assert len(row["thresholds"]) == 101
    for index in (0, 30, 57, 100):
        scores = expected(label(row["thresholds"][index]))
        assert [row[key][index] for key in ("miou", "fp_rate", "fn_rate")] == [
            scores[key] for key in ("miou", "fp_rate", "fn_rate")
        ]
    best = row["best"]["threshold"]
    assert row["best"] == {"threshold": best, **expected(label(best))} and row["best"]["miou"] == max(row["miou"])
    assert_confusion(content["confusion"]["cam"], label(best))
    assert_image_iou(content["image_iou"]["cam"], label(best))
    captured = capsys.readouterr()
    assert "note:" not in captured.err
    printed = captured.out
    (line,) = [line for line in printed.splitlines() if line.endswith("best")]
    assert line.split()[:2] == [f"{best:g}", f"{100 * row['best']['miou']:.1f}"]
    assert len(printed.splitlines()) < 45
    drawing = ElementTree.fromstring(plot.read_text())
    assert len(drawing.findall(".//{*}polyline")) == 3
    assert f"best: mIoU {100 * row['best']['miou']:.1f} at {best:g}" in plot.read_text()
    (total,) = [line for line in csv.DictReader(table.read_text().splitlines()) if line["image"] == "*"]
    assert float(total["miou"]) == pytest.approx(row["best"]["miou"], abs=1e-6)


@pytest.mark.parametrize("background", [True, False])
def test_all_thresholds_come_of_one_look_at_each_file(
    tmp_path: Path, truth: list[str], background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_dictionaries(tmp_path / "cam", background=background)
    read: list[tuple[type, str]] = []
    for kind in (MapFolder, TrueMasks):

        def counting(self: Any, name: str, *rest: Any, original: Any = kind.read, **named: Any) -> Any:
            read.append((type(self), name))
            return original(self, name, *rest, **named)

        monkeypatch.setattr(kind, "read", counting)
    scored(tmp_path, "maps", folder, *truth)
    assert sorted(read, key=str) == sorted(((kind, name) for kind in (MapFolder, TrueMasks) for name in NAMES), key=str)


def test_small_maps_are_resized_to_the_truth(tmp_path: Path, truth: list[str]) -> None:
    folder = tmp_path / "cam"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(3).random((len(present(name)), 3, 2), np.float32)
        keys = torch.tensor(present(name)) - 1
        np.save(folder / f"{name}.npy", {"keys": keys, "cam": torch.from_numpy(small)})  # type: ignore[arg-type]
    row = scored(tmp_path, "maps", folder, *truth, "--thresholds", 0.4, 0.4, 1)["rows"]["cam"]

    def label(name: str) -> np.ndarray:
        small = np.random.default_rng(3).random((len(present(name)), 3, 2), np.float32)
        large = torch.nn.functional.interpolate(torch.from_numpy(small)[None], NAMES[name], mode="bilinear")[0].numpy()
        return np.where(large.max(0) > 0.4, np.array(present(name), np.uint8)[large.argmax(0)], np.uint8(0))

    assert row["best"] == {"threshold": 0.4, **expected(label)}


def test_maps_with_a_background_need_no_threshold(tmp_path: Path, truth: list[str]) -> None:
    folder = save_dictionaries(tmp_path / "crf", background=True)

    def label(name: str) -> np.ndarray:
        keys = [0, *present(name)]
        return np.array(keys, np.uint8)[cams_of(name, keys).argmax(0)]

    assert scored(tmp_path, "maps", folder, *truth)["rows"] == {"crf": expected(label)}
    for option in (["--thresholds", "0", "1", "0.1"], ["--plot", str(tmp_path / "plot.svg")]):
        with pytest.raises(UserError, match="have a background"):
            main(["maps", str(folder), *truth, *option])
    assert not (tmp_path / "plot.svg").exists()


def test_outputs_of_a_label_folder(tmp_path: Path, truth: list[str], capsys: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "label.json").write_text("{}")
    for output, masks in (("cam", truth_of), ("segmentation", prediction_of)):
        for name in NAMES:
            path = label_path(folder, output, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            palette_image(masks(name)).save(path)
    rows = scored(tmp_path, "masks", folder, *truth)["rows"]
    assert rows == {"cam": expected(truth_of), "segmentation": expected(prediction_of)}
    assert list(scored(tmp_path, "masks", folder, *truth, "--outputs", "segmentation")["rows"]) == ["segmentation"]
    with pytest.raises(UserError, match=r"--outputs crf: .* masks of cam, segmentation"):
        main(["masks", str(folder), *truth, "--outputs", "crf"])
    with pytest.raises(UserError, match="holds no maps, only masks: score masks"):
        main(["maps", str(folder), *truth])


def missing(tmp_path: Path) -> list[str]:
    folder = save_masks(tmp_path / "found", prediction_of)
    (folder / "a.png").unlink()
    (folder / "sub" / "c.png").unlink()
    return ["masks", str(folder)]


def other_size(tmp_path: Path) -> list[str]:
    folder = save_masks(tmp_path / "found", prediction_of)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "b.png")
    return ["masks", str(folder)]


def no_class(tmp_path: Path) -> list[str]:
    return ["masks", str(save_masks(tmp_path / "found", lambda name: np.full(NAMES[name], 4, np.uint8)))]


def colours(tmp_path: Path) -> list[str]:
    folder = save_masks(tmp_path / "found", prediction_of)
    Image.fromarray(np.zeros((*NAMES["b"], 3), np.uint8)).save(folder / "b.png")
    return ["masks", str(folder)]


def no_labelled_pixel(tmp_path: Path) -> list[str]:
    save_masks(tmp_path / "truth", lambda name: np.full(NAMES[name], 255, np.uint8))
    return ["masks", str(save_masks(tmp_path / "found", prediction_of))]


def keys_of_no_convention(tmp_path: Path) -> list[str]:
    folder = save_dictionaries(tmp_path / "found")
    np.save(folder / "b.npy", {5: np.zeros(NAMES["b"], np.float32)})  # type: ignore[arg-type]
    return ["maps", str(folder)]


def unlabelled(tmp_path: Path) -> list[str]:
    (tmp_path / "labels.json").write_text('{"a": ["cat"]}')
    return ["maps", str(save_dictionaries(tmp_path / "found")), "--labels", str(tmp_path / "labels.json")]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (missing, r"2 of the 3 labels are missing, the first is .*a\.png"),
        (other_size, r"b\.png has 9 x 9 pixels, the true one 9 x 8"),
        (no_class, r"a\.png: the value 4 is no class: there are 3"),
        (colours, r"b\.png has 3 channels"),
        (no_labelled_pixel, "nothing to score"),
        (keys_of_no_convention, r"b\.npy holds the keys 5; .* ask for 1 .* or 0 2"),
        (unlabelled, r"labels\.json has no labels for 2 of the 3 images, the first is 'b'"),
        (lambda tmp_path: ["masks", str(tmp_path / "nowhere")], "nowhere does not exist"),
        (lambda tmp_path: ["maps", str(tmp_path / "truth")], "holds no maps, only masks"),
        (
            lambda tmp_path: ["masks", str(tmp_path / "truth"), "--thresholds", "0", "1", "1"],
            "--thresholds is for maps",
        ),
        (lambda tmp_path: ["masks", str(tmp_path / "truth"), "--csv", "iou.txt"], r"iou.txt: give a \.csv file"),
        (lambda tmp_path: ["masks", str(tmp_path / "truth"), "a.b=1"], "'a.b=1': settings are of a data set"),
        (lambda tmp_path: ["masks", str(tmp_path / "truth"), "--list", "x.txt"], r"list x\.txt is missing"),
        (lambda tmp_path: ["masks", str(tmp_path / "truth"), "--split", "val"], "--split belongs to a data set"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, truth: list[str], make: Any, said: str) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=said):
        main([*make(tmp_path), *truth, *([] if said.endswith("file") else ["--output", str(tmp_path / "scores.json")])])
    assert not {path.name for path in set(tmp_path.iterdir()) - before} - {"found", "labels.json"}


@pytest.mark.parametrize("name", ["iou.csv", "iou_confusion.csv"])
def test_every_file_can_be_written_or_nothing_is_scored(
    tmp_path: Path, truth: list[str], name: str, capsys: Any
) -> None:
    (tmp_path / name).mkdir()
    folder = save_masks(tmp_path / "found", prediction_of)
    with pytest.raises(UserError, match=f"{name} cannot be written"):
        main(["masks", str(folder), *truth, "--csv", str(tmp_path / "iou.csv")])
    assert not capsys.readouterr().out


def test_a_label_folder_of_other_classes_is_not_scored(tmp_path: Path, truth: list[str]) -> None:
    folder = save_masks(tmp_path / "made/labels/cam", prediction_of).parents[1]
    (folder / "label.json").write_text(json.dumps({"class_names": ["another", "class"]}))
    with pytest.raises(UserError, match="is of the classes another class, the data set's are"):
        main(["masks", str(folder), *truth])


def test_the_truth_must_be_named(tmp_path: Path, truth: list[str]) -> None:
    with pytest.raises(UserError, match=r"give dataset\.root=FOLDER .*--config FILE, or --truth FOLDER"):
        main(["masks", str(tmp_path)])
    with pytest.raises(UserError, match="--truth and --config both name"):
        main(["masks", str(tmp_path), "--config", "a.yaml", *truth])
    with pytest.raises(UserError, match="--truth needs --class-names"):
        main(["masks", str(tmp_path), *truth[:2]])
    (tmp_path / "truth" / "a.png").unlink()
    (tmp_path / "names.txt").write_text("b\na\n")
    with pytest.raises(UserError, match=r"1 of the 2 true masks are missing, the first is .*a\.png"):
        main(["masks", str(tmp_path), *truth, "--list", str(tmp_path / "names.txt")])


def test_a_truth_without_classes_is_said(tmp_path: Path, truth: list[str], capsys: Any) -> None:
    save_masks(tmp_path / "truth", lambda name: np.zeros(NAMES[name], np.uint8))
    scored(tmp_path, "masks", save_masks(tmp_path / "found", prediction_of), *truth)
    assert "shows no class: only the background is scored" in capsys.readouterr().err


def test_the_command_ends_with_a_code(tmp_path: Path, truth: list[str], run_tool: RunTool) -> None:
    folder = save_masks(tmp_path / "found", prediction_of)
    assert run_tool("score.py", "masks", folder, *truth).returncode == 0
    (folder / "b.png").write_bytes(b"")
    done = run_tool("score.py", "masks", folder, *truth)
    assert done.returncode == 2 and done.stderr.startswith("error: the mask") and done.stderr.count("\n") == 1
