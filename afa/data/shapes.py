"""A small data set made by the program itself, so that training and evaluation run anywhere.

One to three overlapping objects lie on a textured grey background. An object is a body - a blob of random brightness
and texture, which says nothing about its class - and small emblems strewn over it, whose shape and saturated colour are
the class and which cover a third of it (half at most). The mask is the whole body. A classifier needs the emblems only,
so its activation maps light up around them, coarsely; the affinity has to spread them over the body. That is the
problem AFA is made for.

Beside each image lies a saliency map as a network for salient objects might give it, imperfect on purpose: it knows no
class, misses some objects, shows some that are not there, and its edges are soft (:class:`SaliencyStyle`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from afa.data.classes import CLASS_NAMES_FILE
from afa.data.files import missing_files, read_json, remove_unfinished, replacing, write_json, write_text
from afa.data.images import read_mask
from afa.data.layout import LISTS
from afa.data.manifest import MANIFEST, UNFINISHED_MANIFEST
from afa.data.own_files import check_inside, is_free, labels_text, lines_text
from afa.data.palette import palette_image
from afa.data.parallel import map_files
from afa.errors import UserError

CLASS_NAMES = ("disc", "triangle", "square", "cross", "ring")
EMBLEM_COLOURS = ((220, 30, 30), (30, 190, 40), (40, 70, 230), (230, 200, 20), (210, 40, 210))
SMALLEST_SIZE = 32
SALIENCY_FOLDER = "Saliency"
_VERSION = 1  # of the images: changes with what a seed gives
_SPLITS = ("train", "val")
_SALIENCY_STREAM = 1  # beside the images' own: what saliency draws changes no image


@dataclass(frozen=True)
class ShapesStyle:
    """How the images are drawn. Lengths are fractions of the image's side, brightness is 0 to 255.

    Args:
        size: Side of the square images in pixels.
        max_objects: Most objects in an image; at least one.
        body_radius: Range of the bodies' mean radius.
        min_visible: Least share of a body's area that later bodies leave visible.
        contrast: Least difference in mean brightness between any two of background and bodies.
        texture: Range of the textures' amplitude.
        noise: Standard deviation of the noise of every pixel, common to the three channels.
        tint: Largest deviation of a channel's mean from grey: the saturation of backgrounds and bodies.
        emblem_radius: Range of the emblems' radius.
        emblem_spacing: Distance of neighbouring emblems' centres, in emblem radii.
        emblem_share: Share of the body, cut off by a straight line, on which emblems lie.
        min_cover: Least share of a body's visible area under emblems.
        max_cover: Largest share.
        jpeg_quality: Quality of the JPEG files.
    """

    size: int = 128
    max_objects: int = 3
    body_radius: tuple[float, float] = (0.2, 0.32)
    min_visible: float = 0.55
    contrast: float = 48.0
    texture: tuple[float, float] = (2.0, 8.0)
    noise: float = 4.0
    tint: float = 8.0
    emblem_radius: tuple[float, float] = (0.036, 0.05)
    emblem_spacing: float = 2.4
    emblem_share: float = 0.9
    min_cover: float = 0.08
    max_cover: float = 0.6
    jpeg_quality: int = 92


@dataclass(frozen=True)
class SaliencyStyle:
    """How saliency maps are drawn. Lengths are fractions of the image's side, saliency is 0 to 1.

    Args:
        missed: Chance of each object to be missed.
        distractor: Chance of an image to show one object that is not there.
        distractor_radius: Range of its mean radius.
        distractor_level: Range of its saliency.
        level: Range of an object's saliency.
        shift: Range by which an object's outline is too wide; below 0 too narrow.
        softness: Range of the standard deviation that edges are blurred with.
        clouds: Largest saliency of the background, in soft clouds.
    """

    missed: float = 0.12
    distractor: float = 0.2
    distractor_radius: tuple[float, float] = (0.06, 0.14)
    distractor_level: tuple[float, float] = (0.45, 0.8)
    level: tuple[float, float] = (0.6, 1.0)
    shift: tuple[float, float] = (-0.02, 0.03)
    softness: tuple[float, float] = (0.008, 0.025)
    clouds: float = 0.12


def make_shapes(
    root: str | Path,
    *,
    train: int = 2000,
    val: int = 200,
    seed: int = 0,
    style: ShapesStyle | None = None,
    workers: int = 1,
) -> Path:
    """Make the data set in VOC layout; does nothing where it is there already, goes on where it was interrupted.

    Files of a data set that is there are made again where they are missing, never written over: so a data set of an
    earlier version, which had no saliency maps, gets them.

    Args:
        root: Folder of the data set.
        train: Number of training images.
        val: Number of validation images.
        seed: The images are a function of it, their number in the split, and the style.
        style: How the images are drawn.
        workers: Processes that draw.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds something else, the same data set made with other settings, or lists that were
            changed; or a link leads out of it.
    """
    root, style = Path(root), style or ShapesStyle()
    counts = dict(zip(_SPLITS, (train, val), strict=True))
    recipe = {
        "made_by": "make_shapes",
        "version": _VERSION,
        "seed": seed,
        "counts": counts,
        "style": json.loads(json.dumps(dataclasses.asdict(style))),
    }
    if train < 1 or val < 1:
        raise UserError("at least one training and one validation image are needed")
    if style.size < SMALLEST_SIZE:
        raise UserError(f"images of {style.size} pixels have no room for objects: {SMALLEST_SIZE} is the least")
    if seed < 0:
        raise UserError(f"the seed {seed} is below 0")
    if _is_made(root, recipe):
        return root
    for folder in ("JPEGImages", "SegmentationClass", SALIENCY_FOLDER, LISTS, "."):
        check_inside(root, root / folder)
        remove_unfinished(root / folder)
    write_json(root / UNFINISHED_MANIFEST, recipe)
    (root / MANIFEST).unlink(missing_ok=True)
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]
    draw = partial(_write_picture, root, seed, style)
    names: dict[str, list[str]] = {split: [] for split in counts}
    labels: dict[str, list[str]] = {}
    for (split, number), found in zip(jobs, map_files(draw, jobs, workers=workers, description="images"), strict=True):
        name = _name(split, number)
        names[split].append(name)
        labels[name] = [CLASS_NAMES[class_id - 1] for class_id in found]
    files = {f"{LISTS}/{split}.txt": lines_text(listed) for split, listed in names.items()}
    files |= {CLASS_NAMES_FILE: lines_text(CLASS_NAMES), "class_labels.json": labels_text(labels)}
    for file, text in files.items():
        _write_unless_changed(root / file, text)
    write_json(root / MANIFEST, recipe)
    (root / UNFINISHED_MANIFEST).unlink()
    return root


def draw_picture(rng: np.random.Generator, style: ShapesStyle) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image.

    Args:
        rng: The only source of randomness.
        style: How.

    Returns:
        uint8 RGB [S, S, 3] and uint8 mask [S, S], 0 background, else class ids from 1.
    """
    # Drawn once: a crowded image is tried again, not replaced by an easier one.
    count = int(rng.integers(1, style.max_objects + 1))
    while True:
        drawn = _try_picture(rng, style, count)
        if drawn is not None:
            return drawn


