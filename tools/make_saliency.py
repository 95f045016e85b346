#!/usr/bin/env python
"""Make saliency maps for images that have none: tools/make_saliency.py photos/ --output saliency"""

from __future__ import annotations

from afa.commands.make_saliency import main
from afa.errors import run_command

if __name__ == "__main__":
    run_command(main)
