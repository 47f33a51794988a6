"""What the methods that walk a bridge share: the bridge's settings, the walk's, and when training looks at it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import torch
from pydantic import Field, PositiveInt, ValidationError
from torch import Tensor

from scanbridge.bridge import process as processes
from scanbridge.bridge.noise import ItemNoise
from scanbridge.bridge.parametrize import decode, encode
from scanbridge.bridge.process import Process, as_time, expand
from scanbridge.bridge.sample import (
    DEFAULT_RESIDUAL_SCALE,
    Corrector,
    Grid,
    Start,
    residual_variance,
    snap,
    time_grid,
    walk,
)
from scanbridge.errors import UserError, nearest
from scanbridge.methods.base import Request
from scanbridge.strict import Strict

PUBLISHED_CALLS = 100
"""Of CT2MRI's and BBDM's walk, where the run's own is not on the published grid already."""


class Bridge(Strict):
    """The Brownian bridge and what is learned of it."""

    s: float = Field(default=1.0, gt=0, description="variance scale")
    predict: Literal["target", "noise", "difference", "shift", "velocity"] = "target"
    loss: Literal["l1", "l2"] = "l2"
    times: Literal["continuous", "theta", "published"] = Field(
        default="continuous", description="of training: uniform in t, in arctan(sd kappa), or over the published steps"
    )
    at_source: float = Field(default=0.5, ge=0, le=1, description="share of the items at t = 1, not of published times")
    residual_scale: float = Field(
        default=DEFAULT_RESIDUAL_SCALE, gt=0, description="sd of x_0 - D(y, 1), of velocity and theta in training"
    )
    images: PositiveInt | None = Field(default=None, description="items that it is trained on, or train.images")
    learning_rate: float | None = Field(default=None, gt=0)

    def process(self) -> Process:
        """Give the process."""
        return processes.brownian_bridge(self.s)

    def label(self, t: Tensor, target: Tensor, source: Tensor, noise: Tensor) -> Tensor:
        """Give what the network should predict at times (B,) of images (B, ...)."""
        return encode(self.predict, self.process(), t, target, source, noise, residual_scale=self.residual_scale)

    def estimate(self, t: Tensor, output: Tensor, state: Tensor, source: Tensor) -> Tensor:
        """Give the x_0 that the network's output stands for, at times (B,)."""
        return decode(self.predict, self.process(), t, output, state, source, residual_scale=self.residual_scale)

    def scaled(self, t: Tensor, state: Tensor) -> Tensor:
        """Bring states (B, ...) at times (B,) of a bridge from 0 to variance 1, as Karras et al. (2022), c_in."""
        a, _, c = self.process().coefficients(t.double())
        size = torch.hypot(c, self.residual_scale * a)  # 0 at t = 1, as the state is
        return state / expand(size.clamp(min=torch.finfo(state.dtype).tiny), state)