def draw_saliency(rng: np.random.Generator, mask: np.ndarray, style: SaliencyStyle | None = None) -> np.ndarray:
    """Draw the saliency map of an image.

    The draws, in this order: for each object, by class and then from top to bottom, whether it is missed, its level,
    the shift of its outline and the softness of its edge; whether there is a distractor, then its radius, outline and
    level; the clouds. An object is a connected region of one class.

    Args:
        rng: The only source of randomness.
        mask: uint8 [S, S], 0 background, else class ids from 1.
        style: How.

    Returns:
        uint8 [S, S], 0 to 255.
    """
    style = style or SaliencyStyle()
    size = len(mask)
    saliency = np.zeros((size, size), np.float32)
    for class_id in np.unique(mask[mask > 0]):
        count, regions = cv2.connectedComponents((mask == class_id).astype(np.uint8))
        for number in range(1, count):
            missed, level = rng.random() < style.missed, rng.uniform(*style.level)
            shift, softness = rng.uniform(*style.shift) * size, rng.uniform(*style.softness) * size
            if not missed:
                soft = _soft(_widened(regions == number, shift), softness)
                np.maximum(saliency, np.float32(level) * soft, out=saliency)
    if rng.random() < style.distractor:
        blob = _blob(rng, rng.uniform(*style.distractor_radius) * size, size)
        level = rng.uniform(*style.distractor_level)
        np.maximum(saliency, np.float32(level) * _soft(blob, style.softness[1] * size), out=saliency)
    coarse = rng.uniform(0, style.clouds, (5, 5)).astype(np.float32)
    np.maximum(saliency, cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR), out=saliency)
    return (255 * saliency).clip(0, 255).round().astype(np.uint8)


def _widened(region: np.ndarray, by: float) -> np.ndarray:
    """A region [S, S] whose outline lies ``by`` pixels farther out, or farther in where it is negative."""
    reach = round(abs(by))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    change = cv2.dilate if by > 0 else cv2.erode
    return change(region.astype(np.uint8), kernel).astype(bool)


def _soft(region: np.ndarray, deviation: float) -> np.ndarray:
    """A region [S, S] with a blurred edge, float32 in 0..1."""
    return cv2.GaussianBlur(region.astype(np.float32), (0, 0), deviation)


