#!/usr/bin/env python
"""Write a trained network in another layout: tools/convert_weights.py work_dirs/voc afa_voc_hf --format huggingface"""

from __future__ import annotations

from afa.commands.convert_weights import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
