#!/usr/bin/env python
"""See what a checkpoint does: tools/contact_sheet.py work_dirs/voc --split val --limit 8 --output sheet.png"""

from __future__ import annotations

from afa.commands.contact_sheet import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
