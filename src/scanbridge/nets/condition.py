"""What a network is told beside its map: a time, tokens, a vector.

Axes: B batch, C channels, E embedding, L tokens of width K.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scanbridge.nets.precision import wide


class Condition(NamedTuple):
    """What every block hears: the embedding ``vector (B, E)`` of time and vector, and ``tokens (B, L, K)``."""

    vector: Tensor | None = None
    tokens: Tensor | None = None


NOTHING = Condition()


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
    t = wide(t)
    exponents = torch.arange(channels // 2, device=t.device, dtype=t.dtype) / (channels // 2)
    angles = t[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def mlp(channels_in: int, channels: int) -> nn.Sequential:
    """Give the two linear maps, with SiLU between, that turn a time or a vector into an embedding."""
    return nn.Sequential(nn.Linear(channels_in, channels), nn.SiLU(), nn.Linear(channels, channels))
