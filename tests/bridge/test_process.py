"""Laws of the processes; posteriors are typed from the papers (their misprints mended), not from the code."""

from __future__ import annotations

import math

import pytest
import torch
from laws import RESDM, RESSHIFT, every_noisy_process, every_process
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

INNER = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
PAIRS = [(s, t) for s in (0.003, 0.1, 0.5, 0.9) for t in (0.004, 0.11, 0.52, 0.97, 1.0) if s < t]


def assert_close(given: Tensor, right: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(given, right, atol=tolerance, rtol=tolerance)


@every_process
def test_every_process_starts_at_the_target(process: Process) -> None:
    a, b, c = process.coefficients(as_time(0.0))
    assert (float(a), float(b), float(c)) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("process", [brownian_bridge(), RESSHIFT, rectified()], ids=lambda process: process.name)
def test_a_bridge_ends_at_the_source(process: Process) -> None:
    a, b, _ = process.coefficients(as_time(1.0))
    assert (float(a), float(b)) == (0.0, 1.0)


@every_noisy_process
def test_kappa_falls_strictly(process: Process) -> None:
    assert bool((process.kappa(INNER).diff() < 0).all())


@every_noisy_process
def test_time_is_the_inverse_of_kappa(process: Process) -> None:
    assert_close(process.time(process.kappa(INNER)), INNER)
    assert_close(
        process.kappa(process.time(process.kappa(INNER))) / process.kappa(INNER), torch.ones_like(INNER), 1e-11
    )


@every_noisy_process
def test_the_ends_of_kappa_are_the_ends_of_time(process: Process) -> None:
    ends = torch.tensor([0.0, math.inf], dtype=torch.float64)
    assert process.time(ends).tolist() == [1.0, 0.0]
    assert float(process.kappa(as_time(0.0))) == math.inf


def test_a_bridge_without_signal_at_its_start_has_kappa_zero_there() -> None:
    assert float(brownian_bridge().kappa(as_time(1.0))) == 0
    assert float(RESSHIFT.kappa(as_time(1.0))) == 0


@every_noisy_process
def test_the_published_steps_rise_inside_the_unit_interval(process: Process) -> None:
    assert process.steps is not None
    assert bool((process.steps.diff() > 0).all())
    assert 0 < float(process.steps[0]) < float(process.steps[-1]) <= 1


@every_noisy_process
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_the_posterior_carries_the_marginal_of_t_to_the_marginal_of_s(process: Process, s: float, t: float) -> None:
    law = process.posterior(as_time(s), as_time(t))
    (a_s, b_s, c_s), (a_t, b_t, c_t) = process.coefficients(as_time(s)), process.coefficients(as_time(t))
    assert_close(law.state * a_t + law.target, a_s)
    assert_close(law.state * b_t + law.source, b_s)
    assert_close((law.state * c_t) ** 2 + law.variance, c_s**2)
    assert float(law.variance) >= 0


@every_noisy_process
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_the_share_of_fresh_noise_is_that_of_the_markov_chain(process: Process, s: float, t: float) -> None:
    q = process.markov(as_time(s), as_time(t))
    c_s = process.coefficients(as_time(s))[2]
    assert_close((q * c_s) ** 2, process.posterior(as_time(s), as_time(t)).variance)


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize(("s", "t"), [pair for pair in PAIRS if pair[1] < 1])
def test_the_bridge_has_bbdms_posterior(scale: float, s: float, t: float) -> None:
    m_s, m_t = s, t
    delta_s, delta_t = 2 * scale * m_s * (1 - m_s), 2 * scale * m_t * (1 - m_t)
    delta_ts = delta_t - delta_s * ((1 - m_t) / (1 - m_s)) ** 2
    c_x = delta_s / delta_t * (1 - m_t) / (1 - m_s) + delta_ts / delta_t * (1 - m_s)
    c_y = m_s - m_t * (1 - m_t) / (1 - m_s) * delta_s / delta_t
    c_e = (1 - m_s) * delta_ts / delta_t  # of x_t - x_0; both papers print a plus where the minus belongs
    law = brownian_bridge(scale).posterior(as_time(s), as_time(t))
    assert_close(law.state, as_time(c_x - c_e))
    assert_close(law.target, as_time(c_e))
    assert_close(law.source, as_time(c_y))
    assert_close(law.variance, as_time(delta_ts * delta_s / delta_t))


def test_ddpm_has_its_papers_posterior_at_every_step() -> None:
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - beta, dim=0)
    before, now, beta = abar[:-1], abar[1:], beta[1:]
    step = torch.arange(2, 1001, dtype=torch.float64)
    law = ddpm(linear_beta()).posterior((step - 1) / 1000, step / 1000)
    assert_close(law.target, before.sqrt() * beta / (1 - now))  # Ho et al. 2020, eq. 7
    assert_close(law.state, (1 - beta).sqrt() * (1 - before) / (1 - now))
    assert_close(law.source, torch.zeros_like(beta))
    assert_close(law.variance, (1 - before) / (1 - now) * beta)


