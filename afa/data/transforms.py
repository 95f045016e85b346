"""The training transform and (de)normalisation, as the released program has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from afa.maps import IGNORE, Maps

_BACKENDS = {"pil": "pillow", "opencv": "cv2"}
_WHOLE_PIXELS = 1 << 25
"""A training image of more pixels after scaling is not made whole: a phone's photo would take gigabytes."""


@dataclass(frozen=True)
class Crop:
    """One draw of scale, mirror and place: the same for an image and all that belongs to its pixels.

    Attributes:
        size: (h, w) to which everything is resized first.
        mirrored: Whether it is mirrored horizontally then.
        side: S of the square crop.
        box: y0, y1, x0, x1 with y1 and x1 exclusive: the rectangle of the crop that shows image.
        source: The rectangle of the resized and mirrored image that lies there, in the same order.
    """

    size: tuple[int, int]
    mirrored: bool
    side: int
    box: tuple[int, int, int, int]
    source: tuple[int, int, int, int]

    def image(self, image: np.ndarray, resampling: str) -> np.ndarray:
        """The crop of an image uint8 [H, W, 3], resized bilinearly by :func:`resize`: [S, S, 3], 0 outside."""
        top, bottom, left, right = self.source
        if self.mirrored:
            left, right = self.size[1] - right, self.size[1] - left
        if self.size[0] * self.size[1] > _WHOLE_PIXELS:
            shown = resize_window(image, self.size, (top, bottom), (left, right), resampling)
        else:
            shown = resize(image, self.size, resampling)[top:bottom, left:right]
        y0, y1, x0, x1 = self.box
        crop = np.zeros((self.side, self.side, 3), np.uint8)
        crop[y0:y1, x0:x1] = shown[:, ::-1] if self.mirrored else shown
        return crop

    def label(self, label: np.ndarray, outside: int = IGNORE) -> np.ndarray:
        """The crop of a label uint8 [H, W], resized to the nearest pixel: [S, S], ``outside`` where no image is."""
        height, width = self.size
        if label.shape != self.size:
            label = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
        if self.mirrored:
            label = label[:, ::-1]
        y0, y1, x0, x1 = self.box
        top, bottom, left, right = self.source
        crop = np.full((self.side, self.side), outside, np.uint8)
        crop[y0:y1, x0:x1] = label[top:bottom, left:right]
        return crop

    def maps(self, maps: Maps) -> Maps:
        """The crop of one image's maps [1, c, H, W], resized bilinearly: [1, c, S, S], 0 where no image is."""
        scores = maps.resized(self.size).scores
        if self.mirrored:
            scores = scores.flip(-1)
        y0, y1, x0, x1 = self.box
        top, bottom, left, right = self.source
        crop = scores.new_zeros(*scores.shape[:2], self.side, self.side)
        crop[:, :, y0:y1, x0:x1] = scores[:, :, top:bottom, left:right]
        return maps.with_scores(crop)


@dataclass(frozen=True)
class ColourJitter:
    """Random brightness, contrast, saturation and hue, in random order, as torchvision's transform of this name.

    Attributes:
        brightness, contrast, saturation: The factor is drawn uniformly from 1 - this to 1 + this.
        hue: The turn is drawn uniformly from -this to this; 0.5 is half the circle.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change the colours of an image uint8 [H, W, 3]; nothing is drawn where nothing is to change."""
        ranges = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        draws = {name: rng.uniform(1 - spread, 1 + spread) for name, spread in ranges.items() if spread}
        if self.hue:
            draws["hue"] = rng.uniform(-self.hue, self.hue)
        if not draws:
            return image
        from torchvision.transforms import functional  # slow to import, and only this needs it

        changed = Image.fromarray(image)
        for index in rng.permutation(len(draws)):
            name = list(draws)[index]
            changed = getattr(functional, f"adjust_{name}")(changed, draws[name])
        return np.asarray(changed)


