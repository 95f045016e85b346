"""EDAM's network (Wu et al., CVPR 2021): a distribution over classes and background at each position, and a classifier
that attends over pairs of images.

Modules have the names of the released program. Shapes: B images, P = B / 2 pairs, whose images lie side by side; K
foreground classes; C channels and h x w = N positions of the encoder's last map; d width; H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afa.models.base import Encoder
from afa.ops.attention import attend
from afa.ops.dropout import drop

_SEGMENTS = 5  # as in the released program; a pair uses two
_NORM_EPSILON = 1e-6


class EDAMNetwork(nn.Module):
    """DA layer (sec. 3.2) and collaborative multi-attention (sec. 3.3).

    The DA layer alone is used in prediction: :meth:`distribution`. In training the classes' attention tells what their
    channels hold: :meth:`forward`.

    Args:
        encoder: Its last map is read; that of a ResNet-38 without its last ReLU, see :class:`afa.models.ResNet38`.
        num_classes: K, without the background.
        width: d of the tokens.
        heads: H of the attention.
        dropout: Of tokens, of attention probabilities, and within and behind the layers of the transformer blocks.

    Raises:
        ValueError: There is no class, or the heads cannot share the width.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, *, width: int = 128, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes counts the foreground: at least 1, not {num_classes}")
        if width < 2 or width % heads:
            raise ValueError(f"{width} channels cannot be shared by {heads} heads")
        channels = encoder.channels[-1]
        self.num_classes, self.heads, self.dropout = num_classes, heads, dropout
        self.encoder = encoder
        self.mask_layer = nn.Conv2d(channels, num_classes + 1, kernel_size=3, padding=1, bias=False)
        self.d_d = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.embedding = nn.ModuleDict({"segment": nn.Embedding(_SEGMENTS, width)})
        self.trans_list = nn.ModuleList(nn.ModuleList([TransformerBlock(width)]) for _ in range(num_classes))
        self.fc_list = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=1, bias=False) for _ in range(num_classes))
        for module in (self.mask_layer, self.d_d, self.embedding["segment"], *self.fc_list):
            nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images of pairs [B, 3, H, W], 2 a and 2 a + 1 being pair a -> logits [B, K].

        Raises:
            ValueError: The number of images is odd.
        """
        return self.classify(self.encoder.features(images)[-1])

    def classify(self, feature: Tensor) -> Tensor:
        """The encoder's last map [B, C, h, w] of pairs -> logits [B, K].

        Raises:
            ValueError: As :meth:`forward`.
        """
        if len(feature) % 2:
            raise ValueError(f"images come in pairs, not {len(feature)} of them")
        tokens = self.tokens(feature, self.activate(feature))
        classes, _, positions, width = tokens.shape
        pairs = tokens.reshape(classes, -1, 2 * positions, width)
        dropout = self.dropout if self.training else 0.0
        blocks = [self.get_submodule(f"trans_list.{index}.0") for index in range(classes)]
        attended = run_blocks(blocks, drop(pairs, dropout), heads=self.heads, dropout=dropout)
        means = attended.reshape(tokens.shape).mean(dim=2)  # [K, B, d]
        weights = torch.stack([self.get_parameter(f"fc_list.{index}.weight").flatten() for index in range(classes)])
        return torch.einsum("kbd,kd->bk", means, weights)

    def distribution(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> what each position holds, see :meth:`activate`."""
        return self.activate(self.encoder.features(images)[-1])

    def activate(self, feature: Tensor) -> Tensor:
        """The encoder's last map [B, C, h, w] -> distribution M [B, K + 1, h, w] in 0..1, the background **last**.

        The squares over the channels have the sum 1. Nothing supervises the background's channel but through this sum.
        """
        return F.normalize(self.mask_layer(feature).float(), dim=1).abs()

    def tokens(self, feature: Tensor, distribution: Tensor) -> Tensor:
        """Features of each position for each class, with codes of the position and of the image in the pair.

        Args:
            feature: [B, C, h, w].
            distribution: [B, K + 1, h, w]; its gradient flows on.

        Returns:
            float32 [K, B, N, d].
        """
        values = self.d_d(feature).float().flatten(2).transpose(1, 2).contiguous()  # [B, N, d]
        shares = distribution[:, : self.num_classes].flatten(2).transpose(0, 1).contiguous()  # [K, B, N]
        segments = self.get_parameter("embedding.segment.weight")[:2].repeat(len(values) // 2, 1)  # [B, d]
        places = position_code(values.shape[1], values.shape[2], values.device) + segments[:, None]
        return shares[..., None] * values + places


class TransformerBlock(nn.Module):
    """The parameters of one class's block; :func:`run_blocks` computes those of several classes at once.

    Args:
        width: d; the feed-forward layer has 4 d channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        linear_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.attention = nn.ModuleDict({"linear_layers": linear_layers, "output_linear": nn.Linear(width, width)})
        self.feed_forward = nn.ModuleDict({"w_1": nn.Linear(width, 4 * width), "w_2": nn.Linear(4 * width, width)})
        self.input_sublayer = nn.ModuleDict({"norm": Norm(width)})
        self.output_sublayer = nn.ModuleDict({"norm": Norm(width)})
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


class Norm(nn.Module):
    """Scale and shift of a normalisation over channels: a (x - mean) / (std + 1e-6) + b, with the unbiased std.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a_2 = nn.Parameter(torch.ones(width))
        self.b_2 = nn.Parameter(torch.zeros(width))


def run_blocks(blocks: Sequence[nn.Module], tokens: Tensor, *, heads: int, dropout: float = 0.0) -> Tensor:
    """Run each class's sequences through the class's own block, all classes at once (sec. 3.3).

    Args:
        blocks: :class:`TransformerBlock`, one for each of the K classes.
        tokens: K classes' sequences, [K, P, n, d].
        heads: H.
        dropout: Of probabilities, layers, and the block's output.

    Returns:
        [K, P, n, d].
    """
    stack = _Stack(blocks)
    tokens = tokens + drop(_attention(stack, tokens, heads, dropout), dropout)
    hidden = stack.linear("feed_forward.w_1", stack.norm("output_sublayer.norm", tokens))
    hidden = drop(F.gelu(hidden, approximate="tanh"), dropout)
    return drop(tokens + drop(stack.linear("feed_forward.w_2", hidden), dropout), dropout)


def attention_of_blocks(blocks: Sequence[nn.Module], tokens: Tensor, *, heads: int) -> Tensor:
    """The first half of :func:`run_blocks` without what is added to it: norm and attention, [K, P, n, d]."""
    return _attention(_Stack(blocks), tokens, heads, 0.0)


def position_code(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal code of the position within an image, row by row: the sine in even channels, the cosine in odd ones
    (sec. 3.3).

    Args:
        count: N.
        width: d.
        device: Where it is wanted.

    Returns:
        float32 [N, d]: of position p, sin and cos of p * 10000 ** (-2 i / d) in channels 2 i and 2 i + 1.
    """
    rates = torch.exp(torch.arange(0, width, 2, device=device).float() * (-math.log(10000.0) / width))
    angles = torch.arange(count, device=device).float()[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class _Stack:
    """The parameters of several blocks, stacked: name -> [K, ...]."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        parameters = [dict(block.named_parameters()) for block in blocks]
        self._stacked = {name: torch.stack([one[name] for one in parameters]) for name in parameters[0]}

    def linear(self, name: str, tokens: Tensor) -> Tensor:
        """[K, P, n, in] -> [K, P, n, out]."""
        weight, bias = self._stacked[f"{name}.weight"], self._stacked[f"{name}.bias"]
        found = torch.baddbmm(bias[:, None], tokens.flatten(1, 2), weight.transpose(1, 2))
        return found.unflatten(1, tokens.shape[1:3])

    def norm(self, name: str, tokens: Tensor) -> Tensor:
        """[K, P, n, d] -> the same shape."""
        scale, shift = (self._stacked[f"{name}.{one}"][:, None, None] for one in ("a_2", "b_2"))
        std, mean = torch.std_mean(tokens, dim=-1, keepdim=True)
        return scale * (tokens - mean) / (std + _NORM_EPSILON) + shift


def _attention(stack: _Stack, tokens: Tensor, heads: int, dropout: float) -> Tensor:
    """[K, P, n, d] -> the same shape, behind the output layer."""
    normed = stack.norm("input_sublayer.norm", tokens)
    query, key, value = (
        stack.linear(f"attention.linear_layers.{place}", normed)
        .flatten(0, 1)
        .unflatten(-1, (heads, -1))
        .transpose(1, 2)
        for place in range(3)
    )
    attended = attend(query, key, value, dropout).transpose(1, 2).flatten(2)
    return stack.linear("attention.output_linear", attended.unflatten(0, tokens.shape[:2]))
