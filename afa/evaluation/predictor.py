"""From a picture to masks and CAMs of its own size: all that comes before and after the network."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from afa.config import Config
from afa.data.transforms import normalise
from afa.evaluation.predict import ImagePrediction, long_side_size, predict_images
from afa.evaluation.results import PSEUDO_LABELS
from afa.methods.label_maker import LabelMaker
from afa.methods.pseudo_labels import IGNORE, par_image
from afa.models import AFANet
from afa.ops.cam import normalise_cams, resize
from afa.ops.dense_crf import DenseCRF

# Beyond this long side a picture holds no detail that PAR, DenseCRF or the network would use.
DETAIL_LONG_SIDE = 1024
MOST_TOKENS = 4096


@dataclass(frozen=True)
class Prediction:
    """What was found in a picture. H x W is the picture's own size.

    Attributes:
        mask: Segmentation, uint8 [H, W]: 0 background, 1..K.
        unrefined_mask: The same before DenseCRF; None where it was not wanted.
        class_ids: Of the m classes that count, given or predicted; 1..K, rising.
        class_names: Their names.
        scores: The classifier's probability of all K classes, float32 [K].
        cams: float16 [m, H, W] in 0..1, in the order of ``class_ids``; None where they were not wanted.
        propagated_cams: The same after the walk along the affinity, each from its own minimum to its maximum; None
            where they were not wanted.
        pseudo_labels: Kind -> uint8 [H, W], 255 where the label is left open.
    """

    mask: np.ndarray
    unrefined_mask: np.ndarray | None
    class_ids: list[int]
    class_names: list[str]
    scores: np.ndarray
    cams: np.ndarray | None
    propagated_cams: np.ndarray | None
    pseudo_labels: dict[str, np.ndarray]


class Predictor:
    """Segments pictures of any size.

    A picture is resized to ``test.long_side`` for the network, CAMs and segmentation alike, which share their passes.
    PAR and DenseCRF work on the picture itself. Pictures of more than 1024 pixels (or ``test.long_side``, if that is
    more) are shrunk to that first and the results enlarged. With ``test.long_side`` 0 the network, too, sees the
    picture at its own size, up to 4096 tokens (1024 x 1024 pixels at stride 16), because affinity grows with the square
    of their number. So memory stays bounded whatever people bring.

    Args:
        network: In evaluation mode, on its device.
        config: The ``dataset`` (mean, std), ``cam``, ``affinity``, ``par``, ``validation`` and ``test`` settings.
        class_names: K names, background left out.
        device: Where the network lies.
        crf: Refines the segmentation.
    """

    def __init__(
        self,
        network: AFANet,
        config: Config,
        class_names: Sequence[str],
        *,
        device: torch.device | str = "cpu",
        crf: DenseCRF | None = None,
    ) -> None:
        self.network = network
        self.config = config
        self.class_names = tuple(class_names)
        self.device = torch.device(device)
        self.crf = crf
        self.label_maker = LabelMaker(config)

    def predict(self, image: np.ndarray, class_labels: np.ndarray | None = None, **wanted: Any) -> Prediction:
        """Look at one picture: :meth:`predict_batch` of it alone.

        Args:
            image: uint8 RGB [H, W, 3].
            class_labels: Image-level labels [K], above 0 means present; None: the classifier's own, at least one.
            **wanted: See :meth:`predict_batch`.
        """
        return self.predict_batch([image], None if class_labels is None else [class_labels], **wanted)[0]

    @torch.no_grad()
    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        class_labels: Sequence[np.ndarray] | None = None,
        *,
        unrefined_mask: bool = False,
        cams: bool = True,
        propagated_cams: bool = False,
        pseudo_labels: Collection[str] = (),
    ) -> list[Prediction]:
        """Look at pictures of one size together.

        Args:
            images: uint8 RGB, each [H, W, 3].
            class_labels: Image-level labels [K] of each, above 0 means present; None: the classifier's own, at least
                one.
            unrefined_mask: Whether the mask before DenseCRF is wanted, too.
            cams: Whether CAMs are wanted.
            propagated_cams: Whether propagated CAMs are wanted.
            pseudo_labels: Kinds wanted, of :data:`afa.evaluation.results.PSEUDO_LABELS`.

        Returns:
            Mask, classes, CAMs and pseudo labels of each at its size.
        """
        size = (images[0].shape[0], images[0].shape[1])
        details = [self._detail(image) for image in images]
        propagated = "propagated" in pseudo_labels
        largest_scale = max(self.config.cam.scales) if propagated else 1.0
        labels = None if class_labels is None else torch.from_numpy(np.stack(class_labels).astype(np.float32))
        predictions = predict_images(
            self.network,
            torch.cat([self._network_input(detail, largest_scale) for detail in details]),
            labels,
            cam=self.config.cam if cams or propagated_cams or pseudo_labels else None,
            test=replace(self.config.test, long_side=0),
            largest_affinity=propagated,
        )
        found = []
        for detail, seen in zip(details, predictions, strict=True):
            counting = seen.class_labels > 0
            class_ids = (seen.classes[counting] + 1).tolist()
            found.append(
                Prediction(
                    mask=self._mask(seen, detail, size),
                    unrefined_mask=_network_mask(seen, size) if unrefined_mask else None,
                    class_ids=class_ids,
                    class_names=[self.class_names[class_id - 1] for class_id in class_ids],
                    scores=seen.cls_logits.float().sigmoid().cpu().numpy(),
                    cams=_native_cams(seen.cams[0, counting], size) if cams and seen.cams is not None else None,
                    propagated_cams=_native_cams(self._walked(seen)[counting], size) if propagated_cams else None,
                    pseudo_labels={
                        kind: _enlarge(label, size)
                        for kind, label in self._pseudo_labels(pseudo_labels, seen, detail).items()
                    },
                )
            )
        return found

    def _detail(self, image: np.ndarray) -> np.ndarray:
        """The picture, shrunk where it is larger than anything that follows needs."""
        limit = max(self.config.test.long_side, DETAIL_LONG_SIDE)
        if max(image.shape) <= limit:
            return np.ascontiguousarray(image)
        height, width = long_side_size(image.shape[:2], limit)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def _network_input(self, detail: np.ndarray, largest_scale: float) -> Tensor:
        """The normalised image [1, 3, h, w]; an affinity is wanted of scales up to ``largest_scale``."""
        long_side = self.config.test.long_side
        if not long_side:
            tokens = detail.shape[0] * detail.shape[1] * (largest_scale / math.prod(self.network.encoder.strides)) ** 2
            long_side = int(max(detail.shape) * min(1.0, (MOST_TOKENS / tokens) ** 0.5))
        smallest = math.ceil(1 / min(1.0, *self.config.cam.scales, *self.config.test.scales))
        size = long_side_size(detail.shape[:2], long_side, smallest)
        normalised = normalise(detail, self.config.dataset.image_mean, self.config.dataset.image_std)
        return resize(normalised[None].to(self.device), size)

    def _mask(self, seen: ImagePrediction, detail: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if self.crf is None:
            return _network_mask(seen, size)
        picture = torch.from_numpy(detail).permute(2, 0, 1).contiguous().to(self.device)
        marginals = self.crf(picture, seen.probabilities(detail.shape[:2]))
        return _enlarge(marginals[0].argmax(dim=0).to(torch.uint8).cpu().numpy(), size)

    def _walked(self, seen: ImagePrediction) -> Tensor:
        """Propagated CAMs [m, h, w] in 0..1."""
        scores = seen.propagated_scores(self.config.validation.propagation_background, self.config.affinity)
        return normalise_cams(scores[:, 1:])[0]

    def _pseudo_labels(
        self, kinds: Collection[str], seen: ImagePrediction, detail: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Labels as training makes them, uint8 of the detail picture's size."""
        if unknown := set(kinds) - set(PSEUDO_LABELS):
            raise ValueError(f"no pseudo labels: {unknown}; choose of {', '.join(PSEUDO_LABELS)}")
        labels: dict[str, np.ndarray] = {}
        height, width = detail.shape[:2]
        if "plain" in kinds:
            labels["plain"] = seen.cam_label((height, width), self.config.cam.background).cpu().numpy()
        if "refined" not in kinds and "propagated" not in kinds:
            return labels
        if seen.cams is None:
            raise ValueError("pseudo labels need CAMs")
        maker = self.label_maker
        dataset = self.config.dataset
        normalised = normalise(detail, dataset.image_mean, dataset.image_std)[None].to(self.device)
        image = par_image(normalised, dataset.image_mean, dataset.image_std)
        cams, class_labels = resize(seen.cams, (height, width)), seen.class_labels[None]
        box = torch.tensor([[0, height, 0, width]])
        weights = maker.par_weights(image)
        table = torch.full((256,), IGNORE, dtype=torch.uint8, device=self.device)
        table[: len(seen.classes) + 1] = torch.cat([seen.classes.new_zeros(1), seen.classes + 1]).to(torch.uint8)
        if "refined" in kinds:
            label = maker.refined(image, cams, class_labels, box, weights)
            labels["refined"] = table[label[0]].cpu().numpy()
        if "propagated" in kinds:
            if seen.largest_affinity is None or seen.largest_grid is None:
                raise ValueError("propagated labels need the affinity of the largest scale")
            grid = seen.largest_grid
            label = maker.propagated(image, cams, seen.largest_affinity, grid, class_labels, box, weights)
            labels["propagated"] = table[label[0]].cpu().numpy()
        return labels


def _network_mask(seen: ImagePrediction, size: tuple[int, int]) -> np.ndarray:
    return seen.segmentation(size).cpu().numpy()


def _native_cams(cams: Tensor, size: tuple[int, int]) -> np.ndarray:
    """[m, h, w] -> float16 [m, H, W], one class at a time: a photo's CAMs are large."""
    maps = [resize(cam[None, None], size)[0, 0].half().cpu().numpy() for cam in cams]
    return np.stack(maps) if maps else np.zeros((0, *size), np.float16)


def _enlarge(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if label.shape == size:
        return label
    return cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
