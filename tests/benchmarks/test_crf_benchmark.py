from __future__ import annotations

import sys
from pathlib import Path

import pytest

from afa.benchmarks import crf as benchmark
from afa.benchmarks.pictures import noise_image
from afa.commands.benchmark import parse
from afa.errors import UserError


def test_measures_without_pydensecrf(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setattr(benchmark, "peak_memory", lambda *_: None)
    table = benchmark.run(parse(["crf", "--size", "20", "30", "--classes", "6", "--repeats", "2", "--iterations", "2"]))
    assert table["all classes"]["median_s"] > 0 and table["negligible classes merged"]["median_s"] > 0
    assert table["kept"] == 3 and 0 < table["moved_by_merging"] < 1e-2
    assert "pydensecrf is not installed" in capsys.readouterr().out


def test_memory_is_that_of_one_inference() -> None:
    image = noise_image(60, 80)
    probabilities = benchmark.random_probabilities(4, 2, [60, 80])
    extra = benchmark.peak_memory(image, probabilities, 2, 1, None)
    assert extra is not None or not Path("/proc/self/clear_refs").exists()
    assert extra is None or 0 < extra < 100


def test_picture_depends_on_its_seed_alone() -> None:
    one, again, other = (noise_image(30, 41, seed) for seed in (1, 1, 2))
    assert one.shape == (3, 30, 41) and (one == again).all() and (one != other).any()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--present", "9", "--classes", "4"],
        ["--size", "0", "9"],
        ["--negligible", "1"],
        ["--negligible", "nan"],
        ["--repeats", "0"],
        ["--image", "missing.jpg"],
    ],
)
def test_mistakes(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        benchmark.run(parse(["crf", *arguments]))