def _try_picture(rng: np.random.Generator, style: ShapesStyle, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw an image, or None where the objects came to lie so that the style's limits are not kept."""
    size = style.size
    bodies = [_blob(rng, rng.uniform(*style.body_radius) * size, size) for _ in range(count)]
    owner = np.zeros((size, size), np.uint8)  # number of the topmost body, from 1
    for number, body in enumerate(bodies, 1):
        owner[body] = number
    if any((owner == number).sum() < style.min_visible * body.sum() for number, body in enumerate(bodies, 1)):
        return None

    class_ids = rng.integers(1, len(CLASS_NAMES) + 1, count)
    levels = _brightness_levels(rng, count + 1, style.contrast)
    image = _surface(rng, levels[0], style)
    mask = np.zeros((size, size), np.uint8)
    for number, (body, class_id) in enumerate(zip(bodies, class_ids, strict=True), 1):
        surface = _surface(rng, levels[number], style)
        emblems = _draw_emblems(rng, surface, body, int(class_id), style)
        visible = owner == number
        cover = (emblems & visible).sum() / visible.sum()
        if not style.min_cover <= cover <= style.max_cover:
            return None
        image[visible], mask[visible] = surface[visible], class_id
    return image.clip(0, 255).round().astype(np.uint8), mask


def _brightness_levels(rng: np.random.Generator, count: int, contrast: float) -> np.ndarray:
    """Mean brightness of background and bodies, in random order and at least ``contrast`` apart."""
    low, high = 45.0, 210.0
    free = high - low - contrast * (count - 1)
    levels = low + np.sort(rng.uniform(0, free, count)) + contrast * np.arange(count)
    return rng.permutation(levels)


def _surface(rng: np.random.Generator, brightness: float, style: ShapesStyle) -> np.ndarray:
    """A weakly saturated texture over the whole image: float32 [S, S, 3]."""
    size = style.size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    period = rng.uniform(0.05, 0.12) * size
    kind = rng.integers(5)
    if kind == 0:  # stripes
        pattern = np.sin(along * (2 * np.pi / period) + phase)
    elif kind == 1:  # checks
        pattern = np.sign(np.sin(along * (np.pi / period) + phase) * np.sin(across * (np.pi / period) + phase))
    elif kind == 2:  # clouds
        coarse = rng.standard_normal((9, 9)).astype(np.float32)
        pattern = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    elif kind == 3:  # grain
        coarse = rng.standard_normal((size // 3, size // 3)).astype(np.float32)
        pattern = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    else:  # a slope of brightness
        pattern = (along - along.mean()) / (0.35 * size)
    grey = (
        brightness + rng.uniform(*style.texture) * pattern + style.noise * rng.standard_normal((size, size), np.float32)
    )
    return (grey[:, :, None] + rng.uniform(-style.tint, style.tint, 3)).astype(np.float32)


def _blob(rng: np.random.Generator, radius: float, size: int) -> np.ndarray:
    """The inside of a smooth random closed curve somewhere in the image: bool [S, S]."""
    centre = rng.uniform(radius * 0.8, size - radius * 0.8, 2)
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    distance = np.ones_like(angles)
    for frequency in range(2, 6):
        distance += rng.uniform(-0.3, 0.3) / frequency * np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
    stretch, turn = rng.uniform(0.75, 1.0), rng.uniform(0, 2 * np.pi)
    x, y = distance * np.cos(angles), stretch * distance * np.sin(angles)
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [np.round(centre + radius * points).astype(np.int32)], 1)
    return canvas.astype(bool)


def _draw_emblems(
    rng: np.random.Generator, surface: np.ndarray, body: np.ndarray, class_id: int, style: ShapesStyle
) -> np.ndarray:
    """Draw emblems of a class in jittered rows over one part of a body; returns where: bool [S, S]."""
    size = style.size
    radius = rng.uniform(*style.emblem_radius) * size
    spacing = style.emblem_spacing * radius
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    rows, columns = np.nonzero(body)
    inside = np.stack([columns, rows], axis=1) @ direction
    border = np.quantile(inside, 1 - style.emblem_share)
    side = np.array([-direction[1], direction[0]])
    middle = np.array([columns.mean(), rows.mean()])
    alpha = np.zeros((size, size), np.float32)
    steps = int(np.ceil(size / spacing))
    for row in range(-steps, steps + 1):
        for column in range(-steps, steps + 1):
            centre = middle + spacing * ((column + 0.5 * (row % 2)) * side + 0.87 * row * direction)
            centre = centre + rng.uniform(-0.12, 0.12, 2) * spacing
            x, y = np.round(centre).astype(int)
            if 0 <= x < size and 0 <= y < size and body[y, x] and centre @ direction >= border + 0.3 * radius:
                _stamp(alpha, centre, radius, class_id, rng.uniform(0, 2 * np.pi))
    alpha *= body
    colour = np.asarray(EMBLEM_COLOURS[class_id - 1], np.float32) + rng.uniform(-20, 20, 3).astype(np.float32)
    surface += alpha[:, :, None] * (colour - surface)
    return alpha > 0.5


def _stamp(alpha: np.ndarray, centre: np.ndarray, radius: float, class_id: int, turn: float) -> None:
    """Draw one emblem, anti-aliased, into a plane of opacity."""
    fine = 4
    reach = int(np.ceil(radius)) + 2
    x0, y0 = np.floor(centre).astype(int) - reach
    span = 2 * reach + 1
    place = (centre - (x0, y0) + 0.5) * fine
    canvas = np.zeros((span * fine, span * fine), np.uint8)

    def polygon(corners: Iterable[tuple[float, float]]) -> None:
        points = [
            (x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)) for x, y in corners
        ]  # fmt: skip
        cv2.fillPoly(canvas, [np.round(place + radius * fine * np.array(points)).astype(np.int32)], 1)

    name = CLASS_NAMES[class_id - 1]
    middle = (round(place[0]), round(place[1]))
    if name == "disc":
        cv2.circle(canvas, middle, round(0.9 * radius * fine), 1, -1)
    elif name == "ring":
        cv2.circle(canvas, middle, round(radius * fine), 1, -1)
        cv2.circle(canvas, middle, round(0.45 * radius * fine), 0, -1)
    elif name == "triangle":
        polygon([(np.cos(corner), np.sin(corner)) for corner in np.arange(3) * 2 * np.pi / 3])
    elif name == "square":
        polygon([(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)])
    else:
        polygon([(-1.0, -0.35), (1.0, -0.35), (1.0, 0.35), (-1.0, 0.35)])
        polygon([(-0.35, -1.0), (0.35, -1.0), (0.35, 1.0), (-0.35, 1.0)])
    small = canvas.reshape(span, fine, span, fine).mean(axis=(1, 3), dtype=np.float32)
    size = len(alpha)
    top, left = max(0, y0), max(0, x0)
    bottom, right = min(size, y0 + span), min(size, x0 + span)
    region = alpha[top:bottom, left:right]
    np.maximum(region, small[top - y0 : bottom - y0, left - x0 : right - x0], out=region)


def _write_picture(root: Path, seed: int, style: ShapesStyle, job: tuple[str, int]) -> list[int]:
    """Write one image, its mask and its saliency map, unless they are there; returns the classes it shows."""
    split, number = job
    name = _name(split, number)
    image_path, mask_path = root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png"
    if not is_free(image_path) and not is_free(mask_path):
        mask = read_mask(mask_path)
    else:
        rng = np.random.default_rng((seed, _SPLITS.index(split), number))
        image, mask = draw_picture(rng, style)
        if is_free(image_path):
            with replacing(image_path) as temporary:
                Image.fromarray(image).save(temporary, quality=style.jpeg_quality)
        if is_free(mask_path):
            with replacing(mask_path) as temporary:
                palette_image(mask).save(temporary)
    saliency_path = root / SALIENCY_FOLDER / f"{name}.png"
    if is_free(saliency_path):
        stream = np.random.default_rng((seed, _SPLITS.index(split), number, _SALIENCY_STREAM))
        with replacing(saliency_path) as temporary:
            Image.fromarray(draw_saliency(stream, mask)).save(temporary)
    return [int(value) for value in np.unique(mask) if value]


def _name(split: str, number: int) -> str:
    return f"{split}_{number:05d}"


def _write_unless_changed(path: Path, text: str) -> None:
    """Write a file whose content follows from the settings: an existing file with other content was edited."""
    if is_free(path):
        write_text(path, text)
    elif not path.is_file() or path.read_bytes() != text.encode("utf-8"):
        raise UserError(f"{path} was changed since it was made: move it away")


def _is_made(root: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether the data set is there and whole.

    Raises:
        UserError: The folder holds something else, or the data set made with other settings.
    """
    for name in (MANIFEST, UNFINISHED_MANIFEST):
        if (root / name).exists():
            if read_json(root / name) != recipe:
                raise UserError(f"{root} was made with other settings: delete it, or choose another folder")
            return name == MANIFEST and not missing_files(_files(root, recipe["counts"]))
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root} is not empty and was not made by this program: choose another folder")
    return False


def _files(root: Path, counts: Mapping[str, int]) -> list[Path]:
    """Every file of the data set."""
    names = [_name(split, number) for split, count in counts.items() for number in range(count)]
    return [
        *(root / "JPEGImages" / f"{name}.jpg" for name in names),
        *(root / "SegmentationClass" / f"{name}.png" for name in names),
        *(root / SALIENCY_FOLDER / f"{name}.png" for name in names),
        *(root / LISTS / f"{split}.txt" for split in counts),
        root / CLASS_NAMES_FILE,
        root / "class_labels.json",
    ]
