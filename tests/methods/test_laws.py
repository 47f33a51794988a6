"""Laws that every method keeps: one list of methods, all laws over each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods import METHODS
from scanbridge.methods.base import Batch, Draws, Fitted, Request, Stage, TrainingCase, load_method

TARGET = "t1w"
NETWORK = {"channels": 8, "multipliers": [1, 2], "head_channels": 8, "groups": 4}
BRIDGES = [name for name in METHODS if name != "regression"]
FIRST = " after a regression"
FOLDS = " after the regressions of two folds"
KINDS = [*METHODS, *(f"{name}{after}" for name in ("bbdm", "ct2mri") for after in (FIRST, FOLDS))]
SPREADING = [kind for kind in KINDS if kind != "regression"]
TINY_LATENT = {
    "autoencoder": {
        "channels": 8,
        "multipliers": [1, 2],
        "strides": [2],
        "latent_channels": 3,
        "codes": 16,
        "discriminator": {"channels": 8, "strides": [2]},
    }
}
OWN: dict[str, dict[str, Any]] = {
    "ct2mri": {"network": {"middle": "transformer"}},
    "rlbcd": {**TINY_LATENT, "consistency": {"channels": 8}, "guidance": {"scales": [1, 2]}},
}
"""What a method needs beside `NETWORK` to be tiny."""
SHAPE = (5, 12, 16)


@dataclass(frozen=True)
class Made:
    """A method with random networks whose outputs are not zero; `stage` is its last, which translates."""

    stages: tuple[Stage, ...]
    fitted: Fitted
    config: Any
    module: Any

    @property
    def stage(self) -> Stage:
        return self.stages[-1]

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks that the last stage trains."""
        return {name: self.fitted.networks[name] for name in self.stage.build()}

    @property
    def windowed(self) -> bool:
        """Whether it works on windows of slices, and not on slices alone."""
        return hasattr(self.config, "radius")

    def batch(self) -> Batch:
        return batch(width=self.stage.item.width)

    def draw(self, source: Tensor, **asked: Any) -> Draws:
        with torch.inference_mode():
            return self.module.translator(self.config, self.fitted).draw(
                source, Request(target=TARGET, subject=asked.pop("subject", "s"), **asked)
            )

    def with_windows(self, n: int) -> Made:
        walks = {name: {"windows": n} for name in ("estimate", "draw") if hasattr(self.config, name)}
        changes = walks or {"windows": n}
        tree = self.config.model_dump()
        for name, value in changes.items():
            tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
        return replace(self, config=type(self.config).model_validate(tree))


