"""Several processes: the same samples, losses and gradients as one, and none waits for one that is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import faults
import pytest
import torch
from safetensors.torch import load_file, save_file

from afa.data.shapes import CLASS_NAMES

NO_DROPOUT = {"drop_path": 0.0, "decoder_dropout": 0.0}
# One step of each phase: classification alone, refined labels, propagated labels.
PHASES = (0, 5, 9)
# On two processes: the shortest run that has all phases.
PAIR = {"batch_size": 2, "steps": 9}
LONG_PAIR = {"batch_size": 2}
outcome = partial(faults.outcome, step=PAIR["steps"])


def run_pair(data: Path, folder: Path, train: dict[str, int]) -> Path:
    """A run of two processes that nothing happens to."""
    config = faults.write_config(folder / "config.yaml", data, folder / "run", train=train)
    group = faults.start_group(config, folder / "log", 2)
    assert [run.wait() for run in group] == [0, 0], group[0].text()
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed_pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pair(data, tmp_path_factory.mktemp("pair"), PAIR)


@pytest.fixture(scope="module")
def undisturbed_long_pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pair(data, tmp_path_factory.mktemp("long_pair"), LONG_PAIR)


def save_losses_and_gradients(config_paths: list[str], target: str) -> None:
    """Of one step of each phase and each configuration, at the initial weights, with frozen BatchNorm statistics."""
    from afa.data.dataset import TrainingImages
    from afa.data.loader import training_loader
    from afa.engine.runtime import ProcessRuntime
    from afa.methods import build_method, load_config

    configs = [load_config(path) for path in config_paths]
    found: dict[str, torch.Tensor] = {}
    with ProcessRuntime.start(configs[0].train) as runtime:
        for config in configs:
            torch.manual_seed(1)
            method = build_method(config, CLASS_NAMES, runtime)
            network = method.network.train()
            network.decoder.linear_fuse.bn.eval()
            wrapped = runtime.wrap(network, sync_batchnorm=False)
            for step in PHASES:
                batches = training_loader(
                    TrainingImages(config.dataset, method.transform(), needs=method.needs, seed=config.train.seed),
                    global_batch=4,
                    batch_size=4 // runtime.world_size,
                    steps=1,
                    start_step=step,
                    rank=runtime.rank,
                    world_size=runtime.world_size,
                )
                network.zero_grad()
                result = method.training_step(wrapped, next(iter(batches)), step)
                result.total().backward()
                kind = f"{config.loss.normalisation}/{step}"
                for name, loss in result.losses.items():
                    found[f"{kind}/loss/{name}"] = runtime.mean(loss.detach())
                for name, parameter in network.named_parameters():
                    if parameter.grad is not None:
                        found[f"{kind}/gradient/{name}"] = parameter.grad.clone()
        if runtime.is_main:
            save_file(found, target)


@pytest.fixture(scope="module")
def losses_and_gradients(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, torch.Tensor]]:
    """Those of 1 x 4, 2 x 2 and 4 x 1 (processes x images), by the number of processes."""
    folder = tmp_path_factory.mktemp("worlds")
    configs = [
        str(
            faults.write_config(
                folder / f"{kind}.yaml", data, folder / "run", model=NO_DROPOUT, loss={"normalisation": kind}
            )
        )
        for kind in ("global", "process")
    ]
    targets = {processes: folder / f"{processes}.safetensors" for processes in (1, 2, 4)}
    for processes, target in targets.items():
        if processes == 1:
            save_losses_and_gradients(configs, str(target))
        else:
            faults.call_in_group(save_losses_and_gradients, processes, configs, str(target))
    return {processes: load_file(target) for processes, target in targets.items()}


def differences(found: dict[int, dict[str, torch.Tensor]], processes: int, kind: str) -> list[float]:
    """How far some values of so many processes are from those of one."""
    assert found[processes].keys() == found[1].keys()
    return [
        (found[processes][key] - value).abs().max().item()
        for key, value in found[1].items()
        if key.startswith(f"{kind}/")
    ]


@pytest.mark.parametrize("processes", [2, 4])
def test_global_normalisation_does_not_depend_on_the_number_of_processes(
    losses_and_gradients: dict[int, dict[str, torch.Tensor]], processes: int
) -> None:
    found = differences(losses_and_gradients, processes, "global")
    assert len(found) > 100 and max(found) <= 1e-4


def test_counts_per_process_do_depend_on_it(losses_and_gradients: dict[int, dict[str, torch.Tensor]]) -> None:
    """The default, as in the released program: otherwise the test above would show nothing."""
    assert max(differences(losses_and_gradients, 2, "process/9/loss")) > 1e-3


@pytest.fixture(scope="module")
def classification_losses(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], list[float]]:
    """Those of a run on so many processes, in so many micro-batches each."""

    @cache
    def train(processes: int, accumulate: int) -> list[float]:
        folder = tmp_path_factory.mktemp("shares")
        config = faults.write_config(
            folder / "config.yaml",
            data,
            folder / "run",
            model=NO_DROPOUT,
            schedule={"cls_until": 6},
            optimiser={"name": "sgd", "lr": 0.01},  # AdamW would not notice gradients of another length
            train={"steps": 8, "batch_size": 4 // (processes * accumulate), "accumulate": accumulate, "log_every": 1},
            validation={"cam": False},
        )
        if processes == 1:
            assert faults.run_here(config).code == 0
        else:
            group = faults.start_group(config, folder / "log", processes)
            assert [run.wait() for run in group] == [0] * processes, group[0].text()
        return [line["loss/cls"] for line in faults.records(folder / "run")]

    return train


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2)])
def test_shares_of_a_batch_are_one_batch_to_the_classification_loss(
    classification_losses: Callable[[int, int], list[float]], processes: int, accumulate: int
) -> None:
    """Over a whole run, on several processes or in several micro-batches."""
    one = classification_losses(1, 1)
    assert len(one) == 8
    assert classification_losses(processes, accumulate) == pytest.approx(one, abs=1e-4)


def test_a_signal_to_one_process_stops_all_at_the_same_step(data: Path, tmp_path: Path, undisturbed_pair: Path) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train=PAIR)
    group = faults.start_group(config, tmp_path / "log", 2)
    group[0].until_says("step 2/")
    group[1].send(signal.SIGUSR1)
    assert [run.wait() for run in group] == [75, 75], group[0].text()
    group = faults.start_group(config, tmp_path / "log", 2)
    assert [run.wait() for run in group] == [0, 0], group[0].text()
    assert outcome(tmp_path / "run") == outcome(undisturbed_pair)


def test_a_damaged_image_on_one_process_is_said_by_all_and_saved(data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    config = faults.write_config(tmp_path / "config.yaml", own, tmp_path / "run", train={"batch_size": 2, "workers": 1})
    # Seen by the second process only, some steps into the run.
    from afa.data.sampler import StreamSampler

    names = (own / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    sampler = StreamSampler(
        len(names), seed=1, global_batch=4, batch_size=2, steps=1, start_step=4, rank=1, world_size=2
    )
    (((_, index), *_),) = list(sampler)
    (own / "JPEGImages" / f"{names[index]}.jpg").write_bytes(b"no picture")
    group = faults.start_group(config, tmp_path / "log", 2)
    assert [run.wait() for run in group] == [2, 2]
    for run in group:
        last = run.text().strip().splitlines()[-1]
        assert last.startswith("error: the image ")
        assert f"{names[index]}.jpg" in last
        assert "stopped after step 4; the same command goes on from there" in last
        assert "Traceback" not in run.text()
    assert (tmp_path / "run" / "checkpoints" / "step_00000004").is_dir()


def test_evaluation_is_the_same_on_several_processes(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    save_table(str(undisturbed), str(data), str(tmp_path / "1.json"))
    faults.call_in_group(save_table, 3, str(undisturbed), str(data), str(tmp_path / "3.json"))
    assert (tmp_path / "1.json").read_text() == (tmp_path / "3.json").read_text()


def save_table(run: str, data: str, target: str) -> None:
    """The evaluation table of a run's checkpoint."""
    import json

    from afa.data.loader import evaluation_loader
    from afa.engine.runtime import ProcessRuntime
    from afa.prediction.evaluate import evaluate
    from afa.prediction.model import load

    model = load(run, device="cpu")
    with ProcessRuntime.start(model.config.train) as runtime:
        samples = evaluation_loader(model.config.dataset, rank=runtime.rank, world_size=runtime.world_size)
        table = evaluate(model.method, samples, class_names=model.class_names, device=runtime.device).table
        if runtime.is_main:
            Path(target).write_text(json.dumps(table))


