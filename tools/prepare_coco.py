#!/usr/bin/env python
"""Prepare COCO 2014: tools/prepare_coco.py data/COCO2014"""

from __future__ import annotations

from afa.commands.prepare_coco import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
