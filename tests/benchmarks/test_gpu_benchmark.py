"""``afa benchmark gpu`` on a CPU: every measurement in a tiny setting, and with stand-ins for what a GPU alone has."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measurements import run_here
from run_tool import RunTool

from afa.benchmarks import GPU_GROUPS, training_step
from afa.benchmarks.gpu import feeding, graphs, machine, plan, profiling, training, values
from afa.benchmarks.gpu import setting as settings
from afa.benchmarks.gpu.apart import NotHere, Outcome
from afa.benchmarks.gpu.plan import CELLS, summary
from afa.benchmarks.gpu.setting import SMALL, Setting, StepClock
from afa.benchmarks.gpu.table import HEADING
from afa.benchmarks.training_step import PARTS
from afa.data.files import read_json

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The small setting, smaller: one CAM scale, one round of PAR, nothing random."""
    model = (*SMALL.model, "model.drop_path=0", "model.decoder_dropout=0")
    rest = ("cam.scales=[1]", "par.iterations=1", "par.dilations=[1]")
    monkeypatch.setattr(settings, "SMALL", SMALL._replace(model=(*model, *rest)))
    monkeypatch.setattr(training_step, "MATRIX_SIDE", 64)
    monkeypatch.setattr(training_step, "MATRIX_SECONDS", 0.01)
    monkeypatch.setattr(profiling, "floor_flops", lambda *_: 10**9)  # has tests of its own
    return Setting("cpu", True, tmp_path)


