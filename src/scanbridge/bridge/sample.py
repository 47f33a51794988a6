"""Time grids, the walk from the source end to the target, and the Langevin corrector.

Notation as in `process`: D is the network's estimate of x_0 at (x_t, t); ``u = (x - b y) / c``; z fresh noise;
``eta`` the stochasticity of a walk, q the share of fresh noise in a step; sd the residual scale, RMS of x_0 - D(y, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from scanbridge.bridge.process import Process, as_time
from scanbridge.errors import UserError

Denoise = Callable[[Tensor, float], Tensor]
Variance = Callable[[float], float]
Grid = Literal["theta", "linear", "quadratic", "lambda", "published"]
Start = Literal["prior", "source", "source+noise"]
Path = Literal["marginals", "mean"]

DEFAULT_RESIDUAL_SCALE = 0.25


def time_grid(
    process: Process, calls: int, *, grid: Grid = "theta", residual_scale: float = DEFAULT_RESIDUAL_SCALE
) -> Tensor:
    """Give at most `calls` + 1 falling times, float64: where the network is called, then 0; equal ones are merged.

    theta
        uniform in arctan(sd kappa): both end intervals are of the size that a second order needs.
    linear, quadratic
        uniform in t, in sqrt(t).
    lambda
        uniform in log kappa over kappa sd in [1 / calls, calls], with 1 and 0 appended.
    published
        the process's own discrete walk.

    Source: `theta` and the clip of `lambda` by derivation; Song et al. 2021, section 4.2 for respacing.

    Raises
    ------
    UserError
        For less than one call, a grid in kappa where there is no noise, or more published calls than published steps.
    """
    if calls < 1:
        raise UserError(f"calls = {calls}", "at least one network call", "set calls to 1 or more")
    if process.noiseless and grid in ("theta", "lambda"):
        raise UserError(f"grid = '{grid}' for {process.name}, without noise", "a grid in t", "set grid to 'linear'")
    share = torch.arange(calls, dtype=torch.float64) / calls
    match grid:
        case "theta":
            times = process.time(torch.tan(share * math.pi / 2) / residual_scale)
        case "linear":
            times = 1 - share
        case "quadratic":
            times = (1 - share) ** 2
        case "lambda":
            edge = math.log(calls) if calls > 2 else 0.0
            inner = torch.linspace(-edge, edge, calls - 1, dtype=torch.float64).exp() / residual_scale
            times = process.time(torch.cat([torch.zeros(1, dtype=torch.float64), inner]))
        case "published":
            times = _published_times(process, calls)
    return torch.cat([torch.unique_consecutive(times), torch.zeros(1, dtype=torch.float64)])


def _published_times(process: Process, calls: int) -> Tensor:
    if process.published is None or process.steps is None:
        raise UserError(f"{process.name} has no published walk", "another grid", "set grid to 'linear'")
    if calls > len(process.steps):
        raise UserError(
            f"calls = {calls} on the published grid",
            f"at most the {len(process.steps)} steps of {process.name}",
            "set grid to 'theta', or fewer calls",
        )
    return process.published(calls)


def snap(times: Tensor, steps: Tensor) -> Tensor:
    """Move all times but the final 0 to the nearest trained step; nodes that fall together are merged."""
    nearest = (times[:-1, None] - steps).abs().argmin(dim=1)
    return torch.cat([steps[torch.unique_consecutive(nearest)], times[-1:]])


def residual_variance(process: Process, residual_scale: float) -> Variance:
    """Give t -> Var(x_0 | x_t, y) of a Gaussian residual, sd^2 / (1 + kappa^2 sd^2): what `walk` takes as V_t."""

    def variance(t: float) -> float:
        return residual_scale**2 / (1 + (float(process.kappa(as_time(t))) * residual_scale) ** 2)

    return variance


class Corrector(Protocol):
    """Moves the state at its time towards the law that the network describes."""

    def __call__(self, state: Tensor, t: float, denoise: Denoise) -> tuple[Tensor, Tensor | None]:
        """Give the corrected state, and an estimate of x_0 to reuse as the next prediction where there is one."""


@dataclass(frozen=True)
class Step:
    """What a walk tells after each network call: number of the call, its time, and the estimate of x_0."""

    call: int
    calls: int
    t: float
    estimate: Tensor


def walk(
    denoise: Denoise,
    process: Process,
    source: Tensor,
    times: Tensor,
    noise: Callable[[int], Tensor],
    *,
    path: Path = "marginals",
    order: Literal[1, 2] = 1,
    eta: float = 0.0,
    temperature: float = 1.0,
    start: Start = "prior",
    residual_scale: float = DEFAULT_RESIDUAL_SCALE,
    variance: Variance | None = None,
    corrector: Corrector | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Walk from the source end to the target and give the estimate of x_0, shape of `source`.

    Parameters
    ----------
    denoise
        ``(state, t) -> D``, called once a node.
    source
        y, any shape, in [-1, 1].
    times
        Falling, last one 0, from `time_grid`; one network call each but the last.
    noise
        ``step -> standard normal``, shape of `source`; step 0 is the start.
    path
        ``"marginals"``: u_s = sqrt(1 - q^2) (u_t - kappa_t D) + kappa_s D + q z; eta = 0 is DDIM (DBIM, eq. 12),
        eta = 1 the process's own chain. ``"mean"``: BBDM's and CT2MRI's released walk with its noise switched
        off, which keeps eta = 1 in the mean: it iterates the posterior mean and has no spread.
    order
        2 extrapolates D over the step in w = kappa / sqrt(1 + kappa^2 sd^2), for the marginals alone. With eta > 0 it
        is the stochastic multistep in w (SDE-DPM-Solver++ 2M, Lu et al. 2022, in other coordinates).
    eta
        Stochasticity, 0 to 1.
    temperature
        Scale of the starting noise; 0 gives one deterministic path without spread.
    start
        ``"prior"``: u = temperature z; ``"source"``: x = y; ``"source+noise"``: x = y + temperature c z.
    residual_scale
        sd, for order 2.
    variance
        ``t -> V_t``, Var(x_0 | x_t, y) as one number a time, such as `residual_variance`. Where D is held over a step
        (order 1, and the first step of order 2) the posterior mean stands for x_0 and (kappa_s - sqrt(1 - q^2)
        kappa_t)^2 V_t of the variance of u is lost: it is added as noise, V_t itself at the last step. None: nothing.
    corrector
        Applied at every new time but the last.
    on_step
        Told after each call; may raise to stop early.

    Raises
    ------
    UserError
        For a combination that does not exist: see `path`, `order`, `eta` and `variance`.
    """
    _refuse_impossible(process, path, order, eta, variance, corrector)
    u, x = _start(process, source, float(times[0]), start, temperature, noise)
    history: tuple[float, Tensor] | None = None
    reused: Tensor | None = None
    for call, (t, s) in enumerate(pairwise(times.tolist())):
        estimate = denoise(x, t) if reused is None else reused
        if on_step is not None:
            on_step(Step(call + 1, len(times) - 1, t, estimate))
        if path == "mean":
            if s == 0:
                return estimate
            x = _mean_step(process, s, t, x, estimate, source)
        else:
            kappa = float(process.kappa(as_time(t)))
            mean, lost = estimate, 0.0 if variance is None else variance(t)
            if order == 2 and history is not None:
                mean, lost = _mean_of_step(process, s, kappa, estimate, history, residual_scale), 0.0
            if s == 0:
                return mean + math.sqrt(lost) * noise(call + 1) if lost > 0 else mean
            q = eta * float(process.markov(as_time(s), as_time(t)))
            kept = math.sqrt(1 - q**2)
            gain = float(process.kappa(as_time(s))) - kept * kappa
            spread = math.sqrt(q**2 + gain**2 * lost)
            u = kept * u + gain * mean
            if spread > 0:
                u = u + spread * noise(call + 1)
            history = (kappa, estimate)
            x = _state(process, s, u, source)
        reused = None
        if corrector is not None:
            x, reused = corrector(x, s, denoise)
            if path == "marginals":
                u = _coordinate(process, s, x, source)
    raise ValueError("times must end with 0")


