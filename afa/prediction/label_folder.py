"""Writing a label folder: the outputs of a trained method, for later stages to read.

``label.json`` (what made it) is written first, then ``maps/OUTPUT/NAME.npz`` and ``labels/OUTPUT/NAME.png``, and
``manifest.json`` (counts, failures, time) last. Started again it does what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from afa.config import config_differences
from afa.data.files import read_json, remove_unfinished, replacing, write_json
from afa.data.map_files import (
    AS_THEY_ARE,
    LABEL_FACTS,
    LABEL_MANIFEST,
    StoredForm,
    label_path,
    maps_path,
    write_maps,
)
from afa.data.palette import palette_image
from afa.errors import UserError
from afa.maps import Maps
from afa.methods.base import Found, Output

_SHOWN_DIFFERENCES = 5


class LabelFolder:
    """A folder of labels that one method makes.

    Args:
        root: The folder.
        facts: What makes it what it is, JSON: checkpoint, outputs, every setting that shapes them, fingerprints of
            what was read.
        outputs: What is written.
        maps: Whether maps are written beside the labels made of them.
        compress: Whether maps are compressed.
        form: Size and precision of maps. Where it is not the usual one, the facts say so.
        unnamed: Facts that folders of earlier versions do not name, as they were.
    """

    def __init__(
        self,
        root: Path,
        facts: Mapping[str, Any],
        outputs: Sequence[Output],
        *,
        maps: bool,
        compress: bool,
        form: StoredForm = AS_THEY_ARE,
        unnamed: Mapping[str, Any] | None = None,
    ) -> None:
        self.unnamed = unnamed or {}
        self.root, self.outputs = root, tuple(outputs)
        self.facts = dict(facts) if form == AS_THEY_ARE else {**facts, "maps": form._asdict()}
        self.maps, self.compress, self.form = maps, compress, form

    def begin(self) -> None:
        """Make the folder, or find that it is this one.

        Raises:
            UserError: It holds labels that something else made, or other files, or cannot be written.
        """
        path = self.root / LABEL_FACTS
        if path.is_file():
            lines = config_differences(_filled(read_json(path), self.unnamed), dict(self.facts))
            if lines:
                more = f"; and {len(lines) - _SHOWN_DIFFERENCES} more" if len(lines) > _SHOWN_DIFFERENCES else ""
                raise UserError(
                    f"{self.root} holds labels made otherwise ({'; '.join(lines[:_SHOWN_DIFFERENCES])}{more}): "
                    "name another --output, or delete the folder"
                )
            return
        try:
            if self.root.is_dir() and any(self.root.iterdir()):
                raise UserError(f"{self.root} is not empty and holds no {LABEL_FACTS}: name a new folder as --output")
            write_json(path, self.facts)
        except OSError as error:
            raise UserError(f"--output {self.root} cannot be written: {error.strerror or error}") from error

    def is_done(self, name: str) -> bool:
        """Whether everything of an image is there."""
        return all(path.is_file() for output in self.outputs for path in self._paths(output, name))

    def write(self, name: str, found: Found, size: tuple[int, int]) -> None:
        """Write everything of an image, each file at once or not at all.

        Args:
            name: Of the image.
            found: With all outputs.
            size: (H, W) of the image.
        """
        for output in self.outputs:
            seen = found.outputs[output.name]
            if self.maps and isinstance(seen, Maps):
                path = maps_path(self.root, output.name, name)
                write_maps(path, seen, size, compress=self.compress, form=self.form)
            label = output.label(seen, size, torch.uint8).cpu().numpy()
            with replacing(label_path(self.root, output.name, name)) as temporary:
                palette_image(label).save(temporary)

    def bytes_of(self, name: str) -> int:
        """How much an image's files take."""
        return sum(path.stat().st_size for output in self.outputs for path in self._paths(output, name))

    def tidy(self) -> None:
        """Remove incomplete files of a killed process."""
        for folder, _, _ in os.walk(self.root):
            remove_unfinished(Path(folder))

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Say that everything is there."""
        write_json(self.root / LABEL_MANIFEST, manifest)

    def _paths(self, output: Output, name: str) -> list[Path]:
        paths = [label_path(self.root, output.name, name)]
        if self.maps and output.kind == "maps":
            paths.append(maps_path(self.root, output.name, name))
        return paths


def _filled(facts: Any, unnamed: Mapping[str, Any]) -> dict[str, Any]:
    """Facts, with what they do not name."""
    named = facts if isinstance(facts, Mapping) else {}
    filled = {
        key: _filled(named.get(key), value) if isinstance(value, Mapping) else named.get(key, value)
        for key, value in unnamed.items()
    }
    return {**named, **filled}
