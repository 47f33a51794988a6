"""Every path from a target to a source or to noise, as a row of one table.

Notation: ``t`` in [0, 1], 0 is the target and 1 the source end; ``s < t`` the next time of a walk;
``x_t = a_t x_0 + b_t y + c_t eps`` with target ``x_0``, source ``y`` and standard normal ``eps``;
``kappa = a / c``, the amplitude signal to noise, falls strictly in t.
Given y, ``u = (x - b y) / c = kappa x_0 + eps`` is one and the same ordinary diffusion for every process:
a process is only a map between t and kappa.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Coefficients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Posterior:
    """The Gaussian law of x_s given x_t, x_0 and y: weights of the three in its mean, and its variance."""

    state: Tensor
    target: Tensor
    source: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Process:
    """A linear-Gaussian path ``x_t = a_t x_0 + b_t y + c_t eps``; all in float64.

    Parameters
    ----------
    name
        The field's name of the process.
    coefficients
        ``t -> (a, b, c)``, tensors of t's shape.
    time
        ``kappa -> t``, the inverse of `kappa`; accepts 0 and infinity.
    carry
        ``(s, t) -> g``: the weight of x_t in the mean of x_s given x_t, x_0 and y in the process's own Markov chain.
    steps
        The discrete times that a published network was trained on, rising; None where there are none.
    published
        ``calls -> times`` of the published walk, falling, without the final 0; None where there is none.
    """

    name: str
    coefficients: Callable[[Tensor], Coefficients]
    time: Callable[[Tensor], Tensor]
    carry: Callable[[Tensor, Tensor], Tensor]
    steps: Tensor | None = None
    published: Callable[[int], Tensor] | None = None

    @property
    def noiseless(self) -> bool:
        """Whether c is 0 all along, so that only ``mean_path`` exists."""
        return bool(self.coefficients(as_time(0.5))[2] == 0)

    def kappa(self, t: Tensor) -> Tensor:
        """Give a / c at `t`: 0 where a = 0 (also where c = 0 with it), infinity where c = 0 alone."""
        a, _, c = self.coefficients(t)
        return torch.where(a == 0, torch.zeros_like(a), a / c)

    def markov(self, s: Tensor, t: Tensor) -> Tensor:
        """Give the share q of fresh noise in the process's own chain from t to s, in [0, 1]; 1 where c_t = 0."""
        c_s, c_t = self.coefficients(s)[2], self.coefficients(t)[2]
        return torch.sqrt(torch.clamp(1 - (self.carry(s, t) * c_t / c_s) ** 2, min=0))

    def posterior(self, s: Tensor, t: Tensor) -> Posterior:
        """Give the law of x_s given x_t, x_0 and y in the process's own Markov chain, 0 <= s < t <= 1."""
        (a_s, b_s, c_s), (a_t, b_t, c_t) = self.coefficients(s), self.coefficients(t)
        g = self.carry(s, t)
        return Posterior(state=g, target=a_s - g * a_t, source=b_s - g * b_t, variance=c_s**2 - (g * c_t) ** 2)

    def diffuse(self, target: Tensor, source: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Draw x_t, shape of `target` (B, ...), from per-item times `t` (B,) and standard normal `noise`."""
        a, b, c = (expand(w, target) for w in self.coefficients(t.double()))
        return a * target + b * source + c * noise


def brownian_bridge(s: float = 1.0) -> Process:
    """Give the Brownian bridge with variance scale `s` (BBDM, eq. 4; CT2MRI, eq. 1); t is the papers' m.

    The published steps are ``m = 0.001 + 0.998 i / 999`` for i = 0 .. 999, as released, not the printed t / T.
    """

    def coefficients(t: Tensor) -> Coefficients:
        return 1 - t, t, torch.sqrt(2 * s * t * (1 - t))

    steps = torch.linspace(0.001, 0.999, 1000, dtype=torch.float64)
    return Process(
        name=f"brownian_bridge(s={s:g})",
        coefficients=coefficients,
        time=lambda kappa: 1 / (1 + 2 * s * kappa**2),
        carry=lambda s_, t: s_ / t,
        steps=steps,
        published=lambda calls: steps[_released_spacing(calls, top=999)],
    )


def _released_spacing(calls: int, top: int) -> Tensor:
    """Give the `calls` indices of BBDM's and CT2MRI's released "linear" spacing: top .. 2 evenly, then 1, 0."""
    if calls <= 2:
        return torch.tensor([top, 0][:calls])
    spread = [math.floor(top - k * top / (calls - 2)) for k in range(calls - 2)]
    return torch.tensor([*spread, 1, 0])


def residual_shift(k: float, steps: Tensor) -> Process:
    """Give the residual shift with noise scale `k` (ResShift, eq. 1-3; ResDM); t is the papers' shift schedule eta.

    `steps` are the published values of the shift, rising (`linear_shift`, `geometric_shift`). A walk of fewer calls
    keeps the last of them, which ResShift's own spacing drops.
    """
    steps = steps.double()

    def published(calls: int) -> Tensor:
        index = torch.linspace(len(steps) - 1, 0, calls, dtype=torch.float64).round().long()
        return steps[index]

    return Process(
        name=f"residual_shift(k={k:g})",
        coefficients=lambda t: (1 - t, t, k * torch.sqrt(t)),
        time=lambda kappa: _root_of_shift(k * kappa) ** 2,
        carry=lambda s, t: s / t,
        steps=steps,
        published=published,
    )


def _root_of_shift(z: Tensor) -> Tensor:
    """Solve (1 - r^2) / r = z for r in [0, 1], without cancellation for large z."""
    return 2 / (z + torch.sqrt(z**2 + 4))


def linear_shift(n_steps: int = 15, first: float = 0.04, last: float = 0.999) -> Tensor:
    """Give ResDM's released schedule: linear in the shift itself."""
    return torch.linspace(first, last, n_steps, dtype=torch.float64)


def geometric_shift(
    n_steps: int = 15, k: float = 2.0, smallest: float = 0.04, last: float = 0.99, power: float = 0.3
) -> Tensor:
    """Give ResShift's schedule: sqrt(shift) geometric from min(m / k, m) to `last`, exponent (i / (T - 1))^power."""
    first = min(smallest / k, smallest)
    exponent = torch.linspace(0, 1, n_steps, dtype=torch.float64) ** power
    return (first * (last / first) ** exponent) ** 2


def ddpm(abar: Tensor) -> Process:
    """Give the variance-preserving process of DDPM (Ho et al. 2020, eq. 4) with cumulative products `abar` (T,).

    Step i of 1..T lies at t = i / T; between steps kappa is log-linear; below the first, kappa = kappa_1 / (T t).
    The source does not enter the state (b = 0): it conditions the network alone.
    """
    abar = abar.double()
    n_steps = len(abar)
    log_kappa = 0.5 * (torch.log(abar) - torch.log1p(-abar))
    knots = torch.arange(1, n_steps + 1, dtype=torch.float64) / n_steps

    def kappa(t: Tensor) -> Tensor:
        position = torch.clamp(t * n_steps - 1, 0, n_steps - 1)
        low = torch.clamp(position.floor().long(), max=max(n_steps - 2, 0))
        high = torch.clamp(low + 1, max=n_steps - 1)
        table = log_kappa.to(t.device)
        inside = table[low] + (position - low) * (table[high] - table[low])
        return torch.where(t < knots[0], log_kappa[0].exp() * knots[0] / t, inside.exp())

    def coefficients(t: Tensor) -> Coefficients:
        root = 1 / torch.sqrt(1 + kappa(t) ** -2)
        return root, torch.zeros_like(t), 1 / torch.sqrt(1 + kappa(t) ** 2)

    def time(value: Tensor) -> Tensor:
        falling = torch.flip(log_kappa, dims=(0,))
        level = torch.log(value)
        cell = torch.clamp(torch.searchsorted(falling, level.contiguous()), 1, n_steps - 1)
        low, high = falling[cell - 1], falling[cell]
        inside = (n_steps - cell + (high - level) / (high - low)) / n_steps
        return torch.where(level > log_kappa[0], log_kappa[0].exp() * knots[0] / value, torch.clamp(inside, max=1.0))

    def carry(s: Tensor, t: Tensor) -> Tensor:
        (a_s, _, c_s), (a_t, _, c_t) = coefficients(s), coefficients(t)
        return (a_t / a_s) * (c_s / c_t) ** 2

    def published(calls: int) -> Tensor:
        return knots[torch.linspace(n_steps - 1, 0, calls, dtype=torch.float64).round().long()]

    return Process(f"ddpm({n_steps})", coefficients, time, carry, steps=knots, published=published)


def linear_beta(n_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Give the cumulative products of DDPM's linear schedule, shape (n_steps,)."""
    return torch.cumprod(1 - torch.linspace(first, last, n_steps, dtype=torch.float64), dim=0)


def rectified() -> Process:
    """Give the straight, noiseless path: the deterministic peer; only ``mean_path`` (its Euler walk) exists."""
    return Process(
        name="rectified",
        coefficients=lambda t: (1 - t, t, torch.zeros_like(t)),
        time=torch.zeros_like,
        carry=lambda s, t: s / t,
    )


def as_time(t: float | Tensor) -> Tensor:
    """Give `t` as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64)


def expand(weight: Tensor, like: Tensor) -> Tensor:
    """Shape per-item weights (B,) to multiply `like` (B, ...), in its precision and on its device."""
    return weight.to(like).reshape(-1, *(1,) * (like.ndim - 1))
