"""Labels made from CAMs: plain, initial, refined and propagated (AFA sec. 3.3-3.4).

Shapes: B images, K foreground classes, C = K + 1 with background, H x W crop, h x w token grid, N = h * w. Labels hold
0 for background, 1 to K for the classes, 255 for pixels that count for nothing.

Only the classes of an image's image-level label, m at most, take part. All maps are gathered to those channels first,
so that the cost does not grow with K. Whoever has gathered the CAMs already passes the :class:`PresentClasses` instead
of ``class_labels``, with CAMs [B, m, H, W]. Nothing here waits for a GPU if ``class_labels`` and ``valid_box`` lie on
the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.ops.cam import CamNetwork, resize, scaled_size
from afa.ops.par import PAR
from afa.ops.random_walk import affinity_window, propagate

IGNORE = 255


class PresentClasses(NamedTuple):
    """The classes that count, per image.

    Attributes:
        channels: [B, m], classes 0..K-1 in rising order; where an image has fewer than m, any others fill up.
        present: [B, m], False for the fillers.
    """

    channels: Tensor
    present: Tensor

    def gather(self, maps: Tensor) -> Tensor:
        """[B, K, H, W] -> [B, m, H, W]."""
        return maps.gather(1, self.channels[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))

    def softmax(self, scores: Tensor, background: float) -> Tensor:
        """Softmax over a constant background channel and the present classes: [B, m, h, w] -> [B, 1 + m, h, w]."""
        scores = scores.masked_fill(~self.present[:, :, None, None], -torch.inf)
        return F.pad(scores, (0, 0, 0, 0, 1, 0), value=background).softmax(dim=1)

    def arg_max(self, scores: Tensor) -> Tensor:
        """The winner of [B, 1 + m, H, W] as a label [B, H, W] in 0..K."""
        # Channel by channel: an arg max across the memory's order takes many times as long on the CPU.
        best = scores[:, 0]
        label = torch.zeros_like(best, dtype=torch.long)
        for channel, name in zip(scores.unbind(1)[1:], (self.channels + 1).unbind(1), strict=True):
            label = torch.where(channel > best, name[:, None, None], label)
            best = torch.maximum(channel, best)
        return label

    def scatter(self, scores: Tensor, num_classes: int) -> Tensor:
        """[B, 1 + m, H, W] -> [B, num_classes, H, W]; absent classes 0."""
        batch, _, height, width = scores.shape
        labels = F.pad(self.channels + 1, (1, 0))[:, :, None, None].expand(-1, -1, height, width)
        return scores.new_zeros(batch, num_classes, height, width).scatter_add_(1, labels, scores)


class PresentCam:
    """CAM passes that give each image's present classes alone: [B, m, h, w], or [2 B, m, h, w] with the mirrors.

    Args:
        network: Gives CAMs of all classes.
        present: Of the B images.
    """

    def __init__(self, network: CamNetwork, present: PresentClasses) -> None:
        self.network = network
        self.present = present

    def cam(self, image: Tensor, affinity_of: int = 0) -> tuple[Tensor, Tensor | None]:
        """See :class:`afa.ops.cam.CamNetwork`."""
        cam, affinity = self.network.cam(image, affinity_of)
        return torch.cat([self.present.gather(part) for part in cam.split(len(self.present.channels))]), affinity


def present_classes(class_labels: Tensor, device: torch.device | None = None) -> PresentClasses:
    """List the classes of each image.

    Args:
        class_labels: Image-level labels [B, K]; above 0 means present. On the host, no GPU is waited for.
        device: Where the lists are wanted; default: where the labels are.
    """
    present = class_labels > 0
    most = max(1, int(present.sum(dim=1).max()))
    index = torch.argsort(~present, dim=1, stable=True)[:, :most]
    kept = present.gather(1, index)
    if device is not None and index.device != device:
        index, kept = index.to(device, non_blocking=True), kept.to(device, non_blocking=True)
    return PresentClasses(index, kept)


def gather_present(maps: Tensor, class_labels: Tensor | PresentClasses) -> tuple[PresentClasses, Tensor]:
    """The present classes and their maps.

    Args:
        maps: [B, K, H, W], or [B, m, H, W] with the :class:`PresentClasses` that they were gathered by.
        class_labels: [B, K] or those :class:`PresentClasses`.

    Returns:
        The classes and maps [B, m, H, W].
    """
    if isinstance(class_labels, PresentClasses):
        return class_labels, maps
    classes = present_classes(class_labels, maps.device)
    return classes, classes.gather(maps)


def plain_label(cams: Tensor, class_labels: Tensor, background: float = 0.45) -> Tensor:
    """Arg max over the present classes, background where the maximum is at most ``background``.

    Args:
        cams: [B, K, H, W] in 0..1.
        class_labels: [B, K].
        background: Threshold.

    Returns:
        int64 [B, H, W].
    """
    score, winner = (cams * (class_labels[:, :, None, None] > 0).to(cams)).max(dim=1)
    return torch.where(score <= background, 0, winner + 1)


def initial_label(
    cams: Tensor, class_labels: Tensor, valid_box: Tensor, *, low: float = 0.35, high: float = 0.55
) -> Tensor:
    """The plain labels with background ``high`` and ``low`` combined: what the CAMs say before refinement.

    Args:
        cams: [B, K, H, W] in 0..1.
        class_labels: [B, K].
        valid_box: [B, 4], rows y0..y1 and columns x0..x1 of the crop show image.
        low, high: Thresholds.

    Returns:
        int64 [B, H, W].
    """
    return combine(plain_label(cams, class_labels, high), plain_label(cams, class_labels, low), valid_box)


def combine(high: Tensor, low: Tensor, valid_box: Tensor) -> Tensor:
    """The high result where it names a class, background where both say so, else and outside the box ignored.

    Args:
        high, low: Labels [B, H, W] made with the higher and the lower background score.
        valid_box: [B, 4].
    """
    label = torch.where((high == 0) & (low != 0), IGNORE, high)
    return label.masked_fill(~box_mask(valid_box, high.shape[-2:], high.device), IGNORE)


def box_mask(valid_box: Tensor, size: Sequence[int], device: torch.device) -> Tensor:
    """Boolean [B, H, W]: inside [y0, y1) x [x0, x1)."""
    y0, y1, x0, x1 = valid_box.to(device, non_blocking=True)[:, :, None].unbind(1)  # each [B, 1]
    rows, columns = torch.arange(size[0], device=device), torch.arange(size[1], device=device)
    return ((rows >= y0) & (rows < y1))[:, :, None] & ((columns >= x0) & (columns < x1))[:, None, :]


def restore_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation: RGB in 0..255, neither truncated nor rounded.

    Each of the two operations rounds on its own, as truncation makes visible.

    Args:
        image: Normalised, [B, 3, H, W].
        mean, std: Of R, G, B.
    """
    # Plain numbers, not tensors: making one on a GPU would wait for it.
    channels = image.float().unbind(1)
    return torch.stack([channel * s + m for channel, m, s in zip(channels, mean, std, strict=True)], dim=1)


