"""The shape of a U-Net: its configuration and the stages that follow from it.

Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis" (2021), for the published layout
(``skips = "block"``); Ronneberger et al. (2015) for one skip connection a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.nets.blocks import Down, ResBlock, Resize, SelfAttention, Transformer, Up, double, halve
from scanbridge.nets.condition import Condition

Counts = Annotated[tuple[PositiveInt, ...], Field(strict=False)]  # a TOML array is a list


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
        return int(2 ** (len(self.multipliers) - 1))


class Stage(nn.ModuleList):
    """What is done between two skip connections: parts ``(map, Condition) -> map``, one after the other.

    `skips` says, in the encoder, that the result is kept for the decoder, and in the decoder, that a kept map is
    concatenated to the input. `ends` is the downsample factor of the level that the result is the last map of, on its
    way down or up; 0 where more follows at that level.
    """

    def __init__(self, *parts: nn.Module, skips: bool, ends: int = 0) -> None:
        super().__init__(parts)
        self.skips, self.ends = skips, ends

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """Give the map behind the last part."""
        for part in self:
            x = part(x, condition)
        return x


def encoder(config: UNetConfig) -> Iterator[Stage]:
    """Give the stages from the stem to the coarsest level."""
    by_block, coarsest, width = config.skips == "block", len(config.widths) - 1, config.channels
    for level, (level_width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for block in range(depth):
            last = block == depth - 1
            kept, ends = by_block or (last and level < coarsest), 2**level * last
            yield Stage(_block(config, width, level_width), *_level_attention(config, level), skips=kept, ends=ends)
            width = level_width
        if level < coarsest:
            yield Stage(_down(config, width), skips=by_block)


def middle(config: UNetConfig) -> Stage:
    """Give the stage at the coarsest level that is neither encoder nor decoder."""
    width = config.widths[-1]
    before, after = _block(config, width, width), _block(config, width, width)
    ends = 0 if config.skips == "block" else config.stride  # else the way up has no block at the coarsest level
    return Stage(before, *_attention(config, width, config.middle), after, skips=False, ends=ends)


def decoder(config: UNetConfig) -> Iterator[Stage]:
    """Give the stages from the coarsest level to the head."""
    by_block, coarsest, width = config.skips == "block", len(config.widths) - 1, config.widths[-1]
    kept = _kept_widths(config)
    for level in reversed(range(len(config.widths))):
        level_width = config.widths[level]
        if level < coarsest:
            grown = level_width if config.resample == "pointwise" else width
            yield Stage(_up(config, width, grown), skips=False)
            width = grown
        depth = config.depths[level] + 1 if by_block else config.depths[level] * (level < coarsest)
        for block in range(depth):
            takes, ends = by_block or block == 0, 2**level * (block == depth - 1)
            block_in = width + (kept.pop() if takes else 0)
            yield Stage(_block(config, block_in, level_width), *_level_attention(config, level), skips=takes, ends=ends)
            width = level_width


def _kept_widths(config: UNetConfig) -> list[int]:
    """Widths of the maps that the encoder keeps, in its order."""
    if config.skips == "level":
        return list(config.widths[:-1])
    after_blocks = [width for width, n in zip(config.widths, config.depths, strict=True) for width in [width] * (n + 1)]
    return [config.channels, *after_blocks[:-1]]  # every level but the coarsest ends with a halving


def _block(config: UNetConfig, width_in: int, width: int, resize: Resize | None = None) -> ResBlock:
    return ResBlock(
        width_in,
        width,
        dims=config.dims,
        groups=config.groups,
        embedding=config.embedding_channels,
        scale_shift=config.scale_shift,
        dropout=config.dropout,
        resize=resize,
    )


def _down(config: UNetConfig, width: int) -> nn.Module:
    return _block(config, width, width, halve) if config.resample == "resblock" else Down(width, dims=config.dims)


def _up(config: UNetConfig, width_in: int, width: int) -> nn.Module:
    if config.resample == "resblock":
        return _block(config, width_in, width, double)
    return Up(width_in, width, dims=config.dims, pointwise=config.resample == "pointwise")


def _level_attention(config: UNetConfig, level: int) -> list[nn.Module]:
    if 2**level not in config.attention:
        return []
    return _attention(config, config.widths[level], "transformer" if config.token_channels else "self")


def _attention(config: UNetConfig, width: int, kind: Literal["none", "self", "transformer"]) -> list[nn.Module]:
    if kind == "self":
        return [SelfAttention(width, config.head_channels, config.groups)]
    if kind == "transformer":
        return [Transformer(width, config.head_channels, config.groups, config.token_channels)]
    return []
