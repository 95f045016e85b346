"""From an image of any size to masks and maps of that size: all that comes before and after a method."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from afa.config import RunConfig
from afa.data.samples import Sample
from afa.errors import UserError
from afa.maps import Maps
from afa.methods.base import Found, Method, Output, SegmentationProtocol, missing_inputs, possible_outputs
from afa.ops.cam import long_side_size, resize
from afa.ops.dense_crf import DenseCRF

if TYPE_CHECKING:
    from PIL.Image import Image

# Beyond this long side an image holds no detail that PAR, DenseCRF or a network would use.
DETAIL_LONG_SIDE = 1024


@dataclass(frozen=True)
class Prediction:
    """What was found in an image. H x W is the image's own size.

    Attributes:
        image: uint8 RGB [H, W, 3].
        class_ids: Of the m classes that count, given or predicted; 1..K, rising.
        class_names: Their names.
        scores: The classifier's probability of all K classes, float32 [K]; None where the method has no classifier.
        mask: The label of the method's last output, uint8 [H, W]: 0 background, 1..K, 255 where it is left open.
        unrefined_mask: The same before DenseCRF, where that was used and this was wanted.
        maps: Output's name -> scores of the classes in ``class_ids``, float16 [m, H, W], or of the size at which they
            were computed, where that was wanted. Of an output that gives logits they are probabilities: the softmax
            over all classes and the background.
        background: Output's name -> score of the background, float16, as large as its maps, for outputs that have one.
        rivals: Output's name -> the highest probability of the background and of all classes that are not in
            ``class_ids``, float16, as large as its maps, for outputs that give logits.
        thresholds: Output's name -> the background score of its label, for outputs without a background.
        labels: Output's name -> uint8 [H, W], 255 where the label is left open.
        all_class_names: K names.
    """

    image: np.ndarray
    class_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    scores: np.ndarray | None
    mask: np.ndarray
    unrefined_mask: np.ndarray | None = None
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    background: dict[str, np.ndarray] = field(default_factory=dict)
    rivals: dict[str, np.ndarray] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    all_class_names: tuple[str, ...] = ()

    @property
    def backgrounds(self) -> dict[str, np.ndarray | float]:
        """Name of an output with maps -> what its classes must beat: a map [H, W], or the threshold of its label."""
        return {**self.thresholds, **self.background, **self.rivals}

    def plot(self) -> Image:
        """The image, each class's map against the background score, and the mask side by side, as a PIL image."""
        from PIL import Image

        from afa.visual import prediction_grid

        return Image.fromarray(
            prediction_grid(
                self.image,
                self.maps,
                self.backgrounds,
                self.class_ids,
                self.all_class_names,
                mask=self.mask,
                labels=self.labels,
            )
        )