def _refuse_impossible(
    process: Process, path: Path, order: int, eta: float, variance: Variance | None, corrector: Corrector | None
) -> None:
    if process.noiseless and path != "mean":
        raise UserError(f"{process.name} has no noise to walk with", "path = 'mean'", "set walk to 'mean_path'")
    if process.noiseless and corrector is not None:
        raise UserError(f"{process.name} has no score", "no corrector", "set corrections to 0")
    if not 0 <= eta <= 1:
        raise UserError(f"eta = {eta:g}", "a number from 0 to 1", "set eta to 0 (deterministic) or 1 (the full chain)")
    if path == "mean" and eta > 0:
        raise UserError(f"mean_path with eta = {eta:g}", "eta = 0", "set eta to 0, or walk to 'marginals'")
    if path == "mean" and variance is not None:
        raise UserError("mean_path with a variance", "variance = 'none'", "set it so, or walk to 'marginals'")
    if order == 2 and path == "mean":
        raise UserError("order 2 is not defined for mean_path", "order 1", "set order to 1 or walk to 'marginals'")
    if order == 2 and isinstance(corrector, Langevin) and corrector.reuse:
        raise UserError("order 2 with a reused correction", "reuse = false", "set reuse to false, or order to 1")


def _start(
    process: Process, source: Tensor, t: float, start: Start, temperature: float, noise: Callable[[int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Give u and x at the first time. Where c = 0 the source itself is the state, and u = z exactly (kappa = 0)."""
    _, b, c = (float(w) for w in process.coefficients(as_time(t)))
    u = torch.zeros_like(source)
    if start != "source" and temperature > 0:
        u = u + temperature * noise(0)
    if start == "prior":
        return u, _state(process, t, u, source)
    return u if c == 0 else u + (1 - b) / c * source, source + c * u


def _state(process: Process, t: float, u: Tensor, source: Tensor) -> Tensor:
    _, b, c = (float(w) for w in process.coefficients(as_time(t)))
    return b * source + c * u


def _coordinate(process: Process, t: float, x: Tensor, source: Tensor) -> Tensor:
    _, b, c = (float(w) for w in process.coefficients(as_time(t)))
    return (x - b * source) / c


def _mean_step(process: Process, s: float, t: float, x: Tensor, estimate: Tensor, source: Tensor) -> Tensor:
    """E[x_s | x_t, x_0 = D, y] of the process's own chain; for a bridge x_t - (1 - m_s / m_t) (x_t - D)."""
    law = process.posterior(as_time(s), as_time(t))
    return float(law.state) * x + float(law.target) * estimate + float(law.source) * source


def _mean_of_step(
    process: Process, s: float, kappa: float, estimate: Tensor, history: tuple[float, Tensor], sd: float
) -> Tensor:
    """Give the mean over kappa of D from t to s, extrapolated in w from the last two calls; its limit at s = 0.

    With D = D_t + (w - w_t) slope, the integral of w - w_t from kappa_t to kappa_s is
    [sqrt(1 + kappa_s^2 sd^2) - sqrt(1 + kappa_t^2 sd^2)] / sd^2 - w_t (kappa_s - kappa_t), and w = 1 / sd at infinity.
    """
    before, last = history
    root = math.sqrt(1 + (kappa * sd) ** 2)
    w = kappa / root
    slope = (estimate - last) / (w - before / math.sqrt(1 + (before * sd) ** 2))
    if s == 0:
        return estimate + (1 / sd - w) * slope
    after = float(process.kappa(as_time(s)))
    rise = (math.sqrt(1 + (after * sd) ** 2) - root) / (sd**2 * (after - kappa))
    return estimate + (rise - w) * slope


@dataclass
class Langevin:
    """CT2MRI's corrector (eq. 5, 6): moves every slice along its score, without noise.

    Parameters
    ----------
    process
        A process with noise at all visited times.
    source
        y, shape (C, D, H, W).
    strength
        lambda.
    increment
        ``t -> delta_(n|n-1)``, the variance that one *training* step adds, whatever the stride of the walk.
    corrections
        M, moves per new time.
    norm
        ``"code"``: step sqrt(d) / ||s_i||^2 per slice i as released; ``"paper"``: d / ||s_i||^2 as printed, larger by
        sqrt(d); d is the number of values in a slice.
    cap
        Largest RMS move of a slice; infinity switches it off. The step grows as the score falls: without a cap
        the printed form can move a slice by its whole range.
    reuse
        Give the last evaluation, made before the move, as the next prediction: saves one call in M + 1.

    Attributes
    ----------
    capped
        Number of slice moves that the cap has shortened so far.
    """

    process: Process
    source: Tensor
    strength: float
    increment: Callable[[float], float]
    corrections: int = 1
    norm: Literal["code", "paper"] = "code"
    cap: float = math.inf
    reuse: bool = False
    capped: int = field(default=0, init=False)

    def __call__(self, state: Tensor, t: float, denoise: Denoise) -> tuple[Tensor, Tensor | None]:
        """Give the corrected state (..., C, D, H, W), and the estimate to reuse if asked."""
        estimate = None
        for _ in range(self.corrections):
            estimate = denoise(state, t)
            state = state + self._move(score(self.process, t, state, estimate, self.source), t)
        return state, estimate if self.reuse else None

    def _move(self, direction: Tensor, t: float) -> Tensor:
        size = direction[..., 0, :, :].numel() // math.prod(direction.shape[:-4])
        floor = 1e-3 * math.sqrt(size)
        length = torch.sqrt((direction**2).sum(dim=(-4, -2, -1), keepdim=True))
        gain = math.sqrt(size) if self.norm == "code" else float(size)
        step = self.strength * self.increment(t) * gain / length.clamp(min=floor) ** 2
        longest = self.cap * math.sqrt(size) / length
        self.capped += int((step > longest).sum())
        return torch.minimum(step, longest) * direction


def score(process: Process, t: float, state: Tensor, estimate: Tensor, source: Tensor) -> Tensor:
    """Give the score of x_t given y, -(x - a D - b y) / c^2 (CT2MRI, eq. 6)."""
    a, b, c = (float(w) for w in process.coefficients(as_time(t)))
    return -(state - a * estimate - b * source) / c**2
