#!/usr/bin/env python
"""Check a data set: tools/check_data.py voc dataset.root=data/VOC2012"""

from __future__ import annotations

from afa.commands.check import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