def kill_a_rank(config: Path, rank: int) -> tuple[int, str]:
    """Kill one process of a real torchrun in the midst of training; torchrun must bring all back."""
    process = subprocess.Popen(
        faults.command(config, processes=2, restarts=2),
        env=faults.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("step 6/"):
            break
    workers = [
        child
        for child in faults.children(process.pid)
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes()
    ]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    text += process.stdout.read()
    return process.wait(), text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_that_lost_a_process_ends_and_goes_on(
    data: Path, tmp_path: Path, undisturbed_pair: Path, rank: int
) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train=PAIR)
    group = faults.start_group(config, tmp_path / "log", 2, dies={rank: ("in a step", 8)})
    codes = [run.wait() for run in group]
    assert codes[rank] == faults.KILLED
    assert codes[1 - rank] == 1, group[1 - rank].text()
    assert "another process of this run has ended: the same command goes on" in group[1 - rank].text()
    assert "Traceback" not in group[0].text() + group[1].text()
    if rank == 1:
        return  # What stays behind is the same.
    again = faults.start_group(config, tmp_path / "log", 2)
    assert [run.wait() for run in again] == [0, 0], again[0].text()
    assert "going on from step 7" in again[0].text()
    assert outcome(tmp_path / "run") == outcome(undisturbed_pair)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_brings_a_killed_process_back(
    data: Path, tmp_path: Path, undisturbed_long_pair: Path, rank: int
) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train=LONG_PAIR)
    code, text = kill_a_rank(config, rank)
    assert code == 0, text
    assert "going on from step" in text
    assert "Traceback" not in text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed_long_pair)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves(data: Path, tmp_path: Path, undisturbed_long_pair: Path) -> None:
    config = faults.write_config(
        tmp_path / "config.yaml", data, tmp_path / "run", train={**LONG_PAIR, "checkpoint_every": 1000}
    )
    process = subprocess.Popen(
        faults.command(config, processes=2), env=faults.environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 4/"):
            break
    process.terminate()
    assert "asked to stop at step" in process.stderr.read()
    assert process.wait() != 0
    time.sleep(0.1)
    group = faults.start_group(config, tmp_path / "log", 2)
    assert [run.wait() for run in group] == [0, 0], group[0].text()
    assert "going on from step" in group[0].text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed_long_pair)
