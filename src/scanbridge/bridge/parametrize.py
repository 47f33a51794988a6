"""What a network predicts, as exact affine algebra between x_0, y and eps at a given time.

A head ``o = w_0 x_0 + w_y y + w_e eps`` is what `encode` trains; `decode` solves it for x_0, given x_t and y.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scanbridge.bridge.process import Coefficients, Process, expand
from scanbridge.errors import UserError

Prediction = Literal["target", "noise", "difference", "shift", "velocity"]

# name: weights (w_0, w_y, w_e) of x_0, y and eps in what the network predicts
_WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor], Coefficients]] = {
    "target": lambda a, b, c: (torch.ones_like(a), 0 * b, 0 * c),  # x_0
    "noise": lambda a, b, c: (0 * a, 0 * b, torch.ones_like(c)),  # eps
    "difference": lambda a, b, c: (a - 1, b, c),  # x_t - x_0, BBDM's "grad"
    "shift": lambda a, b, c: (-torch.ones_like(a), torch.ones_like(b), 0 * c),  # y - x_0
    "velocity": lambda a, b, c: (-c, 0 * b, a),  # a eps - c x_0, for a^2 + c^2 = 1 and b = 0
}

# name: weights of output, state and source in x_0
_SOLUTION: dict[str, Callable[[Tensor, Tensor, Tensor], Coefficients]] = {
    "target": lambda a, b, c: (torch.ones_like(a), 0 * b, 0 * c),
    "noise": lambda a, b, c: (-c / a, 1 / a, -b / a),
    "difference": lambda a, b, c: (-torch.ones_like(a), torch.ones_like(b), 0 * c),
    "shift": lambda a, b, c: (-torch.ones_like(a), 0 * b, torch.ones_like(c)),
    "velocity": lambda a, b, c: (-c, a, 0 * b),
}


def encode(kind: Prediction, process: Process, t: Tensor, target: Tensor, source: Tensor, noise: Tensor) -> Tensor:
    """Give what a network of this `kind` should predict at times `t` (B,); images are (B, ...).

    Raises
    ------
    UserError
        For the velocity of a process with b != 0 or a^2 + c^2 != 1.
    """
    a, b, c = process.coefficients(t.double())
    _refuse_undefined_velocity(kind, process, a, b, c)
    w_0, w_y, w_e = (expand(w, target) for w in _WEIGHTS[kind](a, b, c))
    return w_0 * target + w_y * source + w_e * noise


def decode(kind: Prediction, process: Process, t: Tensor, output: Tensor, state: Tensor, source: Tensor) -> Tensor:
    """Solve for x_0 from a network's `output` at `state` x_t, times `t` (B,); images are (B, ...).

    Raises
    ------
    UserError
        Where the head does not determine x_0: noise at a = 0, velocity for a process with b != 0 or a^2 + c^2 != 1.
    """
    a, b, c = process.coefficients(t.double())
    if kind == "noise" and bool((a == 0).any()):
        raise UserError(
            f"a network that predicts the noise cannot start {process.name} at t = 1",
            "a signal in the state (a > 0)",
            "predict 'target' or 'difference', or start at the last published step",
        )
    _refuse_undefined_velocity(kind, process, a, b, c)
    w_o, w_x, w_y = (expand(w, output) for w in _SOLUTION[kind](a, b, c))
    return w_o * output + w_x * state + w_y * source


def _refuse_undefined_velocity(kind: Prediction, process: Process, a: Tensor, b: Tensor, c: Tensor) -> None:
    if kind == "velocity" and not bool(torch.all((b == 0) & ((a**2 + c**2 - 1).abs() < 1e-9))):
        raise UserError(f"'velocity' is not defined for {process.name}", "a ddpm process", "predict 'target'")