def figures(found: Iterator[dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for part in found:
        whole.update(part)
    return whole


def test_a_training_is_timed_in_its_three_phases(tiny: Setting) -> None:
    found = figures(training.measure_training(tiny, "bf16", ""))
    assert found["schedule"] == {"classification": 2001, "refined": 4000, "propagated": 13999}
    assert list(found["phases"]) == ["propagated", "refined", "classification"]
    for row in found["phases"].values():
        low, high = row["quartiles_s"]
        assert 0 < low <= row["step_s"] <= high and row["steps"] == 2 and row["mean_step_s"] > 0
    assert found["busy"] is None, "no nvidia-smi is asked about a CPU"
    hours = summary([{"name": "bf16", "figures": found}])["hours"]["bf16"]
    expected = sum(found["schedule"][phase] * row["step_s"] for phase, row in found["phases"].items())
    assert hours == pytest.approx(expected / 3600)


def test_no_hours_without_all_phases_and_workers_that_suffice() -> None:
    phases = {"propagated": {"step_s": 0.1}}
    lengths = {"classification": 1, "refined": 1, "propagated": 1}
    cells = [
        {"name": "bf16", "figures": {"schedule": lengths, "batch": 4, "phases": phases}},
        {"name": "loading", "figures": {"loader": {"1": 30.0, "2": 39.0, "4": 41.0, "8": 80.0}}},
    ]
    assert summary(cells) == {"hours": {"bf16": None}, "needed_images_per_s": 40.0, "enough_workers": 4}
    assert summary(cells[1:])["enough_workers"] is None


def test_steps_that_ran_uncompiled_are_no_figures_of_compiled_ones(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gives_up(_: object) -> None:
        logging.getLogger("afa.engine.runtime").warning("train.compile: torch.compile does not work here, training ...")

    monkeypatch.setattr(training_step, "compile_network", gives_up)
    outcome = run_here(training.measure_training, (tiny, "float32", "default"))
    assert outcome.status == "failed" and "torch.compile does not work here" in str(outcome.reason)
    assert "phases" not in outcome.figures


@pytest.mark.parametrize(
    ("precision", "capability", "rocm", "reason"),
    [
        ("tf32", (7, 5), None, "Old has no tf32"),
        ("bf16", (7, 5), None, "Old has no bf16"),
        ("float32", (7, 5), None, None),
        ("bf16", (8, 0), None, None),
        ("tf32", (9, 0), None, None),
        ("tf32", (9, 4), "7.1", "Old has no tf32"),
        ("bf16", (9, 4), "7.1", None),
    ],
)
def test_a_precision_that_a_gpu_lacks_is_not_measured_as_another(
    monkeypatch: pytest.MonkeyPatch, precision: str, capability: tuple[int, int], rocm: str | None, reason: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old")
    monkeypatch.setattr(torch.version, "hip", rocm)
    with nullcontext() if reason is None else pytest.raises(NotHere, match=reason):
        settings.require_precision(precision, GPU)
    assert settings.fastest_precision(GPU) == ("bf16" if capability >= (8, 0) else "float32")


def test_what_a_run_sets_for_the_process_is_as_before(tiny: Setting) -> None:
    backends = torch.backends
    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark
    with settings.restored_backends():
        backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = not before[0]
        backends.cudnn.benchmark = not before[2]
    assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark) == before


def test_a_gpu_notes_the_moments_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.number = len(events)

        def record(self) -> None:
            events.append(self)

        def elapsed_time(self, other: Any) -> float:
            return 1000.0 * (other.number - self.number)  # milliseconds

    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = StepClock(GPU)
    for _ in range(3):
        clock.mark()
    assert not waited
    assert clock.seconds() == [1.0, 1.0] and waited == [GPU]


def test_where_a_step_goes(tiny: Setting) -> None:
    found = figures(profiling.measure_profile(tiny))
    assert set(found["parts_s"]) == set(PARTS) and found["precision"] == "bf16"
    names = [name for name, _, _ in found["operators"]]
    assert len(names) == profiling.ROWS + 1 and names[-1].endswith(" more") and "aten::addmm" in names
    assert "idle_share" not in found and found["step_gflop"] > 0


def test_a_gpu_works_where_any_of_its_kernels_runs() -> None:
    def event(name: str, start: float, length: float, category: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length}

    events = [
        event("b", 30, 10),
        event("a", 0, 10),
        event("a", 5, 10),  # on another stream
        event("copy", 12, 1, "gpu_memcpy"),
        event("forward", 0, 100, "gpu_user_annotation"),
        event("aten::mm", 0, 100, "cpu_op"),
        {"ph": "i", "cat": "kernel", "name": "mark", "ts": 50},
    ]
    kernels, busy = profiling.gpu_work(events)
    assert busy == pytest.approx(25e-6)
    assert [row[:2] for row in profiling.slowest(kernels)] == [("a", 2), ("b", 1), ("copy", 1)]
    assert profiling.gpu_work([]) == ([], 0)


class Graph:
    """Stands in for a CUDA graph: it is recorded once, and replayed."""

    made: list[Graph]

    def __init__(self) -> None:
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1


def test_graphs_of_the_passes_give_the_same_losses(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[torch.nn.Module] = []

    def graphed(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], num_warmup_iters: int) -> torch.nn.Module:
        assert module.training and not torch.is_autocast_enabled("cpu"), "PyTorch refuses autocast with a cache"
        module(*inputs)
        recorded.append(module)
        return module

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(graphs, "IN_A_ROW", 1)
    monkeypatch.setattr(Graph, "made", [], raising=False)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphed)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for name in ("graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda of: nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    found = figures(graphs.compare_graphs(tiny, CPU))
    assert set(found["steps"]) == set(found["ratio_to_plain"]) == set(found["losses"])
    assert len(set(found["losses"].values())) == 1
    assert found["ratio_to_plain"]["plain"] == 1
    assert len(recorded) == 1 and len(Graph.made) == 1 and Graph.made[0].replays > 4


@pytest.mark.parametrize("compiled", ["", "reduce-overhead"])
def test_cuda_graphs_are_for_gpus(tiny: Setting, compiled: str) -> None:
    with pytest.raises(NotHere, match="CUDA graphs exist on GPUs alone"):
        figures(training.measure_training(tiny, "bf16", compiled) if compiled else graphs.measure_graphs(tiny))


def test_images_are_loaded_and_labelled(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "worker_counts", lambda cores, small: [0])
    found = figures(feeding.measure_loading(tiny))
    assert found["loader"]["0"] > 0 and found["fed"]["workers"] == 0
    assert found["fed"]["step_s"] > 0 and 0 < found["fed"]["wait_share"] < 1
    found = figures(feeding.measure_labelling(tiny))
    assert found["images"] == 3 and found["images_per_s"] == pytest.approx(3 / found["seconds"])
    assert found["outputs"] == ["cam", "propagated_cam", "refined_label", "propagated_label"]
    written = [path.stem for path in (tiny.folder / "labelling/labels/labels/propagated_label").iterdir()]
    assert sorted(written) == ["0", "1", "2"]


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (6, [1, 2, 4, 6]), (64, [1, 2, 4, 8, 16, 32])])
def test_numbers_of_loader_processes(cores: int, counts: list[int]) -> None:
    assert feeding.worker_counts(cores, small=False) == counts


def test_values_are_compared_with_the_cpus(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "PRECISIONS", ("float32", "tf32"))
    found = figures(values.measure_values(tiny))
    assert found["agrees"] and found["precisions"]["tf32"] == {"reason": "tf32 exists on GPUs alone"}
    own = found["precisions"]["float32"]
    assert set(own["network"]) == {"cls_logits", "seg_logits", "affinity", "cam"}
    assert own["gradients"] == 0 and set(own["labels"].values()) == {0}
    assert all(loss[0] == loss[1] > 0 for loss in own["losses"].values()), "each has something to say"


@pytest.mark.parametrize(("wrong", "relative"), [(4.04, 0.01), (4.0, 0), (float("nan"), float("nan"))])
def test_a_wrong_value_is_seen(wrong: float, relative: float) -> None:
    def kinds(value: float) -> dict[str, Any]:
        tensors = {"cam": torch.tensor([1.0, value])}
        labels, losses = {"seg": torch.tensor([1, 2])}, {"cls": 0.5}
        return {
            "network": tensors,
            "par": {},
            "labels": labels,
            "losses": losses,
            "gradients": torch.tensor([3.0, value]),
        }

    found = values.differences(kinds(wrong), kinds(4.0))
    assert found["network"]["cam"]["relative"] == pytest.approx(relative, rel=1e-3, nan_ok=True)
    assert found["gradients"] == pytest.approx(relative * 4 / 5, rel=1e-3, nan_ok=True)
    assert found["labels"] == {"seg": 0} and found["losses"] == {"cls": [0.5, 0.5]}


def test_a_machine_without_a_gpu_is_described(tiny: Setting) -> None:
    found = figures(machine.measure_machine(tiny))
    assert found["device"] == "cpu" and found["cores"] >= 1 and found["packages"]["torch"] == torch.__version__
    assert found["processor"] and "gpu" not in found


def test_nvidia_smi_is_asked_about_this_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(
        '#!/bin/sh\n[ "$3" = "--id=GPU-12-34" ] || exit 9\n'
        'echo "580.15, 12, 3, 1980, [N/A], 2619, 75.5, 700.00, 41, Disabled"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    uuids = ["12-34"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuids[0]))
    facts = read_busy(GPU)
    assert facts is not None
    assert (facts["driver"], facts["sm_clock_mhz"], facts["sm_clock_max_mhz"]) == ("580.15", 1980, None)
    assert (facts["power_w"], facts["mig"]) == (75.5, "Disabled")
    uuids[0] = "another"
    assert read_busy(GPU) is None, "it failed"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert read_busy(GPU) is None, "it is not there"


def read_busy(device: torch.device) -> dict[str, Any] | None:
    reading = machine.BusyReading(device)
    while reading.waits():
        time.sleep(0.001)
    return reading.facts()


# The command


@pytest.fixture
def command(run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``afa benchmark gpu`` in an empty folder, with made-up measurements; ``outcomes`` changes some."""
    outcomes: dict[str, Any] = {}
    names = iter(cell.name for cell in CELLS)
    monkeypatch.chdir(tmp_path)

    def made_up(measurement: Any, arguments: tuple[Any, ...], **_: Any) -> Outcome:
        name = next(names)
        found = outcomes.get(name, Outcome("done"))
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(plan, "run_apart", made_up)
    run = lambda *arguments: run_tool("benchmark.py", "gpu", *arguments)  # noqa: E731
    run.outcomes = outcomes  # type: ignore[attr-defined]
    return run


def test_files_hold_what_was_measured_and_why_the_rest_was_not(command: Any, tmp_path: Path) -> None:
    reason = "its process ended by itself (signal 11)"
    command.outcomes["bf16"] = Outcome("failed", reason, MEASURED)
    command.outcomes["tf32"] = Outcome("skipped", "a|b has no tf32", remarks=["something odd"])
    command.outcomes["values"] = Outcome("done", None, {"figure": float("nan")})
    done = command("--device", "cpu", "--small", "--output", "an odd név.json")
    assert done.returncode == 0 and "bf16: propagated 10.00 steps/s, failed: its process" in done.stdout
    report = read_json(tmp_path / "an odd név.json")
    assert report["complete"] and [cell["name"] for cell in report["cells"]] == [cell.name for cell in CELLS]
    assert report["cells"][1]["figures"] == {"figure": "nan"}
    page = (tmp_path / "an odd név.md").read_text()
    assert page.startswith(HEADING) and "None of these figures is a measurement" in page
    for line in ("| bf16 | 10.00 (8.33 to 12.50) | - | - | - |", f"- bf16: failed, {reason}", "- tf32: something odd"):
        assert line in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["an odd név.json", "an odd név.md"]


MEASURED: dict[str, Any] = {"batch": 4, "schedule": {"classification": 1, "propagated": 1}}
ROW = {"step_s": 0.1, "quartiles_s": [0.08, 0.12], "steps": 9, "mean_step_s": 0.1, "warm_up_s": 2.0}
MEASURED["phases"] = {"propagated": ROW}


def test_what_was_measured_before_an_interruption_stays_and_says_so(command: Any, tmp_path: Path) -> None:
    command.outcomes["bf16"] = KeyboardInterrupt()
    done = command("--device", "cpu", "--small")
    assert done.returncode == 130
    report = read_json(tmp_path / "afa_gpu.json")
    assert not report["complete"] and [cell["name"] for cell in report["cells"]] == ["machine", "values"]
    assert "Not complete" in (tmp_path / "afa_gpu.md").read_text()


def test_measurements_for_which_no_time_is_left_are_named(command: Any, tmp_path: Path) -> None:
    assert command("--device", "cpu", "--budget", "14", "--only", "train", "graphs").returncode == 0
    report = read_json(tmp_path / "afa_gpu.json")
    assert report["complete"] and report["cells"][0]["status"] == "done"
    rest = report["cells"][1:]
    assert {cell["group"] for cell in rest} == {"train", "graphs"} and {cell["status"] for cell in rest} == {"skipped"}
    assert rest[0]["reason"].startswith("of 14 s, ") and rest[0]["reason"].endswith("--only train")


def test_the_limits_of_all_measurements_fit_their_least() -> None:
    assert {cell.group for cell in CELLS} == {"machine", *GPU_GROUPS}
    assert all(cell.least < cell.limit for cell in CELLS)
    assert len({cell.name for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            "--device cuda: PyTorch sees no GPU with CUDA here, so there is nothing to measure; '--device cpu --small'",
        ),
        (("--device", "cuda:1"), "--device cuda:1: PyTorch sees no GPU"),
        (("--device", "mps"), "--device mps: GPUs with CUDA are measured"),
        (("--device", "fast"), "--device=fast: no such device"),
        (("--only", "speed"), "argument --only: invalid choice: 'speed'"),
        (("--budget", "0"), "--budget 0: at least 1 is needed"),
        (("--output", "table.md"), "--output table.md: the table is written there; name the JSON file"),
        (("--output", "README.json"), "--output README.json: README.md, where the table would go, is another file"),
        (
            ("--output", "folder.json"),
            "the table's place, beside --output, folder.md cannot be written: Is a directory",
        ),
    ],
)
def test_mistakes(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    (tmp_path / "README.md").write_text("mine\n")
    (tmp_path / "folder.md").mkdir()
    done = command(*arguments)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert (tmp_path / "README.md").read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "folder.md"]


@pytest.mark.slow
def test_the_command_as_a_user_starts_it(tmp_path: Path, run_tool: RunTool) -> None:
    file = tmp_path / "all.json"
    groups = [group for group in GPU_GROUPS if group != "compile"]  # a CPU may take longer than the limit
    arguments = ["--device", "cpu", "--small", "--budget", "3000", "--only", *groups, "--output", file]
    done = run_tool("benchmark.py", "gpu", *arguments)
    assert done.returncode == 0, done.stderr
    cells = {cell["name"]: cell for cell in json.loads(file.read_text())["cells"]}
    on_gpus = {"tf32", "graphs", "bf16, reduce-overhead"}
    assert {name for name, cell in cells.items() if cell["status"] == "skipped"} == on_gpus
    assert not [cell for cell in cells.values() if cell["status"] == "failed"]
