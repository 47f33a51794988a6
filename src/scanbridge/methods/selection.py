"""Several draws of one source: what each walk ends at, which one is kept, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from scanbridge.methods.base import Draws
from scanbridge.strict import Strict


class Selection(Strict):
    """The paper's way to one image: draw several, keep the most consistent."""

    draws: int = Field(default=1, gt=0, description="1: the walk of [estimate]; more: so many draws of [draw]")
    keep: Literal["best", "mean"] = Field(default="best", description="of them, the best by score, or their mean")


@dataclass(frozen=True)
class End:
    """One walk's end: volume (D, H, W), its signals alike, and its consistency score where there are two branches."""

    volume: Tensor
    signals: dict[str, Tensor]
    score: float | None


def kept(ends: Sequence[End], keep: Literal["best", "mean"]) -> tuple[list[End], int | str]:
    """Give the end with the best score, or the mean of all, and which it is."""
    if keep == "best" and ends[0].score is not None:
        best = max(range(len(ends)), key=lambda k: ends[k].score or 0.0)
        return [ends[best]], best
    volume = torch.stack([end.volume for end in ends]).mean(dim=0)
    signals = {name: torch.stack([end.signals[name] for end in ends]).mean(dim=0) for name in ends[0].signals}
    return [End(volume, signals, None)], "mean"


def together(ends: Sequence[End], calls: int, facts: dict[str, Any]) -> Draws:
    """Put the ends of walks together; the raw uncertainty is the spread of several, of one the branches' disagreement.

    Not the score: it is in units of a latent, coarse, and given by a network that the bridges were trained against.
    """
    volumes = torch.stack([end.volume for end in ends])
    signals = {name: torch.stack([end.signals[name] for end in ends]).mean(dim=0) for name in ends[0].signals}
    own = signals.get("branches", torch.zeros_like(volumes[0]))
    return Draws(volumes, volumes.std(dim=0) if len(ends) > 1 else own, calls, facts, signals)
