"""CT2MRI's inter-slice trajectory alignment, typed window by window from the released code's facts, equals our walk.

The release carries a volume padded by one slice of -1 at each end, re-cuts it at every step, does the reverse step on
every window, averages X (not E) by counts, and corrects the average M times. Its count formula is wrong for fewer than
three slices; the right counts stand here.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from scanbridge.bridge.process import brownian_bridge
from scanbridge.bridge.sample import Langevin, time_grid, walk
from scanbridge.bridge.volume import Lift, Windows

Norm = Literal["code", "paper"]
COUNTS = {1: [1, 1, 1], 2: [1, 2, 2, 1], 7: [1, 2, 3, 3, 3, 3, 3, 2, 1]}
STEPS = {3: [999, 1, 0], 6: [999, 749, 499, 249, 1, 0]}


class Network(nn.Module):
    """Predicts x_t - x_0 of three slices from x_t and the source, and knows the integer step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    @torch.no_grad()
    def forward(self, state: Tensor, source: Tensor, step: int) -> Tensor:
        hidden = torch.tanh(self.first(torch.cat([state, source], dim=1)) + math.sin(step / 100))
        return 2 * self.last(torch.tanh(self.middle(hidden)))


def released_ista(network: Network, source: Tensor, steps: list[int], m_corrections: int, norm: Norm) -> Tensor:
    """Translate `source` (Z, H, W) as released; float32 throughout, lambda = 0.5, s = 1."""
    n_slices, height, width = source.shape
    m = [0.001 + 0.998 * i / 999 for i in range(1000)]
    delta = [2 * value * (1 - value) for value in m]
    count = torch.tensor(COUNTS[n_slices], dtype=torch.float32).reshape(-1, 1, 1)
    margin = torch.full((1, height, width), -1.0)
    y = torch.cat([margin, source, margin])

    def windows(volume: Tensor) -> Tensor:
        return torch.stack([volume[b : b + 3] for b in range(n_slices)])

    def average(pieces: Tensor) -> Tensor:
        total = torch.zeros(n_slices + 2, height, width)
        for b in range(n_slices):
            total[b : b + 3] += pieces[b]
        return total / count

    x = y
    for t, n in pairwise(steps):
        x_t, y_t = windows(x), windows(y)
        x_0 = x_t - network(x_t, y_t, t)
        sig2 = (delta[t] - delta[n] * (1 - m[t]) ** 2 / (1 - m[n]) ** 2) * delta[n] / delta[t]
        kept = math.sqrt((delta[n] - sig2) / delta[t])
        x = average((1 - m[n]) * x_0 + m[n] * y_t + kept * (x_t - (1 - m[t]) * x_0 - m[t] * y_t))
        for _ in range(m_corrections):
            x_n = windows(x)
            x_0 = x_n - network(x_n, y_t, n)
            score = average(-(x_n - (1 - m[n]) * x_0 - m[n] * y_t) / delta[n])
            for i in range(n_slices + 2):
                square = float((score[i] ** 2).sum())
                d = height * width
                assert square > 25e-6 * d  # well above our floor (1e-6 d), which the release lacks
                gamma = 0.5 * increment(m, n) * (math.sqrt(d) if norm == "code" else d) / square
                x[i] = x[i] + gamma * score[i]
    x_t = windows(x)
    volume = average(x_t - network(x_t, windows(y), steps[-1]))
    return windows(volume)[:, 1]  # the centre channel of every window


def increment(m: list[float], n: int) -> float:
    """Give delta_(n|n-1), the variance that one training step adds."""
    before = m[n - 1] if n > 0 else 0.0
    return 2 * (1 - m[n]) * (m[n] - before) / (1 - before)


def ours(network: Network, source: Tensor, calls: int, m_corrections: int, norm: Norm, batch_size: int) -> Tensor:
    process = brownian_bridge()
    assert process.steps is not None
    steps = process.steps
    margin = torch.full_like(source[:1], -1.0)
    padded = torch.cat([margin, source, margin])[None]

    def index(t: float) -> int:
        return int((steps - t).abs().argmin())

    def denoise(state: Tensor, piece: Tensor, t: float) -> Tensor:
        return state - network(state[:, 0], piece[:, 0], index(t))[:, None]

    given = walk(
        Lift(denoise, padded, Windows(padded.shape[1], radius=1, ends="live"), batch_size),
        process,
        padded,
        time_grid(process, calls, grid="published"),
        lambda _step: torch.full_like(padded, math.nan),
        path="mean",
        start="source",
        corrector=Langevin(process, padded, 0.5, lambda t: increment(steps.tolist(), index(t)), m_corrections, norm),
    )
    return given[0, 1:-1]


@pytest.mark.parametrize("n_slices", [1, 2, 7])
@pytest.mark.parametrize("m_corrections", [0, 1, 2])
@pytest.mark.parametrize("norm", ["code", "paper"])
@pytest.mark.parametrize("calls", [3, 6])
def test_ista_is_the_lifted_walk_with_the_langevin_corrector(
    n_slices: int, m_corrections: int, norm: Norm, calls: int
) -> None:
    network = Network()
    source = 2 * torch.rand(n_slices, 12, 10, generator=torch.Generator().manual_seed(n_slices)) - 1
    right = released_ista(network, source, STEPS[calls], m_corrections, norm)
    given = ours(network, source, calls, m_corrections, norm, batch_size=3)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, right, atol=2e-6, rtol=0)


def test_the_corrector_is_large_enough_here_to_be_seen() -> None:
    network = Network()
    source = 2 * torch.rand(7, 12, 10, generator=torch.Generator().manual_seed(7)) - 1
    plain, code, paper = (
        released_ista(network, source, STEPS[6], m_corrections, norm)
        for m_corrections, norm in [(0, "code"), (1, "code"), (1, "paper")]
    )
    assert float((code - plain).abs().max()) > 1e-4
    assert float((paper - plain).abs().max()) > 1e-3


def test_the_increments_are_those_of_the_release() -> None:
    m = [0.001 + 0.998 * i / 999 for i in range(1000)]
    assert increment(m, 500) == pytest.approx(0.0020, abs=5e-5)
    assert increment(m, 998) == pytest.approx(0.00133, abs=5e-6)
    assert increment(m, 999) == pytest.approx(0.0010, abs=5e-6)
