"""Where a run takes place: processes, device, precision."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from afa.config import TrainConfig
from afa.device import allow_tf32, choose_device
from afa.engine.launch import read_launch
from afa.engine.memory import keep_freed_memory
from afa.errors import UserError, leave_without_waiting

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

# Processes that do not meet in time give up, and torchrun starts them again. At work, some may have to wait longer for
# the main one.
_MEETING, _WORKING = timedelta(minutes=5), timedelta(minutes=30)

_SECONDS_BEFORE_REMARK = 10.0
_SECONDS_FOR_THE_REASON = 2.0  # in which a process that failed says why

# Wrapped networks live as long as the process. PyTorch frees one by waiting for Gloo's thread, with Python's lock held,
# and that thread may be waiting for the lock: seen with torch 2.12.
_WRAPPED: list[nn.Module] = []

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class ProcessRuntime:
    """One process among ``world_size``; also what :class:`afa.methods.base.Runtime` promises to methods.

    Use it as a context manager: it leaves the process group at the end.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    precision: str = "float32"
    control_group: Any = None

    @classmethod
    def start(cls, settings: TrainConfig, option: str = "train.device") -> ProcessRuntime:
        """Join the processes that torchrun started, if any, and choose the device.

        Args:
            settings: Device, precision, threads, and whether to be deterministic.
            option: What the user set the device with, for messages.

        Raises:
            UserError: The device asked for is not there, or the environment makes no sense, see :func:`read_launch`.
        """
        rank, world_size, local_rank = read_launch(os.environ)
        device = choose_device(settings.device, option, local_rank=local_rank, world_size=world_size)
        if device.type != "cuda" and settings.precision == "fp16":
            raise UserError("train.precision=fp16 needs a GPU with CUDA, and none is used; take bf16 or float32")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        allow_tf32(settings.precision == "tf32")
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            if settings.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True, warn_only=True)
                # The gradient of fused attention is not deterministic there.
                for backend in ("flash", "mem_efficient", "cudnn"):
                    getattr(torch.backends.cuda, f"enable_{backend}_sdp")(False)
                torch.backends.cudnn.benchmark = False
            else:
                torch.backends.cudnn.benchmark = True
        control_group = None
        if world_size > 1:
            control_group = _join(device)
        return cls(device, rank, world_size, settings.precision, control_group)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the networks' products."""
        return _HALF.get(self.precision, torch.float32)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def __enter__(self) -> ProcessRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error the other processes may be gone, and taking leave of them could wait for ever.
        if kind is None and self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
        if self.world_size > 1:
            # Gloo's threads outlive the group where anything still refers to it. One that frees a tensor while Python
            # itself comes to its end aborts the process, whose work was done.
            leave_without_waiting()

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision where the run asks for it."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def seed(self, value: int) -> None:
        """Seed the random numbers of host and device alone; torch.manual_seed also looks for every other device."""
        torch.default_generator.manual_seed(value)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(value)
        elif self.device.type == "mps":
            torch.mps.manual_seed(value)

    def worst(self, verdict: int) -> int:
        """The greatest of the processes' numbers. All processes must ask; the GPU is not waited for."""
        if self.world_size == 1:
            return verdict
        shared = torch.tensor([verdict])
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.control_group)
        return int(shared.item())

    def any_on_device(self, flag: Tensor) -> Tensor:
        """A 0/1 float tensor on the device, 1 where it is on any process. The host does not wait."""
        if self.world_size > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return flag

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        return self.sum(values) / self.world_size if self.world_size > 1 else values

    def gather(self, value: Value) -> list[Value]:
        """The processes' values in the order of their ranks. All processes must ask."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control_group)
        return values

    def on_main(self, function: Callable[[], Value]) -> Value:
        """Let the main process do something; every process gets its result.

        Raises:
            UserError: The main process's, on every process.
        """
        if self.world_size == 1:
            return function()
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [function()]
            except UserError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, group=self.control_group)
        if isinstance(outcome[0], UserError):
            outcome[0].said = not self.is_main
            raise outcome[0]
        return outcome[0]

    def wrap(self, network: nn.Module, *, sync_batchnorm: bool) -> nn.Module:
        """The network with averaged gradients over the processes; all get the main process's weights.

        SyncBatchNorm works on GPUs only; on the CPU each process normalises by its own statistics and the main
        process's running statistics count.
        """
        if self.world_size == 1:
            return network
        if sync_batchnorm and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # A remark on speed about the gradients of depth-wise convolutions, which nobody here can change.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        wrapped = nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        _WRAPPED.append(wrapped)
        return wrapped


def _join(device: torch.device) -> Any:
    """Meet the other processes; returns the group whose messages go through the hosts."""
    where = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
    minutes = _MEETING.seconds // 60
    say = "still waiting for the other processes of this run (%s), %d minutes at most"
    remark = threading.Timer(_SECONDS_BEFORE_REMARK, logger.warning, (say, where, minutes))
    remark.daemon = True
    # PyTorch waits where Python sees no signal: an interrupt ends the process at once, which has done nothing yet.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    remark.start()
    try:
        store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=_MEETING)))
    except dist.DistError as error:
        reason = _first_line(str(error))
        raise UserError(f"the processes of this run cannot connect to each other ({where}): {reason}") from error
    finally:
        remark.cancel()
        signal.signal(signal.SIGINT, interrupt)
    # Within one torchrun the store outlives a restart: without a prefix, processes may look for those of the last time.
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size):
        store = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_MEETING)
    control_group = dist.new_group(backend="gloo", timeout=_MEETING) if device.type == "cuda" else dist.group.WORLD
    # The second is the older name of the first.
    set_timeout: Any = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    for group in {control_group, dist.group.WORLD}:
        set_timeout(_WORKING, group)
    return control_group


@contextmanager
def shared_work(device: str) -> Iterator[ProcessRuntime]:
    """The processes that share the images of a list: those that torchrun started, or this one alone.

    Args:
        device: As ``--device`` gives it.

    Raises:
        UserError: The device is not there, or the environment makes no sense; or another process has ended early.
    """
    try:
        with ProcessRuntime.start(TrainConfig(device=device), "--device") as runtime:
            yield runtime
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        # The one that failed tells why, and torchrun ends this one meanwhile.
        time.sleep(_SECONDS_FOR_THE_REASON)
        raise UserError("another process of this job has ended early: start the same command again") from error


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of the group has ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def compile_network(network: nn.Module) -> None:
    """Compile the parts of a network in place; what cannot be compiled runs as it is, with a warning."""
    complaints: list[str] = []
    remarks: list[str] = []

    def complain(error: Exception) -> None:
        if not complaints:
            complaints.append(reason := _first_line(str(error)) or type(error).__name__)
            logger.warning("train.compile: torch.compile does not work here, training uncompiled: %s", reason)

    def shorten(record: logging.LogRecord) -> bool:
        """Stands in for PyTorch's own, long words about code that it does not compile, or not once more."""
        if not remarks:
            remarks.append(reason := _first_line(record.getMessage()))
            logger.warning("train.compile: a part of the network runs uncompiled: %s", reason)
        return False

    try:
        import torch._dynamo
        from torch._dynamo.backends.registry import lookup_backend

        inductor = lookup_backend("inductor")
        torch._dynamo.config.suppress_errors = True
        logging.getLogger("torch._dynamo.convert_frame").addFilter(shorten)

        def compile_graph(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            if complaints:
                return graph.forward
            try:
                return inductor(graph, inputs)
            # Whatever a compiler fails with, the graph itself can still be run.
            except Exception as error:
                complain(error)
                return graph.forward

        for child in network.children():
            child.compile(backend=compile_graph)
    # Not every Python and platform has a compiler at all.
    except Exception as error:
        complain(error)


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
