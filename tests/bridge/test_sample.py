"""Laws of grids, walks and the corrector."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from laws import BRIDGES, NOISY, RESDM, RESSHIFT, Gaussian, every_noisy_process, every_process, rms, weights
from torch import Tensor

from scanbridge.bridge.process import Process, as_time, brownian_bridge, ddpm, linear_beta, rectified
from scanbridge.bridge.sample import Grid, Langevin, Start, Step, score, snap, time_grid, walk
from scanbridge.errors import UserError

GRIDS: list[Grid] = ["theta", "linear", "quadratic", "lambda", "published"]
ETAS = [0.0, 0.3, 1.0]
every_bridge = pytest.mark.parametrize("process", BRIDGES, ids=lambda process: process.name)
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


# ---- grids


@every_noisy_process
@every_grid
@pytest.mark.parametrize("calls", [1, 2, 3, 8, 15])
def test_times_fall_strictly_to_zero_and_are_as_many_as_calls(process: Process, grid: Grid, calls: int) -> None:
    times = time_grid(process, calls, grid=grid)
    assert len(times) == calls + 1
    assert times.dtype == torch.float64
    assert bool((times.diff() < 0).all())
    assert float(times[-1]) == 0
    assert 0 < float(times[0]) <= 1


@pytest.mark.parametrize("calls", [1, 2, 7, 50])
@pytest.mark.parametrize("residual_scale", [0.1, 0.25, 0.4])
def test_theta_gives_the_same_kappas_for_every_bridge(calls: int, residual_scale: float) -> None:
    theta = math.pi / 2 * torch.arange(calls, dtype=torch.float64) / calls
    for process in BRIDGES:
        kappa = process.kappa(time_grid(process, calls, residual_scale=residual_scale)[:-1])
        torch.testing.assert_close(kappa, torch.tan(theta) / residual_scale, atol=1e-12, rtol=1e-9)


def test_lambda_is_uniform_between_clips_that_move_with_the_calls() -> None:
    kappa = brownian_bridge().kappa(time_grid(brownian_bridge(), 9, grid="lambda", residual_scale=0.2)[:-1])
    assert float(kappa[0]) == 0
    assert (0.2 * kappa[[1, -1]]).tolist() == pytest.approx([1 / 9, 9])
    steps = kappa[1:].log().diff()
    torch.testing.assert_close(steps, torch.full_like(steps, math.log(81) / 7), atol=1e-12, rtol=0)


def test_linear_and_quadratic_are_uniform_in_t_and_in_its_root() -> None:
    assert time_grid(rectified(), 4, grid="linear").tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert time_grid(rectified(), 4, grid="quadratic").tolist() == [1, 0.5625, 0.25, 0.0625, 0]


def released_indices(calls: int) -> list[int]:
    times = time_grid(brownian_bridge(), calls, grid="published")[:-1]
    return ((times - 0.001) * 999 / 0.998).round().long().tolist()


@pytest.mark.parametrize(
    ("calls", "first", "last"),
    [
        (1, [999], [999]),
        (2, [999, 0], [999, 0]),
        (3, [999, 1, 0], [999, 1, 0]),
        (50, [999, 978, 957, 936, 915], [83, 62, 41, 20, 1, 0]),
        (100, [999, 988, 978, 968, 958], [40, 30, 20, 10, 1, 0]),
        (200, [999, 993, 988, 983, 978], [15, 10, 5, 1, 0]),
    ],
)
def test_the_published_bridge_grid_is_the_released_one(calls: int, first: list[int], last: list[int]) -> None:
    indices = released_indices(calls)
    assert len(indices) == calls
    assert indices[: len(first)] == first
    assert indices[-len(last) :] == last


def test_the_node_that_the_release_visits_twice_is_merged() -> None:
    indices = released_indices(1000)
    assert indices[:4] == [999, 997, 996, 995]
    assert indices[-3:] == [2, 1, 0]
    assert len(indices) == 999


@pytest.mark.parametrize("process", [RESSHIFT, RESDM], ids=["resshift", "resdm"])
def test_the_published_residual_shift_walks_all_its_steps_and_keeps_the_last_in_fewer(process: Process) -> None:
    assert process.steps is not None
    assert time_grid(process, 15, grid="published")[:-1].tolist() == process.steps.flip(0).tolist()
    for calls in (1, 4, 9):
        assert float(time_grid(process, calls, grid="published")[0]) == float(process.steps[-1])


def test_nodes_beyond_the_end_of_a_short_ddpm_are_merged() -> None:
    process = ddpm(linear_beta(50))  # kappa is 1.2 at its end, and theta asks for 0 and 0.8 first
    times = time_grid(process, 8)
    assert bool((times.diff() < 0).all())
    assert len(times) < 9
    given = walk(bend, process, random(3), times, noises(3), order=2)
    assert bool(given.isfinite().all())


@every_noisy_process
def test_snapping_moves_every_time_to_the_nearest_trained_step(process: Process) -> None:
    assert process.steps is not None
    times = time_grid(process, 10)
    snapped = snap(times, process.steps)
    nearest = [min(process.steps.tolist(), key=lambda step: abs(step - t)) for t in times[:-1].tolist()]
    assert snapped.tolist() == [*dict.fromkeys(nearest), 0.0]
    assert bool((snapped.diff() < 0).all())


def test_snapping_merges_nodes_that_fall_together() -> None:
    steps = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    times = torch.tensor([1.0, 0.9, 0.55, 0.45, 0.05, 0.01, 0.0], dtype=torch.float64)
    assert snap(times, steps).tolist() == [1.0, 0.5, 0.1, 0.0]


@every_bridge
@pytest.mark.parametrize("calls", [1, 9, 40])
def test_the_calls_that_are_reported_are_those_that_are_made(process: Process, calls: int) -> None:
    assert process.steps is not None
    network, reports = Seen(bend), list[Step]()
    times = snap(time_grid(process, calls), process.steps)
    given = walk(network, process, random(4), times, noises(4), on_step=reports.append)
    assert len(network.times) == len(reports) == len(times) - 1
    assert [report.call for report in reports] == list(range(1, len(times)))
    assert {report.calls for report in reports} == {len(times) - 1}
    assert [report.t for report in reports] == network.times == times[:-1].tolist()
    assert torch.equal(reports[-1].estimate, given)


def test_a_report_may_stop_the_walk() -> None:
    def stop(report: Step) -> None:
        if report.call == 3:
            raise KeyboardInterrupt

    network = Seen(bend)
    with pytest.raises(KeyboardInterrupt):
        walk(network, RESDM, random(4), time_grid(RESDM, 9), noises(4), on_step=stop)
    assert len(network.times) == 3


# ---- marginals


def propagate(
    process: Process, times: Tensor, *, exact_start: bool = True, **settings: Any
) -> list[tuple[float, Tensor]]:
    """Give the weights of (x_0, y, z_0, z_1, ...) in every state that a walk with D = x_0 visits.

    A walk is linear in them, so one walk on unit vectors gives them all. `exact_start` puts the signal into the start
    of a process whose kappa is not 0 there: u = kappa x_0 + z.
    """
    unit = torch.eye(len(times) + 2, dtype=torch.float64)
    signal = float(process.kappa(times[0])) if exact_start else 0.0
    network = Seen(lambda state, t: unit[0])  # noqa: ARG005  (a denoiser has two arguments)
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
def test_order_two_keeps_the_marginals(process: Process) -> None:
    assert_marginals(process, propagate(process, time_grid(process, 9), order=2))


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


# ---- starts


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


def test_a_walk_keeps_the_precision_of_its_source() -> None:
    process = brownian_bridge()
    for dtype in (torch.float32, torch.float64):
        source = random(4).to(dtype)
        given = walk(bend, process, source, time_grid(process, 4), lambda step: random(4, seed=step).to(dtype), eta=1.0)
        assert given.dtype == dtype


# ---- mean_path


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
    network = Seen(lambda state, t: unit[0])  # noqa: ARG005  (a denoiser has two arguments)
    walk(network, process, unit[1], times, lambda step: unit[2] + signal * unit[0], path="mean", start=start)
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


# ---- score and corrector


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
    given, _ = corrector(source, t, lambda state, t: source)  # noqa: ARG005  (x = a x_0 + b y with x_0 = y: no score)
    torch.testing.assert_close(given, source, atol=1e-12, rtol=0)
    assert bool(given.isfinite().all())
    assert corrector.capped == 0


def test_below_the_floor_the_step_no_longer_grows() -> None:
    process, t = brownian_bridge(), 0.3
    source = random(1, 1, 4, 4)
    direction = torch.full((1, 1, 4, 4), 1e-5, dtype=torch.float64)  # its norm is a hundredth of the floor
    state = source - weights(process, t)[2] ** 2 * direction
    given, _ = langevin(process, source)(state, t, lambda state, t: source)  # noqa: ARG005
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


# ---- refusals


@pytest.mark.parametrize(
    ("process", "settings", "words"),
    [
        (rectified(), {}, "no noise to walk with.*mean_path"),
        (rectified(), {"path": "mean", "corrector": lambda x, t, d: (x, None)}, "has no score.*corrections to 0"),
        (brownian_bridge(), {"path": "mean", "order": 2}, "order 2 is not defined for mean_path"),
        (brownian_bridge(), {"order": 2, "eta": 0.5}, "order 2 with eta = 0.5.*set eta to 0, or order to 1"),
        (brownian_bridge(), {"eta": 1.5}, "eta = 1.5; expected a number from 0 to 1"),
        (brownian_bridge(), {"eta": -0.1}, "eta = -0.1; expected a number from 0 to 1"),
        (brownian_bridge(), {"path": "mean", "eta": 1.0}, "mean_path with eta = 1.*'marginals'"),
        (
            brownian_bridge(),
            {"order": 2, "corrector": langevin(brownian_bridge(), random(4), reuse=True)},
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


@pytest.mark.parametrize(
    ("process", "calls", "grid", "words"),
    [
        (brownian_bridge(), 0, "theta", "calls = 0; expected at least one network call"),
        (rectified(), 4, "published", "no published walk.*'linear'"),
        (rectified(), 4, "theta", "without noise.*set grid to 'linear'"),
        (rectified(), 4, "lambda", "without noise.*set grid to 'linear'"),
        (RESDM, 16, "published", "calls = 16 on the published grid; expected at most the 15 steps"),
        (brownian_bridge(), 1001, "published", "at most the 1000 steps"),
    ],
)
def test_a_grid_that_does_not_exist_is_refused(process: Process, calls: int, grid: Grid, words: str) -> None:
    with pytest.raises(UserError, match=words):
        time_grid(process, calls, grid=grid)


def test_times_that_do_not_end_at_the_target_are_an_error() -> None:
    with pytest.raises(ValueError, match="must end with 0"):
        walk(bend, NOISY[0], random(4), torch.tensor([1.0, 0.5], dtype=torch.float64), noises(4))
