"""Raw signals of doubt: where a translation is unsure, high = unsure. Rankings, none of them a probability.

A signal is one function: of what a translation drew it makes a map, or None where this translation has none. To add
one (a method's own score, a learned head), write the function and name it in `SIGNALS`; calibration then tries it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from scanbridge.methods.base import Draws


@dataclass(frozen=True)
class Drawn:
    """What one translation drew: the estimate, and the draws where samples were asked for."""

    estimate: Draws
    draws: Draws | None = None


class Signal(Protocol):
    """Gives a map (D, H, W) on the model grid, 0 or more, in the scale of [-1, 1]; None where there is none."""

    def __call__(self, drawn: Drawn) -> Tensor | None:
        """Give the map."""


def windows(drawn: Drawn) -> Tensor | None:
    """Give the disagreement of the windows that hold a voxel, at the estimate's last call."""
    return drawn.estimate.uncertainty


def spread(drawn: Drawn) -> Tensor | None:
    """Give the standard deviation over K draws, for K above 1."""
    draws = drawn.draws
    return None if draws is None or len(draws.volumes) < 2 else draws.uncertainty


SIGNALS: dict[str, Signal] = {"windows": windows, "spread": spread}
OF_DRAWS = ("spread",)
"""Signals that need draws."""


def signals_of(drawn: Drawn) -> dict[str, Tensor]:
    """Give the signals that a translation has, by name."""
    found = {name: signal(drawn) for name, signal in SIGNALS.items()}
    return {name: each for name, each in found.items() if each is not None}
