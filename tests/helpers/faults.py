"""Tiny runs that can be started, stopped, killed and compared quickly, and damage of all kinds to what they read.

Most tests call a run in this process (:func:`run_here`); one that is killed, or that belongs to a group of processes,
gets a process of its own (:class:`Run`). Nothing waits for a moment to come by: a run says where it is, and what shall
happen there is called by what it says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from forked import Forked, enter, start_process
from golden import SMALL_MODEL

from afa.data.shapes import ShapesStyle, make_shapes

REPOSITORY = Path(__file__).parents[2]
STEPS = 14
KILLED = -signal.SIGKILL


def make_data(root: Path) -> Path:
    """24 training and 4 validation pictures of 64 x 64."""
    return make_shapes(root, train=24, val=4, style=ShapesStyle(size=64))


def tiny_settings(data: Path, output: Path) -> dict[str, Any]:
    """A run of 14 steps that goes through all of the method's phases, validates twice and takes a second."""
    return {
        "dataset": {"type": "voc", "root": str(data), "train_split": "train", "val_split": "val"},
        "augmentation": {"crop_size": 64, "scale_min": 0.75, "scale_max": 1.25},
        "model": {**SMALL_MODEL, "drop_path": 0.1, "decoder_dropout": 0.1},
        "affinity": {"radius": 2},
        "cam": {"scales": [1.0]},
        "par": {"iterations": 2, "dilations": [1, 2]},
        "schedule": {"cls_until": 3, "refined_until": 7},
        "optimiser": {"lr": 1e-3, "head_lr_factor": 1.0, "freeze_norms": False, "warmup_steps": 3},
        "train": {
            "output": str(output),
            "steps": STEPS,
            "batch_size": 4,
            "workers": 0,
            "device": "cpu",
            "threads": 1,
            "log_every": 2,
            "pictures_every": 0,
            "checkpoint_every": 3,
        },
        "validation": {"every": 7},
    }


def write_config(path: Path, data: Path, output: Path, **sections: dict[str, Any]) -> Path:
    """The tiny run as a YAML file; ``train={"steps": 3}`` changes settings."""
    settings = tiny_settings(data, output)
    for section, values in sections.items():
        settings.setdefault(section, {}).update(values)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def command(config: Path, *overrides: str, processes: int = 1, restarts: int = 0) -> list[str]:
    """The real command, under torchrun where several processes are wanted."""
    tool = [str(REPOSITORY / "tools" / "train.py"), str(config), *overrides]
    if processes == 1:
        return [sys.executable, *tool]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, f"--max_restarts={restarts}", *tool]


