"""List methods, recipes and outputs.

    afa list
    afa list recipes

A recipe is a configuration in the package: 'afa train NAME' trains it. An output is a map or label that a trained
network computes for an image: 'afa label --outputs NAME' saves it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

from afa.commands.arguments import CommandParser
from afa.config.recipes import recipe_names, recipe_purpose
from afa.methods import build_method, config_class, load_config, method_names


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, print the lists."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "kind", nargs="?", choices=tuple(_LISTS), metavar="KIND", help=f"{', '.join(_LISTS)}; default: all"
    )
    args = parser.read(arguments)
    for number, kind in enumerate([args.kind] if args.kind else _LISTS):
        if args.kind is None:
            print(f"{kind}:" if number == 0 else f"\n{kind}:")
        rows = list(_LISTS[kind]())
        width = max(len(name) for name, _ in rows) + 2
        for name, text in rows:
            print(f"  {name:<{width}}{text}".rstrip(), flush=True)
    return 0


def _methods() -> Iterator[tuple[str, str]]:
    for name in method_names():
        room = sys.modules[config_class(name).__module__.rpartition(".")[0] or config_class(name).__module__]
        yield name, (room.__doc__ or "").strip().partition("\n")[0]


def _recipes() -> Iterator[tuple[str, str]]:
    for name in recipe_names():
        yield name, f"{load_config(name).method:<14}{recipe_purpose(name)}"


def _outputs() -> Iterator[tuple[str, str]]:
    import torch

    from afa.methods.base import SingleProcess

    for name in method_names():
        try:
            with torch.device("meta"):  # no memory: nothing is computed
                method = build_method(config_class(name)(), ["class"], SingleProcess())
        except Exception:  # a stranger's may raise anything where its settings have only their defaults
            yield name, "depend on the configuration"
            continue
        for output in method.outputs:
            needs = f"; needs {', '.join(output.inputs)}" if output.inputs else ""
            yield f"{name}: {output.name}", f"{output.title} ({output.kind}){needs}"


_LISTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "methods": _methods,
    "recipes": _recipes,
    "outputs": _outputs,
}
