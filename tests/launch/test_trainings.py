"""Scripts that train one recipe: what is started, the environment, and what a signal leads to."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launching import REPOSITORY, calls, start


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("train_voc.sh", {}, "python tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=2 a.b=1"),
        (
            "train_voc.sh",
            {"FOUND_GPUS": "8"},
            "torchrun --standalone --nproc-per-node 2 --max-restarts 0 tools/train.py configs/voc.yaml "
            "train.batch_size=2 train.accumulate=1 a.b=1",
        ),
        (
            "train_voc.sh",
            {"GPUS": "4", "RESTARTS": "3"},
            "torchrun --standalone --nproc-per-node 4 --max-restarts 3 tools/train.py configs/voc.yaml "
            "train.batch_size=1 train.accumulate=1 a.b=1",
        ),
        (
            "train_coco.sh",
            {"FOUND_GPUS": "2"},
            "torchrun --standalone --nproc-per-node 2 --max-restarts 0 tools/train.py configs/coco.yaml "
            "train.batch_size=2 train.accumulate=2 a.b=1",
        ),
        (
            "train_voc.sh",
            {"FOUND_GPUS": "8", "CUDA_VISIBLE_DEVICES": "3"},
            "python tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=2 a.b=1",
        ),
        (
            "train_coco.sh",  # three cannot share 8 images
            {"FOUND_GPUS": "8", "CUDA_VISIBLE_DEVICES": "0,1,5"},
            "torchrun --standalone --nproc-per-node 2 --max-restarts 0 tools/train.py configs/coco.yaml "
            "train.batch_size=2 train.accumulate=2 a.b=1",
        ),
        (
            "slurm_voc.sh",
            {"SLURM_GPUS_ON_NODE": "2"},
            "torchrun --nnodes 1 --nproc-per-node 2 --max-restarts 3 --rdzv-backend c10d --rdzv-id 12 "
            "--rdzv-endpoint node7:20012 tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=1 a.b=1",
        ),
        (
            "slurm_coco.sh",
            {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NUM_NODES": "2"},
            "torchrun --nnodes 2 --nproc-per-node 2 --max-restarts 3 --rdzv-backend c10d --rdzv-id 12 "
            "--rdzv-endpoint node7:20012 tools/train.py configs/coco.yaml train.batch_size=2 train.accumulate=1 a.b=1",
        ),
        ("slurm_voc.sh", {}, "python tools/train.py configs/voc.yaml train.batch_size=2 train.accumulate=2 a.b=1"),
    ],
)
def test_what_is_started(checkout: Path, script: str, variables: dict[str, str], expected: str) -> None:
    process = start(checkout, script, "a.b=1", **variables)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert calls(checkout) == [expected]


def test_demo_hands_its_arguments_on(checkout: Path) -> None:
    lists = checkout / "my data" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{number}\n" for number in range(6)))
    overrides = ["train.seed=2", "train.output=runs/two & more", "dataset.root=my data"]
    process = start(checkout, "demo.sh", *overrides)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    last, pictures = "runs/two & more/checkpoints/last", " ".join(f"my data/JPEGImages/{i}.jpg" for i in range(4))
    assert calls(checkout) == [
        "python tools/make_shapes.py --output my data",
        f"python tools/train.py configs/demo.yaml {' '.join(overrides)}",
        f"python tools/eval.py {last} dataset.root=my data --output runs/two & more/evaluation.json",
        f"python tools/contact_sheet.py {last} dataset.root=my data --output runs/two & more/contact_sheet.png",
        f"python tools/infer.py {last} {pictures} --output runs/two & more/inference",
        f"python tools/report.py {last} dataset.root=my data --output runs/two & more/report.html",
    ]


def test_demo_uses_the_folders_that_the_training_uses(checkout: Path) -> None:
    home = checkout / "home"
    (home / "data" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (home / "data" / "ImageSets" / "Segmentation" / "val.txt").write_text("1\n")
    output, data = ("~/2024_01_01 #2", "~/data")
    process = start(checkout, "demo.sh", f"train.output={output}", f"dataset.root={data}", HOME=str(home))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert calls(checkout)[0] == f"python tools/make_shapes.py --output {home}/data"
    assert calls(checkout)[1] == f"python tools/train.py configs/demo.yaml train.output={output} dataset.root={data}"
    for call in calls(checkout)[2:]:
        assert f"{home}/2024_01_01 #2/checkpoints/last" in call
        assert "~" not in call


@pytest.mark.parametrize("override", ["train.output=", "dataset.root=", "train.output=~nobody/x", "dataset.root=~a"])
def test_demo_refuses_what_the_training_would_refuse_before_it_makes_anything(checkout: Path, override: str) -> None:
    process = start(checkout, "demo.sh", override)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert said.startswith(f"error: {override}: ")
    assert said.count("\n") == 1
    assert not calls(checkout)


@pytest.mark.parametrize("script", ["demo.sh", "psa_demo.sh", "edam_demo.sh", "compare_demo.sh", "train_voc.sh"])
def test_an_old_environment_is_brought_up_to_date_without_the_arguments(checkout: Path, script: str) -> None:
    (checkout / ".venv" / "installed").write_text("of another place\n")
    process = start(checkout, script, "train.seed=2", CODE="1")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert output.splitlines()[-1].startswith("error: the installation failed")
    assert calls(checkout) == [
        f"python -m pip install --quiet --disable-pip-version-check -c {checkout}/constraints.txt -e {checkout}"
    ]


def test_an_unusable_environment_that_a_script_made_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv" / "made_by_afa").touch()
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/bash\nexit 1\n")
    (checkout / "python3").write_text('#!/bin/bash\n[ "$1" = -c ] || { echo "$*" >> "$CALLS"; exit 1; }\n')
    (checkout / "python3").chmod(0o755)
    process = start(checkout, "train_voc.sh", PYTHON=f"{checkout}/python3")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert output.splitlines()[-1].startswith("error: python3 could not make a virtual environment")
    assert calls(checkout) == [f"-m venv {checkout}/.venv"]
    assert not (checkout / ".venv").exists()


def test_images_that_cannot_be_shared_out(checkout: Path) -> None:
    process = start(checkout, "train_voc.sh", GPUS="3")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output == "error: 3 processes cannot share 4 images per step evenly: take another number of GPUs\n"


@pytest.mark.parametrize("gpus", ["0", "two", "-1"])
def test_a_number_of_gpus_that_is_none(checkout: Path, gpus: str) -> None:
    process = start(checkout, "train_voc.sh", GPUS=gpus)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output == f"error: GPUS={gpus}: give a number of processes, 1 or more\n"


@pytest.mark.parametrize(("gpus", "code"), [("1", "75"), ("2", "1")])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_requeues(checkout: Path, gpus: str, code: str, number: signal.Signals) -> None:
    process = start(checkout, "slurm_voc.sh", SLURM_GPUS_ON_NODE=gpus, SLEEP="1", CODE=code)
    end = time.monotonic() + 300
    while not calls(checkout) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert calls(checkout)[1:] == ["scancel --signal=TERM 12", "scontrol requeue 12"]


def test_a_failure_is_not_requeued(checkout: Path) -> None:
    process = start(checkout, "slurm_voc.sh", CODE="2")
    process.communicate(timeout=300)
    assert process.returncode == 2
    assert len(calls(checkout)) == 1


@pytest.mark.parametrize("script", sorted((REPOSITORY / "launch").glob("*.sh")), ids=lambda path: path.name)
def test_every_script_opens_with_its_usage(script: Path) -> None:
    first = script.read_text().split("\n\n")[0]
    assert "Usage:" in script.read_text() or f"launch/{script.name}" in script.read_text()
    assert first.startswith("#")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck() -> None:
    scripts = sorted(str(path) for path in (REPOSITORY / "launch").glob("*.sh"))
    done = subprocess.run(["shellcheck", "-x", "-s", "bash", *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
