"""Laws of time grids: where a walk calls the network."""

from __future__ import annotations

import math

import pytest
import torch
from laws import (
    BRIDGES,
    RESDM,
    RESSHIFT,
    Seen,
    bend,
    every_bridge,
    every_grid,
    every_noisy_process,
    noises,
    random,
)

from scanbridge.bridge.process import Process, brownian_bridge, ddpm, linear_beta, rectified
from scanbridge.bridge.sample import Grid, Step, snap, time_grid, walk
from scanbridge.errors import UserError


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
