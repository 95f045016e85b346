"""What a finished run says last: where its files are, and the commands that come next."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import afa
from afa.engine.log import LOG
from afa.engine.records import METRICS
from afa.methods.base import Method
from afa.weights.facts import CHECKPOINTS_FOLDER

# Command of the package -> script in the folder tools/.
_SCRIPTS = {"eval": "eval.py", "label": "label.py", "predict": "infer.py", "sheet": "contact_sheet.py"}


def whereabouts(output: Path, best_step: int | None) -> list[str]:
    """Where the run's files are, one line each.

    Args:
        output: Folder of the run.
        best_step: Step of the best checkpoint; None where there was no validation with masks.
    """
    checkpoints = output / CHECKPOINTS_FOLDER
    # Some file systems have no links.
    last, best = (checkpoints / name if (checkpoints / name).exists() else None for name in ("last", "best"))
    lines = [f"weights: {last or checkpoints}"]
    if best_step is not None and best is not None:
        lines.append(f"best in validation (step {best_step}): {best}")
    return [*lines, f"records: {output / METRICS}, {output / LOG}, {output / 'tensorboard'}"]


def next_commands(output: Path, method: Method, *, has_masks: bool) -> list[str]:
    """Commands for a shell, to be copied as they are but for ``photos/``.

    Args:
        output: Folder of the run.
        method: Its outputs decide what can be done with it.
        has_masks: Whether the validation list can be scored.
    """
    # A path that begins with a dash would be taken for an option.
    run = f"./{output}" if str(output).startswith("-") else str(output)
    commands = [[*_command("eval"), run]] if has_masks else []
    written = [output for output in method.outputs if output.kind != "affinity"]
    if written:
        commands.append([*_command("label"), run, "--output", f"{run}_labels"])
    if any(not output.inputs for output in written):
        commands.append([*_command("predict"), run, "photos/", "--output", "results"])
    if has_masks:
        commands.append([*_command("sheet"), run, "--output", f"{run}_sheet.png"])
    commands.append(["tensorboard", "--logdir", f"{run}/tensorboard"])
    return [shlex.join(command) for command in commands]


def _command(name: str) -> list[str]:
    script = _script(_SCRIPTS[name])
    return ["python", script] if script else ["afa", name]


def _script(name: str) -> str | None:
    """A script of the folder tools/ beside the package, as it is called from here; None where it is not installed."""
    path = Path(afa.__file__).resolve().parents[1] / "tools" / name
    if not path.is_file():
        return None
    here = Path.cwd()
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)
