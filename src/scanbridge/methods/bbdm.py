"""BBDM: a Brownian bridge from the source to the target, on single slices or windows of slices.

Source: Li et al., "BBDM: image-to-image translation with Brownian bridge diffusion models", CVPR 2023 (eq. 4 to 12).
Deviations: pixels, not latents; the source is concatenated to the state, as in CT2MRI's released code; our presets
train on continuous times with t = 1 included and predict the target with L2, for which the score is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from scanbridge.bridge.noise import ItemNoise
from scanbridge.methods.base import Batch, Draws, Effort, Fitted, Item, Request, Stage, Translator
from scanbridge.methods.walks import Bridge, Walk
from scanbridge.methods.windows import (
    Network,
    WindowNet,
    bridge_denoiser,
    bridge_loss,
    draw_volumes,
    effort_of,
    one_target,
)
from scanbridge.strict import Strict

ABLATIONS: dict[str, dict[str, Any]] = {
    "BBDM": {},
    "one slice": {"radius": 0},
    "s = 0.25": {"bridge.s": 0.25},
}


class Config(Strict):
    """A Brownian bridge on windows."""

    radius: int = Field(default=1, ge=0, description="N; a window holds 2 N + 1 slices")
    network: Network = Network()
    bridge: Bridge = Bridge()
    estimate: Walk = Walk(walk="mean_path", calls=4, grid="linear", start="source")
    draw: Walk = Walk()


def stages(config: Config, targets: Sequence[str]) -> tuple[Stage, ...]:
    """Give the one stage."""
    target = one_target("bbdm", targets)

    def build() -> dict[str, torch.nn.Module]:
        return {"unet": WindowNet(config.network, Item(config.radius).width, state=True)}

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        unet = fitted.networks["unet"]
        value = bridge_loss(config.bridge, unet, batch.source, batch.targets[target], batch.valid[target], noise)
        return value, {}

    return (Stage("bridge", Item(config.radius), build, loss),)


def translator(config: Config, fitted: Fitted) -> Translator:
    """Give the translator."""
    denoise = bridge_denoiser(config.bridge, fitted.networks["unet"])

    class _Bridge:
        def draw(self, source: Tensor, request: Request) -> Draws:
            settings = config.draw if request.product == "draw" else config.estimate
            return draw_volumes(denoise, config.bridge, settings, config.radius, source, request)

        def effort(self, request: Request) -> Effort:
            settings = config.draw if request.product == "draw" else config.estimate
            return effort_of(config.bridge, settings, request)

    return _Bridge()
