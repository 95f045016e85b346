"""Read every file of a data set once and report what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from afa.data.files import open_plain
from afa.data.images import ColourMask, DamagedImage, TooManyPixels, decode, to_class_ids, to_rgb
from afa.data.labels import classes_in_mask, one_hot, quoted
from afa.data.layout import Layout, find_layout
from afa.data.manifest import PUBLISHED_COUNTS, read_counts
from afa.data.palette import MaskPalette
from afa.data.parallel import map_files
from afa.data.saliency import SaliencyRange
from afa.errors import UserError, one_line

if TYPE_CHECKING:
    from afa.config import DatasetConfig
    from afa.data.inputs import Inputs

_PLAIN_MODES = ("RGB", "L", "P", "1")
_SHOWN = 5
_CLASS_LABELS, _SALIENCY = "class_labels", "saliency"

# Kind of problem -> what it means and how to mend it.
REMEDIES: Mapping[str, str] = {
    "list": "write the list anew, put images into the split's folder, or run the data set's preparation again",
    "count": "run the data set's preparation again, or correct the list",
    "two-splits": "take the image out of one of the two lists: scores on training images mean nothing",
    "same-content": "take one of the two out of its list: scores on training images mean nothing",
    "missing-image": "fetch the file again, or take its name out of the list",
    "unreadable-image": "fetch the file again, or take its name out of the list (or set dataset.bad_image=skip)",
    "truncated-image": "fetch the file again, or take its name out of the list (or set dataset.bad_image=skip)",
    "too-many-pixels": "raise dataset.max_pixels if the file is really that large, else make it anew",
    "exif-rotation": "EXIF is not applied: turn the pixels themselves (mogrify -auto-orient FILE), and masks with them",
    "image-channels": "save it as 8-bit RGB or greyscale (convert FILE -alpha remove -colorspace sRGB -depth 8 FILE)",
    "missing-mask": "put the mask there, or take the name out of the list",
    "missing-training-mask": "needed only if this list is to be scored too: training takes the labels file",
    "no-labels": "training needs image-level labels: write a labels file as docs/data.md shows",
    "no-masks": "training and prediction work without masks, but scores need them: put masks there to get scores",
    "unreadable-mask": "fetch or make the mask again",
    "mask-channels": "save the class ids as greyscale or palette PNG, or list the colours in dataset.mask_palette",
    "mask-values": "use 0 for background, 1 to K for the classes, dataset.ignore_index for pixels of no class",
    "mask-size": "make image and mask the same size (has one of them been resized or turned?)",
    "labels-file": "correct the file, or make a new one with 'afa prepare labels'",
    "class-folders": "put each image into the folder of one class only",
    "unlabelled-image": "add the image to the labels file, or make a new one with 'afa prepare labels'",
    "label-contradiction": "correct the labels, or make them from the masks with 'afa prepare labels'",
    "absent-class": "no problem if the object is ignored or tiny; else correct labels or mask",
    "no-class": "write the class ids 1 to K into masks or labels: 0 is the background, dataset.ignore_index is ignored",
    "unseen-class": "no problem if the list is a small part; else correct masks, labels or classes.txt: a class "
    "that no image shows is neither trained nor scored",
    "note": "no problem if it is intended",
    "passed-over": "convert the files, for example to PNG, or take them out of the folder",
    "input": "make the files again with the stage that made them, or name another folder (dataset.pixel_labels, "
    "dataset.maps, dataset.saliency)",
    "saliency-range": "no problem if it is intended; edam.saliency_maximum is the grey value of full saliency",
    "empty-labels": "name the image's classes in the labels file, or take it out of the training list",
}
_WARNINGS = (
    "absent-class",
    "missing-training-mask",
    "no-masks",
    "unseen-class",
    "passed-over",
    "saliency-range",
    "note",
)


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file.

    Args:
        kind: A key of :data:`REMEDIES`.
        split: The list it is in.
        file: The file.
        message: What is wrong.
    """

    kind: str
    split: str
    file: str
    message: str

    @property
    def severity(self) -> str:
        """``error``, or ``warning`` for what hinders neither training nor scoring."""
        return "warning" if self.kind in _WARNINGS else "error"


