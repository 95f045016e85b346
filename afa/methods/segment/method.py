"""``segment``: a segmentation network on labels that are there already - of any earlier stage, or true masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from afa.data.samples import Sample
from afa.data.transforms import ColourJitter, draw_crop, normalise
from afa.errors import UserError
from afa.maps import IGNORE, Maps
from afa.methods.base import (
    Batch,
    Found,
    Method,
    Output,
    ParameterGroup,
    Runtime,
    SegmentationProtocol,
    StepOutput,
    Transform,
)
from afa.methods.segment.config import SegmentConfig, decoder_shape
from afa.methods.segmentation import (
    crop_settings,
    loss_denominator,
    multi_scale_logits,
    network_input,
    segmentation_loss,
    soft_segmentation_loss,
)
from afa.models import SegmentationNetwork, build_decoder, build_encoder
from afa.ops.cam import long_side_size, resize


class Segment(Method):
    """Cross-entropy on pixel labels or soft labels; see :class:`afa.methods.base.Method`."""

    name = "segment"
    config_class = SegmentConfig
    low_precision = True
    on_host = frozenset()

    config: SegmentConfig
    network: SegmentationNetwork

    def __init__(self, config: SegmentConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        self.num_classes = len(self.class_names) + 1
        self.network = build_segmenter(config, self.num_classes)
        self.outputs = (Output("segmentation", "segmentation", "maps", logits=True),)
        soft = config.loss.soft_labels
        self.needs = ("pixel_labels",) if soft is None else (f"maps/{soft}",)

    def pretrained(self) -> Sequence[tuple[nn.Module, str]]:
        """The encoder's weights."""
        source = self.config.model.pretrained
        return [(self.network.encoder, source)] if source else []

    def transform(self) -> Transform:
        """Scale, mirror, pad, crop, for an image and its label by one draw."""
        return SegmentTransform(
            needs=self.needs[0],
            num_classes=self.num_classes,
            soft_background=self.config.loss.soft_background,
            **crop_settings(self.config.augmentation, self.config.dataset),
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder, the decoder's weights and its biases."""
        settings = self.config.optimiser
        lr = settings.lr * settings.head_lr_factor
        weights: list[nn.Parameter] = []
        biases: list[nn.Parameter] = []
        for name, parameter in self.network.decoder.named_parameters():
            (biases if name.endswith("bias") else weights).append(parameter)
        encoder = list(self.network.encoder.parameters())
        decay = settings.weight_decay
        return [
            ParameterGroup(name="encoder", params=encoder, base_lr=settings.lr, weight_decay=decay),
            ParameterGroup(name="decoder", params=weights, base_lr=lr, weight_decay=decay),
            ParameterGroup(
                name="decoder_biases", params=biases, base_lr=lr * settings.bias_lr_factor, weight_decay=0.0
            ),
        ]

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """See :class:`afa.methods.base.Method`."""
        image = batch["image"]
        with self.runtime.autocast():
            logits = network(image)
        logits = resize(logits.float(), image.shape[-2:])
        share = self.config.loss.background_share
        denominator = loss_denominator(self.config.loss.normalisation, self.runtime)
        if "label" in batch:
            label = batch["label"].long()
            loss = segmentation_loss(logits, label, background_share=share, denominator=denominator)
        else:
            target = batch["target"]
            loss = soft_segmentation_loss(logits, target, background_share=share, denominator=denominator)
            label = target.argmax(dim=1).masked_fill(target.sum(dim=1) == 0, IGNORE)
        scalars = {
            "pixels/background": (label == 0).float().mean(),
            "pixels/foreground": ((label != 0) & (label != IGNORE)).float().mean(),
            "pixels/ignored": (label == IGNORE).float().mean(),
        }
        return StepOutput({"seg": loss}, {"seg": 1.0}, scalars, {"seg": label})

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        """See :class:`afa.methods.base.Method`.

        The classes that count are those of a sample's labels, else those that its predicted mask shows.
        """
        dataset, device = self.config.dataset, next(self.network.parameters()).device
        images = network_input(samples, dataset.image_mean, dataset.image_std, device)
        images = resize(images, long_side_size(images.shape[-2:], protocol.long_side))
        logits = multi_scale_logits(self.network.segment, images, protocol, network_pass=self.network_pass)
        found = []
        for sample, scores in zip(samples, logits.split(1), strict=True):
            maps = Maps.of_all_classes(scores, has_background=True)
            outputs = {"segmentation": maps} if "segmentation" in wanted else {}
            found.append(Found(outputs, _class_ids(sample, maps)))
        return found


def build_segmenter(config: SegmentConfig, num_classes: int) -> SegmentationNetwork:
    """The network that a configuration describes, with initial weights.

    Args:
        config: Checked; what is left out of the decoder's settings is its default.
        num_classes: C, background included.

    Raises:
        UserError: There is no such encoder.
    """
    shape = decoder_shape(config.model)
    encoder = build_encoder(config.model)
    decoder = build_decoder(
        config.model.decoder,
        encoder,
        num_classes,
        width=shape.width,
        dropout=shape.dropout,
        rates=shape.rates,
    )
    return SegmentationNetwork(encoder, decoder)


@dataclass(frozen=True)
class SegmentTransform:
    """A sample -> a training crop and its label.

    Attributes:
        needs: Of the sample's inputs: ``pixel_labels`` or ``maps/NAME``.
        num_classes: C, background included.
        soft_background: See :func:`soft_labels`.
        crop_size, scale_range, mirror_probability, resampling: See :func:`afa.data.transforms.training_transform`.
        jitter: Of the colours, before all else.
        mean, std: Of R, G, B, in 0..255.
    """

    needs: str
    num_classes: int
    soft_background: float | None
    crop_size: int
    scale_range: tuple[float, float]
    mirror_probability: float
    resampling: str
    jitter: ColourJitter
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        """Transform.

        Args:
            sample: With what is needed.
            rng: The only source of randomness.

        Returns:
            ``image`` float32 [3, S, S], normalised, and ``label`` uint8 [S, S] or ``target`` float32 [C, S, S], as
            :func:`probabilities` gives it. Outside of the image the label is 255 and the target 0.

        Raises:
            UserError: The maps cannot be labels.
        """
        colours = self.jitter(sample.image, rng)
        crop = draw_crop(
            colours.shape,
            rng,
            crop_size=self.crop_size,
            scale_range=self.scale_range,
            mirror_probability=self.mirror_probability,
        )
        image = normalise(crop.image(colours, self.resampling), self.mean, self.std)
        given = sample.inputs[self.needs]
        if isinstance(given, Maps):
            scores = soft_labels(given, self.num_classes, self.soft_background, f"{self.needs} of {sample.name}")
            return {"image": image, "target": probabilities(crop.maps(scores), self.num_classes)}
        return {"image": image, "label": torch.from_numpy(crop.label(given))}


def soft_labels(maps: Maps, num_classes: int, background: float | None, what: str) -> Maps:
    """Maps as soft labels: with a background, and nothing in them that could not be a share.

    Args:
        maps: Of one image, [1, c, H, W].
        num_classes: C, background included.
        background: Score of the background that is put before maps without one; None: they are refused.
        what: Names the maps in messages.

    Raises:
        UserError: A score is negative or not finite, a class is none of the data set's, or there is no background.
    """
    if not bool(((maps.scores >= 0) & (maps.scores < torch.inf)).all()):
        raise UserError(
            f"{what} holds scores that are negative or not finite: soft labels are scores of 0 or more, not logits; "
            "name another output as loss.soft_labels"
        )
    if int(maps.class_ids.max()) >= num_classes:
        raise UserError(
            f"{what} holds the class {int(maps.class_ids.max())}, but the data set has {num_classes - 1}: name the "
            "folder of this data set as dataset.maps"
        )
    if maps.has_background:
        return maps
    if background is None:
        raise UserError(
            f"{what} has no background: set loss.soft_background to its score, or name another output as "
            "loss.soft_labels"
        )
    return maps.with_background(background)


def probabilities(maps: Maps, num_classes: int) -> Tensor:
    """Scores of all classes divided by their sum at each position; 0 where all of them are 0.

    Args:
        maps: Of one image, with background, [1, c, S, S].
        num_classes: C.

    Returns:
        float32 [C, S, S].
    """
    scores = maps.dense(num_classes)[0].float()
    total = scores.sum(dim=0, keepdim=True)
    return scores / total.masked_fill(total == 0, 1)


def _class_ids(sample: Sample, maps: Maps) -> tuple[int, ...]:
    """Of the classes that count: those of the image's labels where they are known, else those of the mask."""
    if sample.class_labels is not None:
        return tuple((np.flatnonzero(sample.class_labels > 0) + 1).tolist())
    return tuple(class_id for class_id in maps.label().unique().tolist() if class_id)
