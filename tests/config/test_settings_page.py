"""docs/configuration.md: every setting of every method, current."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from afa.config import RunConfig, setting
from afa.config.page import settings_page
from afa.config.settings import each_setting
from afa.errors import UserError
from afa.methods import OWN_METHODS, config_class

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


@dataclass
class Extra:
    """Of this method alone. More is said here."""

    odd: int | float | None = setting(None, "a | b < `c`", minimum=1, maximum=2000)
    names: list[str] = setting(["a"], "names")


@dataclass
class Other(RunConfig):
    extra: Extra = field(default_factory=Extra)


def test_the_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(DOCUMENT.with_suffix(".py")))["main"]([]) == 0
    tables = capsys.readouterr().out
    assert DOCUMENT.read_text(encoding="utf-8").endswith(f"\n\n{tables}"), "run: python docs/configuration.py --write"


def test_what_is_above_the_tables_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "configuration.md"
    script = Path(shutil.copy(DOCUMENT.with_suffix(".py"), tmp_path))
    write = runpy.run_path(str(script))["main"]
    begin, line, tables = DOCUMENT.read_text(encoding="utf-8").partition("<!-- settings:")
    page.write_text(f"above\n{line}{tables[: tables.index('-->') + 4]}old tables\n", encoding="utf-8")
    assert write(["--write"]) == 0
    assert page.read_text(encoding="utf-8") == f"above\n{line}{tables}" and "old tables" not in begin
    page.write_text("other\n", encoding="utf-8")
    with pytest.raises(UserError, match="lacks the line"):
        write(["--write"])
    assert page.read_text(encoding="utf-8") == "other\n"


def test_every_setting_of_a_method_is_in_the_common_part_or_its_own() -> None:
    common, *others = DOCUMENT.read_text(encoding="utf-8").split("\n## Method ")
    sections = {part.partition("\n")[0]: part for part in others}
    assert tuple(sections) == OWN_METHODS
    for name in OWN_METHODS:
        for key, value, item in each_setting(config_class(name)()):
            rows = [line for line in (common + sections[name]).splitlines() if line.startswith(f"| `{key}` |")]
            assert key == "method" or 1 <= len(rows) <= 2, key
            if rows and isinstance(value, str):  # the method's own row, the last one, is what it has
                assert f"| `{value}` |" in rows[-1]
            assert not rows or item.metadata["help"].split()[0] in rows[-1]


def test_what_differs_is_told_apart_and_signs_of_markdown_are_words() -> None:
    page = settings_page({"plain": RunConfig, "other": Other})
    common, plain, other = page.split("\n## Method ")
    assert "extra" not in common and "Differs in" not in common
    assert plain.strip() == "plain"
    assert "`extra`: Of this method alone. More is said here." in other
    row = r"| `extra.odd` | `null` | whole number or number, 1 to 2,000; or `null` | a \| b \< \`c\` |"
    assert row in other.splitlines()
    assert '| `extra.names` | `["a"]` | list of texts | names |' in other.splitlines()
