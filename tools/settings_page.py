#!/usr/bin/env python
"""Print every setting of every method as a page of documentation: tools/settings_page.py [--write]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from afa.config.page import settings_page
from afa.data.files import replacing
from afa.errors import UserError, run_command
from afa.methods import OWN_METHODS, config_class

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "configuration.md"
BEGIN = "<!-- settings: what follows is written by python tools/settings_page.py --write -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, print the page or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write it into {DOCUMENT.relative_to(ROOT)} instead")
    args = parser.parse_args(arguments)
    page = settings_page({name: config_class(name) for name in OWN_METHODS})
    if not args.write:
        print(page, end="")
        return 0
    introduction, begin, _ = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    if not begin:
        raise UserError(f"{DOCUMENT} lacks the line {BEGIN.strip()}")
    with replacing(DOCUMENT) as beside:
        beside.write_text(f"{introduction}{BEGIN}\n{page}", encoding="utf-8")
    print(f"saved to {DOCUMENT}")
    return 0


if __name__ == "__main__":
    run_command(main)
