"""One table of several score files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_tool import RunTool

from afa.commands.summary import main
from afa.errors import UserError
from afa.evaluation.tables import protocol_key, write_entry

CRF = {"crf_iterations": 10}


def scores(miou: float, **others: Any) -> dict[str, Any]:
    return {"miou": miou, "fp_rate": 0.101, "fn_rate": 0.202, "iou": {"background": miou}, **others}


def score_file(path: Path, kind: str, rows: dict[str, Any], truth: str = "'val' of data/shapes") -> Path:
    path.write_text(json.dumps({"kind": kind, "truth": truth, "images": 7, "rows": rows}))
    return path


def evaluation_file(path: Path, table: dict[str, Any], **protocol: Any) -> Path:
    facts = {"split": "val", "step": 9, "scales": [1], "long_side": 0, "mirror": True, "crf": None, "limit": None}
    write_entry(path, protocol_key(**{**facts, **protocol}), {**table, "images": 7})
    return path


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that are printed, blanks between the columns made one bar."""

    def read(*arguments: object) -> list[str]:
        assert main([str(argument) for argument in arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len({len(line) for line in lines}) == 1
        return ["|".join(part.strip() for part in line.split("  ") if part.strip()) for line in lines]

    return read


def test_maps_masks_and_evaluations_in_one_table(tmp_path: Path, table: Callable[..., list[str]]) -> None:
    swept = {"thresholds": [0.2, 0.24], "miou": [0.4, 0.5], "best": scores(0.5, threshold=0.24)}
    maps = score_file(tmp_path / "maps.json", "maps", {"cam": swept, "crf": scores(0.6)})
    masks = score_file(tmp_path / "masks.json", "masks", {"propagated": scores(0.7)}, truth="elsewhere/masks")
    evaluation = evaluation_file(
        tmp_path / "evaluation.json", {"segmentation": scores(0.8), "segmentation_crf": scores(0.9)}, crf=CRF
    )
    output = tmp_path / "tables" / "summary.json"
    assert table(f"CAM network={maps}", masks, f"mine={evaluation}", "--output", output) == [
        "in %|output|images|mIoU|false positives|false negatives",
        "CAM network|cam > 0.24|val (7)|50.0|10.1|20.2",
        "CAM network|crf|val (7)|60.0|10.1|20.2",
        "masks|propagated|elsewhere/masks (7)|70.0|10.1|20.2",
        "mine|segmentation|val (7)|80.0|10.1|20.2",
        "mine|segmentation + CRF|val (7)|90.0|10.1|20.2",
    ]
    rows = json.loads(output.read_text())["rows"]
    assert [(row["output"], row["threshold"], row["crf"], row["miou"]) for row in rows] == [
        ("cam", 0.24, False, 0.5),
        ("crf", None, False, 0.6),
        ("propagated", None, False, 0.7),
        ("segmentation", None, False, 0.8),
        ("segmentation + CRF", None, True, 0.9),
    ]


def test_a_row_with_known_classes_says_so(tmp_path: Path, table: Callable[..., list[str]]) -> None:
    rows = {"segmentation": scores(0.8), "segmentation_known": scores(0.9), "other_known": scores(0.7)}
    lines = table(evaluation_file(tmp_path / "evaluation.json", rows))
    names = [line.split("|")[1] for line in lines[1:]]
    assert names == ["segmentation", "segmentation, classes known", "other_known"]


def test_a_column_says_what_each_was_taught_with(tmp_path: Path, table: Callable[..., list[str]]) -> None:
    files = [score_file(tmp_path / f"{name}.json", "masks", {"x": scores(0.5)}) for name in ("one", "two", "three")]
    output = tmp_path / "summary.json"
    titled = [f"AFA={files[0]}", f"all of it={files[1]}", files[2]]
    assert table(*titled, "--supervision", "AFA=I", "all of it=I+S", "--output", output) == [
        "in %|supervision|output|images|mIoU|false positives|false negatives",
        "AFA|I|x|val (7)|50.0|10.1|20.2",
        "all of it|I+S|x|val (7)|50.0|10.1|20.2",
        "three|-|x|val (7)|50.0|10.1|20.2",
    ]
    assert [row["supervision"] for row in json.loads(output.read_text())["rows"]] == ["I", "I+S", None]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("AFA", "give TITLE=TEXT"),
        ("=I", "give TITLE=TEXT"),
        ("AFA=", "give TITLE=TEXT"),
        ("PSA=I", "no file has the title"),
    ],
)
def test_supervision_of_no_file(tmp_path: Path, argument: str, message: str) -> None:
    file = score_file(tmp_path / "one.json", "masks", {"x": scores(0.5)})
    with pytest.raises(UserError, match=message):
        main([f"AFA={file}", "--supervision", argument])


