#!/usr/bin/env python
"""Score masks or maps: tools/score.py masks FOLDER --config voc --split val"""

from __future__ import annotations

from afa.commands.score import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
