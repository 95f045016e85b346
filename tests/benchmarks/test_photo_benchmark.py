from __future__ import annotations

import pytest

from afa.benchmarks import photo as benchmark
from afa.commands.benchmark import parse
from afa.errors import UserError


def test_a_photo_is_predicted_and_its_label_is_that_of_the_plain_way(capsys: pytest.CaptureFixture[str]) -> None:
    figures = benchmark.run(parse(["photo", "--megapixels", "1", "--classes", "4", "--repeats", "1"]))
    assert figures["same"]
    assert min(figures[name] for name in ("network", "rest", "label", "label_plain", "cam_file_mb", "peak_mb")) > 0
    assert "labels equal to the pixel" in capsys.readouterr().out


def test_mistakes() -> None:
    with pytest.raises(UserError, match="--present 4"):
        benchmark.run(parse(["photo", "--classes", "4", "--present", "4"]))
