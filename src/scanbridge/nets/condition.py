"""How time and tokens reach a feature map: the sinusoidal embedding and the two attention blocks.

Axes: B batch, C channels, N positions of a map, L tokens; ``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor, nn


class Condition(NamedTuple):
    """What every block of a network is told beside its map: ``vector (B, E)`` and ``tokens (B, L, K)``, or None."""

    vector: Tensor | None = None
    tokens: Tensor | None = None


def sinusoid(t: Tensor, channels: int, *, max_period: float = 1e4) -> Tensor:
    """Give the cosines, then the sines, of `t` at `channels` / 2 frequencies from 1 to 1 / `max_period`.

    Parameters
    ----------
    t
        Times (B,), already on the scale of the frequencies: 0 .. 999 for a network of 1000 steps.
    channels
        Width of the embedding; even.

    Returns
    -------
    (B, `channels`), float64 for a float64 `t`, else float32: an angle of 999 has no digits to lose.
    """
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    exponents = torch.arange(channels // 2, device=t.device, dtype=t.dtype) / (channels // 2)
    angles = t[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def mlp(channels_in: int, channels: int) -> nn.Sequential:
    """Give the two linear maps, with SiLU between, that turn a time or a vector into an embedding."""
    return nn.Sequential(nn.Linear(channels_in, channels), nn.SiLU(), nn.Linear(channels, channels))


class Attention(nn.Module):
    """Softmax attention in heads: queries (B, N, C) over keys (B, L, K) give (B, N, C)."""

    def __init__(self, channels: int, channels_keys: int, head_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key_value = nn.Linear(channels_keys, 2 * channels, bias=bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
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

    def forward(self, x: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002 (all blocks are called alike)
        positions = _positions(self.norm(x))
        return x + _map(self.attention(positions, positions), x)


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

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        h = self.project(_positions(self.norm(x)))
        normed = self.norm_self(h)
        h = h + self.attend_self(normed, normed)
        if condition.tokens is not None:
            h = h + self.attend_tokens(self.norm_tokens(h), condition.tokens)
        value, gate = self.widen(self.norm_mlp(h)).chunk(2, dim=2)
        h = h + self.narrow(value * F.gelu(gate))
        return x + _map(self.last(h), x)


def _positions(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B, N, C): no copy where the map is channels-last."""
    return x.flatten(2).transpose(1, 2)


def _map(positions: Tensor, like: Tensor) -> Tensor:
    """(B, N, C) -> (B, C, *S), a channels-last view."""
    return positions.transpose(1, 2).unflatten(2, like.shape[2:])
