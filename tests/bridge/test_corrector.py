"""Laws of the score and of the Langevin corrector."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from laws import (
    Gaussian,
    Seen,
    bend,
    every_noisy_process,
    noises,
    random,
    rms,
    weights,
)
from torch import Tensor

from scanbridge.bridge.process import Process, as_time, brownian_bridge
from scanbridge.bridge.sample import Langevin, score, time_grid, walk


@every_noisy_process
@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
def test_the_score_is_the_gradient_of_the_gaussian_log_density(process: Process, t: float) -> None:
    source, state = random(6), random(6, seed=1).requires_grad_()
    law = Gaussian(process, source)
    a, b, c = weights(process, t)
    residual = state - b * source - a * law.mean
    (-0.5 * residual**2 / (a**2 * law.sd**2 + c**2)).sum().backward()
    given = score(process, t, state.detach(), law.denoise(state.detach(), t), source)
    torch.testing.assert_close(given, state.grad, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("t", [0.001, 0.5, 0.999])
def test_the_score_of_a_bridge_is_ct2mris_equation_6(t: float) -> None:
    state, estimate, source = random(3, 6)
    difference = state - estimate  # what the published network predicts
    right = -(state - (1 - t) * (state - difference) - t * source) / (2 * t * (1 - t))
    torch.testing.assert_close(score(brownian_bridge(), t, state, estimate, source), right, atol=1e-9, rtol=1e-12)


def langevin(process: Process, source: Tensor, **settings: Any) -> Langevin:
    return Langevin(process, source, strength=0.5, increment=lambda t: 0.002 * (1 + t), **settings)


@pytest.mark.parametrize(("norm", "power"), [("code", 0.5), ("paper", 1.0)])
def test_a_correction_moves_each_slice_by_its_own_step(norm: Any, power: float) -> None:
    process, t = brownian_bridge(), 0.3
    state, source = random(2, 1, 4, 3, 5)
    given, reused = langevin(process, source, norm=norm)(state, t, bend)
    direction = score(process, t, state, bend(state, t), source)
    assert reused is None
    for i in range(4):
        gamma = 0.5 * 0.002 * 1.3 * 15**power / float((direction[0, i] ** 2).sum())
        torch.testing.assert_close(given[0, i], state[0, i] + gamma * direction[0, i], atol=1e-12, rtol=0)


def test_windows_that_walk_by_themselves_are_corrected_each_as_alone() -> None:
    process, t = brownian_bridge(), 0.3
    state, source = random(2, 5, 1, 3, 4, 6)
    given, _ = langevin(process, source, cap=0.02)(state, t, bend)
    for i in range(5):
        alone, _ = langevin(process, source[i], cap=0.02)(state[i], t, bend)
        torch.testing.assert_close(given[i], alone, atol=1e-14, rtol=0)


def test_the_cap_bounds_the_rms_move_of_a_slice_and_is_counted() -> None:
    process, t, cap = brownian_bridge(), 0.3, 0.02
    source = random(1, 3, 6, 6)
    scale = torch.tensor([1e-3, 1.0, 1e-3], dtype=torch.float64).reshape(1, 3, 1, 1)
    state = source + scale * random(1, 3, 6, 6, seed=1)

    def still(state: Tensor, t: float) -> Tensor:  # the smaller the score, the larger the printed step
        return source

    free, _ = langevin(process, source, norm="paper")(state, t, still)
    corrector = langevin(process, source, norm="paper", cap=cap)
    given, _ = corrector(state, t, still)
    moves = [rms((given - state)[:, i]) for i in range(3)]
    assert moves[0] == pytest.approx(cap)
    assert moves[2] == pytest.approx(cap)
    assert moves[1] < cap
    torch.testing.assert_close(given[:, 1], free[:, 1], atol=1e-14, rtol=0)
    assert rms((free - state)[:, 0]) > 2 * cap
    assert corrector.capped == 2
    corrector(state, t, still)
    assert corrector.capped == 4


@pytest.mark.parametrize("norm", ["code", "paper"])
@pytest.mark.parametrize("cap", [math.inf, 0.02])
def test_the_floor_keeps_a_zero_score_from_dividing_by_zero(norm: Any, cap: float) -> None:
    process, t = brownian_bridge(), 0.3
    source = random(1, 2, 4, 4)
    corrector = langevin(process, source, norm=norm, cap=cap)
    given, _ = corrector(source, t, lambda _state, _t: source)
    torch.testing.assert_close(given, source, atol=1e-12, rtol=0)
    assert bool(given.isfinite().all())
    assert corrector.capped == 0


def test_below_the_floor_the_step_no_longer_grows() -> None:
    process, t = brownian_bridge(), 0.3
    source = random(1, 1, 4, 4)
    direction = torch.full((1, 1, 4, 4), 1e-5, dtype=torch.float64)  # its norm is a hundredth of the floor
    state = source - weights(process, t)[2] ** 2 * direction
    given, _ = langevin(process, source)(state, t, lambda _state, _t: source)
    gamma = 0.5 * 0.002 * 1.3 * 4 / (1e-3 * 4) ** 2
    torch.testing.assert_close(given - state, gamma * direction, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("path", ["marginals", "mean"])
@pytest.mark.parametrize("corrections", [0, 1, 2])
@pytest.mark.parametrize("reuse", [False, True])
def test_a_corrected_walk_makes_the_calls_that_it_should(path: Any, corrections: int, reuse: bool) -> None:
    process, source, network, calls = brownian_bridge(), random(1, 3, 4, 4), Seen(bend), 6
    corrector = langevin(process, source, corrections=corrections, reuse=reuse)
    times = time_grid(process, calls)
    walk(network, process, source, times, noises(1, 3, 4, 4), path=path, corrector=corrector)
    saved = calls - 1 if reuse and corrections else 0
    assert len(network.times) == calls + (calls - 1) * corrections - saved
    assert set(network.times) == set(times[:-1].tolist())


@pytest.mark.parametrize("reuse", [False, True])
def test_a_corrected_walk_is_predictor_and_corrector_in_turn(reuse: bool) -> None:
    process, source = brownian_bridge(), random(1, 3, 4, 4)
    corrector = langevin(process, source, reuse=reuse)
    times = time_grid(process, 5)
    given = walk(bend, process, source, times, noises(1, 3, 4, 4), corrector=corrector)

    x = source
    u = random(1, 3, 4, 4)
    estimate = bend(x, 1.0)
    for t, s in pairwise(times[:-1].tolist()):
        u = u + float(process.kappa(as_time(s)) - process.kappa(as_time(t))) * estimate
        _, b, c = weights(process, s)
        x = b * source + c * u
        before = bend(x, s)
        direction = score(process, s, x, before, source)
        gamma = 0.5 * 0.002 * (1 + s) * 4 / (direction**2).sum(dim=(0, 2, 3), keepdim=True)
        x = x + gamma * direction
        u = (x - b * source) / c
        estimate = before if reuse else bend(x, s)
    torch.testing.assert_close(given, estimate, atol=1e-12, rtol=0)


def test_after_a_correction_the_history_of_order_two_is_the_estimate_at_the_corrected_state() -> None:
    process, source = brownian_bridge(), random(1, 2, 4, 4)
    shift = 0.1
    times = time_grid(process, 4)
    network = Seen(bend)

    def nudge(state: Tensor, t: float, denoise: object) -> tuple[Tensor, None]:
        return state + shift, None

    given = walk(network, process, source, times, noises(1, 2, 4, 4), order=2, corrector=nudge)
    sd = 0.25
    kappa = process.kappa(times[:-1])
    w = kappa / torch.sqrt(1 + (kappa * sd) ** 2)
    last, before = bend(network.states[-1], network.times[-1]), bend(network.states[-2], network.times[-2])
    right = last + (1 / sd - w[-1]) * (last - before) / (w[-1] - w[-2])
    torch.testing.assert_close(given, right, atol=1e-12, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("corrections", [1, 2])
def test_a_corrected_walk_of_order_two_bends_by_estimates_at_corrected_states_alone(
    eta: float, corrections: int
) -> None:
    process, source, sd = brownian_bridge(), random(1, 3, 4, 4), 0.25
    times, network, noise = time_grid(process, 5), Seen(bend), noises(1, 3, 4, 4)
    corrector = langevin(process, source, corrections=corrections)
    given = walk(network, process, source, times, noise, order=2, eta=eta, corrector=corrector)

    u, before = noise(0), None
    for call, (t, s) in enumerate(pairwise(times.tolist())):
        _, b, c = weights(process, t)
        x, kappa = (source if c == 0 else b * source + c * u), float(process.kappa(as_time(t)))
        if call:
            x, _ = corrector(x, t, bend)
            u = (x - b * source) / c
        estimate = mean = bend(x, t)
        w = kappa / math.sqrt(1 + (kappa * sd) ** 2)
        if before is not None:
            reach = 1 / sd
            if s > 0:
                kappas = torch.linspace(kappa, float(process.kappa(as_time(s))), 2001, dtype=torch.float64)
                inside = kappas / torch.sqrt(1 + (kappas * sd) ** 2)
                reach = float(torch.trapezoid(inside, kappas) / (kappas[-1] - kappas[0]))
            mean = estimate + (reach - w) * (estimate - before[1]) / (w - before[0])
        before = (w, estimate)
        if s == 0:
            torch.testing.assert_close(given, mean, atol=1e-5, rtol=0)
            break
        q = eta * float(process.markov(as_time(s), as_time(t)))
        kept, after = math.sqrt(1 - q**2), float(process.kappa(as_time(s)))
        u = kept * u + (after - kept * kappa) * mean + q * noise(call + 1)
    assert len(network.times) == 5 + 4 * corrections
