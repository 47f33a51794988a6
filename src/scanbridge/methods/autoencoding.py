"""The first stage of a latent method: an autoencoder of slices, its table, its images and its training.

Source: Esser et al., "Taming transformers for high-resolution image synthesis" (2021). Deviations: those of
`scanbridge.nets.adversarial`; no perceptual term.
Axes: B batch, c channels of a latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise
from scanbridge.methods.base import Batch, Fitted, Item, Stage
from scanbridge.nets.adversarial import Adversarial
from scanbridge.nets.autoencoder import Autoencoder, AutoencoderConfig
from scanbridge.nets.discriminator import Discriminator, DiscriminatorConfig
from scanbridge.strict import Strict

Role = Literal["source", "target", "residual"]
Residual = Literal["image", "latent", "none"]
"""``"image"``: the latent of (target - source) / 2; ``"latent"``: target's latent - source's; ``"none"``."""

NAME = "autoencoder"


class Judge(Strict):
    """The discriminator of patches that an autoencoder is trained against."""

    channels: int = Field(default=16, gt=0)
    strides: list[Literal[1, 2]] = Field(default=[2, 2])
    groups: int = Field(default=8, ge=0)
    weight: float = Field(default=0.5, ge=0, description="of its opinion, on top of the adaptive weight")
    start: float = Field(
        default=0.2, ge=0, le=1, description="share of the training after which the autoencoder hears it"
    )


class FirstStage(Strict):
    """The autoencoder of slices, and its training."""

    kind: Literal["vq", "kl"] = Field(default="vq", description="a codebook on decoding, or mean and variance")
    channels: int = Field(default=16, gt=0)
    multipliers: list[PositiveInt] = Field(default=[1, 2, 4], min_length=1)
    strides: list[Literal[1, 2]] = Field(default=[2, 2], description="between levels; their product is the factor")
    blocks: int | list[int] = 1
    latent_channels: int = Field(default=4, gt=0)
    codes: int = Field(default=512, gt=0)
    moving_average: bool = False
    patience: int = Field(default=100, ge=0, description="updates without a hit after which a code restarts")
    attention: bool = False
    head_channels: int = Field(default=32, gt=0)
    groups: int = Field(default=2, gt=0)
    codebook_weight: float = Field(default=1.0, ge=0)
    commitment_weight: float = Field(default=0.25, ge=0)
    kl_weight: float = Field(default=1e-4, ge=0, description="per element of the latent")
    discriminator: Judge = Judge()
    images: PositiveInt | None = Field(default=None, description="slices that it is trained on, or train.images")
    learning_rate: float | None = Field(default=None, gt=0)
    weights: str | None = Field(default=None, description="folder of this stage in another run, instead of training")

    def shape(self) -> AutoencoderConfig:
        """Give the autoencoder's shape."""
        return AutoencoderConfig(
            kind=self.kind,
            channels=self.channels,
            multipliers=tuple(self.multipliers),
            strides=tuple(self.strides),
            blocks=self.blocks if isinstance(self.blocks, int) else tuple(self.blocks),
            latent_channels=self.latent_channels,
            codes=self.codes,
            moving_average=self.moving_average,
            patience=self.patience,
            attention=self.attention,
            head_channels=self.head_channels,
            groups=self.groups,
        )

    def judge(self) -> DiscriminatorConfig:
        """Give the discriminator's shape."""
        own = self.discriminator
        return DiscriminatorConfig(channels=own.channels, strides=tuple(own.strides), groups=own.groups)

    @property
    def about(self) -> dict[str, Any]:
        """What weights must share with this table, by key."""
        training = {"codebook_weight", "commitment_weight", "kl_weight", "patience", "images", "learning_rate"}
        said = self.model_dump(mode="json", exclude={*training, "weights"})
        judge = said.pop("discriminator")
        return {**said, **{f"discriminator.{key}": judge[key] for key in ("channels", "strides", "groups")}}


def autoencoder_stage(settings: FirstStage, target: str, residual: Residual) -> Stage:
    """Give the stage that trains the autoencoder on source, target and, for ``"image"``, residual as images apart."""
    shape, judge = settings.shape(), settings.judge()
    weights = {
        "codebook": settings.codebook_weight,
        "commitment": settings.commitment_weight,
        "kl": settings.kl_weight,
    }

    def build() -> dict[str, nn.Module]:
        pair = Autoencoder(shape), Discriminator(judge)
        return {NAME: Adversarial(*pair, weight=settings.discriminator.weight)}

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        network = fitted.networks[NAME]
        images = images_of(batch, target, residual)
        every, valid = (torch.cat(part) for part in zip(*images.values(), strict=True))
        eps = None
        if settings.kind == "kl":
            size = shape.latent_size(every.shape[2:])
            eps = noise.normal((len(images), shape.latent_channels, *size)).transpose(0, 1).flatten(0, 1)
        fool = batch.progress >= settings.discriminator.start
        made, terms = network(every, eps, fool=fool, valid=valid)
        terms["penalty"] = made.penalty(**weights)
        codebook = autoencoder_of(fitted).codebook
        told = {name: float(term.detach()) for name, term in terms.items()}
        if codebook is not None:
            codebook.check()
            codebook.update(made.latent, made.codes, _batch_generator(noise))
            told["codes_used"] = codebook.usage().share
        return torch.stack([*terms.values()]).sum(), told

    return Stage(
        NAME,
        Item(radius=0),
        build,
        loss,
        images=settings.images,
        learning_rate=settings.learning_rate,
        about=settings.about,
        weights=None if settings.weights is None else Path(settings.weights),
        judged=False,
    )


def _batch_generator(noise: ItemNoise) -> torch.Generator:
    """Give a generator for what a batch decides as one, drawn from its first item."""
    return torch.Generator().manual_seed(int(noise.uniform()[0] * 2**53))


def images_of(batch: Batch, target: str, residual: Residual) -> dict[Role, tuple[Tensor, Tensor]]:
    """Give the images (B, 1, H, W) of items of one slice by role, and where each is known."""
    source, truth, valid = (each[:, :, 0] for each in (batch.source, batch.targets[target], batch.valid[target]))
    images: dict[Role, tuple[Tensor, Tensor]] = {
        "source": (source, torch.ones_like(valid)),
        "target": (truth, valid),
    }
    if residual == "image":
        images["residual"] = residual_image(source, truth), valid
    return images


def residual_image(source: Tensor, target: Tensor) -> Tensor:
    """Give (target - source) / 2: half the difference keeps to [-1, 1], where clipping would erase what matters."""
    return (target - source) / 2


def autoencoder_of(fitted: Fitted) -> Autoencoder:
    """Give the autoencoder of a latent method, in training or trained."""
    network = fitted.networks[NAME]
    inner = network.autoencoder
    assert isinstance(inner, Autoencoder)  # noqa: S101  (for the type)
    return inner