def volume(seed: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def made(name: str, **tables: Any) -> Made:
    first, folds = name.endswith((FIRST, FOLDS)), 2 * name.endswith(FOLDS)
    name = name.removesuffix(FIRST).removesuffix(FOLDS)
    module = load_method(name)
    after = {"regression": {"use": True, "folds": folds}, "bridge": {"at_source": 0.0}} if first else {}
    config = module.Config.model_validate(merged({"network": NETWORK}, OWN.get(name, {}), after, tables))
    stages = module.stages(config, [TARGET])
    cases = [
        TrainingCase(volume(i)[0], {TARGET: volume(10 + i)[0] ** 3}, volume(i)[0] > -0.5, f"p{i}") for i in range(3)
    ]
    torch.manual_seed(0)
    fitted = Fitted()
    for stage in stages:
        for network in fitted.networks.values():
            network.eval().requires_grad_(False)
        networks = stage.build()
        with torch.no_grad():
            for network in networks.values():
                for parameter in network.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        fitted = fitted | Fitted(networks, stage.fit(cases, fitted))
    return Made(stages, fitted, config, module)


def merged(*trees: dict[str, Any]) -> dict[str, Any]:
    """Give trees of settings as one, the last word wins."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            whole[key] = merged(whole.get(key, {}), value) if isinstance(value, dict) else value
    return whole


def batch(n: int = 3, width: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(5)
    source, target = (torch.rand((n, 1, width, 12, 16), generator=generator) * 2 - 1 for _ in range(2))
    valid = (torch.rand((n, 1, width, 12, 16), generator=generator) > 0.3).float()
    valid[0, :, 0] = 0 if width > 1 else 1  # an end slice: as many voxels count in no two items
    return Batch(source, {TARGET: target}, {TARGET: valid}, torch.tensor([0, 2, 1])[:n])


def part(whole: Batch, i: int) -> Batch:
    return Batch(
        whole.source[i : i + 1],
        {name: value[i : i + 1] for name, value in whole.targets.items()},
        {name: value[i : i + 1] for name, value in whole.valid.items()},
        whole.case[i : i + 1],
    )


@pytest.fixture(params=KINDS)
def method(request) -> Made:
    return made(request.param)


def test_the_loss_of_a_batch_is_the_mean_of_its_items(method):
    whole = method.batch()
    together, _ = method.stage.loss(method.fitted, whole, ItemNoise([7, 8, 9]))
    alone = [method.stage.loss(method.fitted, part(whole, i), ItemNoise([7 + i]))[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=0)


def test_what_is_not_valid_is_not_learned_from(method):
    whole = method.batch()
    one, _ = method.stage.loss(method.fitted, whole, ItemNoise([1, 2, 3]))
    spoilt = whole.targets[TARGET] * whole.valid[TARGET]
    other, _ = method.stage.loss(method.fitted, replace(whole, targets={TARGET: spoilt}), ItemNoise([1, 2, 3]))
    if method.module.__name__.endswith("regression"):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    else:  # the state of a bridge holds the target at every voxel, but the label there does not count
        nothing = replace(whole, valid={TARGET: torch.zeros_like(whole.valid[TARGET])})
        assert method.stage.loss(method.fitted, nothing, ItemNoise([1, 2, 3]))[0] == 0


def test_every_parameter_is_reached_by_the_loss(method):
    loss, _ = method.stage.loss(method.fitted, method.batch(), ItemNoise([1, 2, 3]))
    loss.backward()
    for network in method.networks.values():
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("product", ["estimate", "draw", "one-call"])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_how_many_windows_a_call_takes_changes_nothing(method, product, n):
    if product == "draw" and not hasattr(method.config, "draw"):
        pytest.skip("a regression has no draws")
    source = volume(1)
    one, other = (each.draw(source, product=product) for each in (method.with_windows(2), method.with_windows(n)))
    torch.testing.assert_close(one.volumes, other.volumes, rtol=0, atol=2e-5)
    torch.testing.assert_close(one.uncertainty, other.uncertainty, rtol=0, atol=2e-5)
    assert one.calls == other.calls


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_a_volume_of_any_number_of_slices_is_translated(method, depth):
    drawn = method.draw(volume(2, (depth, 12, 16)))
    assert drawn.volumes.shape == (1, depth, 12, 16)
    assert drawn.uncertainty.shape == (depth, 12, 16)
    assert drawn.volumes.isfinite().all()
    assert drawn.uncertainty.isfinite().all()
    assert (drawn.uncertainty >= 0).all()


def test_the_same_request_gives_the_same_bits(method):
    product = "draw" if hasattr(method.config, "draw") else "estimate"
    one, other = (method.draw(volume(3), product=product) for _ in range(2))
    assert torch.equal(one.volumes, other.volumes)
    assert torch.equal(one.uncertainty, other.uncertainty)


def test_translating_leaves_the_source_as_it_is(method):
    source = volume(3)
    method.draw(source)
    assert torch.equal(source, volume(3))


def test_every_call_is_told(method):
    told: list[tuple[int, int]] = []
    drawn = method.draw(volume(3), on_call=lambda call, calls: told.append((call, calls)))
    assert [call for call, _ in told] == list(range(1, drawn.calls + 1))
    assert {calls for _, calls in told} == {drawn.calls}


def test_windows_of_one_slice_cannot_disagree():
    for name in KINDS:
        if made(name).windowed:
            drawn = made(name, radius=0).draw(volume(4))
            assert not drawn.uncertainty.any(), name


def test_more_than_one_target_is_refused():
    for name in METHODS:
        module = load_method(name)
        with pytest.raises(UserError, match="one target"):
            module.stages(module.Config(), ["a", "b"])


@pytest.mark.parametrize("name", SPREADING)
def test_draws_depend_on_seed_subject_and_number_alone(name):
    bridge, source = made(name), volume(5)
    many = bridge.draw(source, product="draw", samples=3)
    again = bridge.draw(source, product="draw", samples=2)
    assert torch.equal(many.volumes[:2], again.volumes)
    assert many.calls == bridge.draw(source, product="draw").calls
    assert not torch.equal(many.volumes[0], many.volumes[1])
    for other in ({"seed": 1}, {"subject": "other"}):
        assert not torch.equal(bridge.draw(source, product="draw", **other).volumes[0], many.volumes[0])
    spread = many.volumes.std(dim=0)
    torch.testing.assert_close(many.uncertainty, spread, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SPREADING)
def test_samples_without_spread_are_refused_before_any_call(name):
    told: list[int] = []
    bridge = made(name, draw={"temperature": 0.0})
    with pytest.raises(UserError, match="would all be equal"):
        bridge.draw(volume(5), product="draw", samples=2, on_call=lambda call, _: told.append(call))
    assert not told


@pytest.mark.parametrize("name", BRIDGES)
def test_at_the_source_end_there_is_no_chance(name):
    bridge = made(name, bridge={"at_source": 1.0})
    items = bridge.batch()
    one, other = (bridge.stage.loss(bridge.fitted, items, ItemNoise(seeds))[0] for seeds in ([1, 2, 3], [4, 5, 6]))
    assert torch.equal(one, other)
    with_chance = made(name, bridge={"at_source": 0.0})
    one, other = (
        with_chance.stage.loss(with_chance.fitted, items, ItemNoise(seeds))[0] for seeds in ([1, 2, 3], [4, 5, 6])
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", BRIDGES)
@pytest.mark.parametrize("predict", ["target", "noise", "difference", "shift", "velocity"])
def test_every_prediction_trains_and_walks(name, predict):
    # noise says nothing of the target at the source end, where every grid but the published one starts
    walks = {"estimate": {"grid": "published"}, "draw": {"grid": "published"}} if predict == "noise" else {}
    bridge = made(name, bridge={"predict": predict, "at_source": 0.5}, **walks)
    loss, _ = bridge.stage.loss(bridge.fitted, bridge.batch(), ItemNoise([1, 2, 3]))
    assert loss.isfinite()
    assert bridge.draw(volume(6)).volumes.isfinite().all()


@pytest.mark.parametrize("name", [*BRIDGES, "rlbcd"])
@pytest.mark.parametrize("walk", [{"eta": 0.5}, {"order": 2}, {"variance": "residual"}])
def test_what_no_walk_can_do_is_said_before_training(name, walk):
    with pytest.raises(UserError, match=r"^\[estimate\] "):
        made(name, estimate={"walk": "mean_path", **walk})


@pytest.mark.parametrize("name", SPREADING)
def test_one_call_is_one_call(name):
    bridge = made(name)
    told: list[int] = []
    drawn = bridge.draw(volume(6), product="one-call", on_call=lambda call, _: told.append(call))
    assert drawn.calls == 1
    assert told == [1]
    again = made(name, estimate={"walk": "mean_path", "calls": 1, "grid": "linear", "start": "source"}).draw(volume(6))
    assert torch.equal(drawn.volumes, again.volumes)


def test_a_regression_refuses_what_it_has_not():
    regression = made("regression")
    for asked in ({"product": "draw"}, {"samples": 2}, {"calls": 3}, {"grid": "theta"}, {"eta": 0.0}, {"order": 1}):
        with pytest.raises(UserError, match="a regression has no"):
            regression.draw(volume(1), **asked)


@pytest.mark.parametrize("name", ["bbdm", "ct2mri"])
@pytest.mark.parametrize("walk", [{"calls": 4}, {"calls": 3, "grid": "theta", "mirror": ["columns"]}])
def test_a_bridge_that_has_learned_nothing_leaves_the_regression_as_it_is(name, walk):
    plain = {"walk": "mean_path", "grid": "linear", "start": "source", **walk}
    both, once = (made(name + FIRST, estimate=settings) for settings in (plain, {**plain, "calls": 1}))
    for parameter in both.networks["bridge"].parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(both.draw(volume(7)).volumes, once.draw(volume(7)).volumes)
    both.networks["bridge"].net.last.bias.data += 0.1
    assert not torch.allclose(both.draw(volume(7)).volumes, once.draw(volume(7)).volumes, atol=1e-3)


@pytest.mark.parametrize("name", ["bbdm", "ct2mri"])
def test_the_map_of_an_estimate_is_that_of_its_regression_for_any_number_of_calls(name):
    plain = {"walk": "mean_path", "grid": "linear", "start": "source"}
    once, thrice = (made(name + FIRST, estimate={**plain, "calls": n}).draw(volume(7)) for n in (1, 3))
    assert not torch.equal(once.volumes, thrice.volumes)
    assert torch.equal(once.uncertainty, thrice.uncertainty)
    assert float(once.uncertainty.max()) > 0


def test_one_call_of_a_bridge_after_a_regression_is_that_regression():
    both, alone = made("bbdm" + FIRST), made("regression")
    alone.fitted.networks.update(regression=both.fitted.networks["regression"])
    assert torch.equal(both.draw(volume(7), product="one-call").volumes, alone.draw(volume(7)).volumes)


def test_draws_lie_about_the_estimate_as_the_run_gives_it():
    walk = {"walk": "mean_path", "calls": 1, "grid": "linear", "mirror": ["columns"]}
    both = made("bbdm" + FIRST, bridge={"predict": "velocity"}, estimate=walk, draw={"temperature": 0.0})
    for parameter in both.networks["bridge"].parameters():
        torch.nn.init.zeros_(parameter)
    estimate, draw = (both.draw(volume(7), product=product).volumes for product in ("estimate", "draw"))
    assert torch.equal(estimate, draw)


@pytest.mark.parametrize("name", ["bbdm", "ct2mri"])
def test_a_regression_that_is_right_leaves_the_bridge_nothing_to_learn(name):
    both = made(name + FIRST, bridge={"predict": "target"})
    items = both.batch()
    for parameter in both.networks["bridge"].parameters():
        torch.nn.init.zeros_(parameter)
    right = {**both.fitted.networks, "regression": lambda source, tokens: items.targets[TARGET]}  # noqa: ARG005
    for networks, nothing in ((right, True), (both.fitted.networks, False)):
        loss, _ = both.stage.loss(replace(both.fitted, networks=networks), items, ItemNoise([1, 2, 3]))
        assert (float(loss.detach()) == 0) is nothing
