#!/usr/bin/env python
"""Label a split with a trained method: tools/label.py work_dirs/voc --split train_aug --output work_dirs/voc_labels"""

from __future__ import annotations

from afa.commands.label import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
