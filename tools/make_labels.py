#!/usr/bin/env python
"""Make image-level labels for own data: tools/make_labels.py --folders mine/images --output mine/class_labels.csv"""

from __future__ import annotations

from afa.commands.make_labels import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
