"""Laws of the walk; what needs exactly solved laws for its numbers is in test_orders."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from laws import (
    NOISY,
    Gaussian,
    Seen,
    bend,
    every_bridge,
    every_grid,
    every_noisy_process,
    every_process,
    noises,
    random,
    weights,
)
from torch import Tensor

from scanbridge.bridge.noise import NoiseSource
from scanbridge.bridge.process import Process, as_time, brownian_bridge, ddpm, linear_beta, rectified
from scanbridge.bridge.sample import Grid, Langevin, Start, Step, residual_variance, snap, time_grid, walk
from scanbridge.errors import UserError

ETAS = [0.0, 0.3, 1.0]


def propagate(
    process: Process, times: Tensor, *, exact_start: bool = True, **settings: Any
) -> list[tuple[float, Tensor]]:
    """Give the weights of (x_0, y, z_0, z_1, ...) in every state that a walk with D = x_0 visits.

    A walk is linear in them, so one walk on unit vectors gives them all. `exact_start` puts the signal into the start
    of a process whose kappa is not 0 there: u = kappa x_0 + z.
    """
    unit = torch.eye(len(times) + 2, dtype=torch.float64)
    signal = float(process.kappa(times[0])) if exact_start else 0.0
    network = Seen(lambda _state, _t: unit[0])
    given = walk(
        network,
        process,
        unit[1],
        times,
        lambda step: unit[2 + step] + (signal * unit[0] if step == 0 else 0),
        **settings,
    )
    assert torch.equal(given, unit[0])
    return list(zip(network.times, network.states, strict=True))


def assert_marginals(process: Process, states: list[tuple[float, Tensor]]) -> None:
    for t, state in states:
        a, b, c = weights(process, t)
        assert float(state[0]) == pytest.approx(a, abs=1e-12)
        assert float(state[1]) == pytest.approx(b, abs=1e-12)
        assert float(state[2:].norm()) == pytest.approx(c, abs=1e-12)


@every_noisy_process
@every_grid
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("calls", [2, 5, 15])
def test_every_walk_keeps_the_marginals(process: Process, grid: Grid, eta: float, calls: int) -> None:
    assert_marginals(process, propagate(process, time_grid(process, calls, grid=grid), eta=eta))


@every_noisy_process
@pytest.mark.parametrize("eta", ETAS)
def test_a_walk_on_trained_steps_keeps_their_marginals(process: Process, eta: float) -> None:
    assert process.steps is not None
    times = snap(time_grid(process, 12), process.steps)
    assert_marginals(process, propagate(process, times, eta=eta))


@every_noisy_process
@pytest.mark.parametrize("eta", ETAS)
def test_order_two_keeps_the_marginals(process: Process, eta: float) -> None:
    assert_marginals(process, propagate(process, time_grid(process, 9), order=2, eta=eta))


@every_noisy_process
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", ETAS)
def test_a_variance_of_zero_is_the_plain_walk_to_the_bit(process: Process, order: Any, eta: float) -> None:
    source, times = random(4), time_grid(process, 5)
    plain, zero = (
        walk(bend, process, source, times, noises(4), order=order, eta=eta, variance=variance)
        for variance in (None, lambda _t: 0.0)
    )
    assert torch.equal(plain, zero)


@every_noisy_process
def test_the_residual_variance_is_tweedies_on_the_gaussian(process: Process) -> None:
    """Var(x_0 | u) = dD / d(kappa u) for u = kappa x_0 + eps: the denoiser's own slope."""
    law = Gaussian(process, torch.zeros(1, dtype=torch.float64))
    for t in (0.05, 0.4, 0.9):
        _, _, c = weights(process, t)
        low, high = (law.denoise(c * torch.tensor([u], dtype=torch.float64), t) for u in (-0.5, 0.5))
        slope = float((high - low) / process.kappa(as_time(t)))
        assert residual_variance(process, law.sd)(t) == pytest.approx(slope, rel=1e-9)


@every_bridge
@pytest.mark.parametrize("start", ["prior", "source+noise"])
@pytest.mark.parametrize("eta", ETAS)
def test_both_noisy_starts_are_exact_where_a_bridge_has_no_signal(process: Process, start: Start, eta: float) -> None:
    states = propagate(process, time_grid(process, 6), exact_start=False, start=start, eta=eta)
    assert_marginals(process, states)


@every_noisy_process
@pytest.mark.parametrize(("s", "t"), [(0.3, 0.9), (0.01, 0.02), (0.5, 0.51)])
def test_at_eta_one_a_step_is_a_draw_of_the_processes_own_posterior(process: Process, s: float, t: float) -> None:
    law = process.posterior(as_time(s), as_time(t))
    (_, before), (_, after) = propagate(process, torch.tensor([t, s, 0.0], dtype=torch.float64), eta=1.0)
    unit = torch.eye(len(before), dtype=torch.float64)
    mean = law.state * before + law.target * unit[0] + law.source * unit[1]
    torch.testing.assert_close(after, mean + law.variance.sqrt() * unit[3], atol=1e-12, rtol=0)


