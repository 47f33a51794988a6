"""What the methods on windows of slices share: their settings, their network, their loss, their translation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise, NoiseSource
from scanbridge.bridge.parametrize import decode, encode
from scanbridge.bridge.process import as_time
from scanbridge.bridge.sample import DEFAULT_RESIDUAL_SCALE, Corrector
from scanbridge.bridge.volume import Lift, Overlap, Windows
from scanbridge.errors import UserError
from scanbridge.methods.base import Draws, Effort, Request
from scanbridge.methods.walks import Bridge, Walk, draw_times, embedded_time
from scanbridge.nets.unet import UNet, UNetConfig
from scanbridge.strict import Strict

Denoise = Callable[[Tensor, Tensor, float], Tensor]
"""``(state, source, t) -> x_0`` for windows (B, 1, d, H, W)."""

BACKGROUND = -1.0


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


def masked_loss(output: Tensor, label: Tensor, valid: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Give the mean error where `valid`, first within each item (B, ...), then over the items."""
    error = (output - label).abs() if kind == "l1" else (output - label) ** 2
    axes = tuple(range(1, error.ndim))
    return ((error * valid).sum(axes) / valid.sum(axes).clamp(min=1)).mean()


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
    process = settings.process()
    t = draw_times(settings, noise)
    eps = noise.normal(target.shape[1:])
    state = process.diffuse(target, source, eps, t)
    label = encode(settings.predict, process, t, target, source, eps)
    return masked_loss(network(state, source, embedded_time(settings, t)), label, valid, settings.loss)


def bridge_denoiser(settings: Bridge, network: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Denoise:
    """Read a bridge's network as a denoiser of windows."""
    process = settings.process()

    def denoise(state: Tensor, source: Tensor, t: float) -> Tensor:
        times = as_time(t).to(state.device).expand(len(state))
        output = network(state, source, embedded_time(settings, times))
        return decode(settings.predict, process, times, output, state, source)

    return denoise


def draw_volumes(
    denoise: Denoise,
    bridge: Bridge,
    settings: Walk,
    radius: int,
    source: Tensor,
    request: Request,
    *,
    corrector: Callable[[Tensor], Corrector | None] | None = None,
    coprediction: bool = True,
) -> Draws:
    """Walk whole volumes: one noise field a volume, every window evaluated once a call.

    Parameters
    ----------
    denoise
        Denoiser of windows.
    bridge, settings, radius
        The process, the walk, and N of the windows.
    source
        y, (1, D, H, W).
    request
        What the user asks for.
    corrector
        Makes the corrector for the source as the walk sees it.
    coprediction
        Average overlapping windows at every call; else every window walks by itself and gives its centre slice.
    """
    settings = settings.asked(request)
    settings.refuse_equal(request)
    residual_scale = request.residual_scale or DEFAULT_RESIDUAL_SCALE
    times = settings.times(bridge, residual_scale)
    tally = _Tally(denoise)
    made = []
    for k in request.draws:
        form = (_Aligned if coprediction else _Separate)(tally.windows, settings, radius, source, float(times[-2]))
        state = settings.take(
            tally.calls(form.denoise),
            bridge,
            form.source,
            partial(form.noise, NoiseSource(request.seed, request.subject, draw=k)),
            residual_scale=residual_scale,
            corrector=None if corrector is None else corrector(form.source),
            on_call=request.on_call,
        )
        volume, disagreement = form.finish(state)
        made.append(volume)
    volumes = torch.stack(made)
    facts = {
        "walk": settings.model_dump(),
        "quality": request.quality,
        "times": times.tolist(),
        "windows": tally.n_windows // len(made),
    }
    return Draws(
        volumes,
        volumes.std(dim=0) if len(made) > 1 else disagreement,
        tally.n_calls // len(made),
        facts,
    )


def effort_of(bridge: Bridge, settings: Walk, request: Request, *, moves: int = 0) -> Effort:
    """Give what a volume of `draw_volumes` costs; `moves` is the corrector's calls at every time but the first."""
    settings = settings.asked(request)
    nodes = len(settings.times(bridge, request.residual_scale or DEFAULT_RESIDUAL_SCALE)) - 1
    calls = 1 + (nodes - 1) * (1 + moves)
    at_last = 1 + moves if nodes > 1 else 1
    passes = (calls - at_last) / settings.stride + at_last
    return Effort(settings.calls, nodes, calls, passes, settings.windows)


class _Aligned:
    """Co-prediction: the state is a volume, padded by N slices where its ends are live."""

    def __init__(self, denoise: Denoise, settings: Walk, radius: int, source: Tensor, last: float) -> None:
        self._pad = radius if settings.ends == "live" else 0
        self.source = F.pad(source, (0, 0, 0, 0, self._pad, self._pad), value=BACKGROUND)
        cover, thin = (Windows(self.source.shape[1], radius, settings.ends, n) for n in (1, settings.stride))
        self.denoise = Lift(denoise, self.source, cover, settings.windows, cycle=thin.cycle, last=last)

    def noise(self, noise: NoiseSource, step: int) -> Tensor:
        """Give the volume's noise for a step."""
        return noise(step, self.source.shape, self.source.device)

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Give the volume (D, H, W) and the disagreement of the windows at the last call."""
        if self.denoise.disagreement is None:
            raise ValueError("no call was made")
        real = slice(self._pad, state.shape[1] - self._pad)
        return state[0, real], self.denoise.disagreement[0, real]


class _Separate:
    """No co-prediction: the state is the stack of all windows, each walking by itself."""

    def __init__(self, denoise: Denoise, settings: Walk, radius: int, source: Tensor, last: float) -> None:  # noqa: ARG002
        if settings.stride > 1:
            what = f"stride = {settings.stride} for windows that walk by themselves"
            raise UserError(what, "stride = 1", "set it so, or coprediction = true")
        self._like, self._radius = source, radius
        self._cover = Windows(source.shape[1], radius)
        self._batch, self._denoise = settings.windows, denoise
        self.source = self._pieces(source)

    def _pieces(self, volume: Tensor) -> Tensor:
        return self._cover.cut(volume, range(len(self._cover)))

    def noise(self, noise: NoiseSource, step: int) -> Tensor:
        """Give the volume's noise for a step, cut into windows."""
        return self._pieces(noise(step, self._like.shape, self._like.device))

    def denoise(self, state: Tensor, t: float) -> Tensor:
        """Give the estimates of all windows."""
        batches = zip(torch.split(state, self._batch), torch.split(self.source, self._batch), strict=True)
        return torch.cat([self._denoise(x, y, t) for x, y in batches])

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Give the volume (D, H, W) of centre slices, and the disagreement of the windows that hold a slice."""
        overlap = Overlap(self._cover, self._like)
        for index, piece in enumerate(state):
            overlap.add(index, piece)
        return state[:, 0, self._radius], overlap.spread[0]


class _Tally:
    """Counts windows, and calls of volumes: a corrector's too, which no node of the walk shows."""

    def __init__(self, denoise: Denoise) -> None:
        self._denoise = denoise
        self.n_windows = self.n_calls = 0

    def windows(self, state: Tensor, source: Tensor, t: float) -> Tensor:
        """Denoise windows."""
        self.n_windows += len(state)
        return self._denoise(state, source, t)

    def calls(self, denoise: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
        """Give a denoiser of volumes whose calls count."""

        def counted(state: Tensor, t: float) -> Tensor:
            self.n_calls += 1
            return denoise(state, t)

        return counted
