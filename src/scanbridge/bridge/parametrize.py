"""What a network predicts, as exact affine algebra between x_0, y and eps at a given time.

A head ``o = w_0 x_0 + w_y y + w_e eps`` is what `encode` trains; `decode` solves it for x_0, given x_t and y.

The velocity is ``sd sin(theta) eps - cos(theta) x_0`` with theta = arctan(sd kappa): at the source end the target
itself, at the target end the state's noise, and between them ``x_0 = g (x_t - b y) - cos(theta) o`` with
g = sd sin(theta) / sqrt(c^2 + sd^2 a^2), the share that a Gaussian residual of scale sd would leave to the state. It is
the preconditioning of Karras et al. (2022, table 1) for any of the processes: the network neither learns to copy the
state where that says all, nor to ignore it where it says nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from scanbridge.bridge.process import Coefficients, Process, expand
from scanbridge.errors import UserError

Prediction = Literal["target", "noise", "difference", "shift", "velocity"]


def encode(
    kind: Prediction,
    process: Process,
    t: Tensor,
    target: Tensor,
    source: Tensor,
    noise: Tensor,
    *,
    residual_scale: float = 1.0,
) -> Tensor:
    """Give what a network of this `kind` should predict at times `t` (B,); images are (B, ...).

    `residual_scale` is that of the velocity: with 1 a ddpm's is Salimans and Ho's a eps - c x_0 (2022, appendix D).

    Raises
    ------
    UserError
        For the velocity of a process without noise.
    """
    weights, _ = _head(kind, process, t, residual_scale)
    w_0, w_y, w_e = (expand(w, target) for w in weights)
    return w_0 * target + w_y * source + w_e * noise


def decode(
    kind: Prediction,
    process: Process,
    t: Tensor,
    output: Tensor,
    state: Tensor,
    source: Tensor,
    *,
    residual_scale: float = 1.0,
) -> Tensor:
    """Solve for x_0 from a network's `output` at `state` x_t, times `t` (B,); images are (B, ...).

    Raises
    ------
    UserError
        Where the head does not determine x_0: noise at a = 0, velocity for a process without noise.
    """
    _, weights = _head(kind, process, t, residual_scale)
    if kind == "noise" and not bool(weights[0].isfinite().all()):
        raise UserError(
            f"a network that predicts the noise cannot start {process.name} at t = 1",
            "a signal in the state (a > 0)",
            "predict 'target' or 'difference', or start at the last published step",
        )
    w_o, w_x, w_y = (expand(w, output) for w in weights)
    return w_o * output + w_x * state + w_y * source


def _head(kind: Prediction, process: Process, t: Tensor, sd: float) -> tuple[Coefficients, Coefficients]:
    """Give the weights of x_0, y and eps in what the network predicts, and of output, state and source in x_0."""
    if kind == "velocity" and process.noiseless:
        raise UserError(f"'velocity' is not defined for {process.name}", "a process with noise", "predict 'target'")
    a, b, c = process.coefficients(t.double())
    one, none, size = torch.ones_like(a), torch.zeros_like(a), torch.hypot(c, sd * a)
    cos, sin = (f(torch.atan2(sd * a, c)) for f in (torch.cos, torch.sin))  # theta = 0 at the start of a bridge
    trust = sd * sin / size.clamp(min=torch.finfo(size.dtype).tiny)
    return {
        "target": ((one, none, none), (one, none, none)),
        "noise": ((none, none, one), (-c / a, 1 / a, -b / a)),
        "difference": ((a - 1, b, c), (-one, one, none)),  # x_t - x_0, BBDM's "grad"
        "shift": ((-one, one, none), (-one, none, one)),  # y - x_0
        "velocity": ((-cos, none, sd * sin), (-cos, trust, -trust * b)),
    }[kind]
