"""The training transform and (de)normalisation, as the released program has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_BACKENDS = {"pil": "pillow", "opencv": "cv2"}


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
        rng: The only source of randomness.
        crop_size: Side S of the square crop in pixels.
        scale_range: The factor of both sides is drawn uniformly from it; the new sides are cut to integers.
        mirror_probability: Chance of a horizontal mirror.
        resampling: ``pil`` (bilinear, antialiased when shrinking) or ``opencv`` (bilinear, aliased, faster).

    Returns:
        The crop, uint8 [S, S, 3], with 0 where the image does not reach, and the rectangle of the crop that shows
        image, int64 [4]: y0, y1, x0, x1 with y1 and x1 exclusive.
    """
    scale = rng.uniform(*scale_range)
    mirrored = rng.random() < mirror_probability
    height, width = (max(1, int(scale * side)) for side in image.shape[:2])
    image = resize(image, (height, width), resampling)
    if mirrored:
        image = image[:, ::-1]

    canvas_height, canvas_width = max(crop_size, height), max(crop_size, width)
    image_y, image_x = int(rng.integers(canvas_height - height + 1)), int(rng.integers(canvas_width - width + 1))
    crop_y, crop_x = int(rng.integers(canvas_height - crop_size + 1)), int(rng.integers(canvas_width - crop_size + 1))

    # The canvas itself is never made: only the part of the image that the crop shows is copied.
    y0, y1 = max(image_y, crop_y) - crop_y, min(image_y + height, crop_y + crop_size) - crop_y
    x0, x1 = max(image_x, crop_x) - crop_x, min(image_x + width, crop_x + crop_size) - crop_x
    top, left = crop_y - image_y, crop_x - image_x
    crop = np.zeros((crop_size, crop_size, 3), np.uint8)
    crop[y0:y1, x0:x1] = image[top + y0 : top + y1, left + x0 : left + x1]
    return crop, np.array([y0, y1, x0, x1], np.int64)


def resize(image: np.ndarray, size: tuple[int, int], resampling: str = "pil") -> np.ndarray:
    """Resize bilinearly.

    Args:
        image: uint8 [H, W, 3].
        size: New height and width.
        resampling: ``pil`` (antialiased when shrinking) or ``opencv``.

    Returns:
        uint8 [*size, 3].
    """
    import mmcv  # takes longer than most of what this package does without it

    height, width = size
    return mmcv.imresize(image, (width, height), interpolation="bilinear", backend=_BACKENDS[resampling])


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
