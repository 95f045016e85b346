"""AFA: CAMs -> refined labels -> affinity -> propagated labels -> segmentation, all in one network (fig. 2)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from afa.config import Config
from afa.methods.base import Batch, ParameterGroup, Runtime, StepOutput
from afa.methods.label_maker import LabelMaker
from afa.methods.losses import affinity_loss, classification_loss, segmentation_loss
from afa.methods.pseudo_labels import (
    IGNORE,
    PresentCam,
    PresentClasses,
    affinity_label,
    box_mask,
    par_image,
    present_classes,
    propagate_cams,
    restore_image,
)
from afa.models import AFANet
from afa.ops.cam import CamNetwork, MultiScaleCam, multi_scale_cam, normalise_cams, resize
from afa.ops.dense_energy import dense_energy_loss


class AFA:
    """The method of the paper.

    Args:
        network: The network to train.
        config: The whole configuration.
        runtime: Precision and counting over processes.
    """

    def __init__(self, network: AFANet, config: Config, runtime: Runtime) -> None:
        self.network = network
        self.config = config
        self.runtime = runtime
        self.label_maker = LabelMaker(config)
        if config.optimiser.freeze_norms:
            for name, parameter in network.encoder.named_parameters():
                if "norm" in name:
                    parameter.requires_grad_(False)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder, its norms, the heads, the decoder (sec. 4.1)."""
        settings = self.config.optimiser
        encoder: list[nn.Parameter] = []
        norms: list[nn.Parameter] = []
        for name, parameter in self.network.encoder.named_parameters():
            (norms if "norm" in name else encoder).append(parameter)
        norm_lr, norm_decay = (0.0, 0.0) if settings.freeze_norms else (settings.lr, settings.weight_decay)
        head_lr = settings.lr * settings.head_lr_factor
        heads = [*self.network.classifier.parameters(), *self.network.attn_proj.parameters()]
        decoder = list(self.network.decoder.parameters())
        return [
            ParameterGroup(name="encoder", params=encoder, base_lr=settings.lr, weight_decay=settings.weight_decay),
            ParameterGroup(name="norms", params=norms, base_lr=norm_lr, weight_decay=norm_decay),
            ParameterGroup(name="heads", params=heads, base_lr=head_lr, weight_decay=settings.weight_decay),
            ParameterGroup(name="decoder", params=decoder, base_lr=head_lr, weight_decay=settings.weight_decay),
        ]

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """One step; see :class:`afa.methods.base.Method`.

        While ``step <= schedule.cls_until`` only the classification loss counts and nothing else is computed.
        """
        schedule, weights = self.config.schedule, self.config.loss
        cls_only = step <= schedule.cls_until
        if cls_only and not schedule.released_decoder_passes:
            return self._classification_step(network, batch)

        image, device = batch["image"], batch["image"].device
        with self.runtime.autocast():
            output = network(image)
        present = present_classes(batch["class_labels"], device)
        cams = self._cams(image, output.cam, with_affinity=step > schedule.refined_until, present=present)
        seg_target, aff_source = self._labels(batch, cams, step, present)
        del cams  # its affinity, the largest matrix there is, would stay through the losses

        seg_logits = resize(output.seg_logits.float(), image.shape[-2:])
        token_grid = (output.cam.shape[-2], output.cam.shape[-1])
        pairs = affinity_label(aff_source, token_grid, self.config.affinity.radius)
        losses = {
            "cls": classification_loss(output.cls_logits, batch["class_labels"].to(device, non_blocking=True)),
            "seg": segmentation_loss(
                seg_logits,
                seg_target,
                background_share=weights.seg_background_share,
                denominator=self.runtime.denominator,
            ),
            "aff": affinity_loss(
                output.affinity,
                pairs,
                positive_share=weights.aff_positive_share,
                denominator=self.runtime.denominator,
            ),
        }
        step_weights = {"cls": weights.cls, "seg": weights.seg, "aff": weights.aff}
        if weights.reg.weight and not cls_only:
            losses["reg"] = self._regularised_loss(batch, seg_logits, seg_target)
            step_weights["reg"] = weights.reg.weight
        if cls_only:
            step_weights = {name: weights.cls if name == "cls" else 0.0 for name in losses}
        scalars = {
            "pixels/background": (seg_target == 0).float().mean(),
            "pixels/foreground": ((seg_target != 0) & (seg_target != IGNORE)).float().mean(),
            "pixels/ignored": (seg_target == IGNORE).float().mean(),
            "pairs/positive": (pairs == 1).float().mean(),
            "pairs/negative": (pairs == 0).float().mean(),
        }
        return StepOutput(losses, step_weights, scalars, {"seg": seg_target, "aff": aff_source})

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Image, CAM, propagated CAM, labels, prediction and attention of a batch, as one grid each."""
        from afa.visual import picture_grids

        training = self.network.training
        self.network.eval()
        try:
            image = batch["image"]
            with self.runtime.autocast():
                output = self.network(image)
            cams = self._cams(image, output.cam, with_affinity=True)
            assert cams.affinity is not None and cams.token_grid is not None
            token_grid = (output.cam.shape[-2], output.cam.shape[-1])
            settings, maker = self.config.affinity, self.label_maker
            class_labels, box = batch["class_labels"], batch["valid_box"]
            refinable = self._par_image(batch)
            weights = maker.par_weights(refinable)
            propagated_cams = propagate_cams(
                cams.cams,
                output.affinity,
                token_grid,
                class_labels,
                background=self.config.validation.propagation_background,
                radius=settings.radius,
                power=settings.power,
                epsilon=settings.epsilon,
            )
            return picture_grids(
                image=restore_image(image, self.config.dataset.image_mean, self.config.dataset.image_std),
                cams=cams.cams,
                class_labels=class_labels,
                initial_label=maker.initial(cams.cams, class_labels.to(image.device), box),
                refined_label=maker.refined(refinable, cams.cams, class_labels, box, weights),
                propagated_label=maker.propagated(
                    refinable, cams.cams, cams.affinity, cams.token_grid, class_labels, box, weights
                ),
                propagated_cams=normalise_cams(propagated_cams[:, 1:]),
                prediction=resize(output.seg_logits.float(), image.shape[-2:]).argmax(dim=1),
                affinity=output.affinity,
                token_grid=token_grid,
            )
        finally:
            self.network.train(training)

    def _classification_step(self, network: nn.Module, batch: Batch) -> StepOutput:
        """Neither decoder nor affinity head runs; their gradients are zero, so weight decay still reaches them."""
        image = batch["image"]
        with self.runtime.autocast():
            output = network(image, decode=False, with_affinity=False)
        losses = {
            "cls": classification_loss(output.cls_logits, batch["class_labels"].to(image.device, non_blocking=True)),
            "seg": _zero(self.network.decoder),
            "aff": _zero(self.network.attn_proj),
        }
        return StepOutput(losses, {"cls": self.config.loss.cls, "seg": 0.0, "aff": 0.0})

    def _cams(
        self, image: Tensor, first_cam: Tensor, *, with_affinity: bool, present: PresentClasses | None = None
    ) -> MultiScaleCam:
        """CAMs of all classes or of the present ones; the labels need no others."""
        settings = self.config.cam
        released = self.config.schedule.released_decoder_passes
        reuse = settings.reuse_training_forward and not released
        network: CamNetwork = _DecodingCam(self.network) if released else self.network
        if present is not None:
            network, first_cam = PresentCam(network, present), present.gather(first_cam)
        with self.runtime.autocast():
            return multi_scale_cam(
                network,
                image,
                settings.scales,
                epsilon=settings.epsilon,
                with_affinity=with_affinity,
                first_cam=first_cam if reuse else None,
            )

    def _labels(self, batch: Batch, cams: MultiScaleCam, step: int, present: PresentClasses) -> tuple[Tensor, Tensor]:
        """Targets of this step: the decoder's label, and the label that the affinity label comes from."""
        schedule, maker, box = self.config.schedule, self.label_maker, batch["valid_box"]
        image = self._par_image(batch)
        if step <= schedule.refined_until:
            refined = maker.refined(image, cams.cams, present, box)
            return refined, refined
        assert cams.affinity is not None and cams.token_grid is not None
        weights = None if schedule.affinity_label_switches else maker.par_weights(image)
        propagated = maker.propagated(image, cams.cams, cams.affinity, cams.token_grid, present, box, weights)
        if schedule.affinity_label_switches:
            return propagated, propagated
        return propagated, maker.refined(image, cams.cams, present, box, weights)

    def _par_image(self, batch: Batch) -> Tensor:
        return par_image(batch["image"], self.config.dataset.image_mean, self.config.dataset.image_std)

    def _regularised_loss(self, batch: Batch, seg_logits: Tensor, label: Tensor) -> Tensor:
        settings, image = self.config.loss.reg, batch["image"]
        return dense_energy_loss(
            restore_image(image, self.config.dataset.image_mean, self.config.dataset.image_std),
            seg_logits.softmax(dim=1),
            box_mask(batch["valid_box"], image.shape[-2:], image.device).float(),
            label,
            weight=settings.energy_weight,
            sigma_rgb=settings.sigma_rgb,
            sigma_xy=settings.sigma_xy,
            scale=settings.scale,
        )


class _DecodingCam:
    """CAM passes that also run the decoder, for its BatchNorm statistics' sake."""

    def __init__(self, network: AFANet) -> None:
        self.cam = partial(network.cam, decode=True)


def _zero(module: nn.Module) -> Tensor:
    """A zero through which every parameter of a module gets a zero gradient."""
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum() * 0
