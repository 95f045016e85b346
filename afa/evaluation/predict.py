"""What the network says about images: CAMs, propagated CAMs, segmentation over scales.

Shapes: B images of one size, K foreground classes, C = K + 1, H x W image, h x w token grid, N = h * w, m classes that
count for an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.config import AffinityConfig, CamConfig, TestConfig
from afa.methods.pseudo_labels import PresentCam, plain_label, present_classes, propagate_cams
from afa.models import AFANet
from afa.ops.cam import multi_scale_cam, resize, scaled_size

# A map of full size is made for so many values at once when only its arg max is wanted.
VALUES_AT_ONCE = 2**25


@dataclass(frozen=True)
class ImagePrediction:
    """One image, seen by the network.

    Attributes:
        cls_logits: [K].
        classes: int64 [m], the classes (0..K-1) that count, in rising order; where none does, class 0 stands in.
        class_labels: float [m], 1 where the class counts, 0 for the stand-in.
        cams: [1, m, H, W] in 0..1; None where they were not wanted.
        affinity: [1, N, N] of the un-mirrored image at scale 1, and its ``token_grid`` (h, w).
        largest_affinity: That of the largest CAM scale, and its ``largest_grid``; None where it was not wanted.
        seg_logits: [1, C, *, *] at the decoder's stride of the test image; None where they were not wanted.
    """

    cls_logits: Tensor
    classes: Tensor
    class_labels: Tensor
    cams: Tensor | None
    affinity: Tensor | None
    token_grid: tuple[int, int]
    largest_affinity: Tensor | None
    largest_grid: tuple[int, int] | None
    seg_logits: Tensor | None

    def cam_label(self, size: Sequence[int], background: float) -> Tensor:
        """Plain label of the CAMs, resized: uint8 [*size]."""
        if self.cams is None:
            raise ValueError("no CAMs were computed")
        label = plain_label(resize(self.cams, size), self.class_labels[None], background)
        return self._to_class_ids(label[0])

    def propagated_scores(self, background: float, settings: AffinityConfig) -> Tensor:
        """CAMs spread along the affinity of scale 1, background first: [1, 1 + m, h, w]."""
        if self.cams is None or self.affinity is None:
            raise ValueError("no CAMs or no affinity were computed")
        return propagate_cams(
            self.cams,
            self.affinity,
            self.token_grid,
            self.class_labels[None],
            background=background,
            radius=settings.radius,
            power=settings.power,
            epsilon=settings.epsilon,
        )

    def propagated_label(self, size: Sequence[int], background: float, settings: AffinityConfig) -> Tensor:
        """Arg max of the propagated CAMs, resized, without PAR: uint8 [*size]."""
        return self._to_class_ids(arg_max_at(self.propagated_scores(background, settings), size)[0])

    def segmentation(self, size: Sequence[int]) -> Tensor:
        """Arg max of the segmentation logits, resized: uint8 [*size]."""
        if self.seg_logits is None:
            raise ValueError("no segmentation was computed")
        return arg_max_at(self.seg_logits, size)[0].to(torch.uint8)

    def probabilities(self, size: Sequence[int]) -> Tensor:
        """Softmax of the resized segmentation logits, [1, C, *size]."""
        if self.seg_logits is None:
            raise ValueError("no segmentation was computed")
        return resize(self.seg_logits, size).softmax(dim=1)

    def _to_class_ids(self, label: Tensor) -> Tensor:
        """Channels 0 (background), 1..m -> ids 0..K."""
        return F.pad(self.classes + 1, (1, 0)).to(torch.uint8)[label]


@torch.no_grad()
def predict_images(
    network: AFANet,
    images: Tensor,
    class_labels: Tensor | None,
    *,
    cam: CamConfig | None = None,
    test: TestConfig | None = None,
    segmentation: bool = True,
    largest_affinity: bool = False,
) -> list[ImagePrediction]:
    """Run every pass that images of one size need, each once.

    The first forward serves the classifier, the affinity, the first CAM and, where sizes agree, the segmentation. CAM
    passes whose size the test protocol uses as well hand over their segmentation logits.

    Args:
        network: In evaluation mode.
        images: Normalised, [B, 3, H, W].
        class_labels: [B, K], on the host; None: the classes whose logit is above 0, at least the best one.
        cam: Scales of the CAMs; None: no CAMs.
        test: Size, scales and mirror of the segmentation; None: the logits of one forward of the images as they are.
        segmentation: Whether segmentation logits are wanted.
        largest_affinity: Whether the affinity of the largest CAM scale is wanted, too.

    Returns:
        All of it, image by image, in float32.
    """
    height, width = images.shape[-2:]
    test_size = long_side_size((height, width), test.long_side) if test else (height, width)
    same_size = test_size == (height, width)
    first = network(images, decode=segmentation and same_size, with_affinity=cam is not None)
    if class_labels is None:
        class_labels = choose_classes(first.cls_logits).cpu()
    present = present_classes(class_labels, images.device)

    shared = _SharedPasses(network, len(images))
    if first.seg_logits is not None:
        shared.plain[height, width] = first.seg_logits
        if test is not None:
            shared.wanted = {scaled_size(test_size, scale) for scale in test.scales}
            shared.mirror = test.mirror
    cams, largest, largest_grid = None, None, None
    if cam is not None:
        cams, largest, largest_grid = multi_scale_cam(
            PresentCam(shared, present),
            images,
            cam.scales,
            epsilon=cam.epsilon,
            with_affinity=largest_affinity and max(cam.scales) > 1,
            first_cam=present.gather(first.cam),
        )
    token_grid = (first.cam.shape[-2], first.cam.shape[-1])
    if largest_affinity and largest is None:
        largest, largest_grid = first.affinity, token_grid
    seg_logits = None
    if segmentation and test is None:
        seg_logits = first.seg_logits
    elif segmentation and test is not None:
        seg_logits = multi_scale_logits(network, resize(images, test_size), test.scales, test.mirror, shared)

    predictions = []
    for index, count in enumerate((class_labels > 0).sum(dim=1).clamp(min=1).tolist()):
        one = slice(index, index + 1)
        predictions.append(
            ImagePrediction(
                cls_logits=first.cls_logits[index],
                classes=present.channels[index, :count],
                class_labels=present.present[index, :count].float(),
                cams=None if cams is None else cams[one, :count],
                affinity=None if first.affinity is None else first.affinity[one],
                token_grid=token_grid,
                largest_affinity=None if largest is None else largest[one],
                largest_grid=largest_grid,
                seg_logits=None if seg_logits is None else seg_logits[one],
            )
        )
    return predictions


@torch.no_grad()
def multi_scale_logits(
    network: AFANet,
    images: Tensor,
    scales: Sequence[float] = (1.0, 0.5, 0.75),
    mirror: bool = True,
    shared: _SharedPasses | None = None,
) -> Tensor:
    """Segmentation over scales: the mean with the mirror image's logits, then the maximum over the scales.

    Args:
        network: In evaluation mode.
        images: Normalised and of the test size, [B, 3, H, W].
        scales: Must hold 1, whose logits give the size.
        mirror: Whether the mirror images count.
        shared: Passes that have been made already.

    Returns:
        [B, C, *, *] at the decoder's stride.
    """
    shared = shared or _SharedPasses(network, len(images))
    total: Tensor | None = None
    for scale in sorted(scales, key=lambda scale: scale != 1):
        size = scaled_size(images.shape[-2:], scale)
        plain, mirrored = shared.plain.get(size), shared.mirrored.get(size)
        missing = []
        if plain is None or (mirror and mirrored is None):
            scaled = resize(images, size)
            missing = [scaled] if plain is None else []
            if mirror and mirrored is None:
                missing.append(scaled.flip(-1))
            logits = list(network.segment(torch.cat(missing)).split(len(images)))
            plain = logits.pop(0) if plain is None else plain
            mirrored = logits.pop(0) if logits else mirrored
        if mirror and mirrored is not None:
            plain = (plain + mirrored.flip(-1)) / 2
        total = plain if total is None else torch.maximum(total, resize(plain, total.shape[-2:]))
    if total is None:
        raise ValueError("test-time prediction needs at least one scale")
    return total


def choose_classes(cls_logits: Tensor) -> Tensor:
    """Image-level labels that the classifier predicts: logits [B, K] above 0, at least the best one; float [B, K]."""
    return (cls_logits > 0).float().scatter_(1, cls_logits.argmax(dim=1, keepdim=True), 1.0)


def long_side_size(size: Sequence[int], long_side: int, smallest: int = 1) -> tuple[int, int]:
    """Height and width resized to a long side in pixels, integer parts, at least ``smallest``; 0 keeps the size."""
    ratio = long_side / max(size) if long_side else 1.0
    return max(smallest, int(size[0] * ratio)), max(smallest, int(size[1] * ratio))


def arg_max_at(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Arg max over the channels of scores resized to ``size``, a few channels at a time.

    The same as resizing everything first, but its memory does not grow with the number of channels: 80 classes of a
    photo of 12 million pixels would take 4 GB.

    Args:
        scores: [B, C, h, w].
        size: (H, W).

    Returns:
        int64 [B, H, W]; of equal scores the first channel wins.
    """
    at_once = max(1, VALUES_AT_ONCE // (len(scores) * size[0] * size[1]))
    best: Tensor | None = None
    winner: Tensor | None = None
    for start in range(0, scores.shape[1], at_once):
        value, index = resize(scores[:, start : start + at_once], size).max(dim=1)
        if best is None or winner is None:
            best, winner = value, index
        else:
            better = value > best
            winner = torch.where(better, index + start, winner)
            best = torch.where(better, value, best)
    if winner is None:
        raise ValueError("arg_max_at needs at least one channel")
    return winner


class _SharedPasses:
    """The network as :func:`multi_scale_cam` sees it, which also keeps what the segmentation wants of these passes.

    Attributes:
        wanted: Sizes (h, w) of passes whose segmentation logits shall be kept.
        mirror: Whether those of mirror images, too.
        plain, mirrored: The logits [B, C, *, *] kept, by size.
    """

    def __init__(self, network: AFANet, batch: int) -> None:
        self.network = network
        self.batch = batch
        self.wanted: set[tuple[int, int]] = set()
        self.mirror = True
        self.plain: dict[tuple[int, int], Tensor] = {}
        self.mirrored: dict[tuple[int, int], Tensor] = {}

    def cam(self, images: Tensor, affinity_of: int = 0) -> tuple[Tensor, Tensor | None]:
        """As :meth:`AFANet.cam`, for [images, mirror images] or, at scale 1, the mirror images alone."""
        features, attention = self.network.encoder(
            images, attention_of=affinity_of, attention_blocks=self.network.affinity_blocks
        )
        size = (images.shape[-2], images.shape[-1])
        if size in self.wanted:
            self._keep(size, features)
        affinity = self.network.affinity(attention) if affinity_of else None
        return self.network.class_activation(features[-1]), affinity

    def _keep(self, size: tuple[int, int], features: Sequence[Tensor]) -> None:
        has_plain = len(features[0]) == 2 * self.batch
        if has_plain and not self.mirror:
            features = [feature[: self.batch] for feature in features]
        elif not has_plain and not self.mirror:
            return
        logits = list(self.network.decoder(features).split(self.batch))
        if has_plain:
            self.plain[size] = logits.pop(0)
        if logits:
            self.mirrored[size] = logits.pop(0)
