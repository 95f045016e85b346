"""Which device a run takes, with stand-ins for GPUs."""

from __future__ import annotations

import pytest
import torch

from afa.config import TrainConfig
from afa.device import choose_device
from afa.engine.runtime import ProcessRuntime
from afa.errors import UserError


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "device"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (1, True, "auto", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "mps", "mps"),
        (1, True, "cpu", "cpu"),
    ],
)
def test_the_device_is_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, name: str, device: str
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert str(choose_device(name, "--device")) == device


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "--device=cuda, but PyTorch sees no GPU; use --device=cpu"),
        ("mps", "--device=mps, but PyTorch sees no GPU of Apple's; use --device=cpu"),
        ("gpu", "--device=gpu: no such device; use auto, cpu, cuda, cuda:N or mps"),
        ("meta", "--device=meta is not supported; use auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    machine(monkeypatch)
    with pytest.raises(UserError) as found:
        choose_device(name, "--device")
    assert str(found.value) == message


def test_several_processes_do_not_share_the_one_gpu_of_apples(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    assert str(choose_device("auto", "train.device", world_size=2)) == "cpu"
    with pytest.raises(UserError, match="is for one process"):
        choose_device("mps", "train.device", world_size=2)


def test_half_precision_with_a_scaler_is_for_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    with pytest.raises(UserError, match="fp16 needs a GPU with CUDA"):
        ProcessRuntime.start(TrainConfig(device="mps", precision="fp16"))
