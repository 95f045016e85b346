#!/usr/bin/env python
"""One table of several score files: tools/summary.py "CAM=scores/cam.json" work_dirs/voc/evaluation.json"""

from __future__ import annotations

from afa.commands.summary import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
