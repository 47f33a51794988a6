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
    weights = _head(kind, process, *process.coefficients(t.double()), residual_scale)
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
    weights = _solution(kind, process, *process.coefficients(t.double()), residual_scale)
    w_o, w_x, w_y = (expand(w, output) for w in weights)
    return w_o * output + w_x * state + w_y * source


def _head(kind: Prediction, process: Process, a: Tensor, b: Tensor, c: Tensor, sd: float) -> Coefficients:
    """Give the weights of x_0, y and eps in what the network predicts."""
    one, none = torch.ones_like(a), torch.zeros_like(a)
    match kind:
        case "target":
            return one, none, none
        case "noise":
            return none, none, one
        case "difference":  # x_t - x_0, BBDM's "grad"
            return a - 1, b, c
        case "shift":  # y - x_0
            return -one, one, none
        case "velocity":
            theta = _angle(process, a, c, sd)
            return -torch.cos(theta), none, sd * torch.sin(theta)


def _solution(kind: Prediction, process: Process, a: Tensor, b: Tensor, c: Tensor, sd: float) -> Coefficients:
    """Give the weights of output, state and source in x_0."""
    one, none = torch.ones_like(a), torch.zeros_like(a)
    match kind:
        case "target":
            return one, none, none
        case "noise":
            if bool((a == 0).any()):
                raise UserError(
                    f"a network that predicts the noise cannot start {process.name} at t = 1",
                    "a signal in the state (a > 0)",
                    "predict 'target' or 'difference', or start at the last published step",
                )
            return -c / a, 1 / a, -b / a
        case "difference":
            return -one, one, none
        case "shift":
            return -one, none, one
        case "velocity":
            theta = _angle(process, a, c, sd)
            size = torch.hypot(c, sd * a).clamp(min=torch.finfo(a.dtype).tiny)  # 0 at the start of a bridge, with sin
            trust = sd * torch.sin(theta) / size
            return -torch.cos(theta), trust, -trust * b


def _angle(process: Process, a: Tensor, c: Tensor, sd: float) -> Tensor:
    """Give theta = arctan(sd kappa): 0 where the state says nothing of x_0, pi / 2 where it says all."""
    if process.noiseless:
        raise UserError(f"'velocity' is not defined for {process.name}", "a process with noise", "predict 'target'")
    return torch.atan2(sd * a, c)
