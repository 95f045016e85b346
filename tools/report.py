#!/usr/bin/env python
"""One HTML page about a run, or about a folder of results: tools/report.py work_dirs/voc --output voc.html"""

from __future__ import annotations

from afa.commands.report import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
