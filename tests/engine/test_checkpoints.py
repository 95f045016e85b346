"""Damaged checkpoints are noticed and passed over; a full disk or an unwritable folder costs no run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
import torch
from torch import nn

from afa.engine.checkpoint import CheckpointStore, restore
from afa.errors import UserError
from afa.weights import open_checkpoint
from afa.weights.facts import FACTS_FILE, TRAINING_FILE, WEIGHTS_FILE

MUTATED_CHECKPOINTS = 100


def network_and_optimiser(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(8, 2))
    optimiser = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    return network, optimiser


def same_state(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, made from the seeds 1 and 2."""
    output = tmp_path_factory.mktemp("two")
    store = CheckpointStore(output, keep=2)
    for step in (1, 2):
        assert store.save(step, *network_and_optimiser(step), {"best_step": None, "config": {"a": [1, 0.5]}})
    return output


def damage_count(source: Path, folder: Path, cases: int, seed: int = 0) -> Counter[str]:
    """Damage the newer of two checkpoints in many ways; every time the older one must be taken, and be whole."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for case in range(cases):
        output = folder / str(case)
        shutil.copytree(source, output, symlinks=True)
        file = output / "checkpoints" / "step_00000002" / rng.choice((WEIGHTS_FILE, TRAINING_FILE, FACTS_FILE))
        before = file.read_bytes()
        if rng.random() < 0.1:
            kind, after = "file missing", b"missing"
            file.unlink()
        else:
            kind, after = faults.mutate(before, rng)
            file.write_bytes(after)
        expected = 2 if after == before else 1
        checkpoint = CheckpointStore(output, keep=2).load_latest()
        assert checkpoint is not None
        assert checkpoint.facts["step"] == expected, (kind, file)
        network, optimiser = network_and_optimiser(seed=5)
        restore(checkpoint, network, optimiser)
        assert same_state(network, network_and_optimiser(expected)[0])
        counts[kind if expected == 1 else "unchanged by chance, taken as it is"] += 1
        shutil.rmtree(output)
    return counts


def test_mutated_checkpoints_are_passed_over(two_checkpoints: Path, tmp_path: Path) -> None:
    counts = damage_count(two_checkpoints, tmp_path, MUTATED_CHECKPOINTS)
    assert counts.total() == MUTATED_CHECKPOINTS
    assert {"empty", "truncated", "bit flipped"} <= set(counts)


def test_damage_is_said_and_set_aside(two_checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run", symlinks=True)
    store = CheckpointStore(tmp_path / "run", keep=2)
    (store.path(2) / WEIGHTS_FILE).write_bytes(b"")
    store.mark_best(2)
    checkpoint = store.load_latest()
    assert checkpoint is not None
    assert checkpoint.facts["step"] == 1
    assert (
        "step_00000002 is damaged: weights.safetensors does not match its checksum; taking the one before"
        in caplog.text
    )
    assert store.steps() == [1]
    assert (store.folder / "damaged_step_00000002").is_dir()
    assert (store.folder / "last").resolve() == store.path(1).resolve()
    assert not (store.folder / "best").is_symlink()
    # Once the run has come past it, it is of no use any more.
    store.save(3, *network_and_optimiser(3), {})
    assert not (store.folder / "damaged_step_00000002").exists()


def test_nothing_but_damage_is_one_line(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run", symlinks=True)
    store = CheckpointStore(tmp_path / "run", keep=2)
    for step in (1, 2):
        (store.path(step) / FACTS_FILE).write_text("[]")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged: delete the folder"):
        store.load_latest()
    assert store.steps() == [1, 2], "nothing is touched that somebody might still want"


@pytest.mark.parametrize("written", [True, False])
def test_a_step_saved_twice_is_never_without_a_checkpoint(
    two_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run", symlinks=True)
    store = CheckpointStore(tmp_path / "run", keep=1)
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if not written and Path(source).name.startswith(".part_step"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    assert store.save(2, *network_and_optimiser(9), {"best_step": None}) is written
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.facts["step"] == 2
    network, optimiser = network_and_optimiser(5)
    restore(checkpoint, network, optimiser)
    assert same_state(network, network_and_optimiser(9 if written else 2)[0])
    assert not list(store.folder.glob("replaced_*"))


def test_killed_between_two_checkpoints_of_a_step(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run", symlinks=True)
    store = CheckpointStore(tmp_path / "run", keep=1)
    store.path(2).rename(store.folder / "replaced_step_00000002")
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.facts["step"] == 2


def test_links_that_cannot_be_made_cost_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, target: str) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", fail)
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 3):
        assert store.save(step, *network_and_optimiser(step), {"best_step": None})
    assert not store.mark_best(3)
    assert store.steps() == [3]
    assert "the link 'last' to" in caplog.text


def test_moments_take_the_memory_order_of_their_parameters(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    network, optimiser = network_and_optimiser(1)
    store.save(1, network, optimiser, {"best_step": None})
    checkpoint = store.load_latest()
    assert checkpoint is not None
    other, other_optimiser = network_and_optimiser(2)
    other.to(memory_format=torch.channels_last)
    restore(checkpoint, other, other_optimiser)
    for own, parameter in zip(network.parameters(), other.parameters(), strict=True):
        moments, expected = other_optimiser.state[parameter], optimiser.state[own]
        assert moments["exp_avg"].stride() == parameter.stride()
        assert all(torch.equal(moments[name], value) for name, value in expected.items())


def test_the_best_is_the_one_of_the_highest_score(undisturbed: Path) -> None:
    scores = {
        record["step"]: record["validation/segmentation_miou"]
        for record in faults.records(undisturbed)
        if "validation/segmentation_miou" in record
    }
    assert len(set(scores.values())) > 1
    best = max(scores, key=lambda step: scores[step])
    result = json.loads((undisturbed / "result.json").read_text())
    assert (result["best_step"], result["best"]) == (best, scores[best])
    assert (undisturbed / "checkpoints" / "best").resolve().name == f"step_{best:08d}"


def test_last_ones_and_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 7):
        store.save(step, *network_and_optimiser(step), {})
        if step == 2:
            store.mark_best(step)
    assert store.steps() == [2, 5, 6]
    assert (store.folder / "best").resolve() == store.path(2).resolve()
    assert (store.folder / "last").resolve() == store.path(6).resolve()


def test_a_checkpoint_that_does_not_fit_leaves_the_network_alone(two_checkpoints: Path) -> None:
    checkpoint = CheckpointStore(two_checkpoints).load_latest()
    assert checkpoint is not None
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match="the checkpoint of step 2 does not fit this network"):
        restore(checkpoint, other, torch.optim.AdamW(other.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_optimiser_state_comes_back(two_checkpoints: Path) -> None:
    checkpoint = CheckpointStore(two_checkpoints).load_latest()
    assert checkpoint is not None
    network, optimiser = network_and_optimiser(seed=5)
    restore(checkpoint, network, optimiser)
    expected_network, expected = network_and_optimiser(seed=2)
    for parameter, other in zip(network.parameters(), expected_network.parameters(), strict=True):
        assert optimiser.state[parameter].keys() == expected.state[other].keys()
        for key, value in expected.state[other].items():
            assert torch.equal(optimiser.state[parameter][key], value)


def test_what_lies_beside_the_weights(undisturbed: Path) -> None:
    folder = undisturbed / "checkpoints" / "last"
    assert sorted(path.name for path in folder.iterdir()) == [FACTS_FILE, TRAINING_FILE, WEIGHTS_FILE]
    facts = json.loads((folder / FACTS_FILE).read_text())
    assert facts["step"] == faults.STEPS
    assert facts["world_size"] == 1
    assert facts["global_batch"] == 4
    assert set(facts["versions"]) == {"afa", "git", "torch", "numpy", "python"}
    assert facts["config"]["optimiser"]["lr"] == 1e-3
    result = json.loads((undisturbed / "result.json").read_text())
    assert open_checkpoint(undisturbed).step == result["best_step"]


@pytest.mark.parametrize(
    ("damage", "name"), [("zero length", WEIGHTS_FILE), ("truncated", TRAINING_FILE), ("bit flipped", FACTS_FILE)]
)
def test_a_run_goes_on_from_the_checkpoint_before(
    config: Path, copied_run: Path, undisturbed: Path, damage: str, name: str
) -> None:
    (copied_run / "result.json").unlink()
    file = max((copied_run / "checkpoints").glob("step_*")) / name
    data = bytearray(file.read_bytes())
    if damage == "zero length":
        data = bytearray()
    elif damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 4
    file.write_bytes(data)
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert "taking the one before" in again.text and "going on from step 12" in again.text
    assert faults.outcome(copied_run) == faults.outcome(undisturbed)


def test_files_that_cannot_grow_cost_checkpoints_not_the_run(config: Path, tmp_path: Path, undisturbed: Path) -> None:
    """A limit on the size of files stands for a disk that is full for anything large."""
    run = faults.Run(config, tmp_path / "log", limit_bytes=100_000)
    assert run.wait() == 2, run.text()
    for step in (3, 6, 7, 9, 12, 14):
        assert f"the checkpoint of step {step} could not be written, training goes on" in run.text()
    assert "the last checkpoint could not be written" in run.text().splitlines()[-1]
    assert "Traceback" not in run.text()
    assert [line["step"] for line in faults.records(tmp_path / "run")] == faults.recorded_steps()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert faults.outcome(tmp_path / "run") == faults.outcome(undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of little more than 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_checkpoints_not_the_run(
    data: Path, tmp_path: Path, small_disk: Path, undisturbed: Path
) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, small_disk / "run")
    run = faults.run_here(config)
    assert run.code == 2, run.text
    assert "could not be written, training goes on" in run.text
    assert "No space left on device" in run.text
    assert "Traceback" not in run.text
    assert f"step {faults.STEPS}/{faults.STEPS}" in run.text, "the run itself went on to its end"
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = faults.run_here(config)
    assert again.code == 0, again.text
    assert "going on from step 3" in again.text
    assert faults.outcome(small_disk / "run") == faults.outcome(undisturbed)


def test_a_disk_that_is_full_for_a_while_costs_no_record(
    data: Path, tmp_path: Path, small_disk: Path, undisturbed: Path
) -> None:
    config = faults.write_config(tmp_path / "config.yaml", data, small_disk / "run", train={"checkpoint_every": 1000})
    filler = small_disk / "filler"

    def fill() -> None:
        filler.write_bytes(b"")
        with pytest.raises(OSError), filler.open("ab", buffering=0) as file:  # noqa: PT012 - the loop is what fills
            while True:
                file.write(bytes(1024))

    run = faults.run_here(
        config,
        "train.steps=400",
        "validation.every=1000",
        when={
            "step 4/": fill,
            "records cannot be written, training goes on": filler.unlink,
            "records can be written again, none is missing": faults.stop_with(signal.SIGTERM),
        },
    )
    assert run.code == 75, run.text
    steps = [line["step"] for line in faults.records(small_disk / "run")]
    assert steps == list(range(2, steps[-1] + 1, 2))


def test_an_unwritable_place_for_checkpoints_costs_no_run(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file where a folder should be")
    run = faults.run_here(config)
    assert run.code == 2
    assert "could not be written, training goes on" in run.text
    assert f"step {faults.STEPS}/{faults.STEPS}" in run.text
    assert "Traceback" not in run.text


def test_an_output_that_cannot_be_made_is_refused_at_once(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = faults.run_here(config, f"train.output={tmp_path}/file/run")
    assert run.code == 2
    assert "cannot be written" in run.text
    assert faults.is_one_line(run.text)