def environment() -> dict[str, str]:
    """One thread, and the package found from anywhere."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@dataclass(frozen=True)
class Done:
    """What came of a run: its exit code, and all that it printed."""

    code: int
    text: str


class _Watcher(logging.Handler):
    """Calls something the first time that a message with some words is said."""

    def __init__(self, when: Mapping[str, Callable[[], object]]) -> None:
        super().__init__(logging.INFO)
        self.waiting = dict(when)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        for words in [words for words in self.waiting if words in message]:
            self.waiting.pop(words)()


@contextlib.contextmanager
def watched(when: Mapping[str, Callable[[], object]]) -> Iterator[_Watcher]:
    """While the block runs, call something the first time that the package says some words."""
    watcher, package = _Watcher(when), logging.getLogger("afa")
    level = package.level
    package.addHandler(watcher)
    package.setLevel(logging.INFO)
    try:
        yield watcher
    finally:
        package.removeHandler(watcher)
        package.setLevel(level)


def run_here(config: Path, *overrides: str, when: Mapping[str, Callable[[], object]] | None = None) -> Done:
    """A run in this process.

    Args:
        config: YAML file.
        overrides: ``key=value`` settings.
        when: What to call the first time that the run says some words. All of them must be said.
    """
    printed = io.StringIO()
    listener = logging.StreamHandler(printed)
    logging.getLogger("afa").addHandler(listener)
    try:
        with watched(when or {}) as watcher, contextlib.redirect_stderr(printed):
            code = _code_of(config, overrides)
    finally:
        logging.getLogger("afa").removeHandler(listener)
    assert not watcher.waiting, f"never said: {list(watcher.waiting)}\n{printed.getvalue()}"
    return Done(code, printed.getvalue())


def _code_of(config: Path, overrides: Sequence[str]) -> int:
    from afa.engine.training import train
    from afa.errors import run_command
    from afa.methods import load_config

    with pytest.raises(SystemExit) as end:
        run_command(lambda: train(load_config(config, overrides)))
    assert isinstance(end.value.code, int)
    return end.value.code


def stop_with(number: signal.Signals) -> Callable[[], None]:
    """Send this process a signal."""
    return partial(signal.raise_signal, number)


def die() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


# Where a run may be killed: what stays differs. Each patches what the run calls at that moment, or waits for its words.
def _in_the_midst_of_a_checkpoint(output: Path, step: int) -> contextlib.AbstractContextManager[object]:
    part = output / "checkpoints"

    def flush(descriptor: int, original: Callable[[int], None] = os.fsync) -> None:
        if list(part.glob(f".part_step_{step:08d}/*")):
            die()
        original(descriptor)

    return patch("os.fsync", flush)


def _before_a_checkpoint_has_its_name(output: Path, step: int) -> contextlib.AbstractContextManager[object]:
    def replace(source: Path, target: Path, original: Callable[[Path, Path], None] = os.replace) -> None:
        if Path(target) == output / "checkpoints" / f"step_{step:08d}":
            die()
        original(source, target)

    return patch("os.replace", replace)


def _in_a_validation(output: Path, step: int) -> contextlib.AbstractContextManager[object]:
    def predict(*_: object, **__: object) -> None:
        die()

    return patch("afa.methods.afa.method.AFA.predict", predict)


def _in_a_step(output: Path, step: int) -> contextlib.AbstractContextManager[object]:
    from afa.engine.optimisation import set_learning_rates as original

    def set_learning_rates(optimiser: object, current: int, **settings: Any) -> dict[str, float]:
        if current == step:
            die()
        return original(optimiser, current, **settings)  # type: ignore[arg-type]

    return patch("afa.engine.trainer.set_learning_rates", set_learning_rates)


def _at_words(words: str, output: Path, step: int) -> contextlib.AbstractContextManager[object]:
    return watched({words.format(step=step): die})


MOMENTS: dict[str, Callable[[Path, int], contextlib.AbstractContextManager[object]]] = {
    "in the midst of a checkpoint": _in_the_midst_of_a_checkpoint,
    "before a checkpoint has its name": _before_a_checkpoint_has_its_name,
    "in a step": _in_a_step,  # counted from 0
    "before a record": partial(_at_words, "step {step}/"),
    "in a validation": _in_a_validation,
    "after a validation": partial(_at_words, "validation at step {step}:"),
}


class Run:
    """A run in a process forked from a warm one: the training itself, without the seconds that imports take.

    Args:
        config: YAML file.
        log: File for everything that the process prints.
        overrides: ``key=value`` settings.
        limit_bytes: No file may grow beyond this, as if the disk were full there.
        dies: One of :data:`MOMENTS`, and the step of it: there the process is killed.
        variables: Of the environment.
    """

    def __init__(
        self,
        config: Path,
        log: Path,
        overrides: Sequence[str] = (),
        *,
        limit_bytes: int | None = None,
        dies: tuple[str, int] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.process = start_process(_train, config, list(overrides), log, limit_bytes, dies, dict(variables or {}))

    def wait(self, seconds: float = 600) -> int:
        """Exit code; negative where a signal ended it."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"the run hangs: {self.text()[-2000:]}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def until(self, condition: Callable[[], bool], seconds: float = 600) -> bool:
        """Wait for something to happen; False where the process ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if not self.process.is_alive():
                return False
            if time.monotonic() > end:
                self.process.kill()
                raise TimeoutError(f"nothing happened: {self.text()[-2000:]}")
            time.sleep(0.0005)
        return True

    def until_says(self, words: str) -> bool:
        """Wait until it prints something."""
        return self.until(lambda: words in self.text())

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended does not mind."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def text(self) -> str:
        """What was printed so far."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def start_group(
    config: Path,
    log: Path,
    processes: int,
    overrides: Sequence[str] = (),
    *,
    dies: Mapping[int, tuple[str, int]] | None = None,
) -> list[Run]:
    """The processes of one run, as torchrun would start them; each has a log of its own. Some may be told to die."""
    return [
        Run(config, log.with_name(f"{log.name}_{rank}"), overrides, dies=(dies or {}).get(rank), variables=variables)
        for rank, variables in enumerate(group_variables(processes))
    ]


