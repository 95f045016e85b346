#!/usr/bin/env python
"""Score a checkpoint: tools/eval.py work_dirs/voc --split val dataset.root=data/VOC2012"""

from __future__ import annotations

from afa.commands.eval import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
