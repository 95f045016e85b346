"""Several processes: the same samples, losses and gradients as one, and none waits for one that is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import faults
import pytest
import torch
from safetensors.torch import load_file, save_file

from afa.data.shapes import CLASS_NAMES

NO_DROPOUT = {"drop_path": 0.0, "decoder_dropout": 0.0}
# One step of each phase: classification alone, refined labels, propagated labels.
PHASES = (0, 5, 9)


@pytest.fixture(scope="module")
def undisturbed_pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("pair")
    config = faults.write_config(folder / "config.yaml", data, folder / "run", train={"batch_size": 2})
    group = faults.start_group(config, folder / "log", 2)
    assert [run.wait() for run in group] == [0, 0], group[0].text()
    return folder / "run"


def save_losses_and_gradients(config_path: str, target: str) -> None:
    """Losses and gradients of one step of each phase, at the initial weights, with frozen BatchNorm statistics."""
    from afa.data.dataset import TrainingImages
    from afa.data.loader import training_loader
    from afa.engine.runtime import ProcessRuntime
    from afa.methods import build_method, load_config

    config = load_config(config_path)
    with ProcessRuntime.start(config.train) as runtime:
        torch.manual_seed(1)
        method = build_method(config, CLASS_NAMES, runtime)
        network = method.network
        wrapped = runtime.wrap(network, sync_batchnorm=False)
        found: dict[str, torch.Tensor] = {}
        for step in PHASES:
            network.train()
            network.decoder.linear_fuse.bn.eval()
            batches = training_loader(
                TrainingImages(config.dataset, method.transform(), needs=method.needs, seed=config.train.seed),
                global_batch=4,
                batch_size=4 // runtime.world_size,
                steps=1,
                start_step=step,
                rank=runtime.rank,
                world_size=runtime.world_size,
            )
            batch = next(iter(batches))
            network.zero_grad()
            result = method.training_step(wrapped, batch, step)
            result.total().backward()
            for name, loss in result.losses.items():
                found[f"{step}/loss/{name}"] = runtime.mean(loss.detach())
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    found[f"{step}/gradient/{name}"] = parameter.grad.clone()
        if runtime.is_main:
            save_file(found, target)


def world_size_differences(
    data: Path, folder: Path, normalisation: str, worlds: Sequence[int] = (2, 4)
) -> dict[str, tuple[float, float]]:
    """How far 2 x 2 and 4 x 1 (processes x images) are from 1 x 4: largest difference in losses and in gradients."""
    folder.mkdir()
    config = faults.write_config(
        folder / "config.yaml", data, folder / "run", model=NO_DROPOUT, loss={"normalisation": normalisation}
    )
    found = {}
    for processes in (1, *worlds):
        target = folder / f"{processes}.safetensors"
        if processes == 1:
            save_losses_and_gradients(str(config), str(target))
        else:
            faults.call_in_group(save_losses_and_gradients, processes, str(config), str(target))
        found[processes] = load_file(target)
    differences = {}
    for processes in worlds:
        assert found[processes].keys() == found[1].keys()
        largest = {
            kind: max(
                (found[processes][key] - value).abs().max().item()
                for key, value in found[1].items()
                if f"/{kind}/" in key
            )
            for kind in ("loss", "gradient")
        }
        differences[f"{processes} x {4 // processes}"] = (largest["loss"], largest["gradient"])
    return differences


def test_global_normalisation_does_not_depend_on_the_number_of_processes(data: Path, tmp_path: Path) -> None:
    for split, (losses, gradients) in world_size_differences(data, tmp_path / "global", "global").items():
        assert losses <= 1e-4, split
        assert gradients <= 1e-4, split


def test_counts_per_process_do_depend_on_it(data: Path, tmp_path: Path) -> None:
    """The default, as in the released program: otherwise the test above would show nothing."""
    differences = world_size_differences(data, tmp_path / "process", "process", worlds=(2,))
    assert max(losses for losses, _ in differences.values()) > 1e-3


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2)])
def test_shares_of_a_batch_are_one_batch_to_the_classification_loss(
    data: Path, tmp_path: Path, processes: int, accumulate: int
) -> None:
    """Over a whole run, on several processes or in several micro-batches."""
    losses = []
    for number, shares in (("one", (1, 1)), ("many", (processes, accumulate))):
        config = faults.write_config(
            tmp_path / f"{number}.yaml",
            data,
            tmp_path / number,
            model=NO_DROPOUT,
            schedule={"cls_until": faults.STEPS - 2},
            optimiser={"name": "sgd", "lr": 0.01},  # AdamW would not notice gradients of another length
            train={"batch_size": 4 // (shares[0] * shares[1]), "accumulate": shares[1], "log_every": 1},
            validation={"cam": False},
        )
        if shares[0] == 1:
            assert faults.run_here(config).code == 0
        else:
            group = faults.start_group(config, tmp_path / "log", shares[0])
            assert [run.wait() for run in group] == [0] * shares[0], group[0].text()
        losses.append([line["loss/cls"] for line in faults.records(tmp_path / number)])
    assert len(losses[0]) == faults.STEPS
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_signal_to_one_process_stops_all_at_the_same_step(data: Path, tmp_path: Path, undisturbed_pair: Path) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"batch_size": 2})
    group = faults.start_group(config, tmp_path / "log", 2)
    group[0].until_says("step 6/")
    group[1].send(signal.SIGUSR1)
    assert [run.wait() for run in group] == [75, 75], group[0].text()
    group = faults.start_group(config, tmp_path / "log", 2)
    assert [run.wait() for run in group] == [0, 0], group[0].text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed_pair)


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
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"batch_size": 2})
    group = faults.start_group(config, tmp_path / "log", 2, dies={rank: ("in a step", 8)})
    codes = [run.wait() for run in group]
    assert codes[rank] == faults.KILLED
    assert codes[1 - rank] == 1, group[1 - rank].text()
    assert "another process of this run is gone: the same command goes on" in group[1 - rank].text()
    assert "Traceback" not in group[0].text() + group[1].text()
    again = faults.start_group(config, tmp_path / "log", 2)
    assert [run.wait() for run in again] == [0, 0], again[0].text()
    assert "going on from step 7" in again[0].text()
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed_pair)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_brings_a_killed_process_back(data: Path, tmp_path: Path, undisturbed_pair: Path, rank: int) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, tmp_path / "run", train={"batch_size": 2})
    code, text = kill_a_rank(config, rank)
    assert code == 0, text
    assert "going on from step" in text
    assert "Traceback" not in text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed_pair)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves(data: Path, tmp_path: Path, undisturbed_pair: Path) -> None:
    config = faults.write_config(
        tmp_path / "config.yaml", data, tmp_path / "run", train={"batch_size": 2, "checkpoint_every": 1000}
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
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed_pair)
