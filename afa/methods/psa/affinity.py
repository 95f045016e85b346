"""``psa_affinity``: AffinityNet, learned from two volumes of scores, and the random walk of CAMs (sec. 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afa.data.samples import Sample
from afa.data.transforms import normalise_exactly
from afa.errors import UserError
from afa.maps import Maps
from afa.methods.base import (
    Batch,
    Found,
    Method,
    Output,
    ParameterGroup,
    Runtime,
    Said,
    SegmentationProtocol,
    StepOutput,
    Transform,
)
from afa.methods.cam_transforms import network_images
from afa.methods.cam_volumes import build_crf, refined, with_background
from afa.methods.psa.config import PSAAffinityConfig
from afa.methods.psa.labels import PairLabels, pair_labels
from afa.methods.psa.parameters import parameter_groups
from afa.methods.psa.transforms import AffinityTransform
from afa.methods.segmentation import Denominator, colour_jitter, loss_denominator, process_denominator
from afa.models import AffinityNetwork, build_encoder
from afa.models.psa import pair_affinity
from afa.ops.cam import resize
from afa.ops.neighbour_pairs import holds_pairs
from afa.ops.random_walk import PairAffinity, walk
from afa.parts import part

_HIGHEST_CAM = 1.001  # rounding


class PSAAffinity(Method):
    """AffinityNet; see :class:`afa.methods.base.Method`."""

    name = "psa_affinity"
    config_class = PSAAffinityConfig
    low_precision = True
    needs = ("maps/crf_low", "maps/crf_high")
    on_host = frozenset()

    config: PSAAffinityConfig
    network: AffinityNetwork

    def __init__(self, config: PSAAffinityConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        self.network = AffinityNetwork(
            build_encoder(config.model), config.model.head_widths, radius=config.affinity.radius
        )
        if config.optimiser.freeze == "released":
            self.network.encoder.freeze_released()
        self.crf = build_crf(config.crf)
        self.outputs = (
            Output("affinity", "affinity", "affinity", scored=False),
            Output("propagated_crf", "random walk, CRF", "maps", inputs=("maps/cam",), scored=False),
            Output("propagated", "random walk", "maps", inputs=("maps/cam",)),
        )

    def pretrained(self) -> Sequence[tuple[nn.Module, str]]:
        """The encoder's weights."""
        source = self.config.model.pretrained
        return [(self.network.encoder, source)] if source else []

    def transform(self) -> Transform:
        """Colours, crop, mirror, for an image and its scores by one draw."""
        settings, dataset = self.config.augmentation, self.config.dataset
        return AffinityTransform(
            crop_size=settings.crop_size,
            stride=self.network.encoder.strides[-1],
            mirror_probability=settings.mirror_probability,
            jitter=colour_jitter(settings),
            mean=tuple(dataset.image_mean),
            std=tuple(dataset.image_std),
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder and new layers, weights and biases of each."""
        return parameter_groups(self.network, self.config.optimiser)

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """The three losses and their weights (sec. 3.2.2); see :class:`afa.methods.base.Method`."""
        settings = self.config.loss
        with part("forward"), self.runtime.autocast():
            affinity = network(batch["image"])
        with part("labels"):
            pairs = pair_labels(batch["label"], self.config.affinity.radius)
        losses = affinity_losses(
            affinity,
            pairs,
            epsilon=settings.epsilon,
            denominator=loss_denominator(settings.normalisation, self.runtime),
        )
        weights = {"bg": settings.background, "fg": settings.foreground, "neg": settings.negative}
        scalars = {f"pairs/{name}": mask.float().mean() for name, mask in pairs._asdict().items()}
        return StepOutput(losses, weights, scalars, {"aff": batch["label"]})

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        """``propagated`` and ``propagated_crf`` [1, 1 + m, H, W] with background; ``affinity`` of each grid.

        See :class:`afa.methods.base.Method`. ``protocol`` is for segmentations, so it changes nothing here.
        """
        images = network_images(samples)
        with part("affinity"):
            affinities = self._affinities(images)
        found = []
        for sample, image, affinity in zip(samples, images, affinities, strict=True):
            outputs: dict[str, Said] = {}
            class_ids: tuple[int, ...] = ()
            if "affinity" in wanted:
                outputs["affinity"] = affinity
            if not {"propagated", "propagated_crf"}.isdisjoint(wanted):
                cams = cams_without_background(sample).resized(image.shape[:2])
                class_ids = tuple(cams.class_ids[0][cams.counted[0]].tolist())
                with part("walk"):
                    propagated = self._propagated(cams, affinity)
                if "propagated" in wanted:
                    outputs["propagated"] = propagated
                if "propagated_crf" in wanted:
                    with part("crf"):
                        outputs["propagated_crf"] = self._refined(sample, propagated)
            found.append(Found(outputs, class_ids))
        return found

    def _affinities(self, images: Sequence[np.ndarray]) -> list[PairAffinity]:
        """Of images of one size, filled up with the mean colour at the right and at the bottom."""
        dataset, stride, radius = self.config.dataset, self.network.encoder.strides[-1], self.network.radius
        device = next(self.network.parameters()).device
        batch = torch.stack([normalise_exactly(image, dataset.image_mean, dataset.image_std) for image in images])
        batch = _filled_up(batch, stride).to(device, non_blocking=True)
        grid = (batch.shape[-2] // stride, batch.shape[-1] // stride)
        if not holds_pairs(*grid, radius):
            return [PairAffinity.without_pairs(grid, radius, device) for _ in images]
        with self.network_pass():
            features = self.network.features(batch).float()
        return [PairAffinity.of_pairs(pairs, grid, radius) for pairs in pair_affinity(features, radius)]

    def _propagated(self, cams: Maps, affinity: PairAffinity) -> Maps:
        """CAMs of one image [1, m, H, W], walked: [1, 1 + m, H, W]."""
        settings, stride = self.config.walk, self.network.encoder.strides[-1]
        scores = with_background(cams.to(affinity.values.device), settings.alpha)
        cells = F.avg_pool2d(_filled_up(scores.scores, stride), stride)
        walked = walk(cells, affinity, power=settings.beta, steps=2**settings.log_steps)
        height, width = affinity.grid
        full = resize(walked, (height * stride, width * stride))
        return scores.with_scores(full[..., : cams.size[0], : cams.size[1]])

    def _refined(self, sample: Sample, propagated: Maps) -> Maps:
        image = torch.from_numpy(sample.image).permute(2, 0, 1).contiguous().to(propagated.scores.device)
        full = propagated.resized(image.shape[-2:])
        shares = full.with_scores(full.scores / full.scores.sum(dim=1, keepdim=True))
        return refined(self.crf, image, [shares])[0]


def affinity_losses(
    affinity: Tensor,
    pairs: PairLabels,
    *,
    epsilon: float,
    denominator: Denominator = process_denominator,
) -> dict[str, Tensor]:
    """Means of the negative logarithms over the three kinds of pairs (sec. 3.2.2); a kind without pairs gives 0.

    Args:
        affinity: [B, O, A] in 0..1.
        pairs: Of the same shape.
        epsilon: Added within the logarithms and to the counts.
        denominator: See :mod:`afa.methods.segmentation`.

    Returns:
        ``bg``, ``fg`` and ``neg``, scalars in float32.
    """
    together, apart = -torch.log(affinity + epsilon), -torch.log(1 + epsilon - affinity)
    counts = denominator(torch.stack([mask.sum() for mask in pairs]).float(), epsilon)
    return {
        "bg": (together * pairs.background).sum() / counts[0],
        "fg": (together * pairs.foreground).sum() / counts[1],
        "neg": (apart * pairs.negative).sum() / counts[2],
    }


def cams_without_background(sample: Sample) -> Maps:
    """A sample's CAMs, in 0..1.

    Raises:
        UserError: They have a background, or other values.
    """
    cams: Maps = sample.inputs["maps/cam"]
    if cams.has_background:
        raise UserError(
            f"the maps cam of '{sample.name}' have a background, which the random walk adds itself: name a folder in "
            "dataset.maps that holds CAMs"
        )
    lowest, highest = float(cams.scores.min()), float(cams.scores.max())
    if lowest < 0 or highest > _HIGHEST_CAM:
        raise UserError(
            f"the maps cam of '{sample.name}' go from {lowest:.3g} to {highest:.3g}, but CAMs are in 0 to 1: divide "
            "each by its maximum, or name a folder in dataset.maps that holds CAMs"
        )
    return cams


def _filled_up(values: Tensor, stride: int) -> Tensor:
    """Zeros at the right and at the bottom of [B, c, H, W], up to multiples of a stride."""
    height, width = values.shape[-2:]
    return F.pad(values, (0, -width % stride, 0, -height % stride))
