"""The AFA network: encoder, classifier, affinity head and decoder (AFA sec. 3.1, fig. 2).

Shapes: B images, K foreground classes, C = K + 1, H x W crop, h x w token grid; pairs of tokens as in
:mod:`afa.ops.token_pairs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afa.models.base import AttentiveEncoder, RawAttention
from afa.models.decoder import SegFormerDecoder
from afa.ops.token_pairs import symmetric_products

POOLINGS = ("gmp", "gap", "topk")
"""How the scores of an image come from those of its positions; see :class:`AFANet`."""


class AFAOutput(NamedTuple):
    """What one pass gives.

    Attributes:
        cls_logits: [B, K].
        seg_logits: [B, C, *, *] on the grid of the encoder's finest map (MiT: H/4, W/4), None where the decoder was
            left out.
        affinity: Of the pairs within the radius, [B, m + 1, 2 n + 1, h, w] in 0..1, 0 where there is no pair; None
            where it was left out.
        cam: [B, K, h, w], detached, before ReLU.
    """

    cls_logits: Tensor
    seg_logits: Tensor | None
    affinity: Tensor | None
    cam: Tensor


class AFANet(nn.Module):
    """One encoder, three heads.

    Args:
        encoder: Gives four feature maps and the raw attention of its last blocks.
        num_classes: C, background included.
        pooling: Before the classifier: ``gmp`` global max of each channel, ``gap`` mean. Behind it: ``topk``, a class's
            logit is the mean of its highest CAM scores (WILDCAT, Durand et al., CVPR 2017, without its minima).
        pooling_share: Of ``topk``: k as a share of the positions, above 0, at most 1; at least one position.
        decoder_width: Channels of the decoder.
        decoder_dropout: Dropout2d before the decoder's last layer.
        affinity_blocks: How many last blocks hand their raw attention to the affinity head; see
            :meth:`afa.models.base.AttentiveEncoder.attention_maps`.
        affinity_radius: Of the pairs of tokens that have an affinity, in y and in x.

    Raises:
        ValueError: Fewer than two classes, unknown pooling, or blocks without square attention.
    """

    def __init__(
        self,
        *,
        encoder: AttentiveEncoder,
        num_classes: int,
        pooling: str = "gmp",
        pooling_share: float = 0.1,
        decoder_width: int = 256,
        decoder_dropout: float = 0.1,
        affinity_blocks: int = 2,
        affinity_radius: int = 8,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background too: at least 2, not {num_classes}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, not '{pooling}'")
        if not 0 < pooling_share <= 1:
            raise ValueError(f"pooling_share is above 0 and at most 1, not {pooling_share}")
        self.num_classes = num_classes
        self.pooling = pooling
        self.pooling_share = pooling_share
        self.affinity_blocks = affinity_blocks
        self.affinity_radius = affinity_radius
        self.encoder = encoder
        self.decoder = SegFormerDecoder(
            widths=encoder.channels, width=decoder_width, num_classes=num_classes, dropout=decoder_dropout
        )
        maps = encoder.attention_maps(affinity_blocks)
        self.attn_proj = nn.Conv2d(maps, 1, kernel_size=1)
        nn.init.kaiming_normal_(self.attn_proj.weight, a=5**0.5, mode="fan_out")
        if encoder.centred_attention:
            with torch.no_grad():
                self.attn_proj.weight.div_(maps**0.5)  # the released fan_out leaves the number of maps out
        self.classifier = nn.Conv2d(encoder.channels[-1], num_classes - 1, kernel_size=1, bias=False)

    def forward(
        self, image: Tensor, *, decode: bool = True, with_affinity: bool = True, all_pairs: bool = False
    ) -> AFAOutput:
        """Everything that training needs, in one pass.

        Args:
            image: Normalised, [B, 3, H, W].
            decode: Whether segmentation logits are wanted.
            with_affinity: Whether the affinity is wanted.
            all_pairs: Whether that of all pairs is wanted, for display: its memory grows with the square of the tokens.
        """
        features, attention, cam_features = self.encoder(
            image,
            attention_of=len(image) if with_affinity else 0,
            attention_blocks=self.affinity_blocks,
            cam_only=not (decode or with_affinity),
        )
        return AFAOutput(
            cls_logits=self.classify(cam_features),
            seg_logits=self.decoder(features) if decode else None,
            affinity=self.affinity(attention, _grid(features), all_pairs=all_pairs) if with_affinity else None,
            cam=self.class_activation(cam_features),
        )

    def cam(self, image: Tensor, affinity_of: int = 0, *, decode: bool = False) -> tuple[Tensor, Tensor | None]:
        """CAMs only: neither pooling nor, by default, the decoder runs.

        Args:
            image: Normalised, [B, 3, H, W].
            affinity_of: Of how many of the first images the affinity is wanted.
            decode: Run the decoder for its BatchNorm statistics' sake, as the released program does.

        Returns:
            CAM [B, K, h, w] before ReLU, and affinity as in :class:`AFAOutput`, of so many images, or None.
        """
        features, attention, cam_features = self.encoder(
            image,
            attention_of=affinity_of,
            attention_blocks=self.affinity_blocks,
            cam_only=not (decode or affinity_of),
        )
        if decode:
            self.decoder(features)
        affinity = self.affinity(attention, _grid(features)) if affinity_of else None
        return self.class_activation(cam_features), affinity

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits [B, C, *, *] of normalised images [B, 3, H, W], on the grid of the finest map."""
        return self.decoder(self.encoder(image).features)

    def classify(self, feature: Tensor) -> Tensor:
        """Map of the CAMs [B, C_4, h, w] -> logits [B, K]."""
        if self.pooling == "topk":
            scores = self.classifier(feature).flatten(2)
            highest = max(1, round(self.pooling_share * scores.shape[-1]))
            return scores.topk(highest, dim=-1, sorted=False).values.mean(dim=-1)
        pooled = F.adaptive_max_pool2d(feature, 1) if self.pooling == "gmp" else F.adaptive_avg_pool2d(feature, 1)
        return self.classifier(pooled).flatten(1)

    def class_activation(self, feature: Tensor) -> Tensor:
        """The classifier at every position of the map [B, C_4, h, w]: CAM [B, K, h, w], float32, without gradient."""
        device = feature.device.type
        known = torch.amp.is_autocast_available(device)  # not of the device meta, on which operations are counted
        # bf16 would round what cam.centred leaves of scores that are high everywhere.
        with torch.autocast(device, enabled=False) if known else nullcontext():
            return F.conv2d(feature.detach().float(), self.classifier.weight.detach().float())

    def affinity(self, attention: Sequence[RawAttention], grid: tuple[int, int], *, all_pairs: bool = False) -> Tensor:
        """A = sigmoid(conv1x1(S + S^T)) (eq. 4) of the pairs within the radius.

        The convolution is a weighted sum over the heads, and S = q k^T: the sum over all heads of all blocks is one
        matrix product of the weighted queries with the keys, all heads' channels side by side. Neither S nor S + S^T
        of a head is ever formed. Where the encoder asks for it, S is each query's logits less their mean over all keys.

        Args:
            attention: Raw attention of the last blocks, on one token grid, earlier blocks first.
            grid: (h, w).
            all_pairs: Take all pairs.

        Returns:
            [B, m + 1, 2 n + 1, h, w] in 0..1, 0 where there is no pair, in float32.

        Raises:
            ValueError: There is no block.
        """
        if not attention or self.attn_proj.bias is None:
            raise ValueError("affinity needs the raw attention of at least one block")
        with torch.autocast(self.attn_proj.weight.device.type, enabled=False):
            weights = self.attn_proj.weight.float().flatten().split([raw.query.shape[1] for raw in attention])
            query = torch.cat(
                [
                    _join_heads(raw.query.float() * weight[:, None, None])
                    for raw, weight in zip(attention, weights, strict=True)
                ],
                dim=2,
            )
            key = torch.cat([_join_heads(raw.key.float()) for raw in attention], dim=2)
            if self.encoder.centred_attention:
                key = key - key.mean(dim=1, keepdim=True)  # q (k - mean k) = q k - mean (q k)
            radius = max(grid) if all_pairs else self.affinity_radius
            total = symmetric_products(query.unflatten(1, grid), key.unflatten(1, grid), radius)
            return total.add_(self.attn_proj.bias.float()).sigmoid_()  # 0 of minus infinity, where there is no pair


def _grid(features: Sequence[Tensor]) -> tuple[int, int]:
    return features[-1].shape[-2], features[-1].shape[-1]


def _join_heads(tokens: Tensor) -> Tensor:
    """[B, heads, N, d] -> [B, N, heads * d]."""
    return tokens.transpose(1, 2).flatten(2)
