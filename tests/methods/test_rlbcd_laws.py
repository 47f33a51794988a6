"""What the mathematics of co-diffusion promises before any network is trained: two bridges as one process.

Letters: x the source, y the target, r the residual, all latents; the pair (r, y) is stacked on the channels, residual
first, and both bridges lead to (x, x). "Given x" is meant throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from scanbridge.bridge.noise import NoiseSource
from scanbridge.bridge.parametrize import decode, encode
from scanbridge.bridge.process import as_time, brownian_bridge
from scanbridge.bridge.sample import Grid, time_grid, walk
from scanbridge.nets.dual import DualConfig, DualUNet
from scanbridge.nets.fusion import consistency_score, linear, normalise
from scanbridge.nets.unet import UNetConfig

BRIDGE = brownian_bridge()
SHAPES = pytest.mark.parametrize("shape", [(2, 6, 5), (2, 4, 6, 5)], ids=["2D", "3D"])
WALKS = pytest.mark.parametrize("eta", [0.0, 1.0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noises(*shape: int, seed: int = 0) -> Callable[[int], Tensor]:
    return lambda step: normal(*shape, seed=1000 * seed + step)


def weights(t: float) -> tuple[float, float, float]:
    a, b, c = BRIDGE.coefficients(as_time(t))
    return float(a), float(b), float(c)


class Seen:
    """A denoiser that keeps the states and times that it was called with."""

    def __init__(self, denoise: Callable[[Tensor, float], Tensor]) -> None:
        self.denoise = denoise
        self.calls: list[tuple[float, Tensor]] = []

    def __call__(self, state: Tensor, t: float) -> Tensor:
        self.calls.append((t, state))
        return self.denoise(state, t)


# ---- one process on stacked channels


@SHAPES
@pytest.mark.parametrize("t", [1.0, 0.999, 0.5, 0.001])
def test_the_objective_of_both_branches_is_the_state_minus_their_own_end(shape: tuple[int, ...], t: float) -> None:
    residual, target, source = (normal(3, *shape, seed=seed) for seed in (1, 2, 3))
    pair, sources, eps = torch.cat([residual, target], 1), torch.cat([source, source], 1), normal(3, 4, *shape[1:])
    times = torch.full((3,), t, dtype=torch.float64)
    state = BRIDGE.diffuse(pair, sources, eps, times)
    label = encode("difference", BRIDGE, times, pair, sources, eps)
    for part, end in zip(label.chunk(2, 1), (residual, target), strict=True):
        expected = t * (source - end) + math.sqrt(2 * t * (1 - t)) * eps.chunk(2, 1)[end is target]  # eq. 3, 6
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(label, state - pair, rtol=0, atol=1e-12)
    torch.testing.assert_close(decode("difference", BRIDGE, times, label, state, sources), pair, rtol=0, atol=1e-12)


@SHAPES
def test_both_bridges_lead_from_their_own_end_to_the_source(shape: tuple[int, ...]) -> None:
    pair, source, eps = normal(1, 4, *shape[1:], seed=1), normal(1, *shape, seed=2), normal(1, 4, *shape[1:], seed=3)
    sources = torch.cat([source, source], 1)
    at = [BRIDGE.diffuse(pair, sources, eps, torch.tensor([t])) for t in (0.0, 1.0)]
    assert torch.equal(at[0], pair)
    assert torch.equal(at[1], sources)


@pytest.mark.parametrize("shared", [False, True])
def test_the_spread_of_the_branches_is_that_of_the_bridge_and_common_where_noise_is(shared: bool) -> None:
    n, t = 20_000, 0.3
    eps = normal(2, n)
    eps = eps[:1].expand(2, n) if shared else eps
    ends, source = torch.tensor([[-0.5], [0.8]], dtype=torch.float64), torch.full((2, 1), 0.2, dtype=torch.float64)
    state = BRIDGE.diffuse(ends.expand(2, n), source.expand(2, n), eps, torch.tensor([t, t]))
    delta = 2 * (t - t**2)
    spread = torch.cov(state)
    assert (state.mean(1) - ((1 - t) * ends + t * source)[:, 0]).abs().max() < 3 * math.sqrt(delta / n)
    assert (spread.diagonal() - delta).abs().max() < 3 * delta * math.sqrt(2 / n)
    assert abs(float(spread[0, 1]) - delta * shared) < 3 * delta * math.sqrt((1 + shared) / n)


def test_the_printed_weight_of_the_loss_is_one_over_t() -> None:
    steps = torch.arange(1, 1001, dtype=torch.float64)
    weight = BRIDGE.posterior((steps - 1) / 1000, steps / 1000).target  # c_eps of eq. 3 and 6, with m = t / T
    torch.testing.assert_close(weight, 1 / steps, rtol=1e-9, atol=0)
    assert float(weight[:20].sum() / weight.sum()) == pytest.approx(0.48, abs=0.005)  # so ours is 1


@SHAPES
@WALKS
@pytest.mark.parametrize("grid", ["theta", "linear", "published"])
def test_two_bridges_walk_in_step_as_one_process(shape: tuple[int, ...], eta: float, grid: Grid) -> None:
    source, draw = normal(*shape), noises(4, *shape[1:], seed=1)
    times = time_grid(BRIDGE, 6, grid=grid)

    def bend(state: Tensor, t: float) -> Tensor:
        return torch.tanh(state + t)

    together = walk(bend, BRIDGE, torch.cat([source, source]), times, draw, eta=eta)
    for half in (slice(0, 2), slice(2, 4)):
        alone = walk(bend, BRIDGE, source, times, lambda step, half=half: draw(step)[half], eta=eta)
        assert torch.equal(together[half], alone)


@pytest.mark.parametrize("start", ["prior", "source", "source+noise"])
def test_both_branches_start_at_the_latent_of_the_source(start: Any) -> None:
    source = normal(2, 6, 5)
    network = Seen(lambda state, _: torch.tanh(state))
    walk(network, BRIDGE, torch.cat([source, source]), time_grid(BRIDGE, 4), noises(4, 6, 5), start=start)
    t, state = network.calls[0]
    assert t == 1
    assert torch.equal(state, torch.cat([source, source]))


# ---- an oracle


def pair_of_units(calls: int, shared: bool) -> tuple[Tensor, Tensor, Callable[[int], Tensor]]:
    """Give ends, source and noise as unit vectors: a walk with D = the ends is linear, so its states say all."""
    unit = torch.eye(3 + 2 * (calls + 1), dtype=torch.float64)

    def noise(step: int) -> Tensor:
        first = 3 + 2 * step
        return torch.stack([unit[first], unit[first if shared else first + 1]])

    return unit[:2], torch.stack([unit[2], unit[2]]), noise


@WALKS
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("calls", "grid"), [(1, "linear"), (2, "theta"), (10, "quadratic"), (200, "linear")])
def test_an_oracle_walks_home_with_the_marginals_of_both_bridges(
    eta: float, shared: bool, calls: int, grid: Grid
) -> None:
    ends, sources, noise = pair_of_units(calls, shared)
    network = Seen(lambda _state, _t: ends)
    home = walk(network, BRIDGE, sources, time_grid(BRIDGE, calls, grid=grid), noise, eta=eta)
    assert torch.equal(home, ends)
    assert len(network.calls) == calls
    for t, state in network.calls:
        a, b, c = weights(t)
        expected = torch.tensor([[a, 0, b], [0, a, b]], dtype=torch.float64)  # of r, y and x in either state
        torch.testing.assert_close(state[:, :3], expected, rtol=0, atol=1e-12)
        spread = c**2 * torch.tensor([[1.0, shared], [shared, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(state[:, 3:] @ state[:, 3:].T, spread, rtol=0, atol=1e-12)


@pytest.mark.parametrize("calls", [1, 2, 10, 200, 1000])
def test_an_oracle_of_the_objective_walks_home_in_any_number_of_published_calls(calls: int) -> None:
    pair, source = normal(4, 3, 3, seed=1), normal(2, 3, 3, seed=2)
    sources = torch.cat([source, source])

    def denoise(state: Tensor, t: float) -> Tensor:
        difference, times = (state - pair)[None], torch.tensor([t], dtype=torch.float64)
        return decode("difference", BRIDGE, times, difference, state[None], sources[None])[0]

    times = time_grid(BRIDGE, calls, grid="published")
    home = walk(denoise, BRIDGE, sources, times, noises(4, 3, 3), eta=1)
    torch.testing.assert_close(home, pair, rtol=0, atol=1e-12)


# ---- what the residual branch can tell, and what the pair then is


def pair_law(correlation: float) -> Tensor:
    """Covariance of (r, y), each of sd 0.3."""
    return 0.09 * torch.tensor([[1, correlation], [correlation, 1]], dtype=torch.float64)


def best_weights(law: Tensor, t: float, sees: Sequence[int], of: int, *, shared: bool = False) -> Tensor:
    """Give the weights of the states `sees` in E[end `of` | those states] for a Gaussian pair of mean 0 and x = 0."""
    a, _, c = weights(t)
    noise = torch.ones(2, 2).double() if shared else torch.eye(2).double()
    states = a**2 * law + c**2 * noise
    heard = list(sees)
    return a * law[of, heard] @ torch.linalg.pinv(states[heard][:, heard], rtol=1e-12)


def unexplained(law: Tensor, t: float, sees: Sequence[int], *, shared: bool) -> float:
    """Variance of y that the states `sees` leave open."""
    found = best_weights(law, t, sees, 1, shared=shared)
    return float(law[1, 1] - weights(t)[0] * found @ law[1, list(sees)])


@SHAPES
def test_with_shared_noise_the_difference_of_the_states_is_known(shape: tuple[int, ...]) -> None:
    source, residual = normal(1, *shape, seed=1), normal(1, *shape, seed=2)
    t, eps = torch.tensor([0.4], dtype=torch.float64), normal(1, *shape, seed=3)
    guided, guiding = (BRIDGE.diffuse(end, source, eps, t) for end in (residual + source, residual))
    torch.testing.assert_close(guided - guiding, 0.6 * source, rtol=0, atol=1e-14)
    other = BRIDGE.diffuse(residual, source, normal(1, *shape, seed=4), t)
    assert (guided - other - 0.6 * source).square().mean() > 0.4  # 2 delta = 0.96 where the noises are independent


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
def test_a_latent_residual_tells_nothing_with_shared_noise_and_something_without(t: float) -> None:
    law = pair_law(1.0)  # y - r = x
    alone = unexplained(law, t, [1], shared=True)
    assert unexplained(law, t, [0, 1], shared=True) == pytest.approx(alone, rel=1e-9)
    assert unexplained(law, t, [0, 1], shared=False) < 0.999 * alone


def spread_of_pairs(law: Tensor, sees: Sequence[Sequence[int]], calls: int, eta: float) -> Tensor:
    """Covariance of the pairs that a walk with E[r | states `sees`[0]] and E[y | states `sees`[1]] draws."""
    _, _, noise = pair_of_units(calls, shared=False)

    def denoise(state: Tensor, t: float) -> Tensor:
        return torch.stack([best_weights(law, t, sees[of], of) @ state[list(sees[of])] for of in (0, 1)])

    drawn = walk(denoise, BRIDGE, torch.zeros_like(noise(0)), time_grid(BRIDGE, calls), noise, eta=eta)
    return drawn @ drawn.T


BOTH_SEE_BOTH, ONE_WAY, APART = ((0, 1), (0, 1)), ((0,), (0, 1)), ((0,), (1,))


@WALKS
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
def test_branches_that_see_both_states_draw_the_pair_from_its_law(eta: float, correlation: float) -> None:
    law = pair_law(correlation)
    torch.testing.assert_close(spread_of_pairs(law, BOTH_SEE_BOTH, 200, eta), law, rtol=0.03, atol=1e-9)


@pytest.mark.parametrize(("correlation", "drawn", "sd"), [(0.0, 0.0, 1.0), (0.5, 0.27, 0.97), (0.9, 0.65, 0.87)])
def test_guidance_that_runs_one_way_draws_the_residual_right_and_a_pair_that_is_too_loose(
    correlation: float, drawn: float, sd: float
) -> None:
    """A fact about the paper's design, with perfect networks: the residual's walk never hears where the target went.

    So a part of what the consistency score finds inconsistent is no fault of a network.
    """
    pair = spread_of_pairs(pair_law(correlation), ONE_WAY, 400, eta=0.0)
    assert math.sqrt(pair[0, 0]) / 0.3 == pytest.approx(1, abs=0.005)
    assert math.sqrt(pair[1, 1]) / 0.3 == pytest.approx(sd, abs=0.01)
    assert float(pair[0, 1] / pair.diagonal().prod().sqrt()) == pytest.approx(drawn, abs=0.02)
    assert float(spread_of_pairs(pair_law(correlation), APART, 50, eta=0.0)[0, 1]) == pytest.approx(0, abs=1e-12)


def test_guidance_that_runs_one_way_is_right_in_the_limit_where_the_residual_says_all() -> None:
    open_gap = [
        float((pair[0, 0] + pair[1, 1] - 2 * pair[0, 1]).sqrt() / 0.3)
        for pair in (spread_of_pairs(pair_law(1.0), ONE_WAY, calls, eta=0.0) for calls in (8, 40, 200))
    ]
    assert open_gap == sorted(open_gap, reverse=True)
    assert open_gap[0] > 0.2
    assert open_gap[-1] < 0.08


# ---- the identity of the pair, and the score


@WALKS
def test_a_pair_of_latents_keeps_its_identity_and_one_of_images_does_not(eta: float) -> None:
    first, second = (torch.tanh(normal(2, 5, 5, seed=seed)) for seed in (1, 2))  # images A and B in [-1, 1]

    def encoder(image: Tensor) -> Tensor:
        return torch.sinh(2 * image)

    source, target = encoder(first), encoder(second)
    scores = {}
    for residual in ("latent", "image"):
        end = target - source if residual == "latent" else encoder((second - first) / 2)
        pair, sources = torch.cat([end, target]), torch.cat([source, source])
        home = walk(lambda _x, _t, pair=pair: pair, BRIDGE, sources, time_grid(BRIDGE, 5), noises(4, 5, 5), eta=eta)
        r, y = home[None].chunk(2, dim=1)
        scores[residual] = float(consistency_score(linear(y, r), source[None]))
    assert scores["latent"] == pytest.approx(0, abs=1e-20)
    assert scores["image"] < -0.1


def test_the_residual_image_keeps_its_range_and_leads_back_to_the_target() -> None:
    first, second = (torch.tanh(3 * normal(5, 5, seed=seed)) for seed in (1, 2))
    residual = (second - first) / 2
    assert residual.abs().max() <= 1
    torch.testing.assert_close((first + 2 * residual).clamp(-1, 1), second, rtol=0, atol=1e-15)  # w/o EDB


@pytest.mark.parametrize(("temperature", "rank"), [(0.0, False), (1.0, True)])
def test_draws_without_spread_cannot_be_ranked(temperature: float, rank: bool) -> None:
    source = normal(2, 4, 4, seed=9)

    def draw(k: int) -> Tensor:
        noise = NoiseSource(0, "subject", draw=k)
        pair = walk(
            lambda state, t: torch.tanh(state - t),
            BRIDGE,
            torch.cat([source, source]),
            time_grid(BRIDGE, 4),
            lambda step: noise(step, (4, 4, 4)).double(),
            temperature=temperature,
        )
        r, y = pair[None].chunk(2, dim=1)
        return consistency_score(linear(y, r), source[None])

    ranked = normalise(torch.stack([draw(k) for k in range(4)]))
    assert bool(ranked.isnan().any()) == (not rank)
    if rank:
        assert sorted(ranked.flatten().tolist())[:: len(ranked) - 1] == [0, 1]


# ---- the letters of the paper's formula


@SHAPES
@pytest.mark.parametrize("t", [0.999, 0.5, 0.001])
def test_the_letters_as_printed_make_the_objective_a_known_quantity(shape: tuple[int, ...], t: float) -> None:
    source, target, eps = (normal(1, *shape, seed=seed) for seed in (1, 2, 3))
    times = torch.tensor([t], dtype=torch.float64)
    state = BRIDGE.diffuse(source, target, eps, times)  # x_0 = x, x_T = y
    label = encode("difference", BRIDGE, times, source, target, eps)
    torch.testing.assert_close(label, state - source, rtol=0, atol=1e-12)  # nothing of the target is left to learn


def test_the_letters_as_printed_cannot_be_sampled() -> None:
    source, target, eps = normal(1, 2, 3, 3, seed=1), normal(1, 2, 3, 3, seed=2), normal(1, 2, 3, 3, seed=3)
    start = BRIDGE.diffuse(source, target, eps, torch.tensor([1.0]))
    assert torch.equal(start, target)  # where the walk would have to start
    perfect = walk(lambda state, _: state - (state - source), BRIDGE, source, time_grid(BRIDGE, 10), noises(1, 2, 3, 3))
    torch.testing.assert_close(perfect, source, rtol=0, atol=1e-12)  # and where it ends if it starts at the source


# ---- four pairs


def smooth(seed: int) -> Tensor:
    coarse = normal(4, 1, 3, 3, seed=seed)
    return torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=True).float()


def test_four_pairs_are_learned_by_heart_and_the_residual_has_its_sign() -> None:
    source, target = smooth(1), smooth(2)
    residual, n_updates = target - source, 150
    pair, sources = torch.cat([residual, target], 1), torch.cat([source, source], 1)
    branch = UNetConfig(in_channels=2, out_channels=1, channels=16, multipliers=(1, 2), head_channels=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DualUNet(DualConfig(branch=branch, scales=(1, 2)))
    optimizer = torch.optim.Adam(net.parameters(), 6e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_updates)

    def told(state: Tensor, sources: Tensor, t: Tensor) -> Tensor:
        branches = zip(state.float().chunk(2, dim=1), sources.chunk(2, dim=1), strict=True)
        return torch.cat(net(*(torch.cat(each, dim=1) for each in branches), 999 * t), dim=1)

    generator = torch.Generator().manual_seed(0)
    for _ in range(n_updates):
        t, eps = torch.rand(8, generator=generator).double(), torch.randn(8, 2, 8, 8, generator=generator)
        ends = pair.repeat(2, 1, 1, 1), sources.repeat(2, 1, 1, 1)
        label = encode("difference", BRIDGE, t, *ends, eps)
        loss = (told(BRIDGE.diffuse(*ends, eps, t), ends[1], t) - label).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()

    def denoise(state: Tensor, t: float) -> Tensor:
        times = as_time(t).expand(4)
        return decode("difference", BRIDGE, times, told(state, sources, times), state, sources)

    with torch.inference_mode():
        drawn, learned = walk(denoise, BRIDGE, sources, time_grid(BRIDGE, 4), noises(4, 2, 8, 8)).float().chunk(2, 1)
    spread = float(target.var())
    assert float((learned - target).square().mean()) < 0.1 * spread  # measured 0.02
    assert float((drawn - residual).square().mean()) < 0.1 * spread  # 0.01
    assert float((drawn + residual).square().mean()) > spread  # 9
