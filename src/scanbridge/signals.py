"""Raw signals of doubt: where a translation is unsure, high = unsure. Rankings, none of them a probability.

A signal is one function: of what a translation drew it makes a map, or None where this translation has none. To add
one, write the function and name it in `SIGNALS`; calibration then tries it. What a method alone can say comes with its
estimate, and the method names it in its ``signals(config)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scanbridge.methods.base import Draws


@dataclass(frozen=True)
class Drawn:
    """What one translation drew: the estimate, and the standard deviation (D, H, W) of its draws, two at least.

    `source` (D, H, W) in [-1, 1] is what it was drawn from; `head`, where there is one, predicts |error| from `seen`.
    """

    estimate: Draws
    spread: Tensor | None = None
    source: Tensor | None = None
    head: Callable[[Mapping[str, Tensor]], Tensor] | None = None

    @property
    def seen(self) -> dict[str, Tensor]:
        """What a learned signal sees, (D, H, W) each: source, estimate, and the signals that need neither draws nor it.

        In float16, as it is kept on disk, so that a map is the same from there.
        """
        if self.source is None:
            return {}
        raw = signals_of(Drawn(self.estimate))
        volumes = {"source": self.source, "estimate": self.estimate.volumes[0], **raw}
        return {name: volume.to("cpu", torch.float16) for name, volume in volumes.items()}


class Signal(Protocol):
    """Gives a map (D, H, W) on the model grid, 0 or more, in the scale of [-1, 1]; None where there is none."""

    def __call__(self, drawn: Drawn) -> Tensor | None:
        """Give the map."""


def windows(drawn: Drawn) -> Tensor | None:
    """Give the disagreement of the windows that hold a voxel: regression or last call; None for own maps."""
    return None if drawn.estimate.signals else drawn.estimate.uncertainty


def spread(drawn: Drawn) -> Tensor | None:
    """Give the standard deviation over K draws, for K above 1."""
    return drawn.spread


def head(drawn: Drawn) -> Tensor | None:
    """Give the |error| that a network expects which was fitted on held-out errors, where the run has one."""
    return None if drawn.head is None else drawn.head(drawn.seen)


HEAD, WINDOWS = "head", "windows"
SIGNALS: dict[str, Signal] = {WINDOWS: windows, "spread": spread, HEAD: head}
OF_DRAWS = ("spread",)
"""Signals that need draws."""


def signals_of(drawn: Drawn) -> dict[str, Tensor]:
    """Give the signals that a translation has, by name; what a method alone can say comes with its estimate."""
    found = {name: signal(drawn) for name, signal in SIGNALS.items()}
    return {name: each for name, each in found.items() if each is not None} | drawn.estimate.signals
