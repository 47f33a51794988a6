"""Orders of convergence and numbers on laws that are solved exactly, with exact denoisers: no Monte Carlo anywhere.

Orders and numbers: measured beforehand by an independent implementation in NumPy on the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from laws import BRIDGES, NOISY, RESSHIFT, Gaussian, Mixture, Seen, coordinate, every_bridge, order_of, quantiles, rms
from torch import Tensor

from scanbridge.bridge.process import Process, as_time, brownian_bridge
from scanbridge.bridge.sample import residual_variance, time_grid, walk

Order = Literal[1, 2]
Z = quantiles()
MIXTURE_SD = rms(Mixture(brownian_bridge(), torch.zeros_like(Z)).target(Z) - 0.275)

every_toy = pytest.mark.parametrize(
    ("toy", "sd"), [(Gaussian, 0.2), (Mixture, MIXTURE_SD)], ids=["gaussian", "mixture"]
)


def no_noise(step: int) -> Tensor:
    raise AssertionError(f"a deterministic walk asked for noise at step {step}")


def starting_with(z: Tensor) -> Callable[[int], Tensor]:
    return lambda step: z if step == 0 else no_noise(step)


def interior_error(toy: type[Gaussian | Mixture], process: Process, calls: int, order: Order, sd: float) -> float:
    """Give the error of u at kappa = 50 of a walk that starts exactly at kappa = .5, uniform in lambda."""
    low, high = 0.5, 50.0
    times = process.time(torch.linspace(math.log(low), math.log(high), calls + 1, dtype=torch.float64).exp())
    source = torch.full_like(Z, -0.1)
    law = toy(process, source)
    states = []

    def denoise(state: Tensor, t: float) -> Tensor:
        states.append(coordinate(process, t, state, source)[0])
        return law.denoise(state, t)

    walk(
        denoise,
        process,
        source,
        torch.cat([times, torch.zeros(1, dtype=torch.float64)]),
        starting_with(law.state(low, Z)),
        order=order,
        residual_scale=sd,
    )
    return rms(states[-1] - law.state(high, Z)) / high


def gaussian_spread(process: Process, calls: int, order: Order, sd: float = 0.2, **settings: float) -> float:
    """Give the relative error of the spread of x_0 on the Gaussian, from one pair of paths u = -1, +1."""
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    source = torch.full_like(ends, -0.1)
    times = time_grid(process, calls, residual_scale=sd)
    low, high = walk(
        Gaussian(process, source).denoise, process, source, times, starting_with(ends), order=order, residual_scale=sd
    ).tolist()
    assert abs((low + high) / 2 - 0.3) < 1e-10
    return (high - low) / 2 / 0.2 - 1


def interior_spread(process: Process, calls: int, order: Order, eta: float, sd: float) -> float:
    """Give the relative error of the spread of u at kappa = 50, on the Gaussian, of a walk exact at kappa = .5.

    One element a noise: the walk is linear, so the norm over unit impulses is the standard deviation.
    """
    low, high = 0.5, 50.0
    times = process.time(torch.linspace(math.log(low), math.log(high), calls + 1, dtype=torch.float64).exp())
    unit = torch.eye(len(times) + 2, dtype=torch.float64)
    law = Gaussian(process, torch.zeros_like(unit[0]), mean=0.0)
    network = Seen(law.denoise)
    start = law.state(low, unit[0])
    walk(
        network,
        process,
        law.source,
        torch.cat([times, torch.zeros(1, dtype=torch.float64)]),
        lambda step: start if step == 0 else unit[step],
        order=order,
        eta=eta,
        residual_scale=sd,
    )
    u = coordinate(process, network.times[-1], network.states[-1], law.source)[0]
    return float(u.norm() / law.state(high, unit[0]).norm()) - 1


def mixture_distance(process: Process, calls: int, order: Order, *, corrected: bool = False) -> float:
    """Give W2 / sd of x_0 on the mixture.

    With the variance of order 2, noise is added in the first step alone, to a u that is a normal law plus a constant:
    the sum is drawn as one normal law, and quantiles stay quantiles.
    """
    source = torch.full_like(Z, -0.1)
    law = Mixture(process, source)
    times = time_grid(process, calls, residual_scale=MIXTURE_SD)
    wider = float(process.kappa(times[1])) * MIXTURE_SD if calls > 1 else 0.0
    added = (math.sqrt(1 + wider**2) - 1) / wider if wider else 1.0
    given = walk(
        law.denoise,
        process,
        source,
        times,
        lambda step: {0: Z, 1: added * Z}[step] if corrected else starting_with(Z)(step),
        order=order,
        residual_scale=MIXTURE_SD,
        variance=residual_variance(process, MIXTURE_SD) if corrected else None,
    )
    return rms(given - law.target(Z)) / MIXTURE_SD


def test_the_mixture_has_the_spread_that_the_tables_are_in() -> None:
    assert pytest.approx(0.2504, abs=2e-4) == MIXTURE_SD


@pytest.mark.parametrize("process", NOISY, ids=lambda process: process.name)
@every_toy
@pytest.mark.parametrize("order", [2, 1])
def test_every_walk_has_its_order_inside_the_path(
    toy: type[Gaussian | Mixture], sd: float, process: Process, order: Order
) -> None:
    calls = [64, 128, 256]
    errors = [interior_error(toy, process, n, order, 1.5 * sd) for n in calls]
    assert abs(order_of(calls, errors) - order) < 0.1


@pytest.mark.parametrize(("toy", "error"), [(Gaussian, 1.4e-2), (Mixture, 1.3e-2)])
def test_the_first_order_error_inside_the_path_is_the_measured_one(toy: type[Gaussian | Mixture], error: float) -> None:
    assert interior_error(toy, brownian_bridge(), 16, 1, 0.2) == pytest.approx(error, rel=0.05)


@every_bridge
@pytest.mark.parametrize(
    ("order", "calls", "error"),
    [(1, 8, 0.14), (1, 32, 0.038), (1, 128, 9.6e-3), (2, 8, 0.019), (2, 32, 1.2e-3), (2, 128, 7.5e-5)],
)
def test_the_spread_on_the_gaussian_is_the_measured_one(
    process: Process, order: Order, calls: int, error: float
) -> None:
    assert abs(gaussian_spread(process, calls, order)) == pytest.approx(error, rel=0.05)


@every_bridge
@pytest.mark.parametrize(
    ("order", "calls", "error"),
    [(1, 8, 0.10), (1, 32, 0.027), (1, 128, 6.8e-3), (2, 8, 0.042), (2, 32, 3.2e-3), (2, 128, 1.8e-4)],
)
def test_the_distance_on_the_mixture_is_the_measured_one(
    process: Process, order: Order, calls: int, error: float
) -> None:
    assert mixture_distance(process, calls, order) == pytest.approx(error, rel=0.06)


def test_order_two_in_w_on_theta_is_of_order_two_from_end_to_end() -> None:
    calls = [32, 64, 128]
    process = brownian_bridge()
    assert abs(order_of(calls, [abs(gaussian_spread(process, n, 2)) for n in calls]) - 2.00) < 0.05
    assert abs(order_of(calls, [mixture_distance(process, n, 2) for n in calls]) - 2.08) < 0.05


def test_order_one_on_theta_is_of_order_one_from_end_to_end() -> None:
    calls = [32, 64, 128]
    process = brownian_bridge()
    assert abs(order_of(calls, [abs(gaussian_spread(process, n, 1)) for n in calls]) - 0.99) < 0.03
    assert abs(order_of(calls, [mixture_distance(process, n, 1) for n in calls]) - 0.99) < 0.03


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_order_two_survives_a_wrong_residual_scale(factor: float) -> None:
    calls = [64, 128, 256]
    errors = [abs(gaussian_spread(brownian_bridge(), n, 2, sd=0.2 * factor)) for n in calls]
    assert abs(order_of(calls, errors) - 2) < 0.1


@pytest.mark.parametrize(
    ("order", "errors"),
    [
        (1, {1: 1.0, 2: 0.462, 3: 0.279, 4: 0.201, 5: 0.160, 6: 0.134, 8: 0.102, 10: 0.082, 15: 0.056, 20: 0.042}),
        (2, {1: 1.0, 2: 0.294, 3: 0.144, 4: 0.104, 5: 0.079, 6: 0.062, 8: 0.042, 10: 0.029, 15: 0.014, 20: 0.008}),
    ],
)
def test_few_calls_on_the_mixture_give_the_measured_distances(order: Order, errors: dict[int, float]) -> None:
    given = {calls: mixture_distance(RESSHIFT, calls, order) for calls in errors}
    assert given == pytest.approx(errors, abs=1.2e-3)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("calls", [1, 2, 5, 16])
def test_bridge_and_residual_shift_are_the_same_walk_on_one_kappa_grid(order: Order, calls: int) -> None:
    source = torch.full_like(Z, -0.1)
    given = [
        walk(
            Mixture(process, source).denoise,
            process,
            source,
            time_grid(process, calls),
            starting_with(Z),
            order=order,
        )
        for process in BRIDGES
    ]
    for other in given[1:]:
        torch.testing.assert_close(other, given[0], atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("eta", "losses"), [(0.0, (0.14, 0.038, 0.0096)), (0.5, (0.15, 0.043, 0.011)), (1.0, (0.21, 0.066, 0.018))]
)
def test_a_posterior_mean_loses_the_measured_spread(eta: float, losses: tuple[float, ...]) -> None:
    for calls, loss in zip((8, 32, 128), losses, strict=True):
        assert 1 - _spread_of_draws(brownian_bridge(), calls, eta, drawn=False) == pytest.approx(loss, rel=0.04)


@every_bridge
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("calls", [1, 2, 3, 8, 50])
def test_the_residual_variance_makes_every_walk_exact_on_the_gaussian(process: Process, calls: int, eta: float) -> None:
    assert abs(_spread_of_draws(process, calls, eta, drawn=False, corrected=True) - 1) < 1e-12


@every_bridge
@pytest.mark.parametrize("calls", [1, 2, 3, 8, 50])
def test_with_the_residual_variance_order_two_is_exact_on_the_gaussian_too(process: Process, calls: int) -> None:
    assert abs(_spread_of_draws(process, calls, 0.0, drawn=False, corrected=True, order=2) - 1) < 1e-12


@pytest.mark.parametrize(("calls", "distance"), [(1, 0.417), (2, 0.189), (3, 0.122), (4, 0.096), (8, 0.040)])
def test_with_the_residual_variance_few_calls_of_order_two_come_closer_on_the_mixture(
    calls: int, distance: float
) -> None:
    given = mixture_distance(brownian_bridge(), calls, 2, corrected=True)
    assert given == pytest.approx(distance, abs=1.5e-3)
    assert given < mixture_distance(brownian_bridge(), calls, 2)


@pytest.mark.parametrize("process", NOISY, ids=lambda process: process.name)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("order", [2, 1])
@pytest.mark.parametrize("sd", [0.2, 0.3])
def test_a_stochastic_walk_has_its_weak_order_inside_the_path(
    process: Process, eta: float, order: Order, sd: float
) -> None:
    calls = [64, 128, 256]
    errors = [abs(interior_spread(process, n, order, eta, sd)) for n in calls]
    assert abs(order_of(calls, errors) - order) < 0.05


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_stochastic_walk_of_order_two_is_of_weak_order_two_from_end_to_end(eta: float) -> None:
    calls = [32, 64, 128]
    errors = [1 - _spread_of_draws(brownian_bridge(), n, eta, drawn=False, order=2) for n in calls]
    assert abs(order_of(calls, errors) - 2) < 0.2
    assert 0 < errors[-1] < 1e-4  # order 1 with eta = 1 loses 2 % here


@every_bridge
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("calls", [1, 2, 8])
def test_a_draw_from_the_posterior_keeps_the_spread(process: Process, eta: float, calls: int) -> None:
    assert abs(_spread_of_draws(process, calls, eta, drawn=True) - 1) < 1e-12


def _spread_of_draws(
    process: Process, calls: int, eta: float, *, drawn: bool, corrected: bool = False, order: Order = 1
) -> float:
    """Give sd(x_0) / sd on the Gaussian: one element a noise, impulses propagated through the (linear) walk."""
    times = time_grid(process, calls, residual_scale=0.2)
    unit = torch.eye(2 * len(times), dtype=torch.float64)
    source = torch.zeros_like(unit[0])
    law = Gaussian(process, source, mean=0.0)
    n_calls = 0

    def denoise(state: Tensor, t: float) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        kappa = float(process.kappa(as_time(t)))
        posterior_sd = law.sd / math.sqrt(1 + (kappa * law.sd) ** 2)
        return law.denoise(state, t) + (posterior_sd * unit[-n_calls] if drawn else 0)

    variance = residual_variance(process, law.sd) if corrected else None
    given = walk(
        denoise,
        process,
        source,
        times,
        lambda step: unit[step],
        eta=eta,
        order=order,
        residual_scale=law.sd,
        variance=variance,
    )
    return float(given.norm()) / law.sd
