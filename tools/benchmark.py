#!/usr/bin/env python
"""Measure speed and memory on this machine: tools/benchmark.py step --crop 512 --batch-size 2 --output step.json"""

from __future__ import annotations

from afa.commands.benchmark import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
