"""Who imports whom: as docs/architecture.md says, and never in a circle."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"errors", "paths", "device", "parts", "progress", ""}
"""What every room may use; "" is the package itself, which holds the version."""


def imports() -> dict[str, set[str]]:
    """Room -> the other rooms that its files import, imports within functions included."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "afa").rglob("*.py")):
        room = path.relative_to(ROOT / "afa").with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "afa":
                modules = [f"afa.{name.name}" for name in node.names if not name.name.startswith("__")]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            parts = [[*module.split("."), ""] for module in modules]
            found[room] |= {names[1] for names in parts if names[0] == "afa"} - SMALL - {room}
    return {room: others for room, others in found.items() if room not in SMALL and not room.startswith("__")}


def table() -> dict[str, set[str]]:
    """Room -> the rooms that it knows, of the page's table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n## The rooms\n")[2]
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", text.partition("\n## ")[0], flags=re.MULTILINE)
    return {room.removesuffix(".py"): set(re.findall(r"`(\w+)(?:\.py)?`", known)) for room, known in rows}


def test_rooms_import_what_the_page_says() -> None:
    found, page = imports(), table()
    assert set(found) == set(page)
    assert page.pop("commands") == set()
    for room, known in page.items():
        assert found[room] <= known, f"afa/{room} imports {sorted(found[room] - known)}: see docs/architecture.md"


def test_arrows_run_one_way() -> None:
    seen: set[str] = set()
    for room, known in table().items():  # each row knows rows above it alone
        assert known <= seen, room
        seen.add(room)


def test_a_method_is_known_by_its_own_room_alone() -> None:
    """Besides by ``weights``, where a file brings no configuration, and by ``benchmarks``."""
    rooms = [path.name for path in (ROOT / "afa/methods").iterdir() if (path / "__init__.py").is_file()]
    assert {"afa", "psa", "edam", "segment"} <= set(rooms)
    for path in sorted((ROOT / "afa").rglob("*.py")):
        place = path.relative_to(ROOT / "afa").parts
        text = path.read_text(encoding="utf-8")
        for name in rooms if place[0] not in ("weights", "benchmarks") else ():
            if place[:2] != ("methods", name):
                assert not re.search(rf"^\s*(?:from|import) afa\.methods\.{name}\b", text, flags=re.MULTILINE), path
