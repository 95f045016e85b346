from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_tool import RunTool

from afa.config import config_to_dict, config_to_yaml
from afa.evaluation.metrics import ConfusionMatrix, Counts, ImageCounts
from afa.evaluation.tables import protocol_key, write_entry
from afa.methods import config_from_dict
from afa.report.bootstrap import paired_bootstrap

CLASSES = ("background", "cat", "dog")
TRUTHS = [np.random.default_rng((7, number)).choice([0, 0, 1, 2, 255], (6, 8)) for number in range(12)]


def predictions(seed: int, noise: float) -> list[np.ndarray]:
    """The truth, with a share of the pixels drawn anew."""
    rng = np.random.default_rng(seed)
    found = []
    for truth in TRUTHS:
        drawn = rng.integers(0, 3, truth.shape)
        found.append(np.where((rng.random(truth.shape) < noise) | (truth == 255), drawn, truth))
    return found


def counted(labels: list[np.ndarray], truths: list[np.ndarray] = TRUTHS) -> tuple[ConfusionMatrix, ImageCounts]:
    matrix, images = ConfusionMatrix(3), ImageCounts()
    for number, (truth, label) in enumerate(zip(truths, labels, strict=True)):
        images.add(f"image {number}", matrix.update(torch.from_numpy(truth), torch.from_numpy(label)))
    return matrix, images


def plain_miou(truths: list[np.ndarray], labels: list[np.ndarray]) -> float:
    """From the pixels of all images, put side by side."""
    true, said = np.concatenate([t.ravel() for t in truths]), np.concatenate([p.ravel() for p in labels])
    said = said[true != 255]
    true = true[true != 255]
    values = [
        np.sum((true == c) & (said == c)) / np.sum((true == c) | (said == c)) for c in range(3) if (true == c).any()
    ]
    return float(np.mean(values))


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    first, second = [predictions(1, 0.5), predictions(2, 0.6)], [predictions(3, 0.3)]
    rng = np.random.default_rng(5)
    plain = []
    for _ in range(100):
        drawn = rng.integers(12, size=12)
        truths = [TRUTHS[index] for index in drawn]
        means = [
            np.mean([plain_miou(truths, [labels[index] for index in drawn]) for labels in side])
            for side in (first, second)
        ]
        plain.append(means[1] - means[0])
    sides = [[counted(labels)[1].stacked() for labels in side] for side in (first, second)]
    difference, low, high = paired_bootstrap(*sides, resamples=100, seed=5)
    whole = [np.mean([plain_miou(TRUTHS, labels) for labels in side]) for side in (first, second)]
    assert difference == pytest.approx(whole[1] - whole[0], abs=1e-12)
    assert [low, high] == pytest.approx(np.percentile(plain, [2.5, 97.5]).tolist(), abs=1e-12)
    assert low < difference < high
    # Other resamples give nearly the same ends.
    assert [low, high] == pytest.approx(paired_bootstrap(*sides, resamples=20_000, seed=6)[1:], abs=0.04)


def test_a_bootstrap_of_the_same_runs_is_nothing_and_one_image_has_no_width() -> None:
    counts = counted(predictions(1, 0.5))[1].stacked()
    assert paired_bootstrap([counts], [counts], resamples=200) == (0, 0, 0)
    other = counted(predictions(2, 0.2))[1].stacked()
    one, two = (Counts(*(part[:1] for part in whole.parts)) for whole in (counts, other))
    difference, low, high = paired_bootstrap([one], [two], resamples=200)
    assert low == high == difference


def test_images_without_a_labelled_pixel_change_nothing() -> None:
    plain = [counted(predictions(seed, 0.5))[1].stacked() for seed in (1, 2)]
    nothing = np.full((6, 8), 255)
    more = [counted([*predictions(seed, 0.5), nothing], [*TRUTHS, nothing])[1].stacked() for seed in (1, 2)]
    assert paired_bootstrap(plain[:1], plain[1:], resamples=200) == paired_bootstrap(more[:1], more[1:], resamples=200)


def write_run(
    folder: Path,
    labels: list[np.ndarray],
    *,
    truths: list[np.ndarray] = TRUTHS,
    output: str = "segmentation",
    protocol: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run's folder as far as a comparison looks at it."""
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    config = config_from_dict({"dataset": {"root": "data"}}, overrides=[f"train.output={folder}", *overrides])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_to_yaml(config_to_dict(config)))
    matrix, images = counted(labels, truths)
    key = {"split": "val", "step": 9, "scales": [1], "long_side": 0, "mirror": True, "crf": None, "limit": None}
    table = {output: matrix.scores(CLASSES), "images": len(truths)}
    write_entry(folder / "evaluation.json", protocol_key(**{**key, **(protocol or {})}), table, {output: images})
    return folder


