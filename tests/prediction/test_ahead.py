"""Two images in work at a time: the same values in the same order, one pass at a time, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tool import RunTool
from scored import write_checkpoint

from afa.data.loader import evaluation_loader
from afa.data.samples import Sample
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.methods.base import Found, SegmentationProtocol
from afa.prediction import ahead
from afa.prediction.ahead import predictions

CPU, PLAIN = torch.device("cpu"), SegmentationProtocol()
WANTED = ["cam", "propagated_cam", "refined_label", "segmentation"]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many processor cores there are; the network uses one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda count: monkeypatch.setattr(ahead, "usable_cores", lambda: count)
    torch.set_num_threads(threads)


@pytest.fixture
def samples(config: AFAConfig) -> list[tuple[str, list[Sample]]]:
    return [(seen.sample.name, [seen.sample]) for seen in evaluation_loader(config.dataset)]


def scores(found: list[Found]) -> list[torch.Tensor]:
    outputs = [found[0].outputs[name] for name in WANTED]
    return [value if isinstance(value, torch.Tensor) else value.scores for value in outputs]  # type: ignore[union-attr]


def test_order_and_values_are_those_of_one_by_one(
    method: AFA, samples: list[tuple[str, list[Sample]]], cores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method.network.eval()
    inside = most = 0
    threads: set[int] = set()
    original = AFA.network_pass

    @contextmanager
    def counted(self: AFA) -> Iterator[None]:
        nonlocal inside, most
        with original(self):
            inside += 1
            most = max(most, inside)
            threads.add(threading.get_ident())
            yield
            inside -= 1

    monkeypatch.setattr(AFA, "network_pass", counted)
    found = {}
    for count in (1, 2):
        threads.clear()
        cores(count)
        found[count] = list(predictions(method, iter(samples), WANTED, PLAIN, CPU))
        assert (threading.get_ident() in threads) is (count == 1)
    assert most == 1
    names = [name for name, _ in samples]
    assert [name for name, _ in found[1]] == [name for name, _ in found[2]] == names
    for (_, one), (_, other) in zip(found[1], found[2], strict=True):
        assert all(torch.equal(*pair) for pair in zip(scores(one), scores(other), strict=True))


def prediction_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prediction")]


def test_an_error_and_an_early_end_leave_no_thread(
    method: AFA, samples: list[tuple[str, list[Sample]]], cores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method.network.eval()
    cores(2)
    running = predictions(method, iter(samples), ["cam"], PLAIN, CPU)
    assert next(running)[0] == samples[0][0]
    running.close()
    assert not prediction_threads() and not isinstance(method.turn, type(threading.RLock()))

    predict = method.predict

    def broken(given: list[Sample], *rest: Any) -> list[Found]:
        if given[0].name == samples[2][0]:
            raise RuntimeError("no such layer")
        return predict(given, *rest)

    monkeypatch.setattr(method, "predict", broken)
    running = predictions(method, iter(samples), ["cam"], PLAIN, CPU)
    seen = [next(running)[0], next(running)[0]]
    with pytest.raises(RuntimeError, match="no such layer"):
        next(running)
    assert seen == [name for name, _ in samples[:2]] and not prediction_threads()


def test_what_comes_before_an_unreadable_image_is_given(
    method: AFA, samples: list[tuple[str, list[Sample]]], cores: Any
) -> None:
    method.network.eval()

    def read() -> Iterator[tuple[str, list[Sample]]]:
        yield from samples[:3]
        raise OSError("no such image")

    for count in (1, 2):
        cores(count)
        running = predictions(method, read(), ["cam"], PLAIN, CPU)
        assert [next(running)[0] for _ in range(3)] == [name for name, _ in samples[:3]]
        with pytest.raises(OSError, match="no such image"):
            next(running)


def test_each_thread_keeps_its_number_of_threads(
    method: AFA, samples: list[tuple[str, list[Sample]]], cores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    cores(3)
    entered, other_has_set = threading.Event(), threading.Event()
    seen = []

    def predict(*_: Any) -> list[Found]:
        entered.set()
        assert other_has_set.wait(60)
        seen.append(torch.get_num_threads())
        return []

    def read() -> Iterator[tuple[str, list[Sample]]]:
        yield samples[0]
        assert entered.wait(60)
        other = threading.Thread(target=torch.set_num_threads, args=(1,))  # as DenseCRF's threads do
        other.start()
        other.join()
        other_has_set.set()

    monkeypatch.setattr(method, "predict", predict)
    assert [name for name, _ in predictions(method, read(), [], PLAIN, CPU)] == [samples[0][0]]
    assert seen == [2]


@pytest.mark.parametrize("count", [1, 2])
def test_no_search_for_the_fastest_convolution(
    method: AFA, samples: list[Any], cores: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    cores(count)
    searching = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(method, "predict", lambda *_: searching.append(torch.backends.cudnn.benchmark) or [])
    list(predictions(method, iter(samples), [], PLAIN, CPU))
    running = predictions(method, iter(samples), [], PLAIN, CPU)
    next(running)
    running.close()
    assert not any(searching) and len(searching) > len(samples)
    assert torch.backends.cudnn.benchmark


def test_a_pass_within_a_pass_does_not_wait_for_itself(
    method: AFA, samples: list[tuple[str, list[Sample]]], cores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(2)
    inner = []

    def predict(*_: Any) -> list[Found]:
        with method.network_pass():
            inner.append(method.turn.acquire(blocking=False))  # type: ignore[attr-defined]
            if inner[-1]:
                method.turn.release()  # type: ignore[attr-defined]
        return []

    monkeypatch.setattr(method, "predict", predict)
    list(predictions(method, iter(samples), [], PLAIN, CPU))
    assert inner == [True] * len(samples)


@pytest.mark.parametrize(("device", "gpu"), [("cuda", 1), ("cuda:0", 0)])
def test_threads_use_the_gpu_of_the_caller(
    method: AFA, samples: list[Any], cores: Any, monkeypatch: pytest.MonkeyPatch, device: str, gpu: int
) -> None:
    cores(2)
    used = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(method, "predict", lambda *_: [])
    assert len(list(predictions(method, iter(samples), [], PLAIN, torch.device(device)))) == len(samples)
    assert set(used) == {gpu}


def of_threads(method: AFA, device: torch.device = CPU) -> bool:
    """Whether predictions use threads."""
    turn: list[AbstractContextManager[Any]] = []
    original = method.predict
    try:
        method.predict = lambda *given: turn.append(method.turn) or []  # type: ignore[method-assign, func-returns-value, assignment, misc]
        list(predictions(method, iter([("a", [])]), [], PLAIN, device))
    finally:
        method.predict = original  # type: ignore[method-assign]
    return isinstance(turn[0], type(threading.RLock()))


def test_threads_are_used_where_a_core_is_left(method: AFA, cores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(2)
    assert of_threads(method)
    method.precision = "tf32"  # products of the other thread would be rounded, too
    assert not of_threads(method)
    method.precision = "float32"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not of_threads(method)
    cores(3)
    assert of_threads(method) and not of_threads(method, torch.device("mps"))
    monkeypatch.setattr(AFA, "low_precision", False)  # its passes are not told apart
    assert not of_threads(method)


def test_files_are_the_same(config: AFAConfig, tmp_path: Path, run_tool: RunTool, cores: Any) -> None:
    config.cam.scales, config.test.scales, config.test.mirror = [1.0], [1.0], False
    write_checkpoint(tmp_path / "run/checkpoints/step_00000001", config, 1, step=1)
    for name in ("last", "best"):
        (tmp_path / "run/checkpoints" / name).symlink_to("step_00000001")
    made = []
    for count in (1, 2):
        cores(count)
        folder = tmp_path / str(count)
        result = run_tool("label.py", tmp_path / "run", "--output", folder, "--device", "cpu", "--workers", 0)
        assert result.returncode == 0, result.stderr
        scored = ("--csv", folder / "scores.csv", "--output", folder / "scores.json")
        result = run_tool("eval.py", tmp_path / "run", "--device", "cpu", "--workers", 0, *scored)
        assert result.returncode == 0, result.stderr
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        del files["manifest.json"]  # it says how long it took
        made.append(files)
    assert made[0] == made[1] and len(made[0]) > 40