def group_variables(processes: int) -> list[dict[str, str]]:
    """The environment of each process of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def call_in_group(function: Callable[..., None], processes: int, *arguments: object) -> None:
    """Call a function in every process of a group."""
    group = [Forked(function, *arguments, variables=variables) for variables in group_variables(processes)]
    for done in [process.wait() for process in group]:
        assert done.returncode == 0, done.stderr


def children(process: int) -> list[int]:
    """The processes that a process has started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process and state != "Z":
            found.append(int(path.parent.name))
    return found


def _train(
    config: Path,
    overrides: list[str],
    log: Path,
    limit_bytes: int | None,
    dies: tuple[str, int] | None,
    variables: dict[str, str],
) -> None:
    enter(log, log, variables)
    os.setsid()  # a process group of its own, as a shell gives its jobs
    import resource

    from afa.methods import load_config

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    if limit_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    with contextlib.ExitStack() as stack:
        if dies is not None:
            moment, step = dies
            stack.enter_context(MOMENTS[moment](Path(load_config(config, overrides).train.output), step))
        sys.exit(_code_of(config, overrides))


def outcome(output: Path, step: int = STEPS) -> dict[str, Any]:
    """All that must not depend on what a run went through: weights, optimiser, records without their times."""
    folder = output / "checkpoints" / f"step_{step:08d}"
    facts = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    return {
        "weights": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
        "training": hashlib.sha256((folder / "training.safetensors").read_bytes()).hexdigest(),
        "records": [
            {key: value for key, value in record.items() if not key.startswith(("time/", "memory/"))}
            for record in records(output)
        ],
        "facts": {key: facts[key] for key in ("step", "best", "best_step", "meters", "non_finite")},
    }


def records(output: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def recorded_steps(steps: int = STEPS, log_every: int = 2, validation_every: int = 7) -> list[int]:
    """The steps that have a record."""
    return [
        step for step in range(1, steps + 1) if step % log_every == 0 or step % validation_every == 0 or step == steps
    ]


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage bytes as disks, copies and people do; returns what was done, and the result."""
    kind = rng.choice(["empty", "truncated", "bit flipped", "bytes overwritten", "block zeroed", "grown", "swapped"])
    if kind == "empty":
        return kind, b""
    if kind == "truncated":
        return kind, data[: rng.randrange(len(data))]
    if kind == "grown":
        return kind, data + rng.randbytes(rng.randint(1, 64))
    changed = bytearray(data)
    place = rng.randrange(len(data))
    if kind == "bit flipped":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "bytes overwritten":
        count = min(rng.randint(1, 32), len(data) - place)
        changed[place : place + count] = rng.randbytes(count)
    elif kind == "block zeroed":
        count = min(rng.randint(16, 4096), len(data) - place)
        changed[place : place + count] = bytes(count)
    else:
        half = len(data) // 2
        changed = bytearray(data[half:] + data[:half])
    return kind, bytes(changed)


def is_one_line(text: str) -> bool:
    """Whether what a user reads is a single line and no traceback."""
    return bool(text.strip()) and "\n" not in text.strip() and "Traceback" not in text
