"""One U-Net for slices and volumes, with three ways in: channels, tokens and a vector.

The family is that of guided diffusion and latent diffusion: residual blocks of two convolutions, skip connections,
the time as a learned scale and shift behind a normalisation.

Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis" (2021), the published layout; Rombach et
al., "High-resolution image synthesis with latent diffusion models" (2022), the transformer.
Axes: B batch, C channels, L tokens; ``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scanbridge.errors import UserError
from scanbridge.nets.condition import Condition, SelfAttention, Transformer, mlp, sinusoid

Counts = Annotated[tuple[PositiveInt, ...], Field(strict=False)]  # a TOML array is a list
Resize = Callable[[Tensor], Tensor]

_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class UNetConfig:
    """The shape of a `UNet`.

    Parameters
    ----------
    in_channels, out_channels
        C of the input (what is concatenated is the caller's affair) and of the output.
    dims
        2 for slices (B, C, H, W), 3 for volumes (B, C, D, H, W).
    channels, multipliers
        Width of level i is ``channels * multipliers[i]``; level i has 1 / 2^i of the resolution. On a CPU multiples of
        16 are fast.
    blocks
        Residual blocks of a level, one number for all or one for each.
    skips
        ``"block"``: one after the stem and after every block and every halving, and a block more in the decoder
        (published); ``"level"``: one a level.
    resample
        ``"conv"``: strided convolution, and nearest then convolution; ``"resblock"``: residual blocks that resize;
        ``"pointwise"``: strided convolution, and a 1x1 convolution to the next width, then nearest.
    patch
        Side of the pixel blocks that the stem folds into channels and the head unfolds, so that no block works at full
        resolution; 2D only.
    attention
        Levels with attention after every block, by downsample factor (1, 2, 4, ...): transformers where there are
        tokens, else plain self-attention.
    middle
        What stands between the two blocks of the middle.
    head_channels
        Width of an attention head.
    token_channels
        Width K of the tokens of the cross-attention, which only a transformer has; 0 for none.
    vector_channels
        Width of the vector that is added to the embedding of the time; 0 for none.
    time
        Whether the network is told a time; without it (regression) there are no parameters for it.
    scale_shift
        Whether the embedding scales and shifts the second norm of a block, or is added before it.
    groups
        Groups of every norm. On a CPU the backward pass is slow below eight channels a group.
    dropout
        Before the last convolution of a block.
    zero_output
        Start the last map of every residual branch, and of the network, at zero.
    init
        ``"published"`` redraws the weights of all convolutions and linear maps from N(0, 0.02^2), as BBDM's and
        CT2MRI's release: zeros are overwritten, but for plain self-attention (there a Conv1d, which is kept).
    checkpoint
        Recompute the activations of every stage in the backward pass, for memory.

    Raises
    ------
    UserError
        For numbers that do not fit together.
    """

    in_channels: PositiveInt
    out_channels: PositiveInt
    dims: Literal[2, 3] = 2
    channels: PositiveInt = 32
    multipliers: Counts = (1, 2, 4)
    blocks: PositiveInt | Counts = 1
    skips: Literal["block", "level"] = "block"
    resample: Literal["conv", "resblock", "pointwise"] = "conv"
    patch: PositiveInt = 1
    attention: Counts = ()
    middle: Literal["none", "self", "transformer"] = "none"
    head_channels: PositiveInt = 32
    token_channels: NonNegativeInt = 0
    vector_channels: NonNegativeInt = 0
    time: bool = True
    scale_shift: bool = True
    groups: PositiveInt = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    zero_output: bool = True
    init: Literal["default", "published"] = "default"
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for wrong, what, expected in self._conflicts():
            if wrong:
                raise UserError(what, expected)

    def _conflicts(self) -> Iterator[tuple[bool, str, str]]:
        levels = len(self.multipliers)
        yield not levels, "multipliers is empty", "one number a level"
        yield len(self.depths) != levels, f"blocks has {len(self.depths)} numbers", f"one, or one a level: {levels}"
        yield self.channels % self.groups != 0, f"channels is {self.channels}", f"a multiple of groups = {self.groups}"
        yield self.time and self.channels % 2 != 0, f"channels is {self.channels}", "an even number"
        reached = [2**level for level in range(levels)]
        absent = [factor for factor in self.attention if factor not in reached]
        yield bool(absent), f"attention at {absent}", f"downsample factors that the network reaches: {reached}"
        attending = [self.widths[reached.index(factor)] for factor in self.attention if factor in reached]
        attending += [self.widths[-1]] if self.middle != "none" else []
        odd = [width for width in attending if width % self.head_channels]
        yield bool(odd), f"head_channels is {self.head_channels}", f"a divisor of the widths with attention, {odd}"
        deaf = bool(self.token_channels) and not self.attention and self.middle != "transformer"
        yield deaf, f"token_channels is {self.token_channels}", "a transformer that hears them: middle = 'transformer'"
        yield self.patch > 1 and self.dims == 3, f"patch is {self.patch}", "1 in 3D"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of every level."""
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else self.blocks

    @property
    def embedding_channels(self) -> int:
        """Width of the embedding of time and vector; 0 where there is neither."""
        return 4 * self.channels if self.time or self.vector_channels else 0

    @property
    def stride(self) -> int:
        """Factor between the input and the coarsest level: inputs are padded to a multiple of it, inside."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


class ResBlock(nn.Module):
    """(B, C, *S) -> (B, C', *S'): two convolutions, the embedding at the norm between them, and a way around.

    `resize` acts on both ways, before the first convolution.
    """

    def __init__(self, config: UNetConfig, width_in: int, width: int, resize: Resize | None = None) -> None:
        super().__init__()
        conv, embedding = _CONV[config.dims], config.embedding_channels
        self.resize = resize
        self.scale_shift = config.scale_shift
        self.norm_in = nn.GroupNorm(config.groups, width_in)
        self.conv = conv(width_in, width, 3, padding=1)
        self.embed = nn.Linear(embedding, (1 + config.scale_shift) * width) if embedding else None
        self.norm = nn.GroupNorm(config.groups, width)
        self.dropout = nn.Dropout(config.dropout)
        self.last = conv(width, width, 3, padding=1)
        self.skip = conv(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        h = _silu(self.norm_in(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = _silu(self._modulated(self.conv(h), condition.vector))
        out: Tensor = self.skip(x) + self.last(self.dropout(h))
        return out

    def _modulated(self, h: Tensor, vector: Tensor | None) -> Tensor:
        scale, shift = None, None
        if self.embed is not None:
            shift = self.embed(vector)[(..., *[None] * (h.ndim - 2))]
        if self.embed is not None and self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)


class Down(nn.Module):
    """Halve a map (B, C, *S) by a strided convolution."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.conv = _CONV[config.dims](width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002 (all parts are called alike)
        out: Tensor = self.conv(x)
        return out
