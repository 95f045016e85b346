"""Non-finite losses and gradients, mixed precision, compilation, the records' means."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partialmethod
from pathlib import Path

import faults
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import afa.engine.training
from afa.engine.finite import FiniteGuard, InspectedStep
from afa.engine.optimisation import update
from afa.engine.records import Meter
from afa.engine.runtime import ProcessRuntime, compile_network
from afa.engine.training import train
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import build_method, load_config
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.labels import PseudoLabels
from afa.methods.base import Batch, Method, StepOutput

BAD_STEP = 5


class _Infinite(torch.autograd.Function):
    """Passes a value on, and an infinite gradient back."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * torch.inf


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make some steps of a run bad."""

    def install(kind: str, steps: tuple[int, ...] = (BAD_STEP,)) -> None:
        def build(config: AFAConfig, class_names: Sequence[str], runtime: ProcessRuntime) -> Method:
            method = build_method(config, class_names, runtime)
            original = method.training_step

            def training_step(wrapped: nn.Module, batch: Batch, step: int) -> StepOutput:
                if step in steps and kind == "image":
                    batch = {**batch, "image": batch["image"] * torch.nan}
                result = original(wrapped, batch, step)
                if step in steps and kind == "gradient":
                    result.losses["cls"] = _Infinite.apply(result.losses["cls"])
                if step in steps and kind == "loss":
                    result.losses["seg"] = result.losses["seg"] * torch.nan
                return result

            monkeypatch.setattr(method, "training_step", training_step)
            return method

        monkeypatch.setattr(afa.engine.training, "build_method", build)

    return install


def test_a_bad_loss_stops_with_its_cause_and_a_bundle(
    config: Path, tmp_path: Path, sabotage: Callable[..., None]
) -> None:
    sabotage("loss")
    with pytest.raises(UserError) as stopped:
        train(load_config(config))
    message = str(stopped.value)
    assert message.startswith("step 5: loss seg is not finite (images: train_")
    assert "train.non_finite=skip" in message
    bundle = tmp_path / "run" / "non_finite" / "step_00000005"
    facts = json.loads((bundle / "rank_0.json").read_text())
    (micro_batch,) = facts["micro_batches"]
    assert micro_batch["losses"]["seg"] == "nan"
    assert math.isfinite(float(micro_batch["losses"]["cls"]))
    assert all(name in message for name in micro_batch["images"])
    assert load_file(bundle / "rank_0.safetensors")["image/0"].shape == (4, 3, 64, 64)
    assert all(value.isfinite().all() for value in load_file(bundle / "weights.safetensors").values())
    # Not passed over by starting again, either.
    with pytest.raises(UserError, match="step 5: loss seg is not finite"):
        train(load_config(config))


def test_a_bad_gradient_is_named(config: Path, tmp_path: Path, sabotage: Callable[..., None]) -> None:
    sabotage("gradient")
    with pytest.raises(UserError, match=r"step 5: a gradient is not finite \(.+\), the losses are \(images: train_"):
        train(load_config(config))


@pytest.mark.parametrize("kind", ["loss", "gradient", "image"])
def test_bad_steps_may_be_skipped(
    config: Path, tmp_path: Path, sabotage: Callable[..., None], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO, "afa")
    sabotage(kind)
    assert train(load_config(config, ["train.non_finite=skip", "train.steps=7"])) == 0
    assert "the step is skipped (1 so far)" in caplog.text
    weights = load_file(tmp_path / "run" / "checkpoints" / "last" / "weights.safetensors")
    assert all(value.isfinite().all() for value in weights.values()), "BatchNorm's statistics included"
    lines = faults.records(tmp_path / "run")
    assert [line["step"] for line in lines] == faults.recorded_steps(7)
    assert all(value is not None for line in lines for value in line.values()), "a bad step spoils no mean"


def test_the_run_stops_after_so_many_bad_steps(config: Path, sabotage: Callable[..., None]) -> None:
    sabotage("loss", steps=(5, 6, 7, 8))
    overrides = ["train.non_finite=skip", "train.non_finite_limit=3"]
    with pytest.raises(UserError, match=r"step 8: .* 3 such steps were skipped"):
        train(load_config(config, overrides))
    # What was skipped before the last checkpoint still counts after a new start.
    with pytest.raises(UserError, match=r"step 8: .* 3 such steps were skipped"):
        train(load_config(config, overrides))


@pytest.mark.parametrize("fused", [False, True])
def test_a_bad_step_leaves_optimiser_and_weights_untouched(fused: bool) -> None:
    network = nn.Linear(4, 2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    update(optimiser, torch.tensor(1.0))
    assert all(torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    update(optimiser, torch.tensor(0.0))
    assert all(not torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True))
    assert all(int(optimiser.state[parameter]["step"]) == 1 for parameter in network.parameters())


def test_overflows_of_scaled_gradients_are_no_fault_until_they_do_not_end(tmp_path: Path) -> None:
    network = nn.Linear(4, 2)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    runtime = ProcessRuntime(torch.device("cpu"))
    guard = FiniteGuard(runtime, network, tmp_path, policy="stop", limit=1, scaled=True)
    batch = {"image": torch.zeros(1, 3, 4, 4), "class_labels": torch.zeros(1, 2), "name": ["one"]}

    def inspect(step: int) -> Tensor:
        return guard.inspect(InspectedStep(step, [batch], [{"cls": torch.tensor(1.0)}], torch.tensor(1.0)))[1]

    for step in range(20):
        assert inspect(step).item() == 1
    assert guard.state() == {"skipped": 0, "overflows": 20}
    for step in range(20, 24):
        inspect(step)
    with pytest.raises(UserError, match="a gradient is not finite"):
        inspect(24)


def test_bf16_on_the_cpu_makes_its_labels_in_float32(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[torch.dtype]] = {"refined": [], "propagated": []}
    for name in seen:
        original = getattr(PseudoLabels, name)

        def label(
            labels: PseudoLabels, image: Tensor, cams: Maps, *rest: object, kind: str, original: Callable[..., Tensor]
        ) -> Tensor:
            assert not torch.is_autocast_enabled("cpu")
            seen[kind] += [image.dtype, cams.scores.dtype]
            return original(labels, image, cams, *rest)

        monkeypatch.setattr(PseudoLabels, name, partialmethod(label, kind=name, original=original))
    assert train(load_config(config, ["train.precision=bf16", "train.steps=9"])) == 0
    assert set(seen["refined"]) == set(seen["propagated"]) == {torch.float32}
    assert all(value is not None for line in faults.records(tmp_path / "run") for value in line.values())
    weights = load_file(tmp_path / "run" / "checkpoints" / "last" / "weights.safetensors")
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.int64}


class _Part(nn.Module):
    """A module of our own: PyTorch before 2.14 compiles none of its own containers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


