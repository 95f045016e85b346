"""Small networks, published key lists and files for the tests of weights."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import golden
import torch
import yaml
from run_tool import Result
from safetensors.torch import save_file
from torch import Tensor

from afa.config import config_to_dict
from afa.methods.afa.config import AFAConfig, ModelConfig
from afa.models import AFANet
from afa.weights.facts import FACTS_FILE, TRAINING_FILE, WEIGHTS_FILE, pack_facts
from afa.weights.reading import file_checksum

ROOT = Path(__file__).resolve().parents[2]
KEYS: dict[str, dict[str, list[int]]] = json.loads((ROOT / "tests/data/keys.json").read_text())
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NAMES = ["cat", "dog", "cow", "bus", "car"]


def small_settings() -> ModelConfig:
    return golden.small_config().model


def small_network(seed: int = 0, num_classes: int = 6) -> AFANet:
    return golden.small_network(num_classes, seed)


def published(name: str) -> dict[str, Tensor]:
    """A published checkpoint's names and shapes; its zeros take no room."""
    return {
        key: torch.zeros((), dtype=torch.long if key.endswith("num_batches_tracked") else torch.float32).expand(shape)
        for key, shape in KEYS[name].items()
    }


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


def write_foreign_files(folder: Path) -> Path:
    """Files of others: ``code.pth``, ``resnet.pth``, ``mit_b2.pth``; returns what exists once code of the first ran."""
    trace = folder / "code_ran"
    torch.save({"w": torch.ones(2), "x": Harmful(trace)}, folder / "code.pth")
    torch.save({"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)}, folder / "resnet.pth")
    torch.save(published("segformer_mit_b2"), folder / "mit_b2.pth")
    return trace


def write_checkpoint(folder: Path, seed: int, step: int) -> None:
    config = AFAConfig(model=small_settings())
    folder.mkdir(parents=True)
    save_file(small_network(seed).state_dict(), folder / WEIGHTS_FILE)
    save_file({"exp_avg/classifier.weight": torch.zeros(2)}, folder / TRAINING_FILE)
    record = {"config": config_to_dict(config), "class_names": NAMES, "step": step}
    checksums = {name: file_checksum(folder / name) for name in (WEIGHTS_FILE, TRAINING_FILE)}
    (folder / FACTS_FILE).write_text(pack_facts(record, checksums))


def write_config(path: Path, settings: ModelConfig, **dataset: str) -> None:
    path.write_text(yaml.safe_dump({"model": vars(settings), "dataset": {"root": "/nowhere", **dataset}}))


def refused(outcome: subprocess.CompletedProcess[str] | Result) -> str:
    """The one line of a refusal."""
    assert outcome.returncode == 2, outcome.stderr
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.stderr
    return lines[0]
