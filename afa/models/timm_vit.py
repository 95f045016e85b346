"""Plain Vision Transformers of the library timm as encoders (Dosovitskiy et al., ICLR 2021, and what follows it).

Shapes: B images, H x W pixels, p side of a patch, s distance of two tokens in pixels of the image, h x w patches, N =
h * w, t class and register tokens, C channels, d channels per head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afa.config.encoders import TIMM, timm_normalisation
from afa.errors import UserError
from afa.models.base import AttentiveEncoder, EncoderOutput, RawAttention
from afa.models.mit import to_map
from afa.models.timm_names import BUILD_ERRORS, require_timm_network
from afa.ops.attention import attend
from afa.ops.cam import resize

_MAPS = 4


class TimmViT(AttentiveEncoder):
    """Four feature maps of a timm Vision Transformer, and the attention of its last blocks.

    The maps are the patches' tokens after a quarter, half, three quarters and all of the blocks, each through the
    network's last norm; of networks that norm only after pooling, that norm is used. All have the stride s.
    Class and register tokens take part in the attention and are left out of all that is given.

    Images are resized bilinearly, so that a patch covers about s x s of their pixels: the maps have max(1, round(H /
    s)) x max(1, round(W / s)) positions, halves rounded up, and cover the whole image. Learned positions are
    interpolated to that grid, as timm does it with ``dynamic_img_size`` (bicubic, antialiased).

    The logits of the attention are read where they are asked for, as their two factors; the attention itself is
    computed by :func:`afa.ops.attention.attend`.

    Weights are the library's initial ones: nothing is downloaded.

    Args:
        name: Of the network in timm, perhaps with the tag of its weights, whose normalisation then counts:
            ``vit_base_patch16_224.augreg_in21k``.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.
        token_stride: s; 0: p. With s < p, images are enlarged: for images of few patches.
        cam_block: Block, counted from 1, whose patches' tokens, through the last norm, are the map of classifier and
            CAMs, without gradient: in the last blocks, every token may know the classes of the whole image (ToCo, Ru et
            al., CVPR 2023, sec. 3.2, makes CAMs of an earlier block, too). 0: the last map, with gradient.

    Attributes:
        vit: The network without its classifier.
        prefix_tokens: t.
        position_prefix: How many rows of the table of positions belong to class and register tokens.
        grid: (h, w) of the table of positions.

    Raises:
        UserError: timm has no such network, it is no plain Vision Transformer, or it has no such block.
    """

    # A pretrained network's logits have means of 5 to 20 in its last block, each head another: summed over the heads,
    # they drive the affinity's sigmoid to 0 or 1 everywhere, where nothing is learned.
    centred_attention = True

    vit: Any  # the library's modules have attributes of all kinds

    def __init__(self, name: str, *, drop_path: float = 0.0, token_stride: int = 0, cam_block: int = 0) -> None:
        super().__init__()
        import timm
        from timm.models.vision_transformer import VisionTransformer

        require_timm_network(name)
        try:
            vit: Any = timm.create_model(
                name,
                pretrained=False,
                num_classes=0,
                global_pool="",
                fc_norm=False,
                dynamic_img_size=True,
                drop_path_rate=drop_path,
            )
        except BUILD_ERRORS as error:
            raise _unsuitable(name, "it is of another class") from error
        if type(vit) is not VisionTransformer:
            raise _unsuitable(name, f"it is of the class {type(vit).__name__}")
        problem = _unknown_part(vit)
        if problem is not None:
            raise _unsuitable(name, problem)
        self.vit = vit
        self.prefix_tokens: int = vit.num_prefix_tokens
        self.position_prefix = 0 if vit.no_embed_class else self.prefix_tokens
        height, width = vit.patch_embed.grid_size
        self.grid: tuple[int, int] = (height, width)
        depth = len(vit.blocks)
        if not 0 <= cam_block <= depth:
            raise UserError(
                f"model.cam_block: {TIMM}{name} has {depth} blocks, no block {cam_block}; set 1 to {depth}, or 0"
            )
        self._cam_block = cam_block
        self._taken = [-(-depth * part // _MAPS) - 1 for part in range(1, _MAPS + 1)]
        self.channels = (vit.embed_dim,) * _MAPS
        self.strides = (token_stride or vit.patch_embed.patch_size[0],) * _MAPS
        self.mean, self.std = timm_normalisation(name)

    def forward(
        self, image: Tensor, *, attention_of: int = 0, attention_blocks: int = 0, cam_only: bool = False
    ) -> EncoderOutput:
        """See :class:`afa.models.base.AttentiveEncoder`; with ``cam_only``, no block after that of the CAMs runs.

        The raw attention is what the softmax is taken of, its query with the factor d ** -0.5, between patches alone.
        """
        without_gradient = cam_only and self._cam_block > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and not without_gradient):
            return self._encode(image, attention_of, attention_blocks, cam_only)

    def _encode(self, image: Tensor, attention_of: int, attention_blocks: int, cam_only: bool) -> EncoderOutput:
        vit, patch = self.vit, self.vit.patch_embed.patch_size[0]
        image = resize(image, [side * patch for side in self._grid_of(image.shape[-2:])])
        patches = vit.patch_embed(image)  # [B, h, w, C]
        grid = (patches.shape[1], patches.shape[2])
        tokens = vit.norm_pre(vit.patch_drop(self._with_positions(patches.flatten(1, 2), grid)))
        features: list[Tensor] = []
        attention: list[RawAttention] = []
        cam_features: Tensor | None = None
        first_read = len(vit.blocks) - attention_blocks if attention_of else len(vit.blocks)
        for index, block in enumerate(vit.blocks):
            attended, query, key = _attend(block.attn, block.norm1(tokens))
            if index >= first_read:
                query, key = (part[:attention_of, :, self.prefix_tokens :] for part in (query, key))
                attention.append(RawAttention(query * block.attn.scale, key))
            tokens = tokens + block.drop_path1(block.ls1(attended))
            del attended, query, key  # without gradient, their memory is free for the block's other half
            tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
            if index + 1 == self._cam_block:
                with torch.no_grad():
                    cam_features = self._map(tokens, grid)
                if cam_only:
                    return EncoderOutput([], [], cam_features)
            if index in self._taken:
                features.append(self._map(tokens, grid))
        return EncoderOutput(features, attention, features[-1] if cam_features is None else cam_features)

    def suit_export(self, size: tuple[int, int] | None) -> None:
        """See :meth:`afa.models.base.Encoder.suit_export`: the positions are interpolated here, for one size."""
        if self.vit.pos_embed is None:
            return
        if size is None:
            raise UserError("a Vision Transformer is exported for images of one size: give --size HEIGHT WIDTH")
        grid = self._grid_of(size)
        self.vit.pos_embed = nn.Parameter(self._positions(grid).detach().clone())
        self.grid = grid

    def attention_maps(self, blocks: int) -> int:
        """See :class:`afa.models.base.AttentiveEncoder`."""
        depth = len(self.vit.blocks)
        if blocks > depth:
            raise ValueError(f"there are {depth} blocks, not {blocks}")
        return sum(block.attn.num_heads for block in self.vit.blocks[depth - blocks :])

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Those whose name holds ``norm``, as the released AFA program has it for its encoder."""
        return (parameter for name, parameter in self.named_parameters() if "norm" in name)

    def _grid_of(self, size: Sequence[int]) -> tuple[int, int]:
        """(h, w) of images of H x W pixels."""
        stride = self.strides[-1]
        height, width = (max(1, (side + stride // 2) // stride) for side in size)
        return height, width

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The table of positions on another grid."""
        from timm.layers import resample_abs_pos_embed

        if grid == self.grid:
            return self.vit.pos_embed
        return resample_abs_pos_embed(
            self.vit.pos_embed, new_size=list(grid), old_size=list(self.grid), num_prefix_tokens=self.position_prefix
        )

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, t + N, C] behind a block -> map of the patches [B, C, h, w]."""
        return to_map(self.vit.norm(tokens)[:, self.prefix_tokens :], grid)

    def _with_positions(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of patches [B, N, C] -> class, register and patch tokens [B, t + N, C] with their positions."""
        vit = self.vit
        prefix = [
            token.expand(tokens.shape[0], -1, -1)
            for token in (vit.cls_token, getattr(vit, "reg_token", None))
            if token is not None
        ]
        if vit.pos_embed is None:
            return torch.cat([*prefix, tokens], dim=1)
        positions = self._positions(grid)
        if self.position_prefix:
            return vit.pos_drop(torch.cat([*prefix, tokens], dim=1) + positions)
        return vit.pos_drop(torch.cat([*prefix, tokens + positions], dim=1))


def _attend(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The attention of a block of timm, which also gives its queries and keys.

    Args:
        attention: Of a network that :func:`_unknown_part` lets pass.
        tokens: [B, t + N, C].

    Returns:
        The attended tokens [B, t + N, C], queries and keys [B, heads, t + N, d].
    """
    parts = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    attended = attend(query, key, value).transpose(1, 2).flatten(2)
    attended = attention.norm(attended) if hasattr(attention, "norm") else attended
    return attention.proj(attended), query, key


def _unknown_part(vit: Any) -> str | None:
    """What a network has that is not computed here, in words; None: it is a plain Vision Transformer."""
    from timm.models.vision_transformer import Attention, Block, PatchEmbed

    if type(vit.patch_embed) is not PatchEmbed:
        return f"its patches come from a {type(vit.patch_embed).__name__}"
    if len(set(vit.patch_embed.patch_size)) > 1:
        return "its patches are not square"
    if len(vit.blocks) < _MAPS:
        return f"it has fewer than {_MAPS} blocks"
    for block in vit.blocks:
        if type(block) is not Block:
            return f"its blocks are of the class {type(block).__name__}"
        if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
            return f"its attention is another ({type(block.attn).__name__})"
    return None


def _unsuitable(name: str, reason: str) -> UserError:
    return UserError(
        f"model.encoder: {TIMM}{name} is no plain Vision Transformer: {reason}; set one of timm's class "
        "VisionTransformer, such as vit_small_patch14_dinov2, vit_base_patch16_224 or deit_small_patch16_224"
    )