def draw_place(
    size: Sequence[int], rng: np.random.Generator, *, crop_size: int, mirror_probability: float = 0.0
) -> Crop:
    """Draw the place of a crop without any scale, and a mirror after it: one number for the width, then the height.

    Where the image is larger than the crop, it is the crop's place in the image, else the image's in the crop.

    Args:
        size: (H, W) of the image.
        rng: The only source of randomness.
        crop_size: Side S of the square crop in pixels.
        mirror_probability: Chance that the crop is mirrored horizontally.
    """
    height, width = size[:2]
    x, y = (int(rng.integers(abs(side - crop_size) + 1)) for side in (width, height))
    return place_crop((height, width), (x, y), crop_size, mirrored=bool(rng.random() < mirror_probability))


def place_crop(size: tuple[int, int], place: tuple[int, int], crop_size: int, *, mirrored: bool = False) -> Crop:
    """The crop at a place.

    Args:
        size: (H, W) of the image.
        place: (x, y) as :func:`draw_place` draws it.
        crop_size: Side S.
        mirrored: Whether the crop is mirrored after it is cut.
    """
    spans = []
    for side, offset in zip(size, reversed(place), strict=True):
        first, start = (offset, 0) if side > crop_size else (0, offset)
        length = min(side, crop_size)
        spans.append(((start, start + length), (first, first + length)))
    (y_box, y_source), (x_box, x_source) = spans
    if mirrored:
        # Crops mirror the image before they are cut: the same pixels, counted from the other side.
        x_box = crop_size - x_box[1], crop_size - x_box[0]
        x_source = size[1] - x_source[1], size[1] - x_source[0]
    return Crop(size, mirrored, crop_size, (*y_box, *x_box), (*y_source, *x_source))


def centre_crop(size: tuple[int, int], crop_size: int) -> Crop:
    """The crop in the middle of an image [H, W], or around it; half a pixel goes to the even side."""
    y, x = (round(abs(side - crop_size) / 2) for side in size)
    return place_crop(size, (x, y), crop_size)


def draw_crop(
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    crop_size: int,
    scale_range: tuple[float, float] = (0.5, 2.0),
    mirror_probability: float = 0.5,
) -> Crop:
    """Draw scale, mirror, padding and crop.

    Args:
        size: (H, W) of the image.
        rng: The only source of randomness.
        crop_size: Side S of the square crop in pixels.
        scale_range: The factor of both sides is drawn uniformly from it; the new sides are cut to integers.
        mirror_probability: Chance of a horizontal mirror.
    """
    scale = rng.uniform(*scale_range)
    mirrored = bool(rng.random() < mirror_probability)
    height, width = (max(1, int(scale * side)) for side in size[:2])

    # The padded image: as large as the image and the crop. Neither it nor the padding is ever made.
    canvas_height, canvas_width = max(crop_size, height), max(crop_size, width)
    image_y, image_x = int(rng.integers(canvas_height - height + 1)), int(rng.integers(canvas_width - width + 1))
    crop_y, crop_x = int(rng.integers(canvas_height - crop_size + 1)), int(rng.integers(canvas_width - crop_size + 1))

    y0, y1 = max(image_y, crop_y) - crop_y, min(image_y + height, crop_y + crop_size) - crop_y
    x0, x1 = max(image_x, crop_x) - crop_x, min(image_x + width, crop_x + crop_size) - crop_x
    top, left = crop_y - image_y, crop_x - image_x
    return Crop(
        size=(height, width),
        mirrored=mirrored,
        side=crop_size,
        box=(y0, y1, x0, x1),
        source=(top + y0, top + y1, left + x0, left + x1),
    )


