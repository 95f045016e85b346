"""Labels made from CAMs: initial, refined and propagated (AFA sec. 3.3-3.4), and what they are made with.

Shapes: B images, m classes of an image's image-level label, H x W crop, h x w token grid, N = h * w. Labels hold 0 for
background, 1 to K for the classes, 255 for pixels that are ignored. Nothing here waits for a GPU if ``valid_box`` lies
on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from afa.maps import IGNORE, Maps, PresentClasses
from afa.methods.afa.config import AffinityConfig, CamConfig, ParConfig
from afa.ops.cam import resize, scaled_size
from afa.ops.par import PAR
from afa.ops.random_walk import PairAffinity, walk
from afa.ops.token_pairs import second_tokens
from afa.parts import part


class PseudoLabels:
    """The labels of a run: training and prediction make them alike.

    Args:
        cam: Thresholds.
        affinity: The random walk.
        par: The refinement.
    """

    def __init__(self, cam: CamConfig, affinity: AffinityConfig, par: ParConfig) -> None:
        self.cam, self.affinity = cam, affinity
        self.image_scale = par.image_scale
        self.par = PAR(
            dilations=par.dilations,
            iterations=par.iterations,
            temperature=par.temperature,
            position_weight=par.position_weight,
        )

    @torch.no_grad()
    def par_weights(self, image: Tensor) -> Tensor:
        """PAR's weights of whole images, [B, M, *, *]: for those who make refined and propagated labels of them.

        Args:
            image: As :func:`par_image` gives it, [B, 3, H, W].
        """
        with part("par"):
            return self.par.weights(resize(image, scaled_size(image.shape[-2:], self.image_scale)))

    def initial(self, cams: Maps, valid_box: Tensor) -> Tensor:
        """What the CAMs say before refinement: the plain labels with both background scores combined.

        Args:
            cams: [B, m, H, W] in 0..1.
            valid_box: [B, 4], rows y0..y1 and columns x0..x1 of the crop show image.

        Returns:
            int64 [B, H, W].
        """
        return combine(cams.label_above(self.cam.high), cams.label_above(self.cam.low), valid_box)

    @torch.no_grad()
    def refined(self, image: Tensor, cams: Maps, valid_box: Tensor, par_weights: Tensor | None = None) -> Tensor:
        """CAMs refined by PAR: supervises the affinity, and the decoder at first.

        For each background score: softmax over background and present classes at reduced size, PAR, upsampling, arg
        max; then :func:`combine`. Both scores share PAR's weights and run as one batch.

        Args:
            image: As :func:`par_image` gives it, [B, 3, H, W].
            cams: [B, m, H, W] in 0..1.
            valid_box: [B, 4].
            par_weights: :meth:`par_weights` of the image, where the caller has them.

        Returns:
            int64 [B, H, W].
        """
        height, width = image.shape[-2:]
        if par_weights is None:
            par_weights = self.par_weights(image)
        high, low = self._softmaxes(cams.resized(scaled_size((height, width), self.image_scale)))
        refined = self._refined(par_weights, torch.cat([high.scores, low.scores], dim=1), (height, width))
        return self._combined(refined, high, valid_box)

    @torch.no_grad()
    def propagated(
        self, image: Tensor, cams: Maps, affinity: PairAffinity, valid_box: Tensor, par_weights: Tensor | None = None
    ) -> Tensor:
        """CAMs spread along the affinity, then refined inside the valid box: supervises the decoder later.

        Args:
            image: As :func:`par_image` gives it, [B, 3, H, W].
            cams: [B, m, H, W] in 0..1.
            affinity: Of the largest scale.
            valid_box: [B, 4]; on the host, no GPU is waited for.
            par_weights: As :meth:`refined` takes them; used for crops that the box fills.

        Returns:
            int64 [B, H, W].
        """
        high, low = self._softmaxes(cams.resized(affinity.grid))
        walked = self._walked(torch.cat([high.scores, low.scores], dim=1), affinity)
        refined = self.refine_inside_box(image, resize(walked, image.shape[-2:]), valid_box, par_weights)
        return self._combined(refined, high, valid_box)

    def walk(self, cams: Maps, affinity: PairAffinity, background: float) -> Maps:
        """CAMs spread along the affinity (eq. 6), on the token grid.

        Args:
            cams: [B, m, H, W] in 0..1.
            affinity: Of any scale.
            background: Score of the background channel.

        Returns:
            [B, 1 + m, h, w] with background.
        """
        scores = cams.resized(affinity.grid).softmax(background)
        return scores.with_scores(self._walked(scores.scores, affinity))

    @torch.no_grad()
    def refine_inside_box(
        self, image: Tensor, masks: Tensor, valid_box: Tensor, par_weights: Tensor | None = None
    ) -> Tensor:
        """PAR on the part of the crop that shows image; zero outside.

        Images whose boxes have one size run as one batch.

        Args:
            image: As :func:`par_image` gives it, [B, 3, H, W].
            masks: [B, c, H, W].
            valid_box: [B, 4].
            par_weights: PAR's weights of the whole crops, where the caller has them: those of crops that the box
                fills.

        Returns:
            [B, c, H, W].
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
                weights = self.par_weights(
                    torch.stack([image[index, :, rows, columns] for index, rows, columns in cuts])
                )
            box_refined = self._refined(weights, box_masks, (box_height, box_width))
            for (index, rows, columns), result in zip(cuts, box_refined, strict=True):
                refined[index, :, rows, columns] = result
        return refined

    def _softmaxes(self, cams: Maps) -> tuple[Maps, Maps]:
        return cams.softmax(self.cam.high), cams.softmax(self.cam.low)

    def _walked(self, scores: Tensor, affinity: PairAffinity) -> Tensor:
        settings = self.affinity
        with part("propagation"):
            near = affinity.within(settings.radius)
            return walk(scores, near, power=settings.power, steps=1, epsilon=settings.epsilon)

    def _refined(self, weights: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
        with part("par"):
            return resize(self.par.refine(weights, masks), size)

    def _combined(self, both: Tensor, classes: Maps, valid_box: Tensor) -> Tensor:
        """Scores [B, 2 (1 + m), H, W] made with the high and with the low background score -> one label."""
        high, low = (classes.with_scores(half).label() for half in both.chunk(2, dim=1))
        return combine(high, low, valid_box)


def combine(high: Tensor, low: Tensor, valid_box: Tensor) -> Tensor:
    """The high result where it names a class, background where both say so, else and outside the box ignored.

    Args:
        high, low: Labels [B, H, W] made with the higher and the lower background score.
        valid_box: [B, 4].
    """
    label = torch.where((high == 0) & (low != 0), IGNORE, high)
    return label.masked_fill(~box_mask(valid_box, high.shape[-2:], high.device), IGNORE)


def missing_share(label: Tensor, present: PresentClasses) -> Tensor:
    """How many of the images' classes have no pixel in the label: a decoder learns that these are background.

    Args:
        label: [B, H, W].
        present: The classes of each image.

    Returns:
        The share 0..1 of all classes of all images, a scalar.
    """
    found = (label.flatten(1)[:, None] == present.channels[:, :, None] + 1).any(dim=-1)
    return (~found & present.counted).sum() / present.counted.sum().clamp(min=1)


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


def affinity_label(label: Tensor, token_grid: tuple[int, int], radius: int) -> Tensor:
    """Which pairs of tokens belong together (eq. 3): 1 same label, 0 different, 255 either ignored or too far apart.

    Args:
        label: [B, H, W].
        token_grid: (h, w); the label is taken at the top-left pixel of each token's cell.
        radius: In tokens.

    Returns:
        uint8 [B, m + 1, 2 n + 1, h, w], see :mod:`afa.ops.token_pairs`; 255 where there is no pair.
    """
    height, width = label.shape[-2:]
    rows = torch.arange(token_grid[0], device=label.device) * height // token_grid[0]
    columns = torch.arange(token_grid[1], device=label.device) * width // token_grid[1]
    tokens = label[:, rows][:, :, columns]  # [B, h, w]
    others = second_tokens(tokens, radius, IGNORE)
    firsts = tokens[:, None, None]
    pairs = (firsts == others).to(torch.uint8).masked_fill_((firsts == IGNORE) | (others == IGNORE), IGNORE)
    pairs[:, 0, : pairs.shape[2] // 2] = IGNORE  # they stand at their other token
    return pairs
