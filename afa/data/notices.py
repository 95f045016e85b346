"""What users should know of their data, said by one process of a run."""

from __future__ import annotations

import logging
import os

from afa.errors import one_line

logger = logging.getLogger(__name__)


def say(message: str, level: int = logging.WARNING) -> None:
    """Log a line, unless another process of the same run says it.

    Args:
        message: What there is to say.
        level: Of the logging module.
    """
    if os.environ.get("RANK", "0") in ("", "0"):
        logger.log(level, "%s", one_line(message))
