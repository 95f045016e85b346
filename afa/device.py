"""Where tensors live: the CPU, a GPU of NVIDIA's or AMD's (CUDA), or one of Apple's (MPS)."""

from __future__ import annotations

import torch

from afa.errors import UserError


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may round the factors of float32 products to 10 bits; by PyTorch's default, convolutions may."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def mps_available() -> bool:
    """Whether there is a GPU of Apple's that PyTorch can use."""
    return torch.backends.mps.is_available()


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