def scores_of(*folders: Path) -> list[float]:
    return [
        json.loads((folder / "evaluation.json").read_text())["evaluations"][0]["table"]["segmentation"]["miou"]
        for folder in folders
    ]


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    """Three seeds of one recipe, and two of another learning rate."""
    runs = [
        write_run(tmp_path / f"plain seeds/seed_{seed}", predictions(seed, 0.5), train__seed=seed) for seed in (1, 2, 3)
    ]
    return [
        *runs,
        *(
            write_run(tmp_path / f"fast/seed_{s}", predictions(10 + s, 0.3), train__seed=s, optimiser__lr=0.5)
            for s in (1, 2)
        ),
    ]


def test_seeds_of_recipes(tmp_path: Path, seeds: list[Path], run_tool: RunTool) -> None:
    outputs = [tmp_path / f"tables/all.{suffix}" for suffix in ("json", "csv", "md")]
    done = run_tool("compare.py", *seeds, "--output", *outputs, "--resamples", 500)
    assert done.returncode == 0, done.stderr
    found = json.loads(outputs[0].read_text())
    assert [(g["title"], g["supervision"], [r["seed"] for r in g["runs"]]) for g in found["groups"]] == [
        ("plain seeds", "I", [1, 2, 3]),
        ("fast", "I", [1, 2]),
    ]
    first, second = found["scores"]
    values = scores_of(*seeds[:3])
    assert first["mean"] == pytest.approx(np.mean(values)) and first["deviation"] == pytest.approx(
        np.std(values, ddof=1)
    )
    assert (first["lowest"], first["highest"], first["runs"], first["images"]) == (
        min(values),
        max(values),
        3,
        "val (12)",
    )
    (difference,) = found["differences"]
    sides = [[counted(predictions(seed, 0.5))[1].stacked() for seed in (1, 2, 3)]]
    sides.append([counted(predictions(10 + seed, 0.3))[1].stacked() for seed in (1, 2)])
    # Images are compared by their names, whatever their order; here it is that of the text.
    order = sorted(range(12), key=lambda number: f"image {number}")
    sides = [[Counts(*(part[order] for part in counts.parts)) for counts in side] for side in sides]
    expected = paired_bootstrap(*sides, resamples=500)
    assert [difference[key] for key in ("difference", "low", "high")] == pytest.approx(list(expected))
    assert difference["difference"] == pytest.approx(second["mean"] - first["mean"])
    assert found["settings"] == {"optimiser.lr": ["6e-05", "0.5"]}
    for text in (
        f"{100 * first['mean']:.1f}",
        f"{100 * difference['difference']:+.1f}",
        "optimiser.lr",
        "fast - plain",
    ):
        assert text in done.stdout and text in outputs[2].read_text()
    lines = list(csv.DictReader(outputs[1].read_text().splitlines()))
    assert [line["kind"] for line in lines] == ["score", "score", "difference"]
    assert float(lines[0]["value"]) == first["mean"] and float(lines[2]["low"]) == difference["low"]
    assert done.stderr == f"written to {', '.join(map(str, outputs))}\n"


def test_a_row_with_known_classes_says_so(tmp_path: Path, run_tool: RunTool) -> None:
    runs = [write_run(tmp_path / name, predictions(1, 0.5), train__seed=seed) for seed, name in enumerate("ab")]
    for run in runs:
        entries = json.loads((run / "evaluation.json").read_text())
        table = entries["evaluations"][0]["table"]
        table["segmentation_known"] = table["segmentation"]
        (run / "evaluation.json").write_text(json.dumps(entries))
    done = run_tool("compare.py", *runs)
    assert done.returncode == 0, done.stderr
    assert "segmentation, classes known" in done.stdout and "segmentation_known" not in done.stdout


def test_a_title_makes_a_group_and_says_what_differs_in_it(seeds: list[Path], run_tool: RunTool) -> None:
    done = run_tool("compare.py", *(f"mine={run}" for run in (seeds[0], seeds[3])), "--supervision", "mine=I+S")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["mine", "I+S"]
    assert "its runs differ in optimiser.lr" in done.stderr and "several runs have the same seed" in done.stderr


