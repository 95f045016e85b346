"""What is random in a step is a function of the seed, the step and the process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from afa.engine.trainer import step_seed
from afa.engine.training import train
from afa.methods import load_config
from afa.methods.afa.method import AFA
from afa.methods.base import Batch, StepOutput


@pytest.mark.parametrize("seed", [1, 5])
def test_every_step_has_a_seed_of_its_own(config: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    seeds = {}
    original = AFA.training_step

    def training_step(method: AFA, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        seeds[step] = torch.initial_seed()
        return original(method, network, batch, step)

    monkeypatch.setattr(AFA, "training_step", training_step)
    overrides = ["train.steps=3", "schedule.cls_until=0", f"train.seed={seed}", "validation.outputs=[segmentation]"]
    assert train(load_config(config, overrides)) == 0
    assert seeds == {step: step_seed(seed, step, 0) for step in range(3)}


def test_seeds_of_steps_processes_and_runs_differ() -> None:
    seeds = [step_seed(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(4)]
    assert len(set(seeds)) == len(seeds)
