"""Laws of the consistency network and of the latent consistency score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from scanbridge.nets.fusion import (
    FusionConfig,
    FusionNet,
    consistency_map,
    consistency_score,
    linear,
    normalise,
    swap_ratio,
)

BOTH = pytest.mark.parametrize("dims", [2, 3])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latents(dims: int = 2, batch: int = 3, size: int = 9) -> tuple[Tensor, Tensor]:
    shape = (batch, 2, *[size] * dims)
    return normal(*shape, seed=1), normal(*shape, seed=2)


def build(dims: int = 2, *, fresh: bool = False, **changes: Any) -> FusionNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = FusionNet(
            FusionConfig(**{"latent_channels": 2, "channels": 8, "convolutions": 3, "dims": dims, **changes})
        )
        net = net.double()
        if not fresh:
            for parameter in net.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
    return net


@BOTH
def test_a_fresh_network_is_the_linear_reading(dims: int) -> None:
    target, residual = latents(dims)
    torch.testing.assert_close(build(dims, fresh=True)(target, residual), linear(target, residual), rtol=0, atol=1e-15)


@BOTH
def test_every_parameter_learns(dims: int) -> None:
    net = build(dims)
    net(*latents(dims)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12] == []


@BOTH
def test_an_item_does_not_see_its_batch(dims: int) -> None:
    net, (target, residual) = build(dims), latents(dims)
    torch.testing.assert_close(net(target, residual)[1:2], net(target[1:2], residual[1:2]), rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("convolutions", [2, 4])
def test_a_position_hears_its_neighbours_within_the_radius_alone(dims: int, convolutions: int) -> None:
    net, (target, residual) = build(dims, convolutions=convolutions), latents(dims, size=11)
    moved = residual.clone()
    moved[(0, 0, *[5] * dims)] += 1
    changed = (net(target, moved) - net(target, residual)).abs().amax(dim=1)
    places = (changed[0] > 1e-12).nonzero()
    assert not changed[1:].any()
    assert (places - 5).abs().max() == net.radius == convolutions


def test_a_frozen_network_passes_gradients_on_and_takes_none() -> None:
    net, (target, residual) = build().eval().requires_grad_(False), latents()
    target.requires_grad_()
    residual.requires_grad_()
    (-consistency_score(net(target, residual), normal(3, 2, 9, 9, seed=3))).mean().backward()
    assert all(p.grad is None for p in net.parameters())
    assert target.grad is not None
    assert residual.grad is not None
    assert target.grad.abs().min() > 0
    assert residual.grad.abs().min() > 0


def test_channels_last_maps_stay_channels_last() -> None:
    net = build().to(memory_format=torch.channels_last)
    target, residual = (each.contiguous(memory_format=torch.channels_last) for each in latents())
    assert net(target, residual).is_contiguous(memory_format=torch.channels_last)


def test_a_true_pair_of_differences_is_perfectly_consistent() -> None:
    source, residual = latents()
    assert consistency_score(linear(source + residual, residual), source) == pytest.approx(0, abs=1e-25)


def test_the_score_is_minus_the_mean_square_of_the_error() -> None:
    predicted, source = latents()
    expected = [-float(((predicted[i] - source[i]) ** 2).mean()) for i in range(3)]
    assert consistency_score(predicted, source).tolist() == pytest.approx(expected)


@BOTH
def test_the_score_is_the_mean_of_its_map(dims: int) -> None:
    predicted, source = latents(dims)
    places = consistency_map(predicted, source)
    assert places.shape == (3, 1, *[9] * dims)
    torch.testing.assert_close(places.flatten(1).mean(1), consistency_score(predicted, source))


def test_the_map_is_blind_to_errors_elsewhere() -> None:
    predicted, source = latents()
    spoilt = predicted.clone()
    spoilt[:, 1, 2, 3] += 5
    lower = consistency_map(spoilt, source) < consistency_map(predicted, source)
    assert lower.nonzero()[:, 1:].unique(dim=0).tolist() == [[0, 2, 3]]
    assert torch.equal(consistency_map(spoilt, source) != consistency_map(predicted, source), lower)


def test_the_score_falls_with_the_error_of_the_target() -> None:
    source, residual = latents()
    error = normal(3, 2, 9, 9, seed=4)
    scores = [consistency_score(linear(source + residual + k * error, residual), source) for k in (0, 0.1, 0.5, 1)]
    assert (torch.stack(scores).diff(dim=0) < 0).all()


def test_the_score_does_not_depend_on_the_order_of_the_batch() -> None:
    predicted, source = latents()
    assert torch.equal(
        consistency_score(predicted.flip(0), source.flip(0)), consistency_score(predicted, source).flip(0)
    )


def test_a_pair_that_is_wrong_together_is_consistent_all_the_same() -> None:
    source, residual = latents()  # consistency is not correctness
    wrong = normal(3, 2, 9, 9, seed=5)
    assert consistency_score(linear(source + residual + wrong, residual + wrong), source) == pytest.approx(0, abs=1e-25)


def test_normalised_scores_run_from_zero_to_one_and_keep_the_ranking() -> None:
    scores = -normal(10, 3).square()
    ranked = normalise(scores)
    assert torch.equal(ranked.amin(0), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(ranked.amax(0), torch.ones(3, dtype=torch.float64))
    assert torch.equal(ranked.argsort(0), scores.argsort(0))
    torch.testing.assert_close(normalise(3 * scores - 7), ranked)


def test_equal_draws_rank_nothing() -> None:
    scores = torch.tensor([[-1.0, -2.0], [-1.0, -3.0]])
    assert normalise(scores)[:, 0].isnan().all()
    assert normalise(scores)[:, 1].tolist() == [1, 0]
    assert normalise(scores[:1]).isnan().all()


def test_a_trained_network_needs_the_right_residual_and_a_deaf_one_does_not() -> None:
    def draw(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        source, residual = normal(16, 2, 8, 8, seed=seed), normal(16, 2, 8, 8, seed=1000 + seed)
        return 0.5 * source + torch.tanh(residual), residual, source

    net = build(fresh=True, channels=16, convolutions=2)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for step in range(150):
        target, residual, source = draw(step)
        optimizer.zero_grad()
        (-consistency_score(net(target, residual), source)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        unseen = draw(-1)
        assert consistency_score(linear(*unseen[:2]), unseen[2]).mean() < -0.3
        assert consistency_score(net(*unseen[:2]), unseen[2]).mean() > -0.15
        assert swap_ratio(net, *unseen) > 5
        assert swap_ratio(lambda target, _: 2 * target, *unseen) == 1


@pytest.mark.parametrize("changes", [{"convolutions": 1}, {"dims": 4}, {"latent_channels": 0}, {"width": 3}])
def test_a_configuration_is_strict(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FusionConfig(**{"latent_channels": 2, **changes})
