"""Which tensors of a file are meant: entries around them, several versions of one network, prefixes, by-catch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from afa.errors import UserError
from afa.weights.files import shown

# Words for the weights as they were trained, around the tensors or before their names.
_PLAIN = {
    "state_dict", "model_state_dict", "model_state", "model_weights", "model", "net_state_dict", "net", "network",
    "params", "weights", "module", "state", "_orig_mod", "_forward_module",
}  # fmt: skip
# Words for another version of the same network: averaged, or one of two that teach each other.
_VERSIONS = {
    "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "net_ema", "ema_net",
    "network_ema", "ema_network", "averaged_model", "avg_model", "swa_model", "student", "teacher",
}  # fmt: skip
_WITHOUT_WEIGHTS = ("optim", "lr_sched", "sched")
_DEEPEST = 4
_LISTED = 6
# thop leaves the first two in every module; averaging in PyTorch and older BatchNorms count beside the weights.
_BY_CATCH = ("total_ops", "total_params")
_AVERAGED = "n_averaged"


class Chosen(NamedTuple):
    """The tensors of one network.

    Attributes:
        tensors: Name -> tensor, or what else stands there; without prefixes.
        taken: What they are called in the file, where it holds several; else empty.
        others: What else could have been taken.
        left_out: Names of by-catch: counters that belong to no network.
    """

    tensors: dict[str, Any]
    taken: str
    others: list[str]
    left_out: list[str]


def split_entry(source: str | Path) -> tuple[str, str | None]:
    """Part ``FILE#ENTRY``, which names one of several versions in a file.

    Returns:
        The path (or name on the hub), and the entry, None where none is named or a file has this very name.

    Raises:
        UserError: Nothing follows the ``#``.
    """
    text = str(source)
    path, mark, entry = text.rpartition("#")
    if not mark or "/" in entry or os.path.lexists(text):
        return text, None
    if not entry or not path:
        raise UserError(f"{text}: give a file and one of its entries, for example model.pth#model_ema")
    return path, entry


def choose(content: Mapping[Any, Any], entry: str | None, path: Path) -> Chosen:
    """Find the tensors that are meant.

    Args:
        content: What a file holds: named tensors, perhaps below entries such as ``state_dict``.
        entry: The version that the user names: an entry, or the first word of all its names.
        path: Begins messages.

    Raises:
        UserError: There is no such entry; or there are several versions, none is plain, and none was named.
    """
    counts: dict[int, int] = {}
    leaves = dict(_leaves(content, "", 0, counts)) or {"": content}
    most = max(counts[id(leaf)] for leaf in leaves.values())
    # Beside a network, criteria and callbacks keep a tensor or two.
    whole = [label for label, leaf in leaves.items() if 2 * counts[id(leaf)] >= most]
    named = [] if entry is None else [label for label in leaves if f".{entry}." in f".{label}."]
    if entry is not None and named:
        whole = [label for label in whole if label in named] or named
        label, others, entry = _one(whole, path), [], None
    else:
        label = _one(whole, path)
        others = [other for other in whole if other != label]
    if not all(isinstance(name, str) for name in leaves[label]):
        raise UserError(f"{path} holds things that are not named by texts, so no network")
    tensors, prefix, others_by_prefix, left_out = _by_prefix(dict(leaves[label]), entry, path, list(leaves))
    return Chosen(tensors, prefix or (label if others or named else ""), others_by_prefix or others, left_out)


def _leaves(
    node: Mapping[Any, Any], label: str, depth: int, counts: dict[int, int]
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Everything in a file that holds tensors by name, with the entries that lead to it.

    Args:
        node: What is looked through.
        label: The entries that lead to it.
        depth: How many.
        counts: How many tensors lie in what was met, by its identity: one thing may stand in many places.
    """
    met = id(node) in counts
    if not met:
        counts[id(node)] = sum(isinstance(value, Tensor) for value in node.values())
    if counts[id(node)]:
        yield label, node
    if met or depth == _DEEPEST:
        return
    for key, value in node.items():
        if isinstance(key, str) and isinstance(value, Mapping) and not key.lower().startswith(_WITHOUT_WEIGHTS):
            yield from _leaves(value, f"{label}.{key}" if label else key, depth + 1, counts)


def _one(labels: list[str], path: Path) -> str:
    """The plain one of several versions."""
    if len(labels) == 1:
        return labels[0]
    plain = [label for label in labels if all(word.lower() in _PLAIN for word in label.split("."))]
    if len(plain) == 1:
        return plain[0]
    raise UserError(
        f"{path} holds several sets of weights ({listed(labels)}), and which one is meant is not clear: "
        f"name it, for example {path}#{shown(next(label for label in labels if label).split('.')[-1])}"
    )


def _by_prefix(
    tensors: dict[str, Any], entry: str | None, path: Path, labels: list[str]
) -> tuple[dict[str, Any], str, list[str], list[str]]:
    """Take prefixes off, of wrappers and versions, until the names of a network are left."""
    taken, others, left_out, met = "", list[str](), list[str](), list[str]()
    while True:
        by_catch = [name for name in tensors if _is_by_catch(name, tensors)]
        left_out += by_catch
        for name in by_catch:
            del tensors[name]
        heads = list(dict.fromkeys(name.partition(".")[0] if "." in name else "" for name in tensors))
        met += heads
        if entry and entry in heads:
            head, taken, others = entry, entry, []
            entry = None
        elif len(heads) == 1 and heads[0] in _PLAIN | _VERSIONS:
            head = heads[0]
        elif len(heads) > 1 and all(head in _PLAIN | _VERSIONS for head in heads):
            head = _one(heads, path)
            taken, others = head, [other for other in heads if other != head]
        else:
            break
        tensors = {
            name.removeprefix(f"{head}."): tensor for name, tensor in tensors.items() if name.startswith(f"{head}.")
        }
    if entry is not None:
        there = [word for word in dict.fromkeys((*labels, *met)) if word]
        raise UserError(f"{path} has no entry '{shown(entry)}'; it has {listed(there) or 'none'}")
    return tensors, taken, others, left_out


def _is_by_catch(name: str, tensors: Mapping[str, Any]) -> bool:
    value = tensors[name]
    if not isinstance(value, Tensor) or value.numel() != 1:
        return False
    if name == _AVERAGED:
        return all(other == name or other.startswith("module.") for other in tensors)
    return name.rpartition(".")[2] in _BY_CATCH


def listed(names: list[str]) -> str:
    """The first few names, ready for a message."""
    more = ["..."] if len(names) > _LISTED else []
    return ", ".join([*(shown(name) or "the file itself" for name in names[:_LISTED]), *more])
