"""The shape of an autoencoder: its configuration and the levels that follow from it.

Source: Esser et al. (2021) and Rombach et al. (2022), as `autoencoder` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from pydantic import ConfigDict, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.nets.blocks import CONV, ResBlock, SelfAttention, silu
from scanbridge.nets.layout import Counts
from scanbridge.nets.strides import Steps, Strides, misfits, per_axis, shrinking


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class AutoencoderConfig:
    """The shape of an `Autoencoder`.

    Parameters
    ----------
    in_channels, out_channels
        C of the input and of the output.
    dims
        2 for slices (B, C, H, W), 3 for volumes (B, C, D, H, W).
    kind
        ``"vq"``: a codebook on decoding; ``"kl"``: mean and variance, held near a standard normal; ``"plain"``.
    channels, multipliers
        Width of level i is ``channels * multipliers[i]``. On a CPU multiples of 16 are fast.
    strides
        Between one level and the next, 1 or 2, or one of these for every axis: ((1, 2, 2), (2, 2, 2)) halves the slices
        of a volume once and its rows and columns twice.
    blocks, decoder_blocks
        Residual blocks of a level, one number for all or one for each; the decoder has as many as the encoder where
        nothing is said (published: one more).
    latent_channels
        c.
    codes
        Vectors of the codebook; ``"vq"`` alone.
    moving_average
        The codebook follows by moving averages instead of a gradient.
    patience
        Updates without a hit after which a code is restarted; 0 for never.
    attention
        Whether self-attention stands between the two blocks in the middle of encoder and decoder (published: yes).
    head_channels
        Width of an attention head.
    groups
        Groups of every norm. On a CPU the backward pass is slow below eight channels a group.
    checkpoint
        Recompute the activations of every level in the backward pass, for memory.

    Raises
    ------
    UserError
        For numbers that do not fit together.
    """

    in_channels: PositiveInt = 1
    out_channels: PositiveInt = 1
    dims: Literal[2, 3] = 2
    kind: Literal["vq", "kl", "plain"] = "vq"
    channels: PositiveInt = 32
    multipliers: Counts = (1, 2, 4)
    strides: Strides = (2, 2)
    blocks: PositiveInt | Counts = 1
    decoder_blocks: PositiveInt | Counts | None = None
    latent_channels: PositiveInt = 4
    codes: PositiveInt = 1024
    moving_average: bool = False
    patience: NonNegativeInt = 100
    attention: bool = False
    head_channels: PositiveInt = 32
    groups: PositiveInt = 4
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for wrong, what, expected in self._conflicts():
            if wrong:
                raise UserError(what, expected)

    def _conflicts(self) -> Iterator[tuple[bool, str, str]]:
        levels = len(self.multipliers)
        yield not levels, "multipliers is empty", "one number a level"
        yield (
            len(self.strides) != levels - 1,
            f"strides has {len(self.strides)} entries",
            f"one less than levels: {levels - 1}",
        )
        odd = misfits(self.strides, self.dims)
        yield bool(odd), f"strides has {odd}", f"one number, or one for each of {self.dims} axes"
        for name, depths in (("blocks", self.depths), ("decoder_blocks", self.decoder_depths)):
            yield len(depths) != levels, f"{name} has {len(depths)} numbers", f"one, or one a level: {levels}"
        yield self.channels % self.groups != 0, f"channels is {self.channels}", f"a multiple of groups = {self.groups}"
        deepest = self.channels * self.multipliers[-1]
        indivisible = self.attention and deepest % self.head_channels != 0
        yield indivisible, f"head_channels is {self.head_channels}", f"a divisor of the deepest width, {deepest}"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of every level of the encoder."""
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else self.blocks

    @property
    def decoder_depths(self) -> tuple[int, ...]:
        """Blocks of every level of the decoder."""
        blocks = self.blocks if self.decoder_blocks is None else self.decoder_blocks
        return (blocks,) * len(self.multipliers) if isinstance(blocks, int) else blocks

    @property
    def steps(self) -> Steps:
        """Strides between the levels, axis by axis."""
        return per_axis(self.strides, self.dims)

    @property
    def factor(self) -> tuple[int, ...]:
        """Size of an image over that of its latent, axis by axis: inputs are padded to a multiple of it, inside."""
        return tuple(math.prod(step[axis] for step in self.steps) for axis in range(self.dims))

    def latent_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Give the size ``*s`` of the latent of an image of `size` ``*S``."""
        return tuple(-(-length // factor) for length, factor in zip(size, self.factor, strict=True))


class _Head(nn.Module):
    """Norm and SiLU, which a convolution follows."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Tensor:
        return silu(self.norm(x))


def encoder(config: AutoencoderConfig) -> nn.Sequential:
    """Give the levels from the image to the latent, or to its mean and log variance."""
    conv, width = CONV[config.dims], config.widths[0]
    levels: list[nn.Module] = [conv(config.in_channels, width, 3, padding=1)]
    for level, (level_width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        if level:
            levels.append(shrinking(width, width, config.steps[level - 1], (3,) * config.dims))
        levels.append(_blocks(config, width, level_width, depth))
        width = level_width
    moments = 2 if config.kind == "kl" else 1
    head = conv(width, moments * config.latent_channels, 3, padding=1)
    return nn.Sequential(*levels, _middle(config), _Head(width, config.groups), head)


def decoder(config: AutoencoderConfig) -> nn.Sequential:
    """Give the levels from the latent to the image."""
    conv, width = CONV[config.dims], config.widths[-1]
    levels: list[nn.Module] = [conv(config.latent_channels, width, 3, padding=1), _middle(config)]
    for level in reversed(range(len(config.widths))):
        levels.append(_blocks(config, width, config.widths[level], config.decoder_depths[level]))
        width = config.widths[level]
        if level:
            grow = nn.Upsample(scale_factor=tuple(map(float, config.steps[level - 1])), mode="nearest")
            levels.append(nn.Sequential(grow, conv(width, width, 3, padding=1)))
    return nn.Sequential(*levels, _Head(width, config.groups), conv(width, config.out_channels, 3, padding=1))


def _blocks(config: AutoencoderConfig, width_in: int, width: int, depth: int) -> nn.Sequential:
    widths = [width_in, *[width] * depth]
    return nn.Sequential(*(ResBlock(a, b, dims=config.dims, groups=config.groups) for a, b in pairwise(widths)))


def _middle(config: AutoencoderConfig) -> nn.Sequential:
    width = config.widths[-1]
    parts: list[nn.Module] = [*_blocks(config, width, width, 2)]
    if config.attention:
        parts.insert(1, SelfAttention(width, config.head_channels, config.groups))
    return nn.Sequential(*parts)
