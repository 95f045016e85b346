"""Scores of some classes over images: one type from a CAM through random walk, threshold and arg max to a file.

Shapes: B images, K foreground classes, m classes of an image's image-level label, c channels, h x w positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.config.settings import IGNORE
from afa.ops.cam import resize
from afa.ops.enlarged_label import enlarged_label

__all__ = ["IGNORE", "Maps", "PresentClasses", "present_classes"]


class PresentClasses(NamedTuple):
    """The classes of each image of a batch.

    Attributes:
        channels: int64 [B, m], classes 0..K-1 in rising order; where an image has fewer than m, any others fill up.
        counted: bool [B, m], False for the fillers.
    """

    channels: Tensor
    counted: Tensor

    def gather(self, maps: Tensor) -> Tensor:
        """Maps of all classes -> maps of the present ones: [n B, K, h, w] -> [n B, m, h, w].

        A batch may be followed by others of the same images, such as their mirror images.
        """
        parts = [
            part.gather(1, self.channels[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))
            for part in maps.split(len(self.channels))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def maps(self, scores: Tensor) -> Maps:
        """Scores of the present classes [B, m, h, w] as :class:`Maps` without background."""
        return Maps(scores, self.channels + 1, self.counted, has_background=False)


def present_classes(class_labels: Tensor, device: torch.device | None = None) -> PresentClasses:
    """List the classes of each image, so that what follows does not grow with K.

    Args:
        class_labels: Image-level labels [B, K]; above 0 means present. On the host, no GPU is waited for.
        device: Where the lists are wanted; default: where the labels are.

    Returns:
        Lists of the length m of the longest, at least 1.
    """
    present = class_labels > 0
    most = max(1, int(present.sum(dim=1).max()))
    index = torch.argsort(~present, dim=1, stable=True)[:, :most]
    counted = present.gather(1, index)
    if device is not None and index.device != device:
        index, counted = index.to(device, non_blocking=True), counted.to(device, non_blocking=True)
    return PresentClasses(index, counted)


@dataclass(frozen=True)
class Maps:
    """Scores of some classes over a batch of images.

    Attributes:
        scores: [B, c, h, w].
        class_ids: int64 [B, c]: 0 background, 1..K classes, rising.
        counted: bool [B, c], False for channels that only make the images of a batch equally long.
        has_background: Whether channel 0 is the background of every image.
    """

    scores: Tensor
    class_ids: Tensor
    counted: Tensor
    has_background: bool

    @classmethod
    def of_all_classes(cls, scores: Tensor, *, has_background: bool) -> Maps:
        """Scores of every class, [B, C, h, w] with background or [B, K, h, w] without."""
        batch, channels = scores.shape[:2]
        ids = torch.arange(channels, device=scores.device) + (0 if has_background else 1)
        counted = torch.ones(batch, channels, dtype=torch.bool, device=scores.device)
        return cls(scores, ids.expand(batch, -1), counted, has_background)

    def without_classes(self, size: Sequence[int]) -> Maps:
        """The background alone, of score 1, [B, 1, *size]: what is known of images without classes."""
        batch, device = len(self.scores), self.scores.device
        ids = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        counted = torch.ones(batch, 1, dtype=torch.bool, device=device)
        return Maps(torch.ones(batch, 1, *size, device=device), ids, counted, has_background=True)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.scores.shape[-2], self.scores.shape[-1]

    def to(self, device: torch.device) -> Maps:
        """The same on another device."""
        scores, class_ids, counted = (part.to(device) for part in (self.scores, self.class_ids, self.counted))
        return Maps(scores, class_ids, counted, self.has_background)

    def with_scores(self, scores: Tensor) -> Maps:
        """Other scores [B, c, *, *] of the same classes."""
        return replace(self, scores=scores)

    def resized(self, size: Sequence[int]) -> Maps:
        """Bilinear, align_corners False."""
        return self.with_scores(resize(self.scores, size))

    def with_background(self, background: float) -> Maps:
        """Put a constant background channel in front.

        Args:
            background: Score of the background.

        Raises:
            ValueError: There is a background already.
        """
        if self.has_background:
            raise ValueError("these maps have a background already")
        return Maps(
            F.pad(self.scores, (0, 0, 0, 0, 1, 0), value=background),
            F.pad(self.class_ids, (1, 0)),
            F.pad(self.counted, (1, 0), value=True),
            has_background=True,
        )

    def among(self, class_labels: Tensor) -> Maps:
        """The background, if there is one, and those classes that an image's class labels name.

        Args:
            class_labels: [K] of 0 and 1.

        Raises:
            ValueError: These are maps of several images.
        """
        if len(self.scores) > 1:
            raise ValueError(f"these are maps of {len(self.scores)} images, whose classes differ: images")
        known = F.pad(class_labels.to(self.scores.device) > 0, (1, 0), value=True)[self.class_ids[0]]
        return replace(
            self, scores=self.scores[:, known], class_ids=self.class_ids[:, known], counted=self.counted[:, known]
        )

    def without_background(self) -> Maps:
        """The classes alone.

        Raises:
            ValueError: There is no background, or nothing else.
        """
        if not self.has_background or self.scores.shape[1] < 2:
            raise ValueError("these maps have no background, or nothing besides")
        return Maps(self.scores[:, 1:], self.class_ids[:, 1:], self.counted[:, 1:], has_background=False)

    def softmax(self, background: float) -> Maps:
        """Put a constant background channel in front, then take the softmax over it and the present classes.

        Args:
            background: Score of the background.

        Raises:
            ValueError: There is a background already.
        """
        scores = self.scores.masked_fill(~self.counted[:, :, None, None], -torch.inf)
        whole = self.with_scores(scores).with_background(background)
        return whole.with_scores(whole.scores.softmax(dim=1))

    def label(self, size: Sequence[int] | None = None, dtype: torch.dtype = torch.int64) -> Tensor:
        """The class with the highest score at each position; of equal scores the first class wins.

        Args:
            size: (H, W) to which the scores are resized first; default: their own. On the CPU a large label is made in
                tiles, without the scores at its size.
            dtype: Of the label; uint8 for large ones that are only stored.

        Returns:
            Class ids [B, H, W].

        Raises:
            ValueError: There is no background; :meth:`label_above` makes a label then.
        """
        if not self.has_background:
            raise ValueError("maps without a background give a label by a threshold: label_above")
        enlarged = self._enlarged_label(size, dtype)
        if enlarged is not None:
            return enlarged
        # Channel by channel: memory does not grow with their number, and an arg max across the memory's order takes
        # many times as long on the CPU.
        channels = (self.scores[:, index : index + 1] for index in range(self.scores.shape[1]))
        best: Tensor | None = None
        for channel, ids in zip(channels, self.class_ids.unbind(1), strict=True):
            scores = (channel if size is None else resize(channel, size))[:, 0]
            if best is None:
                best, label = scores, ids[:, None, None].expand(scores.shape).clone()
            else:
                label = torch.where(scores > best, ids[:, None, None], label)
                best = torch.maximum(scores, best)
        return label.to(dtype)

    def label_above(
        self, background: float, size: Sequence[int] | None = None, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """The plain label: the present class with the highest score, background where that is at most ``background``.

        Args:
            background: Threshold.
            size, dtype: As :meth:`label` takes them.

        Returns:
            Class ids [B, H, W].
        """
        if self.has_background:
            raise ValueError("these maps have a background: label")
        enlarged = self._enlarged_label(size, dtype, background)
        if enlarged is not None:
            return enlarged
        scores = self.scores if size is None else resize(self.scores, size)
        score, winner = (scores * self.counted[:, :, None, None]).max(dim=1)
        ids = self.class_ids.gather(1, winner.flatten(1)).view_as(winner)
        return torch.where(score <= background, 0, ids).to(dtype)

    def _enlarged_label(
        self, size: Sequence[int] | None, dtype: torch.dtype, above: float | None = None
    ) -> Tensor | None:
        """What :func:`afa.ops.enlarged_label.enlarged_label` makes of every image; None where it does not serve."""
        if size is None:
            return None
        labels: Tensor | None = None
        for index, (scores, ids, counted) in enumerate(zip(self.scores, self.class_ids, self.counted, strict=True)):
            if above is not None and not counted.all():
                scores = scores * counted[:, None, None]
            one = enlarged_label(scores, ids, (size[0], size[1]), above=above, together=above is not None)
            if one is None:
                return None
            if labels is None:
                labels = torch.empty(len(self.scores), *one.shape, dtype=dtype)
            labels[index] = one
        return labels

    def dense(self, num_classes: int) -> Tensor:
        """Scores of all classes, absent ones 0.

        Args:
            num_classes: C, background included.

        Returns:
            [B, C, h, w], or [B, K, h, w] where there is no background.
        """
        batch, _, height, width = self.scores.shape
        first = 0 if self.has_background else 1
        index = (self.class_ids - first)[:, :, None, None].expand(-1, -1, height, width)
        scores = self.scores * self.counted[:, :, None, None]
        return scores.new_zeros(batch, num_classes - first, height, width).scatter_add_(1, index, scores)

    def images(self) -> list[Maps]:
        """Each image's own maps [1, c, h, w], without the channels that do not count, but with one at least."""
        return [
            Maps(
                self.scores[index : index + 1, :count],
                self.class_ids[index : index + 1, :count],
                self.counted[index : index + 1, :count],
                self.has_background,
            )
            for index, count in enumerate(self.counted.sum(dim=1).clamp(min=1).tolist())
        ]
