"""The regressions of a bridge on windows: the one that gives the estimate, and those whose misses the bridge learns.

A regression misses less of the people whom it learned from than of anybody else, so a bridge that learns these misses
draws too little for a new person. With `folds` the bridge learns misses of people whom a regression has not seen: the
people are dealt to that many folds, and for each fold one more regression is trained on the others (cross-fitting).

Source: Stone, "Cross-validatory choice and assessment of statistical predictions" (1974); Chernozhukov et al.,
"Double/debiased machine learning" (2018), definition 3.1, for the word and the use.
Axes: windows are (B, images, d, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods.base import Batch, Fitted, Item, Stage, Statistics, TrainingCase
from scanbridge.methods.windows import Network, WindowNet, masked_loss
from scanbridge.strict import Strict


class Regression(Strict):
    """The stage that gives the estimate, before the bridge is trained on what it misses."""

    use: bool = False
    loss: Literal["l1", "l2"] = "l2"
    images: PositiveInt | None = Field(default=None, description="windows that it is trained on, or train.images")
    learning_rate: float | None = Field(default=None, gt=0)
    weights: str | None = Field(default=None, description="folder of this stage in another run, instead of training")
    folds: int = Field(
        default=0,
        ge=0,
        description="parts of the people, each left out by a regression whose misses the bridge learns; 0 for none",
    )
    fold_images: PositiveInt | None = Field(
        default=None, description="windows that the regressions of the folds see together, or train.images"
    )


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


NO_TOKENS = Tokens()


def regression_stage(
    radius: int, network: Network, settings: Regression, target: str, tokens: Tokens = NO_TOKENS
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


def folds_stage(radius: int, network: Network, settings: Regression, target: str, tokens: Tokens) -> Stage:
    """Give the training of one regression for every fold, each on the people of all the others.

    Every item teaches all networks but that of its own fold; the loss is the mean over these and over the items.
    """
    numbers = range(settings.folds)

    def fit(cases: Sequence[TrainingCase], before: Fitted) -> Statistics:
        return {**tokens.fit(cases, before), "fold": deal([case.subject for case in cases], settings.folds)}

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        told, fold = tokens.of(fitted, batch, noise), fold_of(fitted, batch)
        total = batch.source.new_zeros(())
        for number in numbers:
            others = torch.nonzero(fold != number).flatten()
            share = len(others) / (len(fold) * (settings.folds - 1))
            rows = others if len(others) else torch.arange(1)  # at no weight: processes must call networks alike
            output = fitted.networks[fold_name(number)](batch.source[rows], tokens=_some(told, rows))
            total = total + share * masked_loss(
                output, batch.targets[target][rows], batch.valid[target][rows], settings.loss
            )
        return total, {}

    return Stage(
        "folds",
        Item(radius),
        lambda: {fold_name(n): WindowNet(network, Item(radius).width, tokens=tokens.channels) for n in numbers},
        loss,
        fit,
        images=settings.fold_images,
        learning_rate=settings.learning_rate,
    )


def deal(people: Sequence[str], folds: int) -> Tensor:
    """Deal cases to folds by person, in the order of the table: (n,) of fold numbers.

    >>> deal(["a", "a", "b", "c"], 2).tolist()
    [0, 0, 1, 0]

    Raises
    ------
    UserError
        If there is one person only: nobody is left to learn from.
    """
    different = list(dict.fromkeys(people))
    if len(different) < 2:
        raise UserError(
            f"regression.folds = {folds} with {len(different)} person to learn from",
            "two people at least, so that each can be left out",
            "set regression.folds = 0, or train on more people",
        )
    return torch.tensor([different.index(person) % folds for person in people])


def fold_of(fitted: Fitted, batch: Batch) -> Tensor:
    """Give the fold (B,) of each item's person; -1 of a val subject, whom no regression has seen."""
    return torch.where(batch.case < 0, -1, fitted.statistics["fold"][batch.case])


def fold_name(number: int) -> str:
    """Name the network of a fold."""
    return f"fold-{number}"


def training_estimate(settings: Regression, fitted: Fitted, batch: Batch, told: Tensor | None) -> Tensor:
    """Give the estimates (B, 1, d, H, W) whose misses the bridge learns, each by a regression blind to its person."""
    if not settings.folds:
        estimate: Tensor = fitted.networks["regression"](batch.source, tokens=told)
        return estimate
    fold = fold_of(fitted, batch)
    blind = {-1: "regression", **{number: fold_name(number) for number in range(settings.folds)}}
    parts = {name: rows for number, name in blind.items() if len(rows := torch.nonzero(fold == number).flatten())}
    made = [fitted.networks[name](batch.source[rows], tokens=_some(told, rows)) for name, rows in parts.items()]
    return torch.cat(made)[torch.cat([*parts.values()]).argsort()]


def regression_denoiser(
    network: Callable[..., Tensor], tokens: Tensor | None
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Read a trained regression as a denoiser ``(state, source, t) -> x_0`` of windows, which ignores state and t."""

    def denoise(state: Tensor, source: Tensor, t: float) -> Tensor:  # noqa: ARG001
        return network(source, tokens=for_each(tokens, source))

    return denoise


def for_each(tokens: Tensor | None, windows: Tensor) -> Tensor | None:
    """Give tokens (n, c) to each of the windows."""
    return None if tokens is None else tokens.to(windows).expand(len(windows), -1, -1)


def _some(tokens: Tensor | None, rows: Tensor) -> Tensor | None:
    """Give the tokens of some items."""
    return None if tokens is None else tokens[rows]
