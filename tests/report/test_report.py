from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sources import REPOSITORY
from golden import load_golden
from pages import OwnData, data_of, miou, values_of
from PIL import Image
from run_tool import RunTool

from afa.commands import eval as eval_command
from afa.commands.report import main
from afa.data.images import read_mask
from afa.data.map_files import maps_path, write_maps
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import load_config
from afa.ops.neighbour_pairs import pair_offsets
from afa.ops.random_walk import PairAffinity, TokenAffinity
from afa.prediction.model import load
from afa.report.charts import Curve, Mark, chart_svg
from afa.report.encoding import AFFINITY_LEVELS, affinity_entry, maps_entry
from afa.report.scores import share_of_best_class
from afa.report.summary import nearest_recipe

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] not in ("script", "style"):
            self.text += f" {data} "


def report(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    page = tmp_path / "page.html"
    assert main([*map(str, arguments), "--device", "cpu", "--output", str(page)]) == 0
    return data_of(page)


def test_the_scores_of_a_run_are_those_of_its_evaluation(run: Path, run_page: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    eval_command.main([str(run / "checkpoints/last"), "--device", "cpu", "--workers", "0", "--output", str(scores)])
    table = json.loads(scores.read_text())["evaluations"][0]["table"]
    data = data_of(run_page)
    (source,) = data["sources"]
    assert [output["name"] for output in source["outputs"]][-1] == source["main"] == "segmentation"
    for name in ("cam", "propagated_cam", "segmentation"):
        assert source["table"][name] == table[name]
        matrix = np.array(source["confusion"][name], float)
        union = matrix.sum(1) + matrix[:, :-1].sum(0) - matrix.diagonal()
        known = [value for value in table[name]["iou"].values() if value is not None]
        assert (matrix.diagonal()[union > 0] / union[union > 0]) == pytest.approx(known)
    mious = [image["sources"][0]["miou"] for image in data["images"]]
    assert mious == sorted(mious) and len(mious) == 4


def test_labels_and_affinities_of_a_page_are_what_the_method_says(run: Path, run_page: Path, shapes: Path) -> None:
    from afa.data.dataset import EvaluationImages

    data = data_of(run_page)
    model = load(run / "checkpoints/last", device="cpu")
    for found in EvaluationImages(model.config.dataset):
        (image,) = [image for image in data["images"] if image["name"] == found.sample.name]
        with torch.no_grad():
            (said,) = model.method.predict([found.sample], ["segmentation", "affinity"], model.protocol)
        label = model.method.output("segmentation").label(said.outputs["segmentation"], (64, 64)).numpy()
        own = image["sources"][0]
        assert (values_of(own["labels"]["segmentation"]) == label).all()
        assert (values_of(image["truth"]) == found.label.numpy()).all()
        affinity, entry = said.outputs["affinity"], own["affinities"]["affinity"]
        assert isinstance(affinity, TokenAffinity) and tuple(entry["grid"]) == affinity.grid and entry["half"]
        stored = values_of(entry["uri"])
        assert np.abs(np.triu(affinity.values[0].numpy()) * data["affinityLevels"] - stored).max() <= 0.5001


def test_of_recipes_with_equal_settings_the_one_with_the_run_s_places_is_named() -> None:
    for name in ("photos/psa_3_segment", "photos/edam_2_segment"):
        path = REPOSITORY / "configs" / f"{name}.yaml"
        assert nearest_recipe(load_config(path))[1] == f"configs/{name}.yaml, the nearest recipe"


def test_what_a_page_says_of_a_run(run: Path, run_page: Path) -> None:
    page = Reader(run_page)
    text = " ".join(page.text.split())
    assert "method afa" in text and "step 14" in text and "git revision" in text and "version of torch" in text
    assert "4 images were looked at, 4 of them have true masks and are scored" in text
    assert re.search(r"settings differ from configs/\S+\.yaml, the nearest recipe", text)
    assert "train.steps" in text and "train.output" not in text
    assert text.count("losses") == text.count("learning rates") == 1
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {record["step"]: record.get("validation/segmentation_miou", -1) for record in records}
    best = max(scores, key=scores.__getitem__)  # the first of the highest
    assert f"best in validation step_{best:08d} " in text and text.count("best in validation") == 1
    assert not re.search(r"best step|step of the best|best validation score|recorded step|since record", text)
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and "role" in attributes]
    groups = {key.split("/")[0] for record in records for key in record if key not in ("step", "time/seconds")}
    assert len(charts) == len(groups) + 3  # a sweep for each output with maps


def test_a_page_asks_for_nothing(run_page: Path) -> None:
    page = Reader(run_page)
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in metas
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "form", "base")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert re.match("data:|#", attributes.get(name) or "#"), (tag, attributes)
    assert not re.search(r"https?://|@import|url\(", run_page.read_text())