class Walk(Strict):
    """How a product is computed."""

    walk: Literal["marginals", "mean_path"] = "marginals"
    calls: int = Field(default=8, gt=0)
    grid: Grid = "theta"
    order: Literal[1, 2] = 1
    eta: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=1.0, ge=0)
    variance: Literal["none", "residual"] = Field(
        default="none", description="what the posterior mean loses, added as noise: sd^2 / (1 + kappa^2 sd^2)"
    )
    start: Start = "prior"
    windows: int = Field(default=8, gt=0, description="windows per network call")

    def asked(self, request: Request) -> Self:
        """Give this walk with what the user asked for: a quality, and what is named beside it, which wins."""
        changes = request.walk
        if request.product == "one-call":
            changes |= self._one_call
        elif request.quality == "draft":
            changes = self._one_call | changes
        elif request.quality == "paper":
            changes = self._published | changes
        try:
            return self.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            wrong = error.errors()[0]
            key, value = str(wrong["loc"][0]), wrong["input"]
            hint = nearest(str(value), get_args(Grid)) if key == "grid" else ""
            raise UserError(f"{key} = {value}", wrong["msg"].removeprefix("Input should be "), hint) from None

    @property
    def _one_call(self) -> dict[str, Any]:
        grid = "published" if self.grid == "published" else "linear"
        return {"calls": 1, "grid": grid, "order": 1, "variance": "none"}

    @property
    def _published(self) -> dict[str, Any]:
        """The walk of CT2MRI's and BBDM's released code; its corrector, if any, is a table of its own."""
        own = self.walk == "mean_path" and self.grid == "published"
        plain = {"order": 1, "eta": 0.0, "variance": "none", "start": "source"}
        return {**plain, "walk": "mean_path", "grid": "published", "calls": self.calls if own else PUBLISHED_CALLS}

    @property
    def spreads(self) -> bool:
        """Whether two draws differ."""
        return self.walk == "marginals" and (self.temperature > 0 or self.eta > 0 or self.variance != "none")

    def times(self, bridge: Bridge, residual_scale: float) -> Tensor:
        """Give where the network is called, falling, then 0; nodes that fall together are merged."""
        process = bridge.process()
        times = time_grid(process, self.calls, grid=self.grid, residual_scale=residual_scale)
        return snap(times, process.steps) if bridge.times == "published" and process.steps is not None else times

    def refuse_equal(self, request: Request) -> None:
        """Refuse several draws of a walk that gives one volume only."""
        if request.samples > 1 and not self.spreads:
            raise UserError(
                f"{request.samples} samples of a walk without spread would all be equal",
                "a walk with noise",
                "ask for one sample, or set draw.walk to 'marginals' and draw.temperature above 0",
            )

    def take(
        self,
        denoise: Callable[[Tensor, float], Tensor],
        bridge: Bridge,
        source: Tensor,
        noise: Callable[[int], Tensor],
        *,
        residual_scale: float,
        corrector: Corrector | None = None,
        on_call: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Walk from `source`, of any shape, to the estimate of x_0; the arguments are those of `bridge.sample.walk`."""
        process = bridge.process()
        return walk(
            denoise,
            process,
            source,
            self.times(bridge, residual_scale),
            noise,
            path="mean" if self.walk == "mean_path" else "marginals",
            order=self.order,
            eta=self.eta,
            temperature=self.temperature,
            start=self.start,
            residual_scale=residual_scale,
            variance=residual_variance(process, residual_scale) if self.variance == "residual" else None,
            corrector=corrector,
            on_step=None if on_call is None else lambda step: on_call(step.call, step.calls),
        )


def rehearse(
    walks: Mapping[str, Walk], bridge: Bridge, *, residual: bool = False, corrector: Corrector | None = None
) -> None:
    """Walk a single 0 with a network that says 0, so that what no walk can do is said before anything is trained.

    Parameters
    ----------
    walks
        By the name of their table.
    bridge
        What is walked.
    residual
        Of a bridge from 0, whose network is not asked at t = 1.
    corrector
        As the walk takes it.

    Raises
    ------
    UserError
        As `bridge.sample.walk` and `bridge.parametrize.decode` do, with the name of the table.
    """
    nothing = torch.zeros(1, 1, 1, 1, device="cpu")
    silent = bridge_denoiser(bridge, lambda state, source, t: torch.zeros_like(state))  # noqa: ARG005

    def denoise(state: Tensor, t: float) -> Tensor:
        return nothing if residual and t == 1 else silent(state, nothing, t)

    for table, settings in walks.items():
        sd = bridge.residual_scale
        try:
            with torch.device("cpu"):  # whatever device the caller builds networks on
                settings.take(denoise, bridge, nothing, lambda _: nothing, residual_scale=sd, corrector=corrector)
        except UserError as error:
            raise UserError(f"[{table}] {error.what}", error.expected, error.remedy) from error


def bridge_denoiser(
    settings: Bridge, network: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Read a bridge's network ``(state, source, times) -> output`` as a denoiser ``(state, source, t) -> x_0``."""

    def denoise(state: Tensor, source: Tensor, t: float) -> Tensor:
        times = as_time(t).to(state.device).expand(len(state))
        return settings.estimate(times, network(state, source, times), state, source)

    return denoise


def embedded_time(settings: Bridge, t: Tensor) -> Tensor:
    """Give times (B,) as the embedding takes them, 0 .. 999: even where training draws them evenly."""
    process = settings.process()
    if settings.times == "theta":
        return 999 * (1 - theta(settings, t) * 2 / math.pi)
    steps = process.steps
    if settings.times == "published" and steps is not None:
        return (t - steps[0].to(t)) / (steps[-1] - steps[0]).to(t) * (len(steps) - 1)
    return 999 * t


def theta(settings: Bridge, t: Tensor) -> Tensor:
    """Give arctan(sd kappa) at times (B,), 0 at the source end: how much of the target the state shows."""
    return torch.atan(settings.residual_scale * settings.process().kappa(t))


def draw_times(settings: Bridge, noise: ItemNoise) -> Tensor:
    """Draw training times (B,), float64: published steps uniformly, or (0, 1] with a share at t = 1."""
    u, process = noise.uniform(), settings.process()
    if settings.times == "published" and process.steps is not None:
        return process.steps.to(u)[(u * len(process.steps)).long()]
    share = settings.at_source
    rest = (u - share).clamp(min=0) / max(1 - share, 1e-12)  # uniform in [0, 1)
    if settings.times == "theta":
        return process.time(torch.tan(rest * math.pi / 2) / settings.residual_scale)
    return 1 - rest
