#!/usr/bin/env python
"""Compare runs: tools/compare.py work_dirs/demo_seeds/seed_1 work_dirs/demo_seeds/seed_2 work_dirs/other"""

from __future__ import annotations

from afa.commands.compare import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