def test_at_eta_zero_a_step_is_ddim() -> None:
    process = ddpm(linear_beta())
    s, t = 0.4, 0.7
    (a_s, _, c_s), (a_t, _, c_t) = weights(process, s), weights(process, t)
    network = Seen(bend)
    walk(network, process, random(5), torch.tensor([t, s, 0.0], dtype=torch.float64), noises(5))
    x_t, x_s = network.states
    predicted = (x_t - a_t * bend(x_t, t)) / c_t
    torch.testing.assert_close(x_s, a_s * bend(x_t, t) + c_s * predicted, atol=1e-12, rtol=0)  # Song et al., eq. 12


def test_at_eta_zero_a_step_is_dbim() -> None:
    process, source = brownian_bridge(), random(5, seed=3)
    s, t = 0.4, 0.7
    (a_s, b_s, c_s), (a_t, b_t, c_t) = weights(process, s), weights(process, t)
    network = Seen(bend)
    walk(network, process, source, torch.tensor([t, s, 0.0], dtype=torch.float64), noises(5))
    x_t, x_s = network.states
    carried = c_s / c_t * (x_t - a_t * bend(x_t, t) - b_t * source)
    torch.testing.assert_close(x_s, a_s * bend(x_t, t) + b_s * source + carried, atol=1e-12, rtol=0)


@every_noisy_process
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_each_start_is_what_its_name_says(process: Process, temperature: float) -> None:
    source, z = random(4, seed=5), random(4)
    for grid in ("linear", "published"):
        times = time_grid(process, 3, grid=grid)
        _, b, c = weights(process, float(times[0]))
        starts: dict[Start, Tensor] = {
            "prior": b * source + c * temperature * z,
            "source": source,
            "source+noise": source + c * temperature * z,
        }
        for start, right in starts.items():
            network = Seen(bend)
            walk(network, process, source, times, noises(4), start=start, temperature=temperature)
            torch.testing.assert_close(network.states[0], right, atol=1e-14, rtol=0)


@every_bridge
def test_a_state_is_the_same_in_both_coordinates_from_every_start(process: Process) -> None:
    source = random(4, seed=5)
    times = time_grid(process, 3, grid="published")
    (a_s, b_s, c_s), (a_t, b_t, c_t) = weights(process, float(times[1])), weights(process, float(times[0]))
    for start in ("prior", "source", "source+noise"):
        network = Seen(bend)
        walk(network, process, source, times, noises(4), start=start)
        x_t, x_s = network.states[:2]
        estimate = bend(x_t, float(times[0]))
        right = a_s * estimate + b_s * source + c_s / c_t * (x_t - a_t * estimate - b_t * source)
        torch.testing.assert_close(x_s, right, atol=1e-12, rtol=0)


def test_the_first_call_of_a_bridge_is_the_regression() -> None:
    source, network, reports = random(4), Seen(bend), list[Step]()
    process = brownian_bridge()
    walk(network, process, source, time_grid(process, 5), noises(4), on_step=reports.append)
    assert network.times[0] == 1
    assert torch.equal(network.states[0], source)
    assert torch.equal(reports[0].estimate, bend(source, 1.0))
    assert torch.equal(walk(bend, process, source, time_grid(process, 1), noises(4)), bend(source, 1.0))


@every_bridge
@pytest.mark.parametrize("order", [1, 2])
def test_temperature_zero_is_one_path_without_spread(process: Process, order: Any) -> None:
    source = random(4)
    times = time_grid(process, 6)
    one, other = (
        walk(bend, process, source, times, noises(4, seed=seed), temperature=0.0, order=order) for seed in (1, 2)
    )
    assert torch.equal(one, other)
    spread = walk(Gaussian(process, 0 * source).denoise, process, 0 * source, times, noises(4), temperature=0.0)
    assert float(spread.std()) == pytest.approx(0, abs=1e-14)


