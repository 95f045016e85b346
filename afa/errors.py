"""How a user's mistake reaches the user: one clear line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130

_LONGEST_MESSAGE = 600  # characters

# Whether something hangs that nobody can end, see leave_without_waiting.
_left_at_once = False

# How the allocators of PyTorch, CUDA and numpy say it; what a loader process raised arrives as text.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "unable to allocate")


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: what is wrong, where, and how to mend it. What it quotes from files cannot break that, see
    :func:`one_line`.

    Attributes:
        said: Whether another process of the job says it.
    """

    said = False

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """Text as one line that a terminal shows unchanged.

    Line breaks and runs of blanks become one blank. Characters that move the cursor, turn the direction of writing or
    cannot be seen are escaped (``\\x1b``). Of a long text the middle is left out.

    Args:
        text: Any text; names in it may come from files of strangers.
        longest: Characters that are kept, at least 20.
    """
    text = " ".join(text.split())
    shown = "".join(character if character.isprintable() else _escaped(character) for character in _cut(text, longest))
    return _cut(shown, longest)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]} ... {text[len(text) - (longest - head - 5) :]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the host or of a GPU, did not suffice."""
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)


def leave_without_waiting() -> None:
    """Let :func:`run_command` end the process at once.

    Something hangs that nobody can end, and Python would wait; or threads of a library do not bear Python's own end.
    """
    global _left_at_once
    _left_at_once = True


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
        if (os.environ.get("RANK") or "0") != "0":
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
        print(f"error: memory ran out: take smaller images, batches or scales ({one_line(reason)})", file=sys.stderr)
        code = USER_ERROR_EXIT_CODE
    except OSError as error:
        if error.strerror is None:  # not the system's: a library's
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {one_line(f'{where}{error.strerror}')}", file=sys.stderr)
        code = USER_ERROR_EXIT_CODE
    if _left_at_once:  # also without what Python does at its end: it would wait for the same
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
