"""What the laws of the core are held against: all processes, and two laws of x_0 given y that are solved exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from scanbridge.bridge.process import (
    Process,
    as_time,
    brownian_bridge,
    ddpm,
    geometric_shift,
    linear_beta,
    linear_shift,
    rectified,
    residual_shift,
)
from scanbridge.bridge.sample import Grid

RESSHIFT = residual_shift(2.0, geometric_shift())
RESDM = residual_shift(0.1, linear_shift())
PROCESSES = [brownian_bridge(), brownian_bridge(0.1), RESSHIFT, RESDM, ddpm(linear_beta()), rectified()]
NOISY = [process for process in PROCESSES if not process.noiseless]
BRIDGES = [process for process in NOISY if float(process.kappa(as_time(1.0))) == 0]

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
every_bridge = pytest.mark.parametrize("process", BRIDGES, ids=lambda process: process.name)
every_noisy_process = pytest.mark.parametrize("process", NOISY, ids=lambda process: process.name)

GRIDS: list[Grid] = ["theta", "linear", "quadratic", "lambda", "published"]
every_grid = pytest.mark.parametrize("grid", GRIDS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noises(*shape: int, seed: int = 0) -> Callable[[int], Tensor]:
    return lambda step: random(*shape, seed=1000 * seed + step)


class Seen:
    """A denoiser that keeps the states and times that it was called with."""

    def __init__(self, denoise: Callable[[Tensor, float], Tensor]) -> None:
        self.denoise = denoise
        self.states: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, state: Tensor, t: float) -> Tensor:
        self.states.append(state)
        self.times.append(t)
        return self.denoise(state, t)


def bend(state: Tensor, t: float) -> Tensor:
    """Stand for a network: smooth, nonlinear, different at every time."""
    return torch.tanh(0.7 * state + math.sin(9 * t))


def weights(process: Process, t: float) -> tuple[float, float, float]:
    a, b, c = process.coefficients(as_time(t))
    return float(a), float(b), float(c)


def coordinate(process: Process, t: float, state: Tensor, source: Tensor) -> tuple[Tensor, float]:
    """Give u and kappa, with u = 0 where c = 0 (kappa is 0 there as well, and nothing depends on u)."""
    _, b, c = weights(process, t)
    kappa = float(process.kappa(as_time(t)))
    return (state - b * source) / c if c > 0 else torch.zeros_like(state), kappa


@dataclass
class Gaussian:
    """T1: x_0 | y ~ N(mean, sd^2). A path of the flow keeps (u - kappa mean) / sqrt(1 + kappa^2 sd^2)."""

    process: Process
    source: Tensor
    mean: float = 0.3
    sd: float = 0.2

    def denoise(self, state: Tensor, t: float) -> Tensor:
        u, kappa = coordinate(self.process, t, state, self.source)
        return (self.mean + kappa * self.sd**2 * u) / (1 + (kappa * self.sd) ** 2)

    def state(self, kappa: float, z: Tensor) -> Tensor:
        """Give u at `kappa` on the path that starts as `z` at kappa = 0."""
        return kappa * self.mean + np.sqrt(1 + (kappa * self.sd) ** 2) * z


@dataclass
class Mixture:
    """T2: .65 N(.1, .06^2) + .35 N(.6, .1^2). The flow keeps quantiles, so x_0 = F^-1(Phi(u_1))."""

    process: Process
    source: Tensor

    _share = np.array([0.65, 0.35])
    _means = np.array([0.1, 0.6])
    _sds = np.array([0.06, 0.10])

    def denoise(self, state: Tensor, t: float) -> Tensor:
        u, kappa = coordinate(self.process, t, state, self.source)
        value = u.numpy()[:, None]
        variance = 1 + (kappa * self._sds) ** 2
        log_share = np.log(self._share) - 0.5 * np.log(variance) - (value - kappa * self._means) ** 2 / (2 * variance)
        share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return torch.from_numpy((share * (self._means + kappa * self._sds**2 * value) / variance).sum(axis=1))

    def state(self, kappa: float, z: Tensor) -> Tensor:
        """Give u at `kappa` on the paths that start as `z` at kappa = 0."""
        return self._quantile(z, kappa * self._means, np.sqrt(1 + (kappa * self._sds) ** 2))

    def target(self, z: Tensor) -> Tensor:
        return self._quantile(z, self._means, self._sds)

    def _quantile(self, z: Tensor, means: np.ndarray, sds: np.ndarray) -> Tensor:
        level = ndtr(z.numpy())
        low, high = np.full_like(level, means.min() - 9 * sds.max()), np.full_like(level, means.max() + 9 * sds.max())
        for _ in range(80):
            middle = (low + high) / 2
            below = (self._share * ndtr((middle[:, None] - means) / sds)).sum(axis=1) < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return torch.from_numpy((low + high) / 2)


def quantiles(n: int = 2000) -> Tensor:
    """Give `n` evenly spaced quantiles of the standard normal law."""
    return torch.from_numpy(ndtri((np.arange(n) + 0.5) / n))


def rms(value: Tensor) -> float:
    return float(torch.sqrt((value**2).mean()))


def order_of(calls: list[int], errors: list[float]) -> float:
    """Give the order of convergence fitted to the last three errors."""
    return -float(np.polyfit(np.log(calls[-3:]), np.log(errors[-3:]), 1)[0])
