"""Where tensors live: the CPU, a GPU of NVIDIA's or AMD's (CUDA), or one of Apple's (MPS)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from afa.errors import UserError

_FIRST_WITH_TF32 = (8, 0)  # compute capability: NVIDIA's Ampere


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may round the factors of float32 products to 10 bits; by PyTorch's default, convolutions may."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def mps_available() -> bool:
    """Whether there is a GPU of Apple's that PyTorch can use."""
    return torch.backends.mps.is_available()


def set_own_threads(count: int) -> None:
    """Set how many processor threads work for the operators that this thread starts.

    At its first operator, a thread takes the number that any thread has set last. That is done with before.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)


def choose_device(name: str, option: str, *, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """The device that a user asked for.

    Args:
        name: ``auto`` (CUDA where there is a GPU, else MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        option: What the user set it with, for the message.
        local_rank: Number of this process on its machine: ``auto`` and ``cuda`` are the GPU of that number.
        world_size: Number of processes; among several, each takes its own GPU whatever the name's number, and
            ``auto`` is never MPS, of which a machine has one.

    Raises:
        UserError: It is no device, or not there.
    """
    if name == "auto":
        apple = world_size == 1 and mps_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{option}={name}: no such device; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cpu":
        return device
    if device.type == "mps":
        if world_size > 1:
            raise UserError(f"{option}={name} is for one process; several use {option}=cpu or cuda")
        if not mps_available():
            raise UserError(f"{option}={name}, but PyTorch sees no GPU of Apple's; use {option}=cpu")
        return torch.device("mps")
    if device.type != "cuda":
        raise UserError(f"{option}={name} is not supported; use auto, cpu, cuda, cuda:N or mps")
    if not torch.cuda.is_available():
        raise UserError(f"{option}={name}, but PyTorch sees no GPU; use {option}=cpu")
    index = local_rank if device.index is None or world_size > 1 else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f"{option}: GPU {index} was asked for, this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def require_precision(precision: str, device: torch.device, option: str) -> None:
    """Refuse a precision that a device would silently replace by another one.

    Args:
        precision: ``float32``, ``tf32`` or ``bf16``.
        device: Where the products are formed.
        option: What the user set it with, for the message.

    Raises:
        UserError: The device cannot do it.
    """
    if precision == "tf32":
        able = (
            device.type == "cuda"
            and torch.version.cuda is not None
            and torch.cuda.get_device_capability(device) >= _FIRST_WITH_TF32
        )
        if not able:
            raise UserError(
                f"{option}=tf32 needs a GPU of NVIDIA's from Ampere (2020) on, and the device is {device}: take "
                "float32 or bf16"
            )
    elif precision == "bf16" and not _forms_products_in_bf16(device):
        raise UserError(f"{option}=bf16: PyTorch does not do that on the device {device}: take float32")


def _forms_products_in_bf16(device: torch.device) -> bool:
    """Tried, not looked up: where PyTorch cannot, it raises an error or goes on in float32, by device and version."""
    one = torch.ones(1, 1, device=device)
    try:
        with warnings.catch_warnings(), torch.autocast(device.type, dtype=torch.bfloat16):
            warnings.simplefilter("ignore")
            return (one @ one).dtype == torch.bfloat16
    except RuntimeError:
        return False


@contextmanager
def at_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, networks compute at a precision: ``float32`` as usual, ``tf32``, or ``bf16`` by autocast.

    With bf16, what comes out may be bf16: the caller turns it into float32.

    Args:
        precision: That :func:`require_precision` has found possible.
        device: Of the network.
    """
    if precision == "tf32":
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        allow_tf32(True)
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    elif precision == "bf16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    else:
        yield
