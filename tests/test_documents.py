"""What the documentation names is there: functions of equations, files, headings, settings of templates."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import unquote

import pytest
import yaml

import afa
from afa.config.settings import each_setting
from afa.methods import OWN_METHODS, config_class

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "docs" / "methods.md"
PLACES = ("*.md", ".github/**/*.md", "docs/**/*.md", "pretrained/*.md", "tests/**/*.md", "configs/**/*.md")
DOCUMENTS = sorted({path for place in PLACES for path in ROOT.glob(place)})
FOLDERS = "afa|configs|docs|launch|pretrained|tests|tools"


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(path), flags=re.MULTILINE):
        text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
    return {
        anchor if not number else f"{anchor}-{number}" for anchor, last in found.items() for number in range(last + 1)
    }


def links(path: Path) -> Iterator[str]:
    """What a document links to, images included."""
    text = re.sub(r"(`+).+?\1", "", prose(path), flags=re.DOTALL)
    yield from re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    yield from re.findall(r"^\[[^]]+\]:\s*(\S+)", text, flags=re.MULTILINE)
    yield from re.findall(r"<(?:img|a)\s[^>]*?(?:src|href)=[\"']([^\"']+)", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        place = document.parent / unquote(target) if target else document
        assert place.resolve().is_relative_to(ROOT) and place.exists(), link
        if anchor and place.suffix == ".md":
            assert unquote(anchor) in anchors(place), link


def test_links_are_seen() -> None:
    assert {"README.md", "CHANGELOG.md", "docs/methods.md", ".github/ISSUE_TEMPLATE/bug.md"} <= {
        path.relative_to(ROOT).as_posix() for path in DOCUMENTS
    }
    assert len([link for document in DOCUMENTS for link in links(document)]) > 60
    assert {"saliency", "psas-pipeline"} <= anchors(ROOT / "docs/data.md") | anchors(ROOT / "docs/psa.md")


def test_readme_leads_to_every_page() -> None:
    pages = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")
    }
    assert pages <= set(links(ROOT / "README.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_of_the_project_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]+\.(?:cff|ipynb|md|npz|py|sh|yaml|yml))\b", text):
        assert (ROOT / name).is_file() or (ROOT / "tests" / name).is_file() or "NAME" in name, name
    for name in re.findall(r"(?<![\w/.-])(?:tests/)?((?:\w+/)?test_\w+\.py)\b", text):
        assert (ROOT / "tests" / name).is_file(), name


def rows(section: str) -> list[list[str]]:
    """The rows of a section's table of docs/methods.md: source, what, formula, functions."""
    text = METHODS.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" |") for cell in line] for line in lines[2:]]


SECTIONS = ("AFA", "PSA", "EDAM")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_function_of_an_equation_exists_and_names_its_source(section: str) -> None:
    found = rows(section)
    assert len(found) > 10
    for source, *_, functions in found:
        names = re.findall(r"`([\w.]+)`", functions)
        assert names, source
        assert all(callable(resolve_name(f"afa.{name}")) for name in names), source
        if re.match(r"sec\.|eq\.|Algorithm", source):
            said = {one for name in names for one in sources(all_docstrings(name))}
            assert said & set(sources(source)), f"{names}: {source}"


def all_docstrings(name: str) -> str:
    """Of an object, its class and its module."""
    parts = name.split(".")
    texts = []
    for last in range(len(parts), 0, -1):
        owner = resolve_name(".".join(["afa", *parts[:last]]))
        texts.append(inspect.getdoc(owner) or "")
        if inspect.ismodule(owner):
            break
    return "\n".join(texts)


def sources(text: str) -> Iterator[str]:
    """The sections and equations that a text names; "eq. 7-9" are three."""
    for kind, numbers in re.findall(r"(sec|eq)\. ((?:[\d.]+(?:-|, |\b))+)", text):
        for first, last in re.findall(r"(\d+(?:\.\d+)*)(?:-(\d+(?:\.\d+)*))?", numbers):
            ends = [int(end.rpartition(".")[2]) for end in (first, last or first)]
            stem = first.rpartition(".")[0]
            yield from (
                f"{kind}. {stem}.{number}" if stem else f"{kind}. {number}" for number in range(ends[0], ends[1] + 1)
            )
    if "Algorithm 1" in text:
        yield "Algorithm 1"


def test_every_equation_that_a_docstring_names_has_a_row() -> None:
    named = {"AFA": set(range(2, 13)), "PSA": {1, 2, 3}}
    for section, numbers in named.items():
        listed = {source for row in rows(section) for source in sources(row[0])}
        assert {f"eq. {number}" for number in numbers} <= listed, section


def test_settings_that_the_methods_page_names_exist() -> None:
    known = {key for name in OWN_METHODS for key, _, _ in each_setting(config_class(name)())}
    sections = {key.partition(".")[0] for key in known} - {"method"}
    for name in re.findall(rf"`((?:{'|'.join(sorted(sections))})\.\w+)`", METHODS.read_text(encoding="utf-8")):
        assert name in known, name


def test_citation_and_workflow_are_what_others_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["version"] == afa.__version__
    assert citation["license"] == "Apache-2.0" and len(citation["references"]) == 3
    for work in (citation, *citation["references"]):
        assert work["title"] and all({"name", "family-names"} & set(author) for author in work["authors"])
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]
    for script in {*matrix["script"], *(one["script"] for one in matrix["include"])}:
        assert (ROOT / "launch" / script).is_file()
    assert f"## {afa.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_checks_before_a_commit_are_those_of_the_test_script() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = " ".join(hook["entry"] for hook in repository["hooks"])
    script = (ROOT / "launch/test.sh").read_text(encoding="utf-8")
    for command in ("ruff check", "ruff format", "mypy afa tools"):
        assert command in entries and command in script
