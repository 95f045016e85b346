"""What is random in a step is a function of the seed, the step and the process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import afa.engine.training
from afa.config import Config, load_config
from afa.engine.loop import step_seed
from afa.engine.runtime import ProcessRuntime
from afa.engine.training import train
from afa.methods import AFA, Batch, StepOutput, build_method


@pytest.mark.parametrize("seed", [1, 5])
def test_every_step_has_a_seed_of_its_own(config: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    seeds = {}

    class Listening(AFA):
        def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
            seeds[step] = torch.initial_seed()
            return super().training_step(network, batch, step)

    def build(network: nn.Module, config: Config, runtime: ProcessRuntime) -> AFA:
        method = build_method(network, config, runtime)  # type: ignore[arg-type]
        method.__class__ = Listening
        return method  # type: ignore[return-value]

    monkeypatch.setattr(afa.engine.training, "build_method", build)
    assert train(load_config(config, ["train.steps=3", f"train.seed={seed}", "validation.cam=false"])) == 0
    assert seeds == {step: step_seed(seed, step, 0) for step in range(3)}


def test_seeds_of_steps_processes_and_runs_differ() -> None:
    seeds = [step_seed(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(4)]
    assert len(set(seeds)) == len(seeds)
