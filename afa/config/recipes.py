"""The configurations that come with the package, by name: ``voc``, ``psa/1_cam``.

Their only copy in the repository is the folder ``configs``; an installed package has them in ``afa/recipes``.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

from afa.errors import UserError

SUFFIX = ".yaml"
_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "recipes", _PACKAGE.parent / "configs")  # of an installed package, of a checkout
_MOST_NAMED = 5


@cache
def recipe_folder() -> Path:
    """The folder of the recipes.

    Raises:
        UserError: They were not installed.
    """
    for place in _PLACES:
        if place.is_dir():
            return place
    raise UserError(f"the recipes are missing: neither {_PLACES[0]} nor {_PLACES[1]} exists; install the package again")


def recipe_names() -> list[str]:
    """Their names, those in folders last."""
    folder = recipe_folder()
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(f"*{SUFFIX}"))
    return sorted(found, key=lambda name: ("/" in name, name))


def recipe_purpose(name: str) -> str:
    """What a recipe is for: the comment that its file begins with, up to the first line break."""
    first = (recipe_folder() / f"{name}{SUFFIX}").read_text(encoding="utf-8").partition("\n")[0]
    return first.strip("# .:") if first.startswith("#") else ""


def config_file(text: str | Path) -> Path:
    """The YAML file for an argument: a file, or the name of a recipe.

    Args:
        text: A path; or ``voc``, ``voc.yaml`` or ``configs/voc.yaml``, where there is no such file.

    Raises:
        UserError: There is neither such a file nor such a recipe.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(SUFFIX)
    known = recipe_names()
    if name in known:
        return recipe_folder() / f"{name}{SUFFIX}"
    near = [recipe for recipe in known if recipe.startswith(f"{name}/")] or difflib.get_close_matches(
        name, known, n=_MOST_NAMED
    )
    hint = f"did you mean {' or '.join(near[:_MOST_NAMED])}?" if near else "'afa list recipes' lists them"
    what = "a folder, and no recipe of that name" if path.is_dir() else "neither a file nor a recipe"
    raise UserError(f"{text}: {what}; {hint}")