@pytest.mark.parametrize("k", [2.0, 0.1])
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_the_residual_shift_has_resshifts_posterior(k: float, s: float, t: float) -> None:
    law = residual_shift(k, geometric_shift()).posterior(as_time(s), as_time(t))
    assert_close(law.state, as_time(s / t))
    assert_close(law.target, as_time((t - s) / t))
    assert_close(law.source, as_time(0.0))
    assert_close(law.variance, as_time(k**2 * s / t * (t - s)))


def test_resdms_posterior_variances_are_the_measured_ones() -> None:
    listed = [2.53, 4.20, 4.94, 5.36, 5.62, 5.81, 5.95, 6.05, 6.14, 6.20, 6.26, 6.31, 6.35, 6.38]
    steps = linear_shift()
    law = RESDM.posterior(steps[:-1], steps[1:])
    assert_close(law.variance, torch.tensor(listed, dtype=torch.float64) * 1e-4, 0.6e-6)
    first = [0.631, 0.387, 0.279, 0.218, 0.179, 0.152, 0.132, 0.116, 0.104, 0.094, 0.086, 0.079, 0.074, 0.069]
    assert_close(law.target, torch.tensor(first, dtype=torch.float64), 0.6e-3)


def test_the_shift_schedules_are_the_published_ones() -> None:
    linear = [0.04, 0.1085, 0.177, 0.2455, 0.314, 0.3825, 0.451, 0.5195, 0.588, 0.6565, 0.725, 0.7935, 0.862, 0.9305]
    assert_close(linear_shift(), torch.tensor([*linear, 0.999], dtype=torch.float64))
    root = [0.02, 0.1172, 0.1763, 0.2336, 0.2916, 0.351, 0.4124, 0.4759, 0.5417, 0.6099, 0.6807, 0.754, 0.83, 0.9086]
    assert_close(geometric_shift().sqrt(), torch.tensor([*root, 0.99], dtype=torch.float64), 5e-5)
    journal = torch.tensor([0.01, 0.2705, 0.5797, 0.9801], dtype=torch.float64)
    assert_close(geometric_shift(4, smallest=0.2), journal, 5e-5)


def test_the_steps_of_a_ddpm_have_the_given_cumulative_products() -> None:
    abar = linear_beta(50)
    a, _, c = ddpm(abar).coefficients(torch.arange(1, 51, dtype=torch.float64) / 50)
    assert_close(a**2, abar)
    assert_close(c**2, 1 - abar)


def test_the_first_and_last_bridge_steps_are_the_released_ones() -> None:
    steps = brownian_bridge().steps
    assert steps is not None
    assert_close(steps[[0, 1, 999]], torch.tensor([0.001, 0.001 + 0.998 / 999, 0.999], dtype=torch.float64), 1e-15)
    std = brownian_bridge().coefficients(torch.stack([steps[0], steps[-1], as_time(0.5)]))[2]
    assert_close(std, torch.tensor([0.0447, 0.0447, 0.7071], dtype=torch.float64), 5e-5)


@every_process
def test_diffuse_mixes_target_source_and_noise_per_item(process: Process) -> None:
    target, source, noise = torch.randn(3, 2, 1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    state = process.diffuse(target, source, noise, t)
    for item in range(2):
        a, b, c = process.coefficients(t[item])
        assert_close(state[item], a * target[item] + b * source[item] + c * noise[item])


def test_only_the_rectified_path_is_noiseless() -> None:
    assert rectified().noiseless
    assert not brownian_bridge(0.001).noiseless
