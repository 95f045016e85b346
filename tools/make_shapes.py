#!/usr/bin/env python
"""Make the built-in data set: tools/make_shapes.py --output data/shapes"""

from __future__ import annotations

from afa.commands.make_shapes import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
