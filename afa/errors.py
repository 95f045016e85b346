"""How a user's mistake reaches the user: one clear line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: what is wrong, where, and how to mend it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command-line program and turn its outcome into an exit code.

    Args:
        main: The program; returns its exit code, None meaning 0.

    Raises:
        SystemExit: Always. Code 2 after a :class:`UserError` or a file that cannot be read or written, 130 after an
            interrupt from the keyboard.
    """
    try:
        code = main() or 0
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            # Under torchrun all processes mostly have the same to say: the first one speaks, its end ends the others.
            time.sleep(3)
        print(f"error: {error}", file=sys.stderr)
        code = USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader (head, less) has gone: there is nobody left to tell.
        sys.stderr.close()
        code = 0
    except OSError as error:
        if error.strerror is None:  # not the system's: a library's
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        code = USER_ERROR_EXIT_CODE
    sys.exit(code)