def test_every_control_has_a_name(run_page: Path) -> None:
    text = run_page.read_text()
    page = Reader(run_page)
    for tag, attributes in page.tags:
        if tag in ("select", "input") and "aria-label" not in attributes:
            assert re.search(rf'<label>[^<]+<{tag} id="{attributes["id"]}"', text), attributes
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag == "canvas":
            assert attributes["role"] == "img" and attributes["aria-label"]


def test_outputs_of_which_one_lacks_a_threshold(tmp_path: Path, own: OwnData) -> None:
    """Maps without labels: one whose threshold is known, and one with a background, which needs none."""
    truth = np.zeros((20, 30), np.uint8)
    truth[:, 10:] = 2
    own.add("a", truth, None)
    facts = {
        "outputs": {
            name: {"kind": "maps", "threshold": value, "inputs": []} for name, value in (("cam", 0.4), ("crf", None))
        }
    }
    (own.masks / "label.json").write_text(json.dumps(facts))
    cam = torch.from_numpy(np.where(truth == 2, np.float32(0.8), np.float32(0.3)))[None, None]
    counted = torch.ones(1, 1, dtype=torch.bool)
    write_maps(
        maps_path(own.masks, "cam", "a"), Maps(cam, torch.tensor([[2]]), counted, False), (20, 30), compress=False
    )
    whole = Maps(torch.cat([1 - cam, cam], 1), torch.tensor([[0, 2]]), counted.expand(1, 2), True)
    write_maps(maps_path(own.masks, "crf", "a"), whole, (20, 30), compress=False)
    data = report(tmp_path, *own.arguments)
    assert {output["name"]: output["threshold"] for output in data["sources"][0]["outputs"]} == {
        "cam": 0.4,
        "crf": None,
    }
    for name in ("cam", "crf"):
        assert (values_of(data["images"][0]["sources"][0]["labels"][name]) == truth).all()


def golden_cams(folder: Path, own: OwnData) -> list[tuple[np.ndarray, np.ndarray]]:
    """The golden CAMs of two images as a label folder; with their true masks."""
    cams = load_golden("multi_scale_cam")
    scores = next(
        value for value in cams.values() if value.ndim == 4 and value.is_floating_point() and value.min() >= 0
    )
    (folder / "maps/cam").mkdir(parents=True)
    facts = {"outputs": {"cam": {"kind": "maps", "threshold": 0.4, "inputs": []}}}
    (folder / "label.json").write_text(json.dumps(facts))
    classes = scores.shape[1]
    own.name_classes([f"class {index}" for index in range(1, classes + 1)])
    found = []
    for index, one in enumerate(scores):
        size = (one.shape[-2], one.shape[-1])
        truth = np.random.default_rng(index).integers(0, classes + 1, size).astype(np.uint8)
        truth[:2] = 255
        own.add(f"image{index}", truth, None, size)
        maps = Maps.of_all_classes(one[None], has_background=False)
        write_maps(maps_path(folder, "cam", f"image{index}"), maps, size, compress=False)
        found.append((truth, one.numpy()))
    return found


def test_the_sweep_of_the_golden_cams_is_an_independent_computation_s(tmp_path: Path, own: OwnData) -> None:
    images = golden_cams(tmp_path / "labels", own)
    data = report(tmp_path, tmp_path / "labels", *own.arguments[1:])
    (source,) = data["sources"]
    sweep, classes = source["sweeps"]["cam"], images[0][1].shape[0] + 1
    assert sweep["thresholds"] == [round(index / 100, 2) for index in range(101)]
    truth = [mask for mask, _ in images]
    for index, threshold in enumerate(sweep["thresholds"]):
        labels = [np.where(cam.max(0) > np.float32(threshold), cam.argmax(0) + 1, 0) for _, cam in images]
        assert sweep["miou"][index] == pytest.approx(miou(truth, labels, classes), abs=1e-12)
    assert sweep["best"]["miou"] == max(sweep["miou"]) and len(set(sweep["miou"])) > 20
    at_set = sweep["miou"][sweep["thresholds"].index(0.4)]
    assert source["table"]["cam"]["miou"] == at_set
    text = " ".join(Reader(tmp_path / "page.html").text.split())
    assert f"The best mIoU is {100 * max(sweep['miou']):.1f} %, at the threshold {sweep['best']['threshold']:g}" in text
    assert "Labels are made with 0.4" in text


