"""What the methods on windows of slices share: their settings, their network, their loss, their translation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise
from scanbridge.bridge.process import as_time
from scanbridge.errors import UserError
from scanbridge.methods.base import Batch, Fitted, Item, Stage, Statistics, TrainingCase
from scanbridge.methods.walks import Bridge, Walk, draw_times, embedded_time, loss_weight
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
        return {**super()._published, "stride": 1, "mirror": []}


class WindowBridge(Strict):
    """A bridge on windows of slices: what its methods share, and all that the plain one needs."""

    radius: int = Field(default=1, ge=0, description="N; a window holds 2 N + 1 slices")
    network: Network = Network()
    bridge: Bridge = Bridge()
    estimate: WindowWalk = WindowWalk(walk="mean_path", calls=4, grid="linear", start="source")
    draw: WindowWalk = WindowWalk()


@dataclass(frozen=True)
class Tokens:
    """What a network attends to beside the images: none, or tokens (B, n, `channels`) of every item.

    Parameters
    ----------
    channels
        Width of a token; 0 for none.
    of
        ``(fitted, batch, noise) -> tokens`` of a training batch.
    fit
        Gives the statistics that they are made of, see `Stage.fit`.
    """

    channels: int = 0
    of: Callable[[Fitted, Batch, ItemNoise], Tensor | None] = lambda fitted, batch, noise: None  # noqa: ARG005
    fit: Callable[[Sequence[TrainingCase], Fitted], Statistics] = lambda cases, before: {}  # noqa: ARG005


class WindowNet(nn.Module):
    """A 2D U-Net on windows: slices become channels; the state, where there is one, stands before the source.

    Parameters
    ----------
    settings
        The network's table.
    width
        Slices in a window.
    state
        Whether the network sees a state and a time; a regression sees the source alone.
    tokens
        Width of the tokens of cross-attention; 0 for none.
    """

    def __init__(self, settings: Network, width: int, *, state: bool, tokens: int = 0) -> None:
        super().__init__()
        images = 2 if state else 1
        self.net = UNet(settings.unet(width * images, width, time=state, tokens=tokens))

    def forward(self, state: Tensor | None, source: Tensor, t: Tensor | None, tokens: Tensor | None = None) -> Tensor:
        """Give the network's output for windows (B, 1, d, H, W); `t` (B,) is the time as the embedding takes it."""
        images = source if state is None else torch.cat([state, source], dim=2)
        out: Tensor = self.net(images[:, 0], t, tokens=tokens)
        return out[:, None]


def one_target(method: str, targets: Sequence[str]) -> str:
    """Give the only target, or refuse more."""
    if len(targets) != 1:
        raise UserError(
            f"task.targets has {len(targets)} names", f"one target for {method}", "train a run for each target"
        )
    return targets[0]


def masked_loss(
    output: Tensor, label: Tensor, valid: Tensor, kind: Literal["l1", "l2"], weight: Tensor | float = 1.0
) -> Tensor:
    """Give the mean error where `valid`, first within each item (B, ...), then over the items, weighed by (B,)."""
    error = (output - label).abs() if kind == "l1" else (output - label) ** 2
    axes = tuple(range(1, error.ndim))
    return (weight * (error * valid).sum(axes) / valid.sum(axes).clamp(min=1)).mean()


def bridge_stage(config: WindowBridge, target: str, tokens: Tokens = Tokens()) -> Stage:
    """Give the training of a bridge on windows."""

    def build() -> dict[str, nn.Module]:
        width = Item(config.radius).width
        return {"unet": WindowNet(config.network, width, state=True, tokens=tokens.channels)}

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        network = partial(fitted.networks["unet"], tokens=tokens.of(fitted, batch, noise))
        source, label, valid = batch.source, batch.targets[target], batch.valid[target]
        return bridge_loss(config.bridge, network, source, label, valid, noise), {}

    return Stage("bridge", Item(config.radius), build, loss, tokens.fit)


def bridge_loss(
    settings: Bridge,
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    source: Tensor,
    target: Tensor,
    valid: Tensor,
    noise: ItemNoise,
) -> Tensor:
    """Give the loss of a bridge's `network` ``(state, source, embedded time)`` on windows (B, 1, d, H, W).

    Source: Li et al. 2023 (BBDM), algorithm 1; CT2MRI, eq. 3, without its weight.
    """
    t = draw_times(settings, noise)
    eps = noise.normal(target.shape[1:])
    state = settings.process().diffuse(target, source, eps, t)
    output = network(state, source, embedded_time(settings, t))
    label = settings.label(t, target, source, eps)
    return masked_loss(output, label, valid, settings.loss, loss_weight(settings, t).to(output))


def bridge_denoiser(
    settings: Bridge, network: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Read a bridge's network as a denoiser ``(state, source, t) -> x_0`` of images (B, ...)."""

    def denoise(state: Tensor, source: Tensor, t: float) -> Tensor:
        times = as_time(t).to(state.device).expand(len(state))
        output = network(state, source, embedded_time(settings, times))
        return settings.estimate(times, output, state, source)

    return denoise
