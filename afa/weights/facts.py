"""The folder of a checkpoint: the names of its files, and its facts, which carry their own checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afa.errors import UserError

CHECKPOINTS_FOLDER = "checkpoints"
WEIGHTS_FILE = "weights.safetensors"
TRAINING_FILE = "training.safetensors"
FACTS_FILE = "checkpoint.json"
CHECKSUMS = "sha256"
"""Key of the facts: file name -> SHA-256, in hexadecimal; that of the facts themselves counts all other keys."""


def pack_facts(content: Mapping[str, Any], checksums: Mapping[str, str]) -> str:
    """The text of ``checkpoint.json``.

    Args:
        content: JSON.
        checksums: Of the files beside it, by name.
    """
    return json.dumps({**content, CHECKSUMS: {**checksums, FACTS_FILE: _checksum(content)}}, indent=2) + "\n"


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` says, after its own checksum was compared.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        facts = json.loads((folder / FACTS_FILE).read_bytes())
        content = {key: value for key, value in facts.items() if key != CHECKSUMS}
        intact = _checksum(content) == facts[CHECKSUMS][FACTS_FILE]
    except OSError as error:
        raise UserError(f"the checkpoint {folder} is incomplete: {FACTS_FILE}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the checkpoint {folder} is damaged: {FACTS_FILE} does not hold what it should") from error
    if not intact:
        raise UserError(f"the checkpoint {folder} is damaged: {FACTS_FILE} does not match its checksum")
    return facts


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
