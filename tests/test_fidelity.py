"""docs/fidelity.md: its code runs, its table is that of the comparisons."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import NUM_CLASSES, SMALL_MODEL, load_golden, normalised

from afa.config import Config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs/fidelity.md"


def test_reference_code_of_the_document() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert all(len(block.splitlines()) < 5 for block in blocks[1:])
    golden, trajectory = load_golden("model_gmp"), load_golden("train_trajectory")
    image = normalised(golden["images_uint8"])
    height, width = image.shape[-2:]
    names: dict[str, Any] = {
        "state": load_golden("network_state"),
        "image": image,
        "height": height,
        "width": width,
        "mean": Config().dataset.image_mean,
        "std": Config().dataset.image_std,
        "class_labels": torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 0]]),
        "valid_box": torch.tensor([[0, height, 0, width], [8, height, 0, width]]),
        "settings": {
            "model": SMALL_MODEL,
            "augmentation": {"crop_size": 128},
            "affinity": {"radius": 2},
            "optimiser": {"lr": 1e-3, "warmup_steps": 3},
            "schedule": {"cls_until": 2, "refined_until": 4, "released_decoder_passes": True},
            "train": {"steps": 20},
        },
    }
    *blocks, last = blocks
    for block in blocks:
        exec(block, names)
    assert torch.allclose(names["output"].cls_logits, golden["cls_logits"], atol=1e-4)
    assert torch.allclose(names["features"][3], golden["feature/3"], atol=1e-4)
    assert names["cams"].shape == (2, NUM_CLASSES - 1, height, width)
    for name in ("plain", "initial", "refined", "propagated"):
        assert names[name].shape == (2, height, width)
        assert set(names[name].unique().tolist()) <= {0, 1, 3, 4, 255}
    assert torch.isfinite(names["aff_loss"] + names["seg_loss"])

    names["network"].load_state_dict(names["state"])
    for step in range(4):
        names["step"] = step
        names["batch"] = {
            "image": normalised(trajectory["images_uint8"][step]),
            "class_labels": trajectory["class_labels"][step],
            "valid_box": trajectory["boxes"][step],
            "name": ["first", "second"],
        }
        exec(last, names)
        found = [names["result"].losses[name].item() for name in ("cls", "seg", "aff")]
        expected = trajectory["losses_cls_seg_aff_total"][step, :3].tolist()
        assert all(abs(one - other) < 1e-3 for one, other in zip(found, expected, strict=True))


def rows(text: str) -> set[tuple[str, str, str]]:
    """Part, tolerance and test of every row; what was measured may differ from machine to machine."""
    cells = [line.strip("|\n").split(" | ") for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return {(row[0].strip(), row[2], row[3].strip()) for row in cells if len(row) == 4 and "test_reference" in row[3]}


def test_table_of_the_document_names_every_comparison() -> None:
    found = {
        f"`{path.relative_to(ROOT / 'tests').as_posix()} {name}`"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_reference_\w+)\([^)]*agreement", path.read_text())
    }
    assert found == {test for _, _, test in rows(DOCUMENT.read_text())}, "run: python tools/fidelity.py --write"


@pytest.mark.slow
def test_table_of_the_document_is_what_the_command_writes() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/fidelity.py")], capture_output=True, text=True, timeout=1800
    )
    assert result.returncode == 0, result.stderr
    printed = rows(result.stdout)
    assert len(printed) > 40
    assert rows(DOCUMENT.read_text()) == printed, "run: python tools/fidelity.py --write"