def training_transform(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: int,
    scale_range: tuple[float, float] = (0.5, 2.0),
    mirror_probability: float = 0.5,
    resampling: str = "pil",
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, mirror, pad and crop an image at random; a pure function of its arguments.

    Args:
        image: uint8 RGB [H, W, 3].
        rng, crop_size, scale_range, mirror_probability: See :func:`draw_crop`.
        resampling: ``pil`` (bilinear, antialiased when shrinking) or ``opencv`` (bilinear, aliased, faster).

    Returns:
        The crop, uint8 [S, S, 3], with 0 where the image does not reach, and the rectangle of the crop that shows
        image, int64 [4]: y0, y1, x0, x1 with y1 and x1 exclusive.
    """
    crop = draw_crop(
        image.shape, rng, crop_size=crop_size, scale_range=scale_range, mirror_probability=mirror_probability
    )
    return crop.image(image, resampling), np.array(crop.box, np.int64)


def resize(image: np.ndarray, size: tuple[int, int], resampling: str = "pil") -> np.ndarray:
    """Resize bilinearly.

    Args:
        image: uint8 [H, W, 3].
        size: New height and width.
        resampling: ``pil`` (antialiased when shrinking) or ``opencv``.

    Returns:
        uint8 [*size, 3].
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    import mmcv  # takes longer than most of what this package does without it

    return mmcv.imresize(image, (width, height), interpolation="bilinear", backend=_BACKENDS[resampling])


def resize_window(
    image: np.ndarray,
    size: tuple[int, int],
    rows: tuple[int, int],
    columns: tuple[int, int],
    resampling: str = "pil",
) -> np.ndarray:
    """A part of what :func:`resize` gives, to within rounding, in the memory that the part takes.

    Args:
        image: uint8 [H, W, 3].
        size: Height and width of the whole.
        rows: First row of the part, and the one behind its last.
        columns: The same of its columns.
        resampling: ``pil`` or ``opencv``.

    Returns:
        uint8 [rows, columns, 3].
    """
    factors = image.shape[0] / size[0], image.shape[1] / size[1]
    parts = (rows, columns)
    if resampling == "opencv":
        places = []
        for (first, end), factor, side in zip(parts, factors, image.shape, strict=False):
            place = ((np.arange(first, end) + 0.5) * factor - 0.5).clip(0, side - 1)
            before = np.minimum(place.astype(np.int64), max(0, side - 2))
            places.append((before, np.minimum(before + 1, side - 1), (place - before).astype(np.float32)))
        (top, bottom, down), (left, right, across) = places
        down, across = down[:, None, None], across[None, :, None]
        upper = image[top[:, None], left] * (1 - across) + image[top[:, None], right] * across
        lower = image[bottom[:, None], left] * (1 - across) + image[bottom[:, None], right] * across
        return (upper * (1 - down) + lower * down + 0.5).astype(np.uint8)
    # The filter reaches one pixel of the larger of both images to each side.
    spans = [
        (max(0, int(first * factor - max(1, factor)) - 1), int(np.ceil(end * factor + max(1, factor))) + 1)
        for (first, end), factor in zip(parts, factors, strict=True)
    ]
    (top, bottom), (left, right) = spans
    box = (
        columns[0] * factors[1] - left,
        rows[0] * factors[0] - top,
        min(columns[1] * factors[1], image.shape[1]) - left,
        min(rows[1] * factors[0], image.shape[0]) - top,
    )
    source = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    shape = (columns[1] - columns[0], rows[1] - rows[0])
    return np.asarray(source.resize(shape, Image.Resampling.BILINEAR, box=box))


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image uint8 [H, W, 3] to (h, w) by Pillow's bicubic filter, which antialiases when it shrinks."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def rounded_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Scale times height and width, rounded half to even, at least 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(image - mean) / std, a float32 subtraction and then a float32 division.

    Args:
        image: uint8 RGB [H, W, 3].
        mean: Per channel, in 0 to 255.
        std: Per channel, in 0 to 255.

    Returns:
        float32 tensor [3, H, W], contiguous.
    """
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    planes -= np.asarray(mean, np.float32)[:, None, None]
    planes /= np.asarray(std, np.float32)[:, None, None]
    return torch.from_numpy(planes)


def normalise_exactly(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """As :func:`normalise`, in double precision and rounded to float32 at the end, as PSA and EDAM do it."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float64)
    planes -= np.asarray(mean, np.float64)[:, None, None]
    planes /= np.asarray(std, np.float64)[:, None, None]
    return torch.from_numpy(planes.astype(np.float32))