@every_bridge
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("calls", [1, 2, 3, 8, 300])
def test_nothing_is_lost_at_kappa_zero_and_infinity(process: Process, order: Any, calls: int) -> None:
    network = Seen(bend)
    given = walk(network, process, random(4), time_grid(process, calls), noises(4), order=order)
    assert bool(torch.stack([*network.states, given]).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_walk_keeps_the_precision_of_its_source(dtype: torch.dtype) -> None:
    process, source = brownian_bridge(), random(4).to(dtype)
    noise = NoiseSource(seed=0, subject="a")
    given = walk(bend, process, source, time_grid(process, 4), lambda step: noise(step, (4,)), eta=1.0)
    assert given.dtype == dtype


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("calls", [50, 100, 200])
def test_mean_path_is_the_released_update_in_its_long_form(scale: float, calls: int) -> None:
    process, source, network = brownian_bridge(scale), random(6), Seen(bend)
    times = time_grid(process, calls, grid="published")
    given = walk(network, process, source, times, noises(6), path="mean", start="source")
    assert torch.equal(network.states[0], source)
    assert torch.equal(given, bend(network.states[-1], network.times[-1]))
    for (m_t, x_t), (m_n, x_n) in pairwise(zip(network.times, network.states, strict=True)):
        delta_t, delta_n = 2 * scale * m_t * (1 - m_t), 2 * scale * m_n * (1 - m_n)
        sig2 = (delta_t - delta_n * (1 - m_t) ** 2 / (1 - m_n) ** 2) * delta_n / delta_t
        x_0 = bend(x_t, m_t)
        kept = math.sqrt((delta_n - sig2) / delta_t) * (x_t - (1 - m_t) * x_0 - m_t * source)
        long_form = (1 - m_n) * x_0 + m_n * source + kept
        torch.testing.assert_close(x_n, long_form, atol=1e-12, rtol=0)
        rho_form = x_t - (1 - m_n / m_t) * (x_t - x_0)
        torch.testing.assert_close(x_n, rho_form, atol=1e-12, rtol=0)


@every_process
def test_mean_path_keeps_the_means_and_lets_the_noise_die(process: Process) -> None:
    times = time_grid(process, 6, grid="linear")
    start: Start = "prior" if not process.noiseless else "source"
    signal = 0.0 if process.noiseless else float(process.kappa(times[0]))
    unit = torch.eye(3, dtype=torch.float64)
    network = Seen(lambda _state, _t: unit[0])
    walk(network, process, unit[1], times, lambda _step: unit[2] + signal * unit[0], path="mean", start=start)
    for (t, before), (s, after) in pairwise(zip(network.times, network.states, strict=True)):
        a, b, _ = weights(process, s)
        assert after[:2].tolist() == pytest.approx([a, b], abs=1e-12)
        carried = float(process.carry(as_time(s), as_time(t)) * before[2])
        assert float(after[2]) == pytest.approx(carried, abs=1e-13)


@pytest.mark.parametrize("process", [brownian_bridge(), ddpm(linear_beta())], ids=lambda process: process.name)
@every_grid
@pytest.mark.parametrize("start", ["prior", "source", "source+noise"])
@pytest.mark.parametrize("calls", [1, 2, 10, 15])
def test_mean_path_on_a_gaussian_ends_at_its_first_estimate_where_the_chain_is_markov_given_the_source(
    process: Process, grid: Grid, start: Start, calls: int
) -> None:
    """The residual shift is not one of them: its own chain moves by y - x_0, so x_s is not sufficient for x_0."""
    source, reports = random(4), list[Step]()
    times = time_grid(process, calls, grid=grid)
    law = Gaussian(process, source)
    given = walk(law.denoise, process, source, times, noises(4), path="mean", start=start, on_step=reports.append)
    torch.testing.assert_close(given, reports[0].estimate, atol=1e-10, rtol=0)


@every_bridge
@pytest.mark.parametrize("calls", [1, 2, 7, 100])
def test_mean_path_on_a_gaussian_ends_at_the_conditional_mean_for_any_number_of_calls(
    process: Process, calls: int
) -> None:
    source = random(4)
    law = Gaussian(process, source)
    given = walk(law.denoise, process, source, time_grid(process, calls), noises(4), path="mean", start="source")
    torch.testing.assert_close(given, torch.full_like(source, law.mean), atol=1e-10, rtol=0)


def test_mean_path_of_the_rectified_process_is_eulers_walk() -> None:
    process, source, network = rectified(), random(4), Seen(bend)
    walk(network, process, source, time_grid(process, 5, grid="linear"), noises(4), path="mean", start="source")
    for (t, before), (s, after) in pairwise(zip(network.times, network.states, strict=True)):
        velocity = (before - bend(before, t)) / t
        torch.testing.assert_close(after, before + (s - t) * velocity, atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("process", "settings", "words"),
    [
        (rectified(), {}, "no noise to walk with.*mean_path"),
        (
            rectified(),
            {"path": "mean", "corrector": lambda x, _t, _denoise: (x, None)},
            "has no score.*corrections to 0",
        ),
        (brownian_bridge(), {"path": "mean", "order": 2}, "order 2 is not defined for mean_path"),
        (brownian_bridge(), {"path": "mean", "variance": lambda _t: 0.1}, "mean_path with a variance.*'marginals'"),
        (brownian_bridge(), {"eta": 1.5}, "eta = 1.5; expected a number from 0 to 1"),
        (brownian_bridge(), {"eta": -0.1}, "eta = -0.1; expected a number from 0 to 1"),
        (brownian_bridge(), {"path": "mean", "eta": 1.0}, "mean_path with eta = 1.*'marginals'"),
        (
            brownian_bridge(),
            {"order": 2, "corrector": Langevin(brownian_bridge(), random(4), 0.5, float, reuse=True)},
            "order 2 with a reused correction.*reuse to false",
        ),
    ],
)
def test_a_walk_that_does_not_exist_is_refused_before_any_call(
    process: Process, settings: dict[str, Any], words: str
) -> None:
    network = Seen(bend)
    with pytest.raises(UserError, match=words):
        walk(network, process, random(4), time_grid(process, 4, grid="linear"), noises(4), **settings)
    assert not network.times


def test_times_that_do_not_end_at_the_target_are_an_error() -> None:
    with pytest.raises(ValueError, match="must end with 0"):
        walk(bend, NOISY[0], random(4), torch.tensor([1.0, 0.5], dtype=torch.float64), noises(4))
