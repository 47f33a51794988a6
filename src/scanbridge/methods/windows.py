"""What the methods on windows of slices share: the network's table and the network, the walk's table, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.methods.walks import Walk
from scanbridge.nets.unet import UNet, UNetConfig
from scanbridge.strict import Strict


class Network(Strict):
    """The U-Net of a window method; channels in and out follow from the window."""

    channels: int = Field(default=32, gt=0)
    multipliers: list[PositiveInt] = Field(default=[1, 2, 4], min_length=1)
    blocks: int | list[int] = Field(default=1, description="residual blocks of a level, one number or one a level")
    skips: Literal["block", "level"] = "block"
    resample: Literal["conv", "resblock", "pointwise"] = "conv"
    groups: int = Field(default=4, gt=0)
    attention: list[PositiveInt] = Field(default=[], description="levels with attention, by downsample factor")
    middle: Literal["none", "self", "transformer"] = "self"
    head_channels: int = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    init: Literal["default", "published"] = "default"

    def unet(self, in_channels: int, out_channels: int, *, time: bool = True, tokens: int = 0) -> UNetConfig:
        """Give the shape of a 2D U-Net between so many channels."""
        return UNetConfig(
            dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=self.channels,
            multipliers=tuple(self.multipliers),
            blocks=self.blocks if isinstance(self.blocks, int) else tuple(self.blocks),
            skips=self.skips,
            groups=self.groups,
            attention=tuple(self.attention),
            middle=self.middle,
            head_channels=self.head_channels,
            dropout=self.dropout,
            resample=self.resample,
            token_channels=tokens,
            time=time,
            init=self.init,
        )


Axis = Literal["slices", "rows", "columns"]


class WindowWalk(Walk):
    """How a product is computed of windows."""

    ends: Literal["copy", "live"] = "copy"
    stride: int = Field(
        default=1, gt=0, description="slices from window to window, up to 2 N + 1; the last call takes all windows"
    )
    mirror: list[Axis] = Field(
        default=[], description="axes that training flips: a call is averaged with those of the mirrored images"
    )

    @property
    def _one_call(self) -> dict[str, Any]:
        return {**super()._one_call, "mirror": []}

    @property
    def _published(self) -> dict[str, Any]:
        return {**super()._published, "stride": 1, "mirror": [], "ends": "live"}


class WindowNet(nn.Module):
    """A 2D U-Net on windows: the slices of one or more images become channels, in the order in which these are given.

    Parameters
    ----------
    settings
        The network's table.
    width
        Slices in a window.
    images
        That it sees side by side.
    time
        Whether it is told a time.
    tokens
        Width of the tokens of cross-attention; 0 for none.
    """

    def __init__(self, settings: Network, width: int, *, images: int = 1, time: bool = False, tokens: int = 0) -> None:
        super().__init__()
        self.net = UNet(settings.unet(width * images, width, time=time, tokens=tokens))

    def forward(self, images: Tensor, t: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        """Give one image (B, 1, d, H, W) of windows (B, images, d, H, W); `t` (B,) as the embedding takes it."""
        out: Tensor = self.net(images.flatten(1, 2), t, tokens=tokens)
        return out[:, None]


def one_target(method: str, targets: Sequence[str]) -> str:
    """Give the only target, or refuse more."""
    if len(targets) != 1:
        raise UserError(
            f"task.targets has {len(targets)} names", f"one target for {method}", "train a run for each target"
        )
    return targets[0]


def masked_loss(output: Tensor, label: Tensor, valid: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Give the mean error where `valid`, first within each item (B, ...), then over the items."""
    error = (output - label).abs() if kind == "l1" else (output - label) ** 2
    axes = tuple(range(1, error.ndim))
    return ((error * valid).sum(axes) / valid.sum(axes).clamp(min=1)).mean()
