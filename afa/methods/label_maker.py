"""Pseudo labels as a configuration says: what training and inference make from CAMs alike."""

from __future__ import annotations

import torch
from torch import Tensor

from afa.config import Config
from afa.methods.pseudo_labels import PresentClasses, initial_label, propagated_label, refined_label
from afa.ops.cam import resize, scaled_size
from afa.ops.par import PAR


class LabelMaker:
    """The labels of :mod:`afa.methods.pseudo_labels` with the settings of a run.

    Images are as :func:`afa.methods.pseudo_labels.par_image` gives them, [B, 3, H, W]; CAMs [B, K, H, W] in 0..1 with
    ``class_labels`` [B, K], or those of the present classes with the :class:`PresentClasses`; ``valid_box`` [B, 4] on
    the host; labels int64 [B, H, W].

    Args:
        config: The ``cam``, ``affinity`` and ``par`` settings.
    """

    def __init__(self, config: Config) -> None:
        self.cam, self.affinity, self.image_scale = config.cam, config.affinity, config.par.image_scale
        self.par = PAR(
            dilations=config.par.dilations,
            iterations=config.par.iterations,
            temperature=config.par.temperature,
            position_weight=config.par.position_weight,
        )

    @torch.no_grad()
    def par_weights(self, image: Tensor) -> Tensor:
        """PAR's weights of whole images, [B, M, h, w]: for those who make refined and propagated labels of them."""
        return self.par.weights(resize(image, scaled_size(image.shape[-2:], self.image_scale)))

    def initial(self, cams: Tensor, class_labels: Tensor, valid_box: Tensor) -> Tensor:
        """What the CAMs say before refinement."""
        return initial_label(cams, class_labels, valid_box, low=self.cam.low, high=self.cam.high)

    def refined(
        self,
        image: Tensor,
        cams: Tensor,
        class_labels: Tensor | PresentClasses,
        valid_box: Tensor,
        par_weights: Tensor | None = None,
    ) -> Tensor:
        """CAMs refined by PAR."""
        return refined_label(
            image,
            cams,
            class_labels,
            valid_box,
            self.par,
            low=self.cam.low,
            high=self.cam.high,
            image_scale=self.image_scale,
            par_weights=par_weights,
        )

    def propagated(
        self,
        image: Tensor,
        cams: Tensor,
        affinity: Tensor,
        token_grid: tuple[int, int],
        class_labels: Tensor | PresentClasses,
        valid_box: Tensor,
        par_weights: Tensor | None = None,
    ) -> Tensor:
        """CAMs spread along the affinity [B, N, N] of a token grid (h, w), N = h * w, then refined by PAR."""
        return propagated_label(
            image,
            cams,
            affinity,
            token_grid,
            class_labels,
            valid_box,
            self.par,
            low=self.cam.low,
            high=self.cam.high,
            image_scale=self.image_scale,
            radius=self.affinity.radius,
            power=self.affinity.power,
            epsilon=self.affinity.epsilon,
            par_weights=par_weights,
        )
