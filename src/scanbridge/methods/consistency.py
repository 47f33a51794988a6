"""The consistency network of a method of two branches: its table, its training, and the score that it gives.

It makes the source of target and residual, without having seen it: how well it does says how well the two agree.

Source: Lv et al., "RLBCD" (section 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from scanbridge.bridge.noise import ItemNoise
from scanbridge.methods.autoencoding import Residual
from scanbridge.methods.base import Batch, Fitted, Item, Stage
from scanbridge.methods.latent import LatentItems, Latents
from scanbridge.methods.windows import masked_loss
from scanbridge.nets.fusion import Fusion, FusionConfig, FusionNet, linear
from scanbridge.strict import Strict


class Consistency(Strict):
    """The network that fuses target and residual to the source, and the score that it gives (eq. 11)."""

    fusion: Literal["net", "linear"] = Field(
        default="net", description="learned, or target - residual: exact for the latent residual"
    )
    weight: float = Field(default=0.1, ge=0, description="lambda, of the score in the bridges' loss")
    channels: int = Field(default=32, gt=0)
    convolutions: int = Field(default=4, ge=2)
    images: PositiveInt | None = Field(default=None, description="slices that it is trained on, or train.images")
    learning_rate: float | None = Field(default=None, gt=0)
    weights: str | None = Field(default=None, description="folder of this stage in another run, instead of training")


def consistency_stage(
    settings: Consistency, target: str, residual: Residual, latent_channels: int, autoencoder: Mapping[str, Any]
) -> Stage:
    """Give the stage that trains H_E on clean latents: (target, residual) -> source.

    `autoencoder` says whose latents these are, see `Stage.about`.
    """
    shape = FusionConfig(
        latent_channels=latent_channels, channels=settings.channels, convolutions=settings.convolutions
    )

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG001
        item = LatentItems.of(Latents.of(fitted, residual), batch, target)
        fused = fitted.networks["fusion"](item.latents["target"], item.latents["residual"])
        return masked_loss(fused, item.latents["source"], item.known, "l2"), {}

    about = {"consistency.channels": settings.channels, "consistency.convolutions": settings.convolutions}
    return Stage(
        "consistency",
        Item(radius=0),
        lambda: {"fusion": FusionNet(shape)},
        loss,
        images=settings.images,
        learning_rate=settings.learning_rate,
        about={**autoencoder, **about},
        weights=None if settings.weights is None else Path(settings.weights),
    )


def fusion_of(settings: Consistency, fitted: Fitted, scale: Latents) -> Fusion:
    """Give H_E, ``(target, residual) -> source`` on normalised latents; frozen, and open to gradients of its inputs."""
    if settings.fusion == "net":
        learned: Fusion = fitted.networks["fusion"]
        return learned
    return lambda target, residual: scale.normalise(
        "source", linear(scale.denormalise("target", target), scale.denormalise("residual", residual))
    )
