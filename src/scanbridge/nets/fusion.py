"""How well a target and a residual agree with the source: the consistency network and the latent consistency score.

A fusion is a function ``(target, residual) -> source`` of latents (B, C, *S); it never sees the source. `FusionNet`
learns it; `linear` needs no training where the residual is the difference of two latents.

Source: Lv et al., "RLBCD: residual-guided latent Brownian-bridge co-diffusion for anatomical-to-metabolic image
synthesis" (section 3.5, eq. 11).
Axes: B batch, C channels, K draws; ``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from scanbridge.nets.blocks import CONV

Fusion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class FusionConfig:
    """The shape of a `FusionNet`: channels of a latent, width and number of its 3x3 convolutions, 2D or 3D."""

    latent_channels: PositiveInt
    channels: PositiveInt = 64
    convolutions: Annotated[int, Field(ge=2)] = 4
    dims: Literal[2, 3] = 2


class FusionNet(nn.Module):
    """Fuse target and residual (B, C, *S) to the source (B, C, *S): the paper's evaluation network H_E.

    The paper says "convolution-based" and no more. This one has no norm, so what it says of a position depends on its
    neighbours at most `radius` away, and a map of the score is a statement about places. It starts as `linear`.

    Parameters
    ----------
    config
        The shape.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        conv, width, latent = CONV[config.dims], config.channels, config.latent_channels
        layers: list[nn.Module] = [conv(2 * latent, width, 3, padding=1), nn.SiLU()]
        for _ in range(config.convolutions - 2):
            layers += [conv(width, width, 3, padding=1), nn.SiLU()]
        last = conv(width, latent, 3, padding=1)
        self.body = nn.Sequential(*layers, last)
        self.way_around = conv(2 * latent, latent, 1, bias=False)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        same = torch.eye(latent)
        with torch.no_grad():
            self.way_around.weight.copy_(torch.cat([same, -same], dim=1)[(..., *[None] * config.dims)])

    @property
    def radius(self) -> int:
        """How far the network sees, in latent positions."""
        return self.config.convolutions

    def forward(self, target: Tensor, residual: Tensor) -> Tensor:
        """Give the source."""
        pair = torch.cat([target, residual], dim=1)
        source: Tensor = self.way_around(pair) + self.body(pair)
        return source


def linear(target: Tensor, residual: Tensor) -> Tensor:
    """Give the source, target - residual: exact where the residual is the difference of the two latents.

    All are on one scale: a residual that was brought to unit sd is brought back first.
    """
    return target - residual


def consistency_map(predicted: Tensor, source: Tensor) -> Tensor:
    """Give the latent consistency score of every position, (B, 1, *S): minus the mean squared error over channels.

    At most 0, and higher is better. Eq. 11 is a distance, while the paper's figure 4 calls a high score good: hence the
    sign.
    """
    return -(predicted - source).square().mean(dim=1, keepdim=True)


def consistency_score(predicted: Tensor, source: Tensor) -> Tensor:
    """Give the latent consistency score (B,): the mean of `consistency_map` over positions."""
    return consistency_map(predicted, source).flatten(1).mean(dim=1)


def normalise(scores: Tensor) -> Tensor:
    """Bring the scores (K, ...) of K draws of one source to [0, 1] by their least and greatest (the paper's figure 4).

    NaN where all K are equal, as for a walk without spread: equal scores rank nothing.
    """
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    return torch.where(high > low, (scores - low) / (high - low), torch.nan)


def swap_ratio(fusion: Fusion, target: Tensor, residual: Tensor, source: Tensor) -> float:
    """Give the mean squared error with the residuals of other items over that with their own; B is at least 2.

    Near 1, the fusion reads the source off the target alone and its score says nothing of the residual. Infinite for a
    fusion without error.
    """
    own, other = (
        -consistency_score(fusion(target, given), source).mean() for given in (residual, residual.roll(1, dims=0))
    )
    return float(other / own)