@dataclass
class Report:
    """The outcome of a check.

    Args:
        root: Folder of the data set.
        type: Its layout.
        classes: Number of foreground classes.
        counts: Split -> number of images in its list.
        expected: Split -> number of images that the manifest, else publications, promise; without unknown ones.
        problems: What is wrong.
        saliency: What the saliency maps of the training split hold, where ``dataset.saliency`` names them.
    """

    root: str
    type: str
    classes: int
    counts: dict[str, int] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    saliency: SaliencyRange | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return all(problem.severity != "error" for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON, with the remedies of what was found."""
        kinds = sorted({problem.kind for problem in self.problems})
        problems = [{**asdict(problem), "severity": problem.severity} for problem in self.problems]
        return {
            **asdict(self),
            "ok": self.ok,
            "problems": problems,
            "remedies": {kind: REMEDIES[kind] for kind in kinds},
        }

    def as_text(self) -> str:
        """The report for people: counts, then each kind of problem with the first files and the remedy."""
        lines = [f"{one_line(self.root)}: layout {self.type}, {self.classes} classes"]
        for split, count in self.counts.items():
            expected = self.expected.get(split)
            lines.append(f"{split}: {count} images" + ("" if expected is None else f", expected {expected}"))
        if self.saliency is not None:
            lines.append(f"saliency: {self.saliency.as_text()}")
        by_kind: dict[str, list[Problem]] = {}
        for problem in self.problems:
            by_kind.setdefault(problem.kind, []).append(problem)
        for kind, problems in by_kind.items():
            lines.append(f"{problems[0].severity}: {kind} ({len(problems)})")
            lines += ["  " + one_line(f"{problem.file}: {problem.message}") for problem in problems[:_SHOWN]]
            if len(problems) > _SHOWN:
                lines.append(f"  ... and {len(problems) - _SHOWN} more (--output lists all)")
            lines.append(f"  to mend it: {REMEDIES[kind]}")
        errors = sum(problem.severity == "error" for problem in self.problems)
        lines.append("nothing is wrong" if self.ok else f"{errors} thing(s) wrong")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Job:
    split: str
    name: str
    image: Path
    mask: Path | None
    mask_needed: bool
    labels: tuple[int, ...] | None
    is_training: bool
    labels_needed: bool
    class_names: tuple[str, ...]
    ignore_index: int
    palette: MaskPalette | None
    max_pixels: int
    inputs: Inputs | None


def check_data(config: DatasetConfig, *, needs: Sequence[str] = (_CLASS_LABELS,), workers: int = 1) -> Report:
    """Check the training and the validation split of a data set.

    Args:
        config: The ``dataset`` part of a configuration.
        needs: What training images must bring: ``class_labels`` and see :class:`afa.data.inputs.Inputs`. Saliency maps
            are checked wherever the settings name them.
        workers: Processes.

    Returns:
        The report.

    Raises:
        UserError: The data set is not there at all.
    """
    layout = find_layout(config)
    report = Report(str(layout.root), layout.type, layout.num_classes)
    splits = {split: _names(layout, split, report) for split in (config.train_split, config.val_split)}
    for note in layout.notes:
        report.problems.append(Problem("note", "", str(layout.root), note))
    if passed_over := layout.passed_over():
        report.problems.append(Problem("passed-over", "", str(layout.images), passed_over))
    _check_counts(layout, splits, report)
    labels = {split: _labels(layout, split, names, report) for split, names in splits.items()}
    told = layout.labels is not None or layout.class_folders is not None
    if config.saliency is not None:
        needs = list(dict.fromkeys((*needs, _SALIENCY)))
    inputs = _inputs(config, needs, splits[config.train_split], layout, labels[config.train_split], report)
    jobs = []
    for split, names in splits.items():
        is_training = split == config.train_split
        has_masks = bool(names) and layout.has_masks(split)
        labels_needed = is_training and _CLASS_LABELS in needs
        if names and not has_masks and (not is_training or (labels_needed and not told)):
            kind = "no-labels" if is_training else "no-masks"
            message = "there is no labels file, and there are no masks" if is_training else "there are no masks"
            report.problems.append(Problem(kind, split, str(layout.split_masks(split)), message))
        for name in names:
            of_split = labels[split]
            if labels_needed and of_split is not None and name not in of_split:
                report.problems.append(Problem("unlabelled-image", split, str(layout.labels), f"lacks '{name}'"))
            ids = of_split.get(name) if of_split is not None else None
            jobs.append(
                _Job(
                    split=split,
                    name=name,
                    image=layout.image(name, split),
                    mask=layout.mask(name, split) if has_masks else None,
                    mask_needed=not is_training or (labels_needed and not told),
                    labels=ids,
                    is_training=is_training,
                    labels_needed=labels_needed,
                    class_names=layout.class_names,
                    ignore_index=config.ignore_index,
                    palette=layout.palette,
                    max_pixels=config.max_pixels,
                    inputs=inputs if is_training else None,
                )
            )
    digests: dict[bytes, _Job] = {}
    results = map_files(_check_files, jobs, workers=workers, description="checking")
    shown: dict[str, set[int]] = {}
    for job, (digest, classes, saliency, problems) in zip(jobs, results, strict=True):
        report.problems += problems
        if saliency is not None:
            report.saliency = saliency if report.saliency is None else report.saliency + saliency
        if classes is not None:
            shown.setdefault(job.split, set()).update(classes)
        twin = digests.setdefault(digest, job) if digest else job
        if twin.split != job.split and twin.name != job.name:
            message = f"same content as {twin.image} in '{twin.split}'"
            report.problems.append(Problem("same-content", job.split, str(job.image), message))
    if report.saliency is not None and (remark := report.saliency.remark()):
        report.problems.append(Problem("saliency-range", config.train_split, str(config.saliency), remark))
    for split, seen in shown.items():
        unseen = [name for number, name in enumerate(layout.class_names, 1) if number not in seen]
        if not seen:
            message = f"no image of '{split}' shows any of the {layout.num_classes} classes"
            report.problems.append(Problem("no-class", split, _origin(layout, split, config), message))
        elif unseen:
            message = f"no image of '{split}' shows {quoted(unseen)}"
            report.problems.append(Problem("unseen-class", split, _origin(layout, split, config), message))
    return report


def _origin(layout: Layout, split: str, config: DatasetConfig) -> str:
    """Where the classes of a split's images come from."""
    if split == config.train_split and layout.labels is not None:
        return str(layout.labels)
    if split == config.train_split and layout.class_folders is not None:
        return str(layout.class_folders_parent)
    return str(layout.split_masks(split))


def _names(layout: Layout, split: str, report: Report) -> list[str]:
    try:
        return layout.names(split)
    except (UserError, OSError, UnicodeDecodeError) as error:
        report.problems.append(Problem("list", split, str(layout.list_file(split)), str(error)))
        return []


def _check_counts(layout: Layout, splits: Mapping[str, list[str]], report: Report) -> None:
    # A prepared folder says itself how much it holds; a foreign one of a known kind should hold what is published.
    expected = read_counts(layout.root) or (PUBLISHED_COUNTS.get(layout.type, {}) if _is_published(layout) else {})
    for split, names in splits.items():
        report.counts[split] = len(names)
        if split in expected:
            report.expected[split] = expected[split]
            if expected[split] != len(names):
                message = f"{len(names)} images, expected {expected[split]}"
                report.problems.append(Problem("count", split, str(layout.list_file(split)), message))
    first, *others = splits
    for split in others:
        for name in sorted(set(splits[first]) & set(splits[split])):
            message = f"'{name}' is in '{first}' and in '{split}'"
            report.problems.append(Problem("two-splits", split, str(layout.list_file(split)), message))


def _is_published(layout: Layout) -> bool:
    return layout.num_classes == {"voc": 20, "coco": 80}.get(layout.type)


def _labels(layout: Layout, split: str, names: Sequence[str], report: Report) -> dict[str, tuple[int, ...]] | None:
    """Image name -> class ids; None where there are no usable labels."""
    try:
        labels = layout.told_labels(split, names)
    except UserError as error:
        kind = "class-folders" if layout.labels is None else "labels-file"
        problem = Problem(kind, "", str(layout.labels or layout.class_folders_parent), str(error))
        if problem not in report.problems:
            report.problems.append(problem)
        return None
    if labels is None:
        return None
    return {name: tuple(int(index) + 1 for index in np.flatnonzero(vector)) for name, vector in labels.items()}


def _inputs(
    config: DatasetConfig,
    needs: Sequence[str],
    names: Sequence[str],
    layout: Layout,
    labels: Mapping[str, tuple[int, ...]] | None,
    report: Report,
) -> Inputs | None:
    """What training reads beside the images; None where it is not there, or where nothing is wanted."""
    if not set(needs) - {_CLASS_LABELS}:
        return None
    from afa.data.inputs import Inputs  # it brings PyTorch, which the processes of this check do without

    known = {name: one_hot(labels[name], layout.num_classes) for name in names if name in labels} if labels else {}
    try:
        inputs = Inputs(config, needs, layout.class_names)
        inputs.require(names, config.train_split, known)
    except UserError as error:
        report.problems.append(Problem("input", config.train_split, ", ".join(needs), str(error)))
        return None
    return inputs


def _check_files(job: _Job) -> tuple[bytes, set[int] | None, SaliencyRange | None, list[Problem]]:
    """Check an image, its mask and what else training reads of it.

    Returns:
        The digest of the image file, empty where it is missing; the classes for which the image counts in its split:
        of the labels in training, else of the mask; None where they are unknown; the range of its saliency map, where
        it has one; and problems.
    """
    digest, size, problems = _check_image(job)
    classes = saliency = None
    if job.mask is not None:
        classes, mask_problems = _check_mask(job, size)
        problems += mask_problems
    labels = job.labels
    if job.inputs is not None and size is not None:
        try:
            known = None if labels is None else one_hot(labels, len(job.class_names))
            found = job.inputs.read(job.name, size, known)
            saliency = SaliencyRange.of(found[_SALIENCY]) if _SALIENCY in found else None
        except UserError as error:
            problems.append(Problem("input", job.split, job.name, str(error)))
    if labels is not None and classes is not None:
        unnamed, absent = sorted(classes - set(labels)), sorted(set(labels) - classes)
        if unnamed:
            message = f"the mask shows {_classes(job, unnamed)}, the labels do not"
            problems.append(Problem("label-contradiction", job.split, str(job.mask), message))
        if absent:
            message = f"the labels name {_classes(job, absent)}, the mask does not show it"
            problems.append(Problem("absent-class", job.split, str(job.mask), message))
    counted = labels if labels is not None else classes
    if job.labels_needed and counted is not None and not counted:
        problems.append(Problem("empty-labels", job.split, str(job.image), "the image has no class"))
    counting = counted if job.is_training else classes
    return digest, None if counting is None else set(counting), saliency, problems


def _check_image(job: _Job) -> tuple[bytes, tuple[int, int] | None, list[Problem]]:
    problems: list[Problem] = []

    def report(kind: str, message: str) -> None:
        problems.append(Problem(kind, job.split, str(job.image), message))

    if not job.image.exists():
        report("missing-image", "there is no such file")
        return b"", None, problems
    try:
        image = decode(job.image, max_pixels=job.max_pixels)
        height, width = to_rgb(image).shape[:2]
        digest = _digest(job.image)
    except (UserError, OSError) as error:
        report(_unreadable(error, job.image), str(error))
        return b"", None, problems
    if image.orientation != 1:
        report("exif-rotation", f"EXIF orientation {image.orientation}")
    if image.image.mode not in _PLAIN_MODES:
        report("image-channels", f"colour mode {image.image.mode} instead of RGB or greyscale with 8 bits")
    return digest, (height, width), problems


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _unreadable(error: Exception, path: Path) -> str:
    """The kind of problem of an image that cannot be read."""
    if isinstance(error, TooManyPixels):
        return "too-many-pixels"
    return "truncated-image" if "truncated" in str(error).replace(str(path), "") else "unreadable-image"


def _check_mask(job: _Job, size: tuple[int, int] | None) -> tuple[set[int] | None, list[Problem]]:
    problems: list[Problem] = []
    path = job.mask
    assert path is not None

    def report(kind: str, message: str) -> None:
        problems.append(Problem(kind, job.split, str(path), message))

    if not path.exists():
        report("missing-mask" if job.mask_needed else "missing-training-mask", "there is no such file")
        return None, problems
    try:
        decoded = decode(path, "mask", max_pixels=job.max_pixels)
        mask = to_class_ids(decoded, job.palette)
    except DamagedImage as error:
        kinds = {ColourMask: "mask-channels", TooManyPixels: "too-many-pixels"}
        report(kinds.get(type(error), "unreadable-mask"), str(error))
        return None, problems
    if decoded.orientation != 1:
        report("exif-rotation", f"the mask has the EXIF orientation {decoded.orientation}")
    if size is not None and mask.shape != size:
        report("mask-size", f"{mask.shape[1]} x {mask.shape[0]} pixels, the image has {size[1]} x {size[0]}")
    try:
        return set(classes_in_mask(mask, len(job.class_names), job.ignore_index, path=path)), problems
    except DamagedImage as error:
        report("mask-values", str(error))
        return None, problems


def _classes(job: _Job, ids: Iterable[int]) -> str:
    return ", ".join(f"'{job.class_names[class_id - 1]}'" for class_id in ids)
