"""The parts of a network in pixels or latents: residual, resizing and attention blocks.

All but `Attention` are called alike, ``(map, Condition) -> map``; maps are (B, C, *S) with ``*S`` (H, W) or (D, H, W),
N is the number of positions of a map, L that of tokens. Nothing here copies a map to change its memory layout: what
comes in channels-last stays so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor, nn

from scanbridge.nets.condition import NOTHING, Condition

Resize = Callable[[Tensor], Tensor]

CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


class ResBlock(nn.Module):
    """(B, width_in, *S) -> (B, width, *S'): two convolutions, the embedding at the norm between them, and a way around.

    Parameters
    ----------
    width_in, width
        Channels in and out.
    dims
        2 or 3.
    groups
        Of the two norms.
    embedding
        E of ``Condition.vector``; 0 for none.
    scale_shift
        The embedding scales and shifts the second norm (Dhariwal and Nichol 2021); else it is added before that norm.
    dropout
        Before the last convolution.
    resize
        Acts on both ways, before the first convolution.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        dims: int = 2,
        groups: int = 4,
        embedding: int = 0,
        scale_shift: bool = True,
        dropout: float = 0.0,
        resize: Resize | None = None,
    ) -> None:
        super().__init__()
        conv = CONV[dims]
        self.resize, self.scale_shift = resize, scale_shift
        self.norm_in = nn.GroupNorm(groups, width_in)
        self.conv = conv(width_in, width, 3, padding=1)
        self.embed = nn.Linear(embedding, (1 + scale_shift) * width) if embedding else None
        self.norm = nn.GroupNorm(groups, width)
        self.dropout = nn.Dropout(dropout)
        self.last = conv(width, width, 3, padding=1)
        self.skip = conv(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, condition: Condition = NOTHING) -> Tensor:
        """Give the new map."""
        h = silu(self.norm_in(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = silu(self._normed(self.conv(h), condition.vector))
        out: Tensor = self.skip(x) + self.last(self.dropout(h))
        return out

    def _normed(self, h: Tensor, vector: Tensor | None) -> Tensor:
        shift = None if self.embed is None else self.embed(vector)[(..., *[None] * (h.ndim - 2))]
        if shift is not None and self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            return torch.addcmul(shift, self.norm(h), 1 + scale)  # one pass over the map instead of two
        normed: Tensor = self.norm(h if shift is None else h + shift)
        return normed


class Down(nn.Module):
    """Halve a map by a strided convolution."""

    def __init__(self, width: int, *, dims: int = 2) -> None:
        super().__init__()
        self.conv = CONV[dims](width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, _: Condition = NOTHING) -> Tensor:
        """Give the new map."""
        out: Tensor = self.conv(x)
        return out


class Up(nn.Module):
    """Double a map by nearest neighbour, then convolve.

    `pointwise`: a 1x1 convolution, and before, where a position costs a quarter (in 3D an eighth).
    """

    def __init__(self, width_in: int, width: int, *, dims: int = 2, pointwise: bool = False) -> None:
        super().__init__()
        self.pointwise = pointwise
        self.conv = CONV[dims](width_in, width, 1 if pointwise else 3, padding=0 if pointwise else 1)

    def forward(self, x: Tensor, _: Condition = NOTHING) -> Tensor:
        """Give the new map."""
        out: Tensor = double(self.conv(x)) if self.pointwise else self.conv(double(x))
        return out


class Attention(nn.Module):
    """Softmax attention in heads: queries (B, N, C) over keys (B, L, K) give (B, N, C)."""

    def __init__(self, channels: int, channels_keys: int, head_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key_value = nn.Linear(channels_keys, 2 * channels, bias=bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Give the mixture for every query in `x`."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), *self.key_value(keys).chunk(2, dim=2))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class SelfAttention(nn.Module):
    """Residual self-attention over the positions of a map (B, C, *S), as in guided diffusion."""

    def __init__(self, channels: int, head_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.attention = Attention(channels, channels, head_channels, bias=True)

    @property
    def last(self) -> nn.Linear:
        """The map that writes into the residual stream."""
        return self.attention.out

    def forward(self, x: Tensor, _: Condition = NOTHING) -> Tensor:
        """Give the new map."""
        seen = positions(self.norm(x))
        return x + as_map(self.attention(seen, seen), x)


class Transformer(nn.Module):
    """Residual transformer block on a map (B, C, *S): self-attention, cross-attention to the tokens, gated MLP.

    Without tokens (`token_channels` = 0) there is no cross-attention.
    Source: Rombach et al. (2022), the spatial transformer of depth 1; Shazeer (2020) for the gate (GEGLU).
    """

    def __init__(self, channels: int, head_channels: int, groups: int, token_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.project = nn.Linear(channels, channels)
        self.norm_self = nn.LayerNorm(channels)
        self.attend_self = Attention(channels, channels, head_channels, bias=False)
        if token_channels:
            self.norm_tokens = nn.LayerNorm(channels)
            self.attend_tokens = Attention(channels, token_channels, head_channels, bias=False)
        self.norm_mlp = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 8 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.last = nn.Linear(channels, channels)

    def forward(self, x: Tensor, condition: Condition = NOTHING) -> Tensor:
        """Give the new map."""
        h = self.project(positions(self.norm(x)))
        normed = self.norm_self(h)
        h = h + self.attend_self(normed, normed)
        if condition.tokens is not None:
            h = h + self.attend_tokens(self.norm_tokens(h), condition.tokens)
        value, gate = self.widen(self.norm_mlp(h)).chunk(2, dim=2)
        h = h + self.narrow(value * F.gelu(gate))
        return x + as_map(self.last(h), x)


def positions(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B, N, C): no copy where the map is channels-last."""
    return x.flatten(2).transpose(1, 2)


def as_map(x: Tensor, like: Tensor) -> Tensor:
    """(B, N, C) -> (B, C, *S), a channels-last view."""
    return x.transpose(1, 2).reshape(like.shape)


def silu(x: Tensor) -> Tensor:
    """SiLU of a fresh map, in place where no gradient needs it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def halve(x: Tensor) -> Tensor:
    """Give `x` at half its size, averaged."""
    return F.avg_pool2d(x, 2) if x.ndim == 4 else F.avg_pool3d(x, 2)


def double(x: Tensor) -> Tensor:
    """Give `x` at double its size, by nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
