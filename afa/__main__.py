"""``python -m afa`` is ``afa``."""

from __future__ import annotations

from afa.commands.main import run

if __name__ == "__main__":
    run()
