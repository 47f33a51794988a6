"""A bridge on windows of slices: its settings, its stages, its loss.

It leads from the source to the target; or a regression comes first and gives the estimate, and the bridge leads from 0
to what that misses: draws have the residual alone to learn, and no walk can spoil the estimate. Given the source every
process is one diffusion of u = (x - b y) / c: to centre it on an estimate D is to move u by kappa D, whatever it is.

Source: Li et al., "BBDM" (CVPR 2023), algorithm 1; for the regression first Whang et al., "Deblurring via stochastic
refinement" (CVPR 2022), and Mardani et al., "Residual corrective diffusion modeling" (2023).
Axes: windows are (B, images, d, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods.base import Batch, Fitted, Item, Stage, Statistics, TrainingCase
from scanbridge.methods.walks import Bridge, bridge_denoiser, draw_times, embedded_time
from scanbridge.methods.windows import Network, WindowNet, WindowWalk, masked_loss
from scanbridge.strict import Strict

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(state, source, times (B,)) -> output`` of a bridge's network."""


class Regression(Strict):
    """The stage that gives the estimate, before the bridge is trained on what it misses."""

    use: bool = False
    loss: Literal["l1", "l2"] = "l2"
    images: PositiveInt | None = Field(default=None, description="windows that it is trained on, or train.images")
    learning_rate: float | None = Field(default=None, gt=0)
    weights: str | None = Field(default=None, description="folder of this stage in another run, instead of training")


class WindowBridge(Strict):
    """A bridge on windows of slices: what its methods share, and all that the plain one needs."""

    radius: int = Field(default=1, ge=0, description="N; a window holds 2 N + 1 slices")
    network: Network = Network()
    regression: Regression = Regression()
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


def window_stages(config: WindowBridge, target: str, tokens: Tokens = Tokens()) -> tuple[Stage, ...]:
    """Give the stages: the regression where there is one, and the bridge."""
    first, bridge = config.regression, _bridge_stage(config, target, tokens)
    if not first.use:
        return (bridge,)
    if config.bridge.at_source > 0:
        raise UserError(
            f"bridge.at_source = {config.bridge.at_source:g} with regression.use",
            "0: at t = 1 the regression has said all there is to say",
            "set bridge.at_source = 0, or regression.use = false",
        )
    return regression_stage(config.radius, config.network, first, target, tokens), bridge


def regression_stage(
    radius: int, network: Network, settings: Regression, target: str, tokens: Tokens = Tokens()
) -> Stage:
    """Give the training of a regression: from the windows of the source alone to the target's."""

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        output = fitted.networks["regression"](batch.source, tokens=tokens.of(fitted, batch, noise))
        return masked_loss(output, batch.targets[target], batch.valid[target], settings.loss), {}

    return Stage(
        "regression",
        Item(radius),
        lambda: {"regression": WindowNet(network, Item(radius).width, tokens=tokens.channels)},
        loss,
        tokens.fit,
        images=settings.images,
        learning_rate=settings.learning_rate,
        about={"radius": radius, "tokens": tokens.channels, **network.model_dump(mode="json")},
        weights=None if settings.weights is None else Path(settings.weights),
    )


def _bridge_stage(config: WindowBridge, target: str, tokens: Tokens) -> Stage:
    """Give the training of the bridge."""
    residual = config.regression.use

    def build() -> dict[str, nn.Module]:
        width, images = Item(config.radius).width, 3 if residual else 2
        return {"bridge": WindowNet(config.network, width, images=images, time=True, tokens=tokens.channels)}

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        source, label, told = batch.source, batch.targets[target], tokens.of(fitted, batch, noise)
        seen = None
        if residual:
            estimate = fitted.networks["regression"](source, tokens=told)
            seen, source, label = torch.cat([estimate, source], dim=1), torch.zeros_like(source), label - estimate
        network = predictor(config.bridge, fitted.networks["bridge"], told, seen)
        return bridge_loss(config.bridge, network, source, label, batch.valid[target], noise), {}

    return Stage(
        "bridge",
        Item(config.radius),
        build,
        loss,
        tokens.fit,  # anew: a regression of another run has the statistics of other people
        images=config.bridge.images,
        learning_rate=config.bridge.learning_rate,
    )


def predictor(settings: Bridge, network: nn.Module, tokens: Tensor | None, seen: Tensor | None = None) -> Predict:
    """Give a bridge's network: it sees state and source; one of a residual sees its state at variance 1, and `seen`."""

    def predict(state: Tensor, source: Tensor, t: Tensor) -> Tensor:
        images = [state, source] if seen is None else [settings.scaled(t, state), seen]
        output: Tensor = network(torch.cat(images, dim=1), embedded_time(settings, t), tokens)
        return output

    return predict


def regression_denoiser(network: nn.Module, tokens: Tensor | None) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Read a trained regression as a denoiser ``(state, source, t) -> x_0`` of windows, which ignores state and t."""

    def denoise(state: Tensor, source: Tensor, t: float) -> Tensor:  # noqa: ARG001
        output: Tensor = network(source, tokens=_for_each(tokens, source))
        return output

    return denoise


def window_denoiser(
    config: WindowBridge, network: nn.Module, tokens: Tensor | None
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Read a trained bridge as a denoiser ``(state, seen, t) -> x_0`` of windows that attend to the same tokens.

    `seen` is the source (B, 1, d, H, W); for the bridge of a residual, the regression's estimate and the source
    (B, 2, d, H, W), and x_0 is that residual.
    """

    def denoise(state: Tensor, seen: Tensor, t: float) -> Tensor:
        told = _for_each(tokens, state)
        if not config.regression.use:
            return bridge_denoiser(config.bridge, predictor(config.bridge, network, told))(state, seen, t)
        about = predictor(config.bridge, network, told, seen)
        return bridge_denoiser(config.bridge, about)(state, torch.zeros_like(state), t)

    return denoise


def _for_each(tokens: Tensor | None, windows: Tensor) -> Tensor | None:
    """Give tokens (n, c) to each of the windows."""
    return None if tokens is None else tokens.to(windows).expand(len(windows), -1, -1)


def bridge_loss(
    settings: Bridge, network: Predict, source: Tensor, target: Tensor, valid: Tensor, noise: ItemNoise
) -> Tensor:
    """Give the loss of a bridge's network on windows of one image each.

    Source: Li et al. 2023 (BBDM), algorithm 1; CT2MRI, eq. 3, without its weight.
    """
    t = draw_times(settings, noise)
    eps = noise.normal(target.shape[1:])
    state = settings.process().diffuse(target, source, eps, t)
    label = settings.label(t, target, source, eps)
    return masked_loss(network(state, source, t), label, valid, settings.loss)