def test_maps_with_a_background_give_their_own_label_at_one_half(run_page: Path) -> None:
    (source,) = data_of(run_page)["sources"]
    for name in ("propagated_cam", "segmentation"):
        sweep = source["sweeps"][name]
        assert sweep["miou"][50] == pytest.approx(source["table"][name]["miou"], abs=2e-3)


@pytest.mark.parametrize("logits", [True, False])
def test_the_share_of_the_best_class(logits: bool) -> None:
    scores = torch.rand(1, 4, 3, 5)
    maps = Maps.of_all_classes(scores, has_background=True)
    share, winner = share_of_best_class(maps, (3, 5), logits=logits)
    values = scores[0].exp() if logits else scores[0]
    best = values[1:].max(dim=0)
    assert torch.equal(winner, best.indices + 1)
    torch.testing.assert_close(share, best.values / (best.values + values[0]))
    nothing = Maps.of_all_classes(torch.zeros(1, 1, 3, 5), has_background=True)
    assert not share_of_best_class(nothing, (3, 5), logits=logits)[1].any()


def test_masks_made_elsewhere(tmp_path: Path, own: OwnData, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    truth = [rng.choice([0, 1, 2, 255], (20, 30)).astype(np.uint8) for _ in range(3)]
    found = [rng.choice([0, 1, 2, 255], (20, 30)).astype(np.uint8) for _ in range(3)]
    for index in range(3):
        own.add(f"image {index}", truth[index], found[index])
    own.add("no mask of it", truth[0], None)
    own.add("-no truth", None, found[0])
    data = report(tmp_path, *own.arguments)
    (source,) = data["sources"]
    assert source["table"]["masks"]["miou"] == pytest.approx(miou(truth, found, 3), abs=1e-12)
    assert source["main"] == "masks" and source["sweeps"] == {}
    assert [image["name"] for image in data["images"]][-1] == "-no truth" and len(data["images"]) == 4
    assert data["images"][-1]["truth"] is None and data["images"][-1]["sources"][0]["miou"] is None
    for image in data["images"][:3]:
        index = int(image["name"][-1])
        assert (values_of(image["sources"][0]["labels"]["masks"]) == found[index]).all()
        assert image["sources"][0]["miou"] == pytest.approx(miou([truth[index]], [found[index]], 3))
    notes = capsys.readouterr().err
    assert "1 of the 5 images of 'val' have no file in" in notes and "1 of the 5 images have no true mask" in notes
    assert "have no true mask" in Reader(tmp_path / "page.html").text


def test_maps_of_other_programs_get_the_best_threshold(tmp_path: Path, own: OwnData) -> None:
    truth = np.zeros((20, 30), np.uint8)
    truth[:, 10:] = 2
    truth[5, :5] = 1
    cam = np.where(truth == 2, np.float32(0.8), np.float32(0.3))
    own.add("a", truth, None)
    np.save(own.masks / "a.npy", {0: np.zeros((20, 30), np.float32), 1: cam})  # type: ignore[arg-type]
    data = report(tmp_path, *own.arguments)
    (output,) = data["sources"][0]["outputs"]
    assert output["threshold"] == 0.3
    label = values_of(data["images"][0]["sources"][0]["labels"]["masks"])
    assert (label == np.where(truth == 2, 2, 0)).all()


def test_names_are_only_text(tmp_path: Path, own: OwnData) -> None:
    names = ["</script><b>", "<!--", "a & b"]
    own.name_classes([*names, *(f"class {index}" for index in range(4, 81))])
    mask = np.tile(np.array([0, 1, 2, 3, 80, 255], np.uint8), (20, 5))
    own.add("<i>\u202eevil", mask, mask)
    data = report(tmp_path, *own.arguments)
    page = Reader(tmp_path / "page.html")
    assert data["classes"][1:4] == names and len(data["classes"]) == 81
    assert data["images"][0]["name"] == "<i>\\u202eevil"
    assert not {"b", "i"} & {tag for tag, _ in page.tags}
    assert all(name in page.text for name in names)
    assert [tag for tag, _ in page.tags].count("script") == 2


def test_one_image_of_12_megapixels_without_truth(tmp_path: Path, own: OwnData) -> None:
    mask = np.zeros((3000, 4000), np.uint8)
    mask[1000:2000, 1000:3000] = 1
    own.add("large", None, mask, mask.shape)
    data = report(tmp_path, *own.arguments)
    (image,) = data["images"]
    assert image["size"] == [4000, 3000] and image["shown"] == [512, 384]
    assert values_of(image["image"]).shape == (384, 512)
    assert (values_of(image["sources"][0]["labels"]["masks"]) == 1).mean() == pytest.approx(2 / 12, abs=0.01)
    page = Reader(tmp_path / "page.html")
    assert "1 of the images are scaled down to 512 pixels" in page.text
    assert data["sources"][0]["table"] == {} and "Confusion" not in page.text
    assert (tmp_path / "page.html").stat().st_size < 100_000


def test_large_images_are_shrunk_for_the_network(tmp_path: Path, own: OwnData, run: Path) -> None:
    own.name_classes(data_of_classes(run))
    mask = np.zeros((24, 1200), np.uint8)
    own.add("wide", mask, None, mask.shape)
    own.add("small", mask[:, :40], None, (24, 40))
    own.add("unknown", None, None, (24, 40))
    data = report(tmp_path, run, *own.arguments[1:], "--outputs", "cam", "segmentation")
    unknown = data["images"][-1]
    assert unknown["truth"] is None and set(unknown["sources"][0]["labels"]) == {"cam", "segmentation"}
    assert "1 images of more than 1024 pixels were shrunk" in Reader(tmp_path / "page.html").text
    (wide,) = [image for image in data["images"] if image["name"] == "wide"]
    assert values_of(wide["sources"][0]["labels"]["segmentation"]).shape == (10, 512)
    assert [output["name"] for output in data["sources"][0]["outputs"]] == ["cam", "segmentation"]


def data_of_classes(run: Path) -> list[str]:
    return json.loads((run / "checkpoints/last/checkpoint.json").read_text())["class_names"]


def test_a_page_shows_the_worst_images_and_some_of_all(tmp_path: Path, own: OwnData) -> None:
    for index in range(12):
        found = np.zeros((20, 30), np.uint8)
        found.ravel()[: 10 * ((index * 5) % 12)] = 1
        own.add(f"{index:02}", np.zeros((20, 30), np.uint8), found)
    data = report(tmp_path, *own.arguments, "--images", 6)
    shown = [image["name"] for image in data["images"]]
    by_miou = sorted(own.names, key=lambda name: -((int(name) * 5) % 12))
    assert len(shown) == 6 and set(by_miou[:3]) <= set(shown) and {"00", "04", "08"} <= set(shown)
    assert shown == sorted(shown, key=by_miou.index)
    assert data["sources"][0]["table"]["masks"]["pacc"] == pytest.approx(1 - 660 / 7200)
    assert "6 of 12 images are shown" in Reader(tmp_path / "page.html").text


def test_two_stand_side_by_side(tmp_path: Path, run: Path, shapes: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for path in (shapes / "SegmentationClass").glob("val_*.png"):
        Image.fromarray(read_mask(path)).save(folder / path.name)
    data = report(tmp_path, run, folder, "--no-affinity", "--limit", 3)
    assert [source["title"] for source in data["sources"]] == ["run", "masks"]
    assert data["sources"][1]["table"]["masks"]["miou"] == 1 and len(data["images"]) == 3
    for image in data["images"]:
        assert len(image["sources"]) == 2 and not image["sources"][0]["affinities"]
        assert image["sources"][1]["miou"] == 1


def test_an_affinity_between_neighbours_is_kept_as_it_is() -> None:
    affinity = PairAffinity.of_pairs(torch.rand(len(pair_offsets(3)), 4 * 5), (6, 9), 3)
    entry = affinity_entry(affinity)
    assert entry is not None and entry["radius"] == 2
    tiles = entry["values"].reshape(6, 5, 9, 5)
    low = affinity_entry(PairAffinity(affinity.values[:, :1, :, :1]))  # a grid of one row
    assert low is not None and (low["radius"], low["values"].shape) == (2, (5, 45))
    assert low["values"][2, 2::5].tolist() == [AFFINITY_LEVELS] * 9 and not low["values"][:2].any()
    for y, x in ((0, 0), (3, 4), (5, 8)):
        expected = np.zeros((10, 13))
        expected[2:8, 2:11] = affinity.of(y, x).numpy()
        assert np.abs(tiles[y, :, x] - AFFINITY_LEVELS * expected[y : y + 5, x : x + 5]).max() <= 0.5001


def test_an_affinity_of_many_tokens_is_kept_on_a_coarser_grid() -> None:
    values = torch.zeros(1, 2400, 2400)
    values[0, :1200, :1200] = values[0, 1200:, 1200:] = 1  # the upper half of 40 x 60, and the lower
    entry = affinity_entry(TokenAffinity(values, (40, 60)))
    assert entry is not None and entry["shrunk"] and np.prod(entry["grid"]) <= 768
    height, width = entry["grid"]
    upper = entry["values"][0].reshape(height, width)
    assert (upper[0] == AFFINITY_LEVELS).all() and entry["half"] and (upper[-1] == 0).all()
    assert affinity_entry(PairAffinity(torch.zeros(1, 5, 9, 2, 2000))) is None


def test_maps_keep_their_range() -> None:
    maps = Maps.of_all_classes(torch.tensor([[[[-1.0, 3.0]], [[0.0, 1.0]]]]), has_background=False)
    entry = maps_entry(maps, [1, 2, 7], logits=False)
    assert entry is not None and (entry["ids"], entry["low"], entry["high"]) == ([1, 2], -1.0, 3.0)
    assert values_of(entry["uri"]).tolist() == [[0, 255], [64, 128]]
    assert maps_entry(maps, [5], logits=False) is None


def test_a_chart_leaves_out_what_is_not_known() -> None:
    drawn = chart_svg(
        "<title>", [Curve("a", [1, 2, 3, 4], [0.0, None, 2.0, 1.0])], x_label="x", marks=[Mark(2, "here & now")]
    )
    assert drawn.count('class="curve') == 2 and "&lt;title&gt;" in drawn and "here &amp; now" in drawn
    assert "nan" not in chart_svg("flat", [Curve("a", [5], [0.0])], x_label="x")
    assert "<svg" in chart_svg("empty", [Curve("a", [5], [None])], x_label="x")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MASKS"], "which images does it belong to"),
        (["MASKS", "ROOT", "a", "b"], "give one run or folder, or two"),
        (["ROOT"], "the following arguments are required: RUN_OR_FOLDER"),
        (["nowhere", "ROOT"], "nowhere"),
        (["MASKS", "ROOT", "--split", "test"], "test"),
        (["MASKS", "ROOT", "--images", "0"], "--images 0"),
        (["MASKS", "ROOT", "--limit", "0"], "--limit 0"),
        (["MASKS", "ROOT", "--outputs", "x"], "--outputs: 'x'"),
        (["MASKS", "dataset.root=nowhere"], "nowhere does not exist"),
        (["EMPTY", "ROOT"], r"holds no label.json, no .npy and no .png"),
        (["OTHERS", "ROOT"], "1 of the 1 labels are missing"),
        (["SMALL", "ROOT"], "2 x 2 pixels, its image 30 x 20"),
        (["WRONG", "ROOT"], "the value 7 is no class"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_what_was_there(
    tmp_path: Path, own: OwnData, run_tool: RunTool, arguments: list[str], said: str
) -> None:
    mask = np.zeros((20, 30), np.uint8)
    own.add("a", mask, mask)
    page = tmp_path / "page.html"
    page.write_text("old")
    for name, value in (("EMPTY", None), ("OTHERS", mask), ("SMALL", mask[:2, :2]), ("WRONG", mask + 7)):
        (tmp_path / name).mkdir()
        if value is not None:
            Image.fromarray(value).save(tmp_path / name / ("b.png" if name == "OTHERS" else "a.png"))
    words: dict[str, list[object]] = {"MASKS": [own.masks], "ROOT": list(own.arguments[1:])}
    words |= {name: [tmp_path / name] for name in ("EMPTY", "OTHERS", "SMALL", "WRONG")}
    done = run_tool("report.py", *(word for text in arguments for word in words.get(text, [text])), "--output", page)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert re.search(said, done.stderr), done.stderr
    assert page.read_text() == "old" and len(list(tmp_path.glob(".*"))) == 0


def test_results_of_other_classes_or_images_are_refused(tmp_path: Path, own: OwnData, run: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    own.add("a", mask, mask)
    with pytest.raises(UserError, match="missing"):
        report(tmp_path, run, own.masks)
    with pytest.raises(UserError, match="classes"):
        report(tmp_path, run, *own.arguments[1:])
    (own.masks / "label.json").write_text(json.dumps({"class_names": ["bus"]}))
    (own.masks / "labels/x").mkdir(parents=True)
    with pytest.raises(UserError, match="is of the classes bus"):
        report(tmp_path, *own.arguments)
    for name, arguments in (("page.txt", ["a"]), (None, ["a"])):
        output = [] if name is None else ["--output", str(tmp_path / name)]
        with pytest.raises(UserError, match=r"give (a \.html file|--output FILE\.html)"):
            main([*arguments, *output])


def test_a_run_s_page_lies_in_its_folder(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "a=b run"
    link.symlink_to(run)
    assert main([str(link), "--device", "cpu", "--limit", "1", "--outputs", "cam", "--images", "1"]) == 0
    page = run / "report.html"
    assert len(data_of(page)["images"]) == 1 and "1 images were looked at" in page.read_text()
    page.unlink()