class Predictor:
    """Predicts images of any size.

    An image is resized to ``test.long_side`` for the network, CAMs and segmentation alike, which share their passes.
    PAR and DenseCRF work on the image itself. Images of more than 1024 pixels (or ``test.long_side``, if that is more)
    are shrunk to that first and the results enlarged. With ``test.long_side`` 0 the network, too, sees the image at its
    own size, up to what the method says that it can take. So memory stays bounded whatever people bring.

    Args:
        method: Whose network is in evaluation mode, on its device.
        config: The ``test`` settings count.
        device: Where the network lies.
        crf: Refines the segmentation.
        inputs: What every image will come with, as :attr:`afa.methods.base.Output.inputs` spells it.

    Attributes:
        outputs: What can be said of images with these inputs.
        mask_output: What masks are made of: the last of these that has a label.

    Raises:
        UserError: No label can be made with these inputs; or ``crf`` is given, and the masks are made of no logits.
    """

    def __init__(
        self,
        method: Method,
        config: RunConfig,
        *,
        device: torch.device | str = "cpu",
        crf: DenseCRF | None = None,
        inputs: Collection[str] = (),
    ) -> None:
        self.method, self.config, self.crf = method, config, crf
        self.device = torch.device(device)
        self.class_names = method.class_names
        self.outputs = possible_outputs(method, inputs)
        with_label = [output for output in self.outputs if output.kind != "affinity"]
        if not with_label:
            others = [output for output in method.outputs if output.kind != "affinity"]
            raise UserError(f"the method '{method.name}' gives no mask here: {missing_inputs(others)}")
        self.mask_output = with_label[-1]
        if crf is not None and not self.mask_output.logits:
            raise UserError(
                f"DenseCRF needs a segmentation, and the masks of the method '{method.name}' are of its output "
                f"'{self.mask_output.name}': leave it out"
            )

    @property
    def left_out(self) -> str:
        """The outputs that these inputs do not suffice for, and what they need, as people read it; "" for none."""
        others = [output for output in self.method.outputs if output not in self.outputs]
        return ", ".join(f"{output.title} (needs {', '.join(output.inputs)})" for output in others)

    def require(self, name: str) -> None:
        """Refuse an output of the method that these inputs do not suffice for.

        Raises:
            UserError: Says what is missing.
        """
        others = [output for output in self.method.outputs if output not in self.outputs and output.name == name]
        if others:
            raise UserError(missing_inputs(others))

    def predict(
        self,
        image: np.ndarray,
        class_labels: np.ndarray | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        maps: Sequence[str] = (),
        labels: Sequence[str] = (),
        unrefined_mask: bool = False,
        maps_as_computed: bool = False,
    ) -> Prediction:
        """Predict one image: :meth:`predict_batch` for it alone."""
        return self.predict_batch(
            [image],
            None if class_labels is None else [class_labels],
            inputs=None if inputs is None else [inputs],
            maps=maps,
            labels=labels,
            unrefined_mask=unrefined_mask,
            maps_as_computed=maps_as_computed,
        )[0]

    @torch.no_grad()
    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        class_labels: Sequence[np.ndarray] | None = None,
        *,
        inputs: Sequence[Mapping[str, Any]] | None = None,
        maps: Sequence[str] = (),
        labels: Sequence[str] = (),
        unrefined_mask: bool = False,
        maps_as_computed: bool = False,
    ) -> list[Prediction]:
        """Predict images of one size together.

        Args:
            images: uint8 RGB, each [H, W, 3].
            class_labels: Image-level labels [K] of each, above 0 means present; None: the classifier's own, at least
                one.
            inputs: What else belongs to each, as :attr:`afa.data.samples.Sample.inputs` holds it; None: nothing.
            maps: Outputs whose maps are wanted.
            labels: Outputs whose labels are wanted.
            unrefined_mask: Whether the mask before DenseCRF is wanted, too.
            maps_as_computed: Leave maps at the size at which they were computed, where the image is larger: they hold
                no more detail.

        Returns:
            Mask, classes, maps and labels of each at its size.
        """
        size = (images[0].shape[0], images[0].shape[1])
        wanted = list(dict.fromkeys([self.mask_output.name, *maps, *labels]))
        details = [self._detail(image) for image in images]
        network_size = self._network_size(details[0], wanted)
        given = [None] * len(images) if class_labels is None else [np.asarray(row, np.float32) for row in class_labels]
        brought = (
            [{}] * len(images) if inputs is None else [shrunk_inputs(own, size, details[0].shape[:2]) for own in inputs]
        )
        samples = [
            Sample("", detail, row, own, network_size=network_size)
            for detail, row, own in zip(details, given, brought, strict=True)
        ]
        test = self.config.test
        protocol = SegmentationProtocol(scales=tuple(test.scales), mirror=test.mirror)
        found = self.method.predict(samples, wanted, protocol)
        return [
            self._prediction(seen, image, detail, size, maps, labels, unrefined_mask, maps_as_computed)
            for seen, image, detail in zip(found, images, details, strict=True)
        ]

    def _prediction(
        self,
        seen: Found,
        image: np.ndarray,
        detail: np.ndarray,
        size: tuple[int, int],
        maps: Sequence[str],
        labels: Sequence[str],
        unrefined_mask: bool,
        maps_as_computed: bool,
    ) -> Prediction:
        own = self._label(seen, self.mask_output.name, size)
        scores = None if seen.class_logits is None else seen.class_logits.float().sigmoid().cpu().numpy()
        of_classes = {
            name: _maps_of_classes(
                self.method.output(name), seen.outputs[name], seen.class_ids, size, as_computed=maps_as_computed
            )
            for name in maps
        }
        return Prediction(
            image=image,
            class_ids=seen.class_ids,
            class_names=tuple(self.class_names[class_id - 1] for class_id in seen.class_ids),
            scores=scores,
            mask=own if self.crf is None else self._refined(seen, detail, size),
            unrefined_mask=own if unrefined_mask else None,
            maps={name: own_maps.scores for name, own_maps in of_classes.items()},
            background={name: own.background for name, own in of_classes.items() if own.background is not None},
            rivals={name: own.rival for name, own in of_classes.items() if own.rival is not None},
            thresholds={
                output.name: output.threshold
                for output in map(self.method.output, maps)
                if output.threshold is not None and of_classes[output.name].background is None
            },
            labels={
                name: _enlarge(self._label(seen, name, (detail.shape[0], detail.shape[1])), size) for name in labels
            },
            all_class_names=self.class_names,
        )

    def _label(self, seen: Found, name: str, size: tuple[int, int]) -> np.ndarray:
        return self.method.output(name).label(seen.outputs[name], size, torch.uint8).cpu().numpy()

    def _detail(self, image: np.ndarray) -> np.ndarray:
        """The image, shrunk where it is larger than anything that follows needs."""
        limit = max(self.config.test.long_side, DETAIL_LONG_SIDE)
        if max(image.shape) <= limit:
            return np.ascontiguousarray(image)
        height, width = long_side_size(image.shape[:2], limit)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def _network_size(self, detail: np.ndarray, wanted: Sequence[str]) -> tuple[int, int]:
        """(h, w) at which the network sees the image."""
        long_side = self.config.test.long_side
        if not long_side:
            pixels = detail.shape[0] * detail.shape[1]
            most = self.method.most_pixels(wanted) or pixels
            long_side = int(max(detail.shape) * min(1.0, (most / pixels) ** 0.5))
        smallest = math.ceil(1 / min(1.0, *self.config.test.scales))
        return long_side_size(detail.shape[:2], long_side, smallest)

    def _refined(self, seen: Found, detail: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        assert self.crf is not None
        image = torch.from_numpy(detail).permute(2, 0, 1).contiguous().to(self.device)
        output = self.mask_output
        marginals = self.crf(image, output.probabilities(seen.outputs[output.name], detail.shape[:2]))
        return _enlarge(marginals[0].argmax(dim=0).to(torch.uint8).cpu().numpy(), size)


class _ClassScores(NamedTuple):
    """Float16 scores [m, H, W] of some classes; background [H, W] if any; the others' highest, where there are more."""

    scores: np.ndarray
    background: np.ndarray | None
    rival: np.ndarray | None


def _maps_of_classes(
    output: Output, found: object, class_ids: Sequence[int], size: tuple[int, int], *, as_computed: bool
) -> _ClassScores:
    """One class at a time: a photo's maps are large."""
    if not isinstance(found, Maps):
        raise ValueError("only outputs of the kind 'maps' have maps")
    if as_computed and found.size[0] * found.size[1] < size[0] * size[1]:
        size = found.size
    ids, channels = found.class_ids[0].tolist(), found.scores.float().split(1, dim=1)

    def resized(channel: int) -> Tensor:
        return resize(channels[channel], size)[0, 0]

    # Probabilities are exp(logit - log of the sum of all exp(logit)).
    total = reduce(torch.logaddexp, map(resized, range(len(ids)))) if output.logits else None

    def score(values: Tensor) -> np.ndarray:
        return (values if total is None else (values - total).exp()).half().cpu().numpy()

    background = score(resized(ids.index(0))) if found.has_background else None
    scores = np.empty((len(class_ids), *size), np.float16)
    for index, class_id in enumerate(class_ids):
        scores[index] = score(resized(ids.index(class_id)))
    others = [channel for channel, class_id in enumerate(ids) if class_id not in class_ids]
    rival = score(reduce(torch.maximum, map(resized, others))) if output.logits and others else None
    return _ClassScores(scores, background, rival)


def shrunk_inputs(inputs: Mapping[str, Any], size: tuple[int, int], detail: tuple[int, ...]) -> dict[str, Any]:
    """The inputs of an image that is shrunk; maps of another size than the image stay as they are.

    Args:
        inputs: As :attr:`afa.data.samples.Sample.inputs` holds them.
        size: (H, W) of the image.
        detail: (h, w) to which it is shrunk.
    """
    if detail == size:
        return dict(inputs)
    shrunk = {}
    for name, value in inputs.items():
        if isinstance(value, Maps):
            shrunk[name] = value.resized(detail) if value.size == size else value
        else:
            shrunk[name] = cv2.resize(value, (detail[1], detail[0]), interpolation=cv2.INTER_NEAREST)
    return shrunk


def _enlarge(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if label.shape == size:
        return label
    return cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