def reason(run_tool: RunTool, *runs: object) -> str:
    done = run_tool("compare.py", *runs, "--resamples", 100)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_what_cannot_be_compared_is_said(tmp_path: Path, run_tool: RunTool) -> None:
    base = write_run(tmp_path / "base", predictions(1, 0.5))
    fewer = write_run(tmp_path / "fewer", predictions(1, 0.5)[:5], truths=TRUTHS[:5], optimiser__lr=1)
    assert "they were scored on different images" in reason(run_tool, base, fewer)
    turned = [truth[::-1].copy() for truth in TRUTHS]
    turned[0][0, 0] = 1 if turned[0][0, 0] != 1 else 2
    others = write_run(tmp_path / "others", predictions(1, 0.5), truths=turned, optimiser__lr=1)
    assert "their true masks differ" in reason(run_tool, base, others)
    scaled = write_run(tmp_path / "scaled", predictions(1, 0.5), protocol={"scales": [1, 2]}, optimiser__lr=1)
    said = reason(run_tool, base, scaled)
    assert "scaled and base have no output that was scored with the same protocol" in said
    assert "segmentation, scales [1.0, 2.0]" in said
    for path in fewer.glob("*.npz"):
        path.unlink()
    said = reason(run_tool, base, fewer)
    assert "cannot be read" in said and f"{100 * scores_of(fewer)[0]:.1f}" in said


def test_counts_of_another_evaluation_give_no_interval(tmp_path: Path, run_tool: RunTool) -> None:
    """An evaluation that was killed between its two files leaves new counts beside the old score."""
    base = write_run(tmp_path / "base", predictions(1, 0.5))
    run = write_run(tmp_path / "run", predictions(1, 0.9), optimiser__lr=1)
    before = (run / "evaluation.json").read_text()
    write_run(tmp_path / "run", predictions(1, 0.1), optimiser__lr=1)
    (run / "evaluation.json").write_text(before)
    assert "is not of the score beside it: evaluate run again" in reason(run_tool, base, run)


def test_an_evaluation_of_before_has_a_mean_and_no_interval(tmp_path: Path, run_tool: RunTool) -> None:
    base = write_run(tmp_path / "base", predictions(1, 0.5))
    flat = {"segmentation": {"miou": 0.5, "iou": {"background": 0.5}}, "images": 12, "split": "val", "step": 9}
    (tmp_path / "old").mkdir()
    (tmp_path / "old/evaluation.json").write_text(
        json.dumps({**flat, "test": {"scales": [1], "long_side": 0, "mirror": True}})
    )
    said = reason(run_tool, base, tmp_path / "old/evaluation.json")
    assert "50.0" in said and "has no counts of images: evaluate it again" in said
    assert "the supervision of old is unknown" in said


def test_the_last_step_counts_and_parts_of_a_list_do_not(tmp_path: Path, run_tool: RunTool) -> None:
    run = write_run(tmp_path / "run", predictions(1, 0.9), protocol={"step": 3})
    write_run(tmp_path / "run", predictions(1, 0.1), protocol={"step": 20})
    write_run(tmp_path / "run", predictions(1, 0.5), protocol={"step": 12})
    write_run(tmp_path / "run", predictions(1, 1.0), protocol={"step": 30, "limit": 12})
    matrix, _ = counted(predictions(1, 0.1))
    (line,) = reason(run_tool, run).splitlines()[1:2]
    assert line.split()[6] == f"{100 * matrix.scores(CLASSES)['miou']:.1f}"
    part = write_run(tmp_path / "part", predictions(1, 1.0), protocol={"limit": 12})
    done = run_tool("compare.py", part)
    assert (done.returncode, done.stdout) == (2, "") and "evaluate without --limit" in done.stderr


def test_runs_on_labels_that_one_recipe_made_are_seeds(tmp_path: Path, run_tool: RunTool) -> None:
    runs = []
    for seed, config in ((1, "a"), (2, "a"), (3, "b")):
        labels = tmp_path / f"labels_{seed}"
        labels.mkdir()
        facts = {"method": "x", "weights_sha256": str(seed), "config": {"cam": config}}
        (labels / "label.json").write_text(json.dumps(facts))
        runs.append(
            write_run(tmp_path / f"run{seed}", predictions(seed, 0.5), train__seed=seed, dataset__pixel_labels=labels)
        )
    said = reason(run_tool, *runs)
    assert [line.split()[5] for line in said.splitlines()[1:3]] == ["2", "1"]
    assert "the supervision of run is unknown" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nothing"], "does not exist"),
        (["{tmp}"], "holds no evaluation.json: 'afa eval "),
        (["{run}", "{run}/evaluation.json"], "is named twice"),
        (["=x"], "give TITLE=RUN"),
        (["{run}", "--output", "{tmp}/table.txt"], "ends in .json, .csv, .md"),
        (["{run}", "--output", "{tmp}/file/table.md"], "cannot be written"),
        (["{run}", "--resamples", "5"], "at least 100"),
        (["{run}", "--supervision", "run"], "give TITLE=TEXT"),
        (["{run}", "--supervision", "other=I"], "there are the groups run"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], message: str, run_tool: RunTool) -> None:
    run = write_run(tmp_path / "run", predictions(1, 0.5))
    (tmp_path / "file").write_text("")
    done = run_tool("compare.py", *(text.format(tmp=tmp_path, run=run) for text in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
