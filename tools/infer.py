#!/usr/bin/env python
"""Segment anyone's images: tools/infer.py work_dirs/voc photos/ cat.jpg --output results"""

from __future__ import annotations

from afa.commands.infer import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
