"""What users should know of their data, said once by one process."""

from __future__ import annotations

import functools
import logging
import os

from afa.errors import one_line

logger = logging.getLogger(__name__)


@functools.cache
def say_once(message: str, level: int = logging.WARNING) -> None:
    """Log a line unless this process has said it, or another process of the same run says it.

    Args:
        message: One line.
        level: Of the logging module.
    """
    if os.environ.get("RANK", "0") in ("", "0"):
        logger.log(level, "%s", one_line(message))
