"""A bridge on windows of slices: its settings, its stages, its loss.

It leads from the source to the target; or a regression comes first and gives the estimate, and the bridge leads from 0
to what that misses: draws have the residual alone to learn, and no walk can spoil the estimate. Given the source every
process is one diffusion of u = (x - b y) / c: to centre it on an estimate D is to move u by kappa D, whatever it is.

Source: Li et al., "BBDM" (CVPR 2023), algorithm 1; for the regression first Whang et al., "Deblurring via stochastic
refinement" (CVPR 2022), and Mardani et al., "Residual corrective diffusion modeling" (2023).
Axes: windows are (B, images, d, H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise
from scanbridge.bridge.sample import Corrector
from scanbridge.bridge.volume import Windows
from scanbridge.errors import UserError
from scanbridge.methods.base import Batch, Fitted, Item, Stage
from scanbridge.methods.regressing import (
    NO_TOKENS,
    Regression,
    Tokens,
    folds_stage,
    for_each,
    regression_stage,
    training_estimate,
)
from scanbridge.methods.walks import Bridge, bridge_denoiser, draw_times, embedded_time, rehearse
from scanbridge.methods.windows import Network, WindowNet, WindowWalk, masked_loss
from scanbridge.strict import Strict

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(state, source, times (B,)) -> output`` of a bridge's network."""


class WindowBridge(Strict):
    """A bridge on windows of slices: what its methods share, and all that the plain one needs."""

    radius: int = Field(default=1, ge=0, description="N; a window holds 2 N + 1 slices")
    network: Network = Network()
    regression: Regression = Regression()
    bridge: Bridge = Bridge()
    estimate: WindowWalk = WindowWalk(walk="mean_path", calls=4, grid="linear", start="source")
    draw: WindowWalk = WindowWalk()

    @property
    def walks(self) -> dict[str, WindowWalk]:
        """The walks by the name of their table."""
        return {"estimate": self.estimate, "draw": self.draw}


def window_stages(
    config: WindowBridge, target: str, tokens: Tokens = NO_TOKENS, corrector: Corrector | None = None
) -> tuple[Stage, ...]:
    """Give the stages: the regression where there is one, those of the folds where there are any, and the bridge.

    Raises
    ------
    UserError
        For what cannot be trained or walked.
    """
    for table, settings in config.walks.items():
        try:
            Windows(1, config.radius, settings.ends, settings.stride)
        except UserError as error:
            raise UserError(f"[{table}] {error.what}", error.expected, error.remedy) from error
    rehearse(config.walks, config.bridge, residual=config.regression.use, corrector=corrector)
    first, bridge = config.regression, _bridge_stage(config, target, tokens)
    if first.folds and (first.folds == 1 or not first.use):
        raise UserError(
            f"regression.folds = {first.folds}{'' if first.use else ' without regression.use'}",
            "0, or two and more of a regression that is used",
            "set it so, or regression.use = true",
        )
    if not first.use:
        return (bridge,)
    if config.bridge.at_source > 0:
        raise UserError(
            f"bridge.at_source = {config.bridge.at_source:g} with regression.use",
            "0: at t = 1 the regression has said all there is to say",
            "set bridge.at_source = 0, or regression.use = false",
        )
    regression = regression_stage(config.radius, config.network, first, target, tokens)
    if not first.folds:
        return regression, bridge
    return folds_stage(config.radius, config.network, first, target, tokens), regression, bridge


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
            estimate = training_estimate(config.regression, fitted, batch, told)
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


def window_denoiser(
    config: WindowBridge, network: nn.Module, tokens: Tensor | None
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Read a trained bridge as a denoiser ``(state, seen, t) -> x_0`` of windows that attend to the same tokens.

    `seen` is the source (B, 1, d, H, W); for the bridge of a residual, the regression's estimate and the source
    (B, 2, d, H, W), and x_0 is that residual.
    """

    def denoise(state: Tensor, seen: Tensor, t: float) -> Tensor:
        told = for_each(tokens, state)
        if not config.regression.use:
            return bridge_denoiser(config.bridge, predictor(config.bridge, network, told))(state, seen, t)
        about = predictor(config.bridge, network, told, seen)
        return bridge_denoiser(config.bridge, about)(state, torch.zeros_like(state), t)

    return denoise


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
