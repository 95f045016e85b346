#!/usr/bin/env python
"""Prepare PASCAL VOC 2012 with SBD's masks: tools/prepare_voc.py data/VOC2012 --download"""

from __future__ import annotations

from afa.commands.prepare_voc import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
