"""Laws of what a network predicts."""

from __future__ import annotations

import pytest
import torch
from laws import PROCESSES, every_process
from torch import Tensor

from scanbridge.bridge.parametrize import Prediction, decode, encode
from scanbridge.bridge.process import Process, brownian_bridge, ddpm, linear_beta, rectified
from scanbridge.errors import UserError

HEADS: list[Prediction] = ["target", "noise", "difference", "shift"]
T = torch.tensor([0.002, 0.3, 0.6, 0.95], dtype=torch.float64)


def images() -> Tensor:
    return torch.randn(3, 4, 1, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@every_process
@pytest.mark.parametrize("head", HEADS)
def test_decoding_what_was_encoded_gives_the_target(process: Process, head: Prediction) -> None:
    target, source, noise = images()
    state = process.diffuse(target, source, noise, T)
    output = encode(head, process, T, target, source, noise)
    torch.testing.assert_close(decode(head, process, T, output, state, source), target, atol=1e-12, rtol=0)


def test_the_velocity_of_a_ddpm_decodes_to_the_target() -> None:
    process = ddpm(linear_beta())
    target, source, noise = images()
    a, _, c = (w.reshape(4, 1, 1, 1, 1) for w in process.coefficients(T))
    output = encode("velocity", process, T, target, source, noise)
    torch.testing.assert_close(output, a * noise - c * target, atol=1e-13, rtol=0)
    state = process.diffuse(target, source, noise, T)
    torch.testing.assert_close(decode("velocity", process, T, output, state, source), target, atol=1e-12, rtol=0)


@every_process
def test_each_head_predicts_what_its_name_says(process: Process) -> None:
    target, source, noise = images()
    state = process.diffuse(target, source, noise, T)
    right = {"target": target, "noise": noise, "difference": state - target, "shift": source - target}
    for head in HEADS:
        given = encode(head, process, T, target, source, noise)
        torch.testing.assert_close(given, right[head], atol=1e-12, rtol=0)


@pytest.mark.parametrize("head", ["target", "difference", "shift", "velocity"])
def test_all_other_heads_are_regular_at_the_start_of_a_bridge(head: Prediction) -> None:
    process, at_start = brownian_bridge(), torch.ones(4, dtype=torch.float64)
    target, source, noise = images()
    state = process.diffuse(target, source, noise, at_start)
    output = encode(head, process, at_start, target, source, noise)
    torch.testing.assert_close(decode(head, process, at_start, output, state, source), target, atol=1e-12, rtol=0)


@pytest.mark.parametrize("process", [p for p in PROCESSES if "ddpm" not in p.name], ids=lambda p: p.name)
def test_noise_is_refused_where_the_state_holds_no_signal(process: Process) -> None:
    one_at_start = torch.tensor([0.5, 1.0, 0.5, 0.5], dtype=torch.float64)
    target, source, _ = images()
    with pytest.raises(UserError, match=r"predicts the noise cannot start.*predict 'target' or 'difference'"):
        decode("noise", process, one_at_start, target, target, source)


noisy = pytest.mark.parametrize("process", [p for p in PROCESSES if not p.noiseless], ids=lambda p: p.name)


@noisy
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_velocity_decodes_to_the_target_for_every_process_and_scale(process: Process, scale: float) -> None:
    target, source, noise = images()
    state = process.diffuse(target, source, noise, T)
    output = encode("velocity", process, T, target, source, noise, residual_scale=scale)
    given = decode("velocity", process, T, output, state, source, residual_scale=scale)
    torch.testing.assert_close(given, target, atol=1e-12, rtol=0)


@noisy
def test_a_velocity_of_zero_leaves_the_best_guess_of_a_gaussian_residual(process: Process) -> None:
    """With x_0 ~ N(0, sd^2) given y, E[x_0 | x_t, y] = sd^2 kappa u / (1 + sd^2 kappa^2), typed."""
    scale = 0.3
    target, source, noise = images()
    state = process.diffuse(target, source, noise, T)
    _, b, c = (w.reshape(4, 1, 1, 1, 1) for w in process.coefficients(T))
    kappa = process.kappa(T).reshape(4, 1, 1, 1, 1)
    expected = scale**2 * kappa * (state - b * source) / c / (1 + scale**2 * kappa**2)
    given = decode("velocity", process, T, torch.zeros_like(state), state, source, residual_scale=scale)
    torch.testing.assert_close(given, expected, atol=1e-12, rtol=0)


def test_the_velocity_is_the_target_at_one_end_and_the_noise_at_the_other() -> None:
    process, ends = brownian_bridge(), torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    target, source, noise = images()
    given = encode("velocity", process, ends, target, source, noise, residual_scale=0.2)
    torch.testing.assert_close(given[::2], -target[::2], atol=1e-13, rtol=0)
    torch.testing.assert_close(given[1::2], 0.2 * noise[1::2], atol=1e-13, rtol=0)


def test_velocity_is_refused_where_there_is_no_noise() -> None:
    target, source, noise = images()
    with pytest.raises(UserError, match="'velocity' is not defined"):
        encode("velocity", rectified(), T, target, source, noise)
    with pytest.raises(UserError, match="'velocity' is not defined"):
        decode("velocity", rectified(), T, target, noise, source)


@every_process
def test_predictions_keep_the_precision_of_the_images(process: Process) -> None:
    target, source, noise = images().float()
    output = encode("difference", process, T, target, source, noise)
    assert output.dtype == decode("difference", process, T, output, target, source).dtype == torch.float32
