"""Lists of images, in the forms in which data sets have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from afa.data.files import FilesBelow, read_text
from afa.data.names import IMAGE_SUFFIXES, image_key
from afa.errors import UserError

_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_PAIR = re.compile(rf"(.+(?:{_SUFFIX}))[\s,]+(\S.*(?:{_SUFFIX}))", re.IGNORECASE)
_LONGEST_LINE = 4096  # No path is longer.
_FLAGGED = re.compile(r"(\S.*?)\s+(-1|0|\+?1)")


def read_list(
    path: Path, *, images: FilesBelow, folders: Sequence[str], masks: str, note: Callable[[str], object]
) -> list[str]:
    """Read the names of a split's images, in the order of the list.

    - ``NAME`` or a path per line. Of a path the name is what follows the folder of the images:
      ``/JPEGImages/2007_000032.jpg`` is ``2007_000032``.
    - Image and mask per line, as many programs have them: ``/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png``.
      The mask is taken from the data set's own folder.
    - VOC's lists of one class, ``NAME -1``, ``NAME 0`` or ``NAME 1``: the names with 1.

    Args:
        path: The list, a text file in UTF-8.
        images: The images that there are.
        folders: Names of the folders below which image names begin.
        masks: Name of the folder of the masks.
        note: Called with what the user should know.

    Raises:
        UserError: The list cannot be read, is empty, holds something else, names an image twice or one outside of the
            folder.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path, "the list").split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UserError(f"the list {path} is empty: write one image name per line")
    for number, line in lines:
        if len(line) > _LONGEST_LINE:
            raise UserError(f"{path}, line {number}: the line is too long for a name: write one image name per line")

    def is_there(name: str) -> bool:
        return name in images.found

    def name_of(text: str) -> str:
        key = image_key(text)
        parts = key.split("/")
        below = ["/".join(parts[place:]) for place in range(1, len(parts)) if parts[place - 1] in folders]
        return next(filter(is_there, (key, *below)), below[-1] if below else key)

    # A name may itself hold blanks: what is an image as it stands is a name.
    are_names = any(is_there(name_of(line)) for _, line in lines)
    names: dict[str, tuple[int, str]] = {}
    mask_folders: set[str] = set()
    for number, line in lines if are_names else _flagged(path, lines, note) or lines:
        pair = None if are_names else _PAIR.fullmatch(line)
        name = name_of(pair[1] if pair else line)
        place = f"{path}, line {number}"
        if pair:
            _check_pair(place, pair[1], pair[2])
            above = PurePosixPath(image_key(pair[2])).parts[:-1]
            mask_folders.update(above[-1:] if masks not in above else ())
        elif not is_there(name) and len(line.split()) > 1 and is_there(name_of(line.split()[0])):
            raise UserError(f"{place}: '{line}' is no image's name: write one name per line and nothing else")
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{place}: '{line}' is outside the image folder {images.folder}: write its name there")
        if name in names:
            first, spelling = names[name]
            how = f"twice, first in line {first}" + ("" if spelling == line else f" as '{spelling}'")
            raise UserError(f"{place}: the list names the image '{name}' {how}: leave one of the two out")
        names[name] = number, line
    if mask_folders:
        others = "', '".join(sorted(mask_folders))
        note(f"the list {path} names masks in '{others}'; those in '{masks}' are taken (dataset.mask_dir names others)")
    return list(names)


def _flagged(
    path: Path, lines: Sequence[tuple[int, str]], note: Callable[[str], object]
) -> list[tuple[int, str]] | None:
    """The lines with the flag 1 of one of VOC's lists of a class; None where it is none.

    The flag -1 marks such a list. Without it a number behind a name may mean anything.
    """
    matches = [(number, _FLAGGED.fullmatch(line)) for number, line in lines]
    flagged = [(number, match[1], int(match[2])) for number, match in matches if match]
    if len(flagged) != len(lines) or all(flag != -1 for _, _, flag in flagged):
        return None
    chosen = [(number, name) for number, name, flag in flagged if flag == 1]
    if not chosen:
        raise UserError(f"the list {path} marks no image with 1: it has no positive example")
    note(f"the list {path} marks {len(chosen)} of {len(lines)} names with 1: only these are taken")
    return chosen


def _check_pair(place: str, image: str, mask: str) -> None:
    if PurePosixPath(image_key(image)).name != PurePosixPath(image_key(mask)).name:
        raise UserError(f"{place}: the mask '{mask}' has another name than the image '{image}': name it as the image")
