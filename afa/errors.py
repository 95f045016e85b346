"""How a user's mistake reaches the user: one clear line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130

# How the allocators of PyTorch, CUDA and numpy say it; what a loader process raised arrives as text.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "unable to allocate")


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: what is wrong, where, and how to mend it.

    Attributes:
        said: Whether another process of the job says it.
    """

    said = False

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the host or of a GPU, did not suffice."""
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command-line program and turn its outcome into an exit code.

    Args:
        main: The program; returns its exit code, None meaning 0.

    Raises:
        SystemExit: Always. Code 2 after a :class:`UserError`, a file that cannot be read or written, or where memory
            ran out; 130 after an interrupt from the keyboard.
    """
    try:
        code = main() or 0
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            # Under torchrun all processes mostly have the same to say: the first one speaks, its end ends the others.
            time.sleep(3)
        if not error.said:
            print(f"error: {error}", file=sys.stderr)
        code = USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        # The reader (head, less) has gone: there is nobody left to tell.
        sys.stderr.close()
        code = 0
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"error: memory ran out: take smaller images, batches or scales ({reason})", file=sys.stderr)
        code = USER_ERROR_EXIT_CODE
    except OSError as error:
        if error.strerror is None:  # not the system's: a library's
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        code = USER_ERROR_EXIT_CODE
    sys.exit(code)
