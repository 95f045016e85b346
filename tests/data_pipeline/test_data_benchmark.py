from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from afa.benchmarks.data import Baseline, TrainingSample, run
from afa.benchmarks.pictures import make_jpegs
from afa.commands.benchmark import parse
from afa.errors import UserError


def test_it_measures_samples_and_decoders(tmp_path: Path) -> None:
    make_jpegs(tmp_path, 2)
    threads = torch.get_num_threads()
    try:
        result = run(parse(["data", "--images", str(tmp_path), "--rounds", "1", "--crop", "64"]))
    finally:
        torch.set_num_threads(threads)
    assert result["images"] == 2
    assert set(result["samples"]) == {"baseline (Pillow)", "afa, resampling pil", "afa, resampling opencv"}
    assert all(rate > 0 for rate in (*result["samples"].values(), *result["decoders"].values()))
    assert result["ratio_to_baseline"]["baseline (Pillow)"] == 1
    with pytest.raises(UserError, match="no JPEG"):
        run(parse(["data", "--images", str(tmp_path.parent / "nothing")]))


def test_the_baseline_does_the_same_work(tmp_path: Path) -> None:
    (path,) = make_jpegs(tmp_path, 1)
    baseline, sample = Baseline(512)(path, 3), TrainingSample(512, "pil")(path, 3)
    assert baseline.shape == sample.shape == (3, 512, 512) and baseline.dtype == sample.dtype
    # Not the same draws of place, but the same scale: as much of the crop shows image.
    padding = -np.float32(123.675) / np.float32(58.395)
    shares = [(tensor[0] > padding + 1e-4).float().mean().item() for tensor in (baseline, sample)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
