from __future__ import annotations

import pytest

from afa.benchmarks import regularised as benchmark
from afa.commands.benchmark import parse
from afa.errors import UserError


def test_measures_steps_without_and_with_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(
        ["reg", "--encoder", "mit_b0", "--crop", "64", "--batch-size", "1", "--classes", "3", "--repeats", "1"]
    )
    table = benchmark.run(args)
    assert min(table["without_s"], table["with_s"], table["alone_s"]) > 0
    assert table["alone_share"] == pytest.approx(table["alone_s"] / table["without_s"])
    assert "step with the loss" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--crop", "0"], ["--classes", "1"], ["--repeats", "0"], ["--threads", "-1"]])
def test_mistakes(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        benchmark.run(parse(["reg", *arguments]))
