"""Label folders as other programs read them: mmsegmentation, DeepLab, PSA, IRN.

All masks are grey PNG files whose values are the class ids, 255 where the label is left open: whoever reads a palette
image with OpenCV gets its colours in place of its ids.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from afa.config import config_differences
from afa.data.files import read_json, remove_unfinished, replacing, write_json, write_lines, write_text
from afa.data.labels import classes_in_mask
from afa.data.layout import find_layout
from afa.data.map_files import inside
from afa.data.map_folders import MapFolder
from afa.data.palette import voc_palette
from afa.errors import UserError

if TYPE_CHECKING:
    from afa.config import DatasetConfig
    from afa.data.layout import Layout

EXPORT_FACTS = "export.json"
LAYOUTS = ("mmseg", "deeplab", "psa", "irn")


class Source(NamedTuple):
    """What is exported.

    Attributes:
        folder: A label folder, or one of masks or maps that somebody made.
        layout: Of the images.
        split: Their list.
        names: In it.
        labels, maps: Outputs of the folder whose labels, or maps, are exported.
    """

    folder: MapFolder
    layout: Layout
    split: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    maps: tuple[str, ...]


def find_source(
    root: Path, dataset: DatasetConfig, split: str | None, kind: str, outputs: Sequence[str] | None
) -> Source:
    """Find what a layout takes of a folder.

    Args:
        root: The folder.
        dataset: Of the images.
        split: Name of the list; default: that of a label folder, else the training list.
        kind: One of :data:`LAYOUTS`.
        outputs: Of the folder; default: the only one that has labels for mmseg and deeplab, all for psa and irn.

    Raises:
        UserError: Something is missing, or the folder has no such output.
    """
    folder = MapFolder(root)
    layout = find_layout(dataset)
    folder.require_classes(layout.class_names, "set dataset.root to the data set that it was made for")
    split = split or folder.split or dataset.train_split
    names = tuple(layout.names(split))
    for name in outputs or ():
        if name not in (*folder.label_outputs, *folder.map_outputs):
            there = ", ".join(dict.fromkeys((*folder.label_outputs, *folder.map_outputs)))
            raise UserError(f"--outputs {name}: {root} holds {there}")
    labels = tuple(name for name in folder.label_outputs if outputs is None or name in outputs)
    maps: tuple[str, ...] = ()
    if kind in ("psa", "irn"):
        maps = tuple(name for name in folder.map_outputs if outputs is None or name in outputs)
        if folder.kind == "dictionaries":
            raise UserError(f"{root} holds .npy dictionaries, which PSA and IRN read as they are")
    elif len(labels) != 1:
        there = ", ".join(folder.label_outputs) or "none"
        raise UserError(f"--outputs: name the one output of {root} whose labels are exported; it has labels of {there}")
    if folder.bits < 32 and maps:
        raise UserError(
            f"the maps in {root} have {folder.bits} bits, for viewing only: write them again without --maps-bits 8"
        )
    for output in labels:
        folder.require_labels(names, output)
    for output in maps:
        folder.require_maps(names, None, output)
    return Source(folder, layout, split, names, labels, maps)


def export_layout(
    source: Source, kind: str, output: Path, *, copy_images: bool, track: Callable[[Sequence[str]], Iterable[str]]
) -> int:
    """Write a folder in another program's layout. Started again, the same call does what is missing.

    Args:
        source: What is exported.
        kind: One of :data:`LAYOUTS`.
        output: The folder; ``export.json`` in it says what made it.
        copy_images: Copies in place of links to the images, for mmseg and deeplab.
        track: Shows how far the work is.

    Returns:
        How many files were written by this call.

    Raises:
        UserError: The folder holds something else, an image is missing, or a file does not fit its image or the
            classes.
    """
    facts = {
        "made_by": f"afa export {kind}",
        "source": source.folder.fingerprint,
        "outputs": sorted({*source.labels, *source.maps}),
        "split": source.split,
        "class_names": list(source.layout.class_names),
        "dataset": os.path.realpath(source.layout.root),
        "images": "copies" if copy_images else "links",
    }
    if kind in ("psa", "irn"):
        facts.pop("images")
    with_images = kind in ("mmseg", "deeplab")
    images = {name: source.layout.image(name, source.split) for name in source.names}
    missing = [path for path in images.values() if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of the {len(images)} images are missing, the first is {missing[0]}")
    if kind == "irn":
        _require_no_background(source)
    suffixes = sorted({path.suffix for path in images.values()})
    if kind == "mmseg" and len(suffixes) > 1:
        raise UserError(
            f"the images of '{source.split}' end in {', '.join(suffixes)}, and mmsegmentation takes one ending for "
            "all: convert them to one format"
        )
    blank = next((name for name in images if len(name.split()) != 1 or name != name.strip()), None)
    if kind == "deeplab" and blank is not None:
        raise UserError(f"DeepLab's list divides its lines at blanks, and '{blank}' holds one: rename the image")
    _begin(output, facts)
    written = 0
    for name in track(source.names):
        place = inside(name)
        if with_images:
            folders = (f"img_dir/{source.split}", f"ann_dir/{source.split}")
            if kind == "deeplab":
                folders = ("JPEGImages", "SegmentationClassAug")
            image = images[name]
            written += _put_image(image, output / folders[0] / f"{place}{image.suffix}", copy_images)
            written += _put_mask(source, name, source.labels[0], output / folders[1] / f"{place}.png")
            continue
        for label in source.labels:
            written += _put_mask(source, name, label, output / _sub(source, label, "labels") / f"{place}.png")
        for maps in source.maps:
            written += _put_maps(source, name, maps, output / _sub(source, maps, "maps") / f"{place}.npy", kind)
    if kind == "mmseg":
        write_lines(output / "splits" / f"{source.split}.txt", list(source.names))
        write_text(output / "dataset.py", _mmseg_config(source, suffixes[0]))
    elif kind == "deeplab":
        lines = []
        for name in source.names:
            lines.append(f"/JPEGImages/{name}{images[name].suffix} /SegmentationClassAug/{name}.png")
        write_lines(output / "list" / f"{source.split}.txt", lines)
    return written


def _begin(output: Path, facts: dict[str, Any]) -> None:
    """Make the folder, or find that it is this one.

    Raises:
        UserError: It holds something else, or cannot be written.
    """
    path = output / EXPORT_FACTS
    try:
        if path.is_file():
            lines = config_differences(read_json(path), facts)
            if lines:
                raise UserError(f"{output} holds another export ({'; '.join(lines)}): name another --output")
            for folder, _, _ in os.walk(output):
                remove_unfinished(Path(folder))
            return
        if output.is_dir() and any(output.iterdir()):
            raise UserError(f"{output} is not empty and holds no {EXPORT_FACTS}: name a new folder as --output")
        write_json(path, facts)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror or error}") from error


def _sub(source: Source, output: str, what: str) -> str:
    """The folder of an output; of one that has labels and maps they lie apart."""
    both = output in source.labels and output in source.maps
    return f"{output}_{what}" if both else output


def _put_image(image: Path, place: Path, copy: bool) -> int:
    if os.path.lexists(place):
        return 0
    with replacing(place) as temporary:
        if copy:
            shutil.copyfile(image, temporary)
        else:
            temporary.unlink()
            temporary.symlink_to(os.path.abspath(image))
    return 1


def _put_mask(source: Source, name: str, output: str, place: Path) -> int:
    if place.is_file():
        return 0
    mask = source.folder.read_label(name, output)
    path = source.folder.label_file(name, output)
    classes_in_mask(mask, source.layout.num_classes, path=path)
    _require_size(source, name, mask.shape, path)
    with replacing(place) as temporary:
        Image.fromarray(mask).save(temporary)
    return 1


def _require_no_background(source: Source) -> None:
    """Refuse maps that IRN could not use, before anything is written.

    Raises:
        UserError: They have a background.
    """
    for output in source.maps:
        read = (source.folder.read(name, None, output) for name in source.names)
        telling = next((maps for maps in read if maps.counted.any()), None)
        if telling is not None and telling.has_background:
            raise UserError(
                f"the maps of '{output}' have a background, and IRN's have none: name another output with --outputs"
            )


def _require_size(source: Source, name: str, shape: tuple[int, ...], path: Path) -> None:
    """Refuse a file of another size than its image's.

    Raises:
        UserError: It is.
    """
    height, width = _image_size(source, name)
    if shape != (height, width):
        raise UserError(f"{path} has {shape[1]} x {shape[0]} pixels, its image {width} x {height}")


def _image_size(source: Source, name: str) -> tuple[int, int]:
    """Height and width of an image.

    Raises:
        UserError: It cannot be read.
    """
    image = source.layout.image(name, source.split)
    try:
        with Image.open(image) as opened:
            width, height = opened.size
    except OSError as error:
        raise UserError(f"the image {image} cannot be read: {error.strerror or error}") from error
    return height, width


def _put_maps(source: Source, name: str, output: str, place: Path, kind: str) -> int:
    """Scores at the image's size, float32: PSA's dictionary of a map for each key, or IRN's of keys and maps."""
    if place.is_file():
        return 0
    size = _image_size(source, name)
    maps = source.folder.read(name, None, output, size=size)
    counted = maps.counted[0]
    scores = maps.resized(size).scores[0][counted].numpy()
    # Key 0 is the first class where there is no background.
    keys = (maps.class_ids[0][counted] - (0 if maps.has_background else 1)).tolist()
    content: dict[Any, Any] = dict(zip(keys, scores, strict=True))
    if kind == "irn":
        # IRN keeps a map for every fourth pixel, too.
        strided = maps.resized([-(-side // 4) for side in size]).scores[0][counted]
        content = {"keys": torch.tensor(keys, dtype=torch.int64), "cam": strided.contiguous(), "high_res": scores}
    with replacing(place) as temporary:
        np.save(temporary, content)  # type: ignore[arg-type]
    return 1


def _mmseg_config(source: Source, suffix: str) -> str:
    """The data set in the words of an mmsegmentation configuration."""
    classes = ("background", *source.layout.class_names)
    palette = voc_palette()[: len(classes)].tolist()
    return f"""# For mmsegmentation 1.x: _base_ = ["dataset.py"], or copy this. 255 in a mask is ignored.
dataset = dict(
    type="BaseSegDataset",
    data_root="",  # this folder
    data_prefix=dict(img_path={f"img_dir/{source.split}"!r}, seg_map_path={f"ann_dir/{source.split}"!r}),
    ann_file={f"splits/{source.split}.txt"!r},
    img_suffix={suffix!r},
    seg_map_suffix=".png",
    reduce_zero_label=False,
    metainfo=dict(
        classes={classes!r},
        palette={palette!r},
    ),
)
"""