def test_a_compiler_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import torch._dynamo.backends.registry

    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
        raise RuntimeError("no C++ compiler found\nand a long story about it")

    registry = torch._dynamo.backends.registry
    original = registry.lookup_backend
    monkeypatch.setattr(
        registry, "lookup_backend", lambda backend: broken if backend == "inductor" else original(backend)
    )
    network = nn.Sequential(_Part(), nn.Linear(3, 1))
    plain = network(torch.ones(2, 3))
    compile_network(network)
    assert torch.equal(network(torch.ones(2, 3)), plain)
    network(torch.ones(2, 3)).sum().backward()
    complaints = [record.getMessage() for record in caplog.records if record.name == "afa.engine.runtime"]
    assert complaints == ["train.compile: torch.compile does not work here, training uncompiled: no C++ compiler found"]


def test_no_compiler_at_all_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("Dynamo is not supported on this Python\nnor on that")

    monkeypatch.setattr(nn.Module, "compile", missing)
    network = nn.Sequential(nn.Linear(3, 1))
    compile_network(network)
    assert network(torch.ones(2, 3)).shape == (2, 1)
    assert "training uncompiled: Dynamo is not supported on this Python" in caplog.text and "nor" not in caplog.text


def test_what_is_left_uncompiled_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    compile_network(nn.Sequential(nn.Linear(3, 1)))
    for number in range(2):
        logging.getLogger("torch._dynamo.convert_frame").warning(
            "WON'T CONVERT forward %d\ndue to: this and that", number
        )
    assert caplog.text.count("runs uncompiled") == 1
    assert "WON'T CONVERT forward 0" in caplog.text and "due to" not in caplog.text


@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_float32_is_rounded_on_a_gpu_only_where_asked_for(precision: str) -> None:
    with ProcessRuntime.start(AFAConfig().train):
        assert not torch.backends.cudnn.allow_tf32, "by PyTorch's default convolutions are"
    with ProcessRuntime.start(dataclasses.replace(AFAConfig().train, precision=precision)) as runtime:
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        assert runtime.dtype == torch.float32 and isinstance(runtime.autocast(), nullcontext)
    with ProcessRuntime.start(AFAConfig().train):
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
def test_compiled_training_is_close_to_plain_training(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    run = faults.Run(config, tmp_path / "log", ["train.compile=true"])
    assert run.wait(900) == 0, run.text()
    assert "Traceback" not in run.text()
    assert "does not work here" not in run.text()
    losses = [line["loss/total"] for line in faults.records(tmp_path / "run")]
    assert losses == pytest.approx([line["loss/total"] for line in faults.records(undisturbed)], rel=0.05)


def test_meter_means_over_steps_that_count() -> None:
    meter, counts, skipped = Meter(), torch.tensor(0.0), torch.tensor(1.0)
    meter.add({"a": torch.tensor(1.0)}, left_out=counts)
    meter.add({"a": torch.tensor(torch.nan)}, left_out=skipped)
    state = [json.loads(json.dumps(meter.state()))]
    meter = Meter()
    meter.restore(state, ProcessRuntime(torch.device("cpu")))
    meter.add({"a": torch.tensor(4.0), "b": torch.tensor(2.0)}, left_out=counts)
    assert meter.means(lambda sums: sums) == {"a": 2.5, "b": 1.0}
    assert meter.means(lambda sums: sums) == {}