def test_protocols_of_one_file_are_told_apart(tmp_path: Path, table: Callable[..., list[str]]) -> None:
    path = tmp_path / "evaluation.json"
    for scales, crf, miou in (([1], None, 0.5), ([1], CRF, 0.5), ([1, 0.5], {"crf_iterations": 5}, 0.6)):
        rows = {"segmentation": scores(miou)} | ({"segmentation_crf": scores(miou + 0.1)} if crf else {})
        evaluation_file(path, rows, scales=scales, crf=crf)
    evaluation_file(path, {"segmentation": scores(0.1)}, limit=2)
    assert [line.split("|")[1:4] for line in table(path)[1:]] == [
        ["segmentation, scales 1", "val (7)", "50.0"],  # once: DenseCRF changes nothing of it
        ["segmentation + CRF, scales 1, crf iterations 10", "val (7)", "60.0"],
        ["segmentation, scales 1 0.5", "val (7)", "60.0"],
        ["segmentation + CRF, scales 1 0.5, crf iterations 5", "val (7)", "70.0"],
    ]


def test_what_a_file_does_not_have_is_a_dash(tmp_path: Path, table: Callable[..., list[str]]) -> None:
    flat = tmp_path / "flat.json"  # as it was written before: no split, no rates
    flat.write_text(json.dumps({"segmentation": {"miou": 0.5, "iou": {"background": 0.5}}, "images": 3}))
    none = score_file(tmp_path / "none.json", "masks", {"found": {"miou": None}})
    assert table(flat, none)[1:] == ["flat|segmentation|- (3)|50.0|-|-", "none|found|val (7)|-|-|-"]


def test_a_file_whose_name_holds_an_equals_sign(tmp_path: Path, table: Callable[..., list[str]]) -> None:
    path = score_file(tmp_path / "seed=2.json", "masks", {"found": scores(0.5)})
    assert [line.split("|")[0] for line in table(path, f"mine={path}")[1:]] == ["seed=2", "mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "is not valid JSON"),
        ("[]", "holds no scores of 'afa score' or 'afa eval'"),
        ('{"rows": []}', "holds no scores of 'afa score' or 'afa eval'"),
        ('{"rows": {}}', "holds no scores"),
        ('{"evaluations": []}', "holds no scores"),
        ('{"rows": {"cam": 1}}', "is damaged: 'cam' has no mIoU"),
        ('{"rows": {"cam": {"miou": "much"}}}', "is damaged: miou of 'cam' is no number"),
        ('{"evaluations": [{"protocol": {}, "table": 1}]}', "is damaged: an evaluation has no table"),
        ('{"evaluations": [{"protocol": {}, "partial": true}]}', "holds scores of only a part of the list"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, run_tool: RunTool, content: str | None, message: str) -> None:
    good, bad = score_file(tmp_path / "good.json", "masks", {"found": scores(0.5)}), tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    result = run_tool("summary.py", good, f"title={bad}", "--output", tmp_path / "summary.json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert str(bad) in result.stderr and message in result.stderr
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("arguments", [["=a.json"], ["title="], ["a.json", "--output", "table.txt"]])
def test_arguments_that_are_none_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"give (TITLE=FILE\.json|a \.json file)"):
        main(arguments)