def par_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The image as PAR sees it: restored, truncated to 0..255 whole numbers, divided by 255; [B, 3, H, W]."""
    return restore_image(image, mean, std).to(torch.uint8).float() / 255


def refined_label(
    image: Tensor,
    cams: Tensor,
    class_labels: Tensor | PresentClasses,
    valid_box: Tensor,
    par: PAR,
    *,
    low: float = 0.35,
    high: float = 0.55,
    image_scale: float = 0.5,
    par_weights: Tensor | None = None,
) -> Tensor:
    """CAMs refined by PAR: supervises the affinity, and the decoder at first.

    For each background score: softmax over background and present classes at reduced size, PAR, upsampling, arg max;
    then :func:`combine`. Both scores share PAR's weights and run as one batch.

    Args:
        image: As :func:`par_image` gives it, [B, 3, H, W].
        cams: [B, K, H, W] in 0..1; see :func:`gather_present`.
        class_labels: [B, K], or the present classes.
        valid_box: [B, 4].
        par: The refinement.
        low, high: Background scores.
        image_scale: Size at which PAR works over the crop's.
        par_weights: PAR's weights of the image at that size, where the caller has them.

    Returns:
        int64 [B, H, W].
    """
    height, width = image.shape[-2:]
    small = scaled_size((height, width), image_scale)
    if par_weights is None:
        par_weights = par.weights(resize(image, small))
    classes, scores = gather_present(cams, class_labels)
    scores = resize(scores, small)
    masks = torch.cat([classes.softmax(scores, high), classes.softmax(scores, low)], dim=1)
    refined = resize(par.refine(par_weights, masks), (height, width))
    high_label, low_label = (classes.arg_max(half) for half in refined.chunk(2, dim=1))
    return combine(high_label, low_label, valid_box)


def propagate_cams(
    cams: Tensor,
    affinity: Tensor,
    token_grid: tuple[int, int],
    class_labels: Tensor,
    *,
    background: float,
    radius: int = 8,
    power: float = 2.0,
    epsilon: float = 0.1,
) -> Tensor:
    """CAMs spread along the affinity (eq. 6), on the token grid.

    Args:
        cams: [B, K, H, W] in 0..1.
        affinity: [B, N, N].
        token_grid: (h, w), h * w = N.
        class_labels: [B, K].
        background: Score of the background channel.
        radius, power, epsilon: See :func:`afa.ops.random_walk.transition_matrix`.

    Returns:
        Scores [B, C, h, w], absent classes 0.
    """
    classes = present_classes(class_labels, cams.device)
    scores = classes.softmax(resize(classes.gather(cams), token_grid), background)
    walked = propagate(scores, affinity, radius=radius, power=power, epsilon=epsilon)
    return classes.scatter(walked, cams.shape[1] + 1)


def propagated_label(
    image: Tensor,
    cams: Tensor,
    affinity: Tensor,
    token_grid: tuple[int, int],
    class_labels: Tensor | PresentClasses,
    valid_box: Tensor,
    par: PAR,
    *,
    low: float = 0.35,
    high: float = 0.55,
    image_scale: float = 0.5,
    radius: int = 8,
    power: float = 2.0,
    epsilon: float = 0.1,
    par_weights: Tensor | None = None,
) -> Tensor:
    """CAMs spread along the affinity, then refined inside the valid box: supervises the decoder later.

    Args:
        image: As :func:`par_image` gives it, [B, 3, H, W].
        cams: [B, K, H, W] in 0..1; see :func:`gather_present`.
        affinity: [B, N, N] of the largest scale.
        token_grid: Its (h, w).
        class_labels: [B, K], or the present classes.
        valid_box: [B, 4]; on the host, no GPU is waited for.
        par: The refinement.
        low, high: Background scores.
        image_scale: Size of the image given to PAR over the box's.
        radius, power, epsilon: See :func:`afa.ops.random_walk.transition_matrix`.
        par_weights: As :func:`refine_inside_box` takes them.

    Returns:
        int64 [B, H, W].
    """
    height, width = image.shape[-2:]
    classes, scores = gather_present(cams, class_labels)
    scores = resize(scores, token_grid)
    masks = torch.cat([classes.softmax(scores, high), classes.softmax(scores, low)], dim=1)
    walked = propagate(masks, affinity, radius=radius, power=power, epsilon=epsilon)
    refined = refine_inside_box(image, resize(walked, (height, width)), valid_box, par, image_scale, par_weights)
    high_label, low_label = (classes.arg_max(half) for half in refined.chunk(2, dim=1))
    return combine(high_label, low_label, valid_box)


def refine_inside_box(
    image: Tensor,
    masks: Tensor,
    valid_box: Tensor,
    par: PAR,
    image_scale: float = 0.5,
    par_weights: Tensor | None = None,
) -> Tensor:
    """PAR on the part of the crop that shows image; zero outside.

    Images whose boxes have one size run as one batch.

    Args:
        image: As :func:`par_image` gives it, [B, 3, H, W].
        masks: [B, C, H, W].
        valid_box: [B, 4].
        par: The refinement.
        image_scale: Size of the image given to PAR over the box's.
        par_weights: PAR's weights of the whole crops at that scale, where the caller has them: those of crops that the
            box fills.

    Returns:
        [B, C, H, W].
    """
    same_size: dict[tuple[int, int], list[int]] = {}
    boxes = valid_box.tolist()
    for index, (y0, y1, x0, x1) in enumerate(boxes):
        same_size.setdefault((y1 - y0, x1 - x0), []).append(index)
    refined = torch.zeros_like(masks)
    for (box_height, box_width), members in same_size.items():
        cuts = [(index, slice(boxes[index][0], boxes[index][1]), slice(*boxes[index][2:])) for index in members]
        box_masks = torch.stack([masks[index, :, rows, columns] for index, rows, columns in cuts])
        if par_weights is not None and (box_height, box_width) == tuple(image.shape[-2:]):
            weights = torch.stack([par_weights[index] for index in members])
        else:
            box_image = torch.stack([image[index, :, rows, columns] for index, rows, columns in cuts])
            weights = par.weights(resize(box_image, scaled_size((box_height, box_width), image_scale)))
        box_refined = resize(par.refine(weights, box_masks), (box_height, box_width))
        for (index, rows, columns), result in zip(cuts, box_refined, strict=True):
            refined[index, :, rows, columns] = result
    return refined


def affinity_label(label: Tensor, token_grid: tuple[int, int], radius: int = 8) -> Tensor:
    """Which pairs of tokens belong together (eq. 3): 1 same label, 0 different, 255 either ignored or too far apart.

    Args:
        label: [B, H, W].
        token_grid: (h, w); the label is taken at the top-left pixel of each token's cell.
        radius: In tokens.

    Returns:
        uint8 [B, N, N].
    """
    height, width = label.shape[-2:]
    rows = torch.arange(token_grid[0], device=label.device) * height // token_grid[0]
    columns = torch.arange(token_grid[1], device=label.device) * width // token_grid[1]
    tokens = label[:, rows][:, :, columns].flatten(1)  # [B, N]
    same = (tokens[:, :, None] == tokens[:, None, :]).to(torch.uint8)
    counts = tokens != IGNORE
    valid = counts[:, :, None] & counts[:, None, :] & affinity_window(*token_grid, radius, label.device)
    return same.masked_fill_(~valid, IGNORE)
