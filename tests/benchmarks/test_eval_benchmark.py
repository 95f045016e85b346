from __future__ import annotations

import pytest

from afa.benchmarks import eval as benchmark
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
