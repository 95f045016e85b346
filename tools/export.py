#!/usr/bin/env python
"""Hand results and networks to other programs: tools/export.py onnx work_dirs/voc --output model.onnx"""

from __future__ import annotations

from afa.commands.export import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
