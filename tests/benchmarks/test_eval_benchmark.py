from __future__ import annotations

from pathlib import Path

import pytest
from scored import small_config, write_checkpoint

from afa.benchmarks import eval as benchmark
from afa.benchmarks import label
from afa.commands.benchmark import parse
from afa.errors import UserError


def test_every_output_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    text = "eval --encoder mit_b0 --size 32 48 --long-side 64 --limit 1 --repeats 1 --device cpu --crf"
    args = parse(text.split())
    table = benchmark.run(args)
    assert len(table) == 8
    assert all(value > 0 for value in table.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in table if name != "shared_ratio")


@pytest.mark.parametrize(
    "arguments",
    [["--limit", "0"], ["--present", "3", "--classes", "2"], ["--size", "8", "8"], ["--encoder", "mit_b9"]],
)
def test_mistakes(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        benchmark.run(parse(["eval", *arguments]))


def test_label_stage_and_evaluation_are_compared_with_the_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "shapes")
    config.cam.scales, config.test.scales, config.test.mirror = [1.0], [1.0], False
    run = write_checkpoint(tmp_path / "run/checkpoints/step_00000001", config, 1, step=1)
    figures = label.run(parse(["label", str(run), "--device", "cpu", "--limit", "2", "--repeats", "1"]))
    for stage in ("label", "eval"):
        assert set(figures[stage]) == {"passes", "whole", "ratio", "cpu_ratio"}
        assert all(value > 0 for value in figures[stage].values())
    assert "whole" in capsys.readouterr().out
