#!/usr/bin/env python
"""Train: tools/train.py voc train.output=work_dirs/mine optimiser.lr=1e-4"""

from __future__ import annotations

from afa.commands.train import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
