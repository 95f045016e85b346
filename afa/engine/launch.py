"""What a launcher such as torchrun says in the environment about this process and the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from afa.errors import UserError

_OTHERS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_HOW = "start with torchrun, which sets it, or unset it for one process alone"


class Launch(NamedTuple):
    """One process among ``world_size``; ``local_rank`` is its number on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Read ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``; an empty variable is as good as none.

    Args:
        environment: Such as ``os.environ``.

    Raises:
        UserError: A variable is no number or out of range, or others that belong to it are missing: the process would
            wait for ever for others, or take itself for one of them.
    """
    given = {name: environment.get(name, "").strip() for name in ("WORLD_SIZE", *_OTHERS)}
    world_size = _number("WORLD_SIZE", given["WORLD_SIZE"] or "1", 1, None)
    if world_size > 1:
        missing = [name for name in _OTHERS if not given[name]]
        if missing:
            raise UserError(
                f"the environment says WORLD_SIZE={world_size}, but not {', '.join(missing)}: start with torchrun, "
                "which sets them all, or unset WORLD_SIZE for one process alone"
            )
        _number("MASTER_PORT", given["MASTER_PORT"], 1, 65535)
    elif not given["WORLD_SIZE"] and (given["RANK"] or "0") != "0":
        raise UserError(f"the environment says RANK={given['RANK']}, but not WORLD_SIZE: {_HOW}")
    rank = _number("RANK", given["RANK"] or "0", 0, world_size - 1)
    return Launch(rank, world_size, _number("LOCAL_RANK", given["LOCAL_RANK"] or "0", 0, world_size - 1))


def _number(name: str, text: str, lowest: int, highest: int | None) -> int:
    # Digits of other scripts and 1_000 are numbers to Python, not to a launcher.
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"the environment says {name}='{text}', which is no whole number from {lowest} on: {_HOW}")
    number = int(text)
    if number < lowest or (highest is not None and number > highest):
        limits = f"{lowest} or more" if highest is None else f"from {lowest} to {highest}" if highest > lowest else "0"
        raise UserError(f"the environment says {name}={text}, which must be {limits}: {_HOW}")
    return number
