"""Laws of the patch discriminator and of what an autoencoder is trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from pydantic import ValidationError
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.nets.adversarial import (
    Adversarial,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    hinge,
    reconstruction_loss,
)
from scanbridge.nets.autoencoder import Autoencoder, AutoencoderConfig
from scanbridge.nets.discriminator import Discriminator, DiscriminatorConfig

CONFIGS: dict[str, dict[str, Any]] = {
    "patches of 34": {"strides": (2, 2)},
    "no norm": {"strides": (2, 2), "groups": 0},
    "two channels": {"strides": (2,), "in_channels": 2},
    "volumes": {"strides": (2, 2), "dims": 3},
    "volumes, in plane": {"strides": ((1, 2, 2), 2), "dims": 3},
    "volumes, in plane alone": {"strides": ((1, 2, 2),), "dims": 3},
}
every_configuration = pytest.mark.parametrize("name", CONFIGS)


def build(name: str) -> Discriminator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Discriminator(DiscriminatorConfig(**{"channels": 8, "groups": 2, **CONFIGS[name]})).double()


def images(config: DiscriminatorConfig, batch: int = 2, seed: int = 1, size: tuple[int, ...] = (12, 40, 36)) -> Tensor:
    shape = (batch, config.in_channels, *size[-config.dims :])
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def gradients(loss: Tensor, net: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, retain_graph=True))


def test_the_published_discriminator_judges_patches_of_70() -> None:
    config = DiscriminatorConfig(in_channels=3)
    assert config.patch == (70, 70)
    with torch.device("meta"):
        net = Discriminator(config)
        assert net(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert sum(p.numel() for p in net.parameters()) == 2_765_633


@pytest.mark.parametrize(("strides", "patch"), [((2,), 16), ((2, 2), 34), ((2, 2, 2), 70)])
def test_a_logit_sees_one_patch(strides: tuple[int, ...], patch: int) -> None:
    net = Discriminator(DiscriminatorConfig(channels=8, groups=0, strides=strides)).double()
    assert net.config.patch == (patch, patch)
    x = torch.zeros(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    logits = net(x)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert [int(x.grad.abs().sum(dim=axis).count_nonzero()) for axis in (2, 3)] == [patch, patch]


def test_an_axis_that_is_not_strided_is_seen_by_kernels_of_three() -> None:
    config = build("volumes, in plane alone").config
    assert config.patch == (7, 16, 16)
    assert build("volumes, in plane alone")(images(config)).shape[2] == 12


@every_configuration
def test_an_image_does_not_see_its_batch(name: str) -> None:
    net = build(name)
    x = images(net.config, batch=3)
    alone = torch.cat([net(item) for item in x.split(1)])
    torch.testing.assert_close(net(x), alone, rtol=0, atol=1e-12)


@every_configuration
def test_every_parameter_learns(name: str) -> None:
    net = build(name)
    loss = net(images(net.config)).square().mean()  # in the hinge's margin the last bias has no gradient: -1 + 1
    assert all(g is not None and g.abs().max() > 1e-12 for g in gradients(loss, net))


def test_the_discriminator_learns_and_the_images_do_not() -> None:
    net = build("patches of 34")
    real, made = images(net.config), images(net.config, seed=2).requires_grad_()
    loss = discriminator_loss(net, real, made)
    torch.testing.assert_close(loss, hinge(net(real), net(made)))
    assert torch.autograd.grad(loss, made, allow_unused=True) == (None,)


def test_the_generator_learns_and_the_discriminator_does_not() -> None:
    net = build("patches of 34")
    made = images(net.config, seed=2).requires_grad_()
    loss = generator_loss(net, made)
    assert loss.item() == pytest.approx(-net(made).mean().item())
    assert gradients(loss, net) == [None] * len(list(net.parameters()))
    (ours,) = torch.autograd.grad(loss, made, retain_graph=True)
    (plain,) = torch.autograd.grad(-net(made).mean(), made)
    torch.testing.assert_close(ours, plain)


def test_one_backward_pass_serves_both_networks() -> None:
    net = build("patches of 34")
    autoencoder = Autoencoder(AutoencoderConfig(channels=8, groups=2, kind="plain")).double()
    x = images(net.config)
    made = autoencoder(x).image
    theirs, ours = discriminator_loss(net, x, made), reconstruction_loss(made, x) + generator_loss(net, made)
    apart = gradients(theirs, net), gradients(ours, autoencoder)
    together = gradients(theirs + ours, net), gradients(theirs + ours, autoencoder)
    for one, other in zip(apart, together, strict=True):
        torch.testing.assert_close(one, other)


def test_the_hinge_stops_where_the_margin_is_reached() -> None:
    real, fake = torch.tensor([-1.0, 0.5, 2]).requires_grad_(), torch.tensor([-2.0, 0, 1]).requires_grad_()
    loss = hinge(real, fake)
    assert loss.item() == pytest.approx(0.5 * ((2 + 0.5 + 0) / 3 + (0 + 1 + 2) / 3))
    to_real, to_fake = torch.autograd.grad(loss, [real, fake])
    torch.testing.assert_close(to_real, torch.tensor([-1.0, -1, 0]) / 6)
    torch.testing.assert_close(to_fake, torch.tensor([0.0, 1, 1]) / 6)


def test_a_discriminator_learns_to_tell_images_apart() -> None:
    net = build("patches of 34").float()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    real, made = images(net.config, 4).float(), images(net.config, 4, seed=2).float() * 0.5
    first = None
    for _ in range(30):
        loss = discriminator_loss(net, real, made)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first


def test_the_adaptive_weight_is_the_ratio_of_gradients() -> None:
    last = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    reconstruction, adversarial = 2 * last.sum(), 0.5 * last[0]
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert weight.item() == pytest.approx(8**0.5 / (0.5 + 1e-4))
    assert not weight.requires_grad
    scaled = adaptive_weight(reconstruction, 8 * adversarial, last)
    assert (8 * scaled / weight).item() == pytest.approx(1, rel=1e-3)


def test_the_adaptive_weight_is_capped() -> None:
    last = torch.ones(2, requires_grad=True)
    assert adaptive_weight(1e6 * last.sum(), last.sum(), last) == 100
    assert adaptive_weight(last.sum(), 0 * last.sum(), last, cap=7) == 7
    assert adaptive_weight(0 * last.sum(), last.sum(), last) == 0


def test_the_adaptive_weight_is_a_float32_number() -> None:
    last = torch.full((4,), 1e-4, dtype=torch.bfloat16, requires_grad=True)
    weight = adaptive_weight(last.sum(), last.sum(), last)
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(2 / (2 + 1e-4), rel=1e-6)


def adversarial(**changes: Any) -> Adversarial:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoencoderConfig(**{"channels": 8, "groups": 2, "codes": 16, **changes})
        return Adversarial(Autoencoder(config).double(), build("patches of 34"), weight=0.7)


def test_the_autoencoder_hears_the_discriminator_from_the_start_step_on() -> None:
    both = adversarial()
    x = images(both.discriminator.config)
    before, after = both(x, fool=False)[1], both(x, fool=True)[1]
    assert set(before) == {"distance", "penalty", "discriminator"}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    theirs = gradients(before["discriminator"], both.discriminator)
    assert all(g is not None for g in theirs)  # which learns before
    torch.testing.assert_close(gradients(sum(after.values()), both.discriminator), theirs)
    own = [torch.cat([g.flatten() for g in gradients(sum(t.values()), both.autoencoder)]) for t in (before, after)]
    assert (own[0] - own[1]).norm() > 1e-3 * own[0].norm()


def test_the_adversarial_term_pulls_at_the_last_weight_as_the_distance_does() -> None:
    both = adversarial()
    terms = both(images(both.discriminator.config), fool=True)[1]
    pulls = {
        name: torch.autograd.grad(terms[name], both.autoencoder.last, retain_graph=True)[0].norm()
        for name in ("distance", "adversarial")
    }
    assert (pulls["adversarial"] / pulls["distance"]).item() == pytest.approx(0.7, rel=0.05)


def test_both_networks_train_in_mixed_precision() -> None:
    both = adversarial(kind="kl").float()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")  # refuses gradients outside of a module
    trained = fabric.setup_module(both)
    made, terms = trained(images(both.discriminator.config).float(), fool=True)
    assert {value.dtype for value in terms.values()} == {torch.float32}
    fabric.backward(sum(terms.values()))
    assert torch.isfinite(made.image).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in both.parameters())


def test_what_is_not_valid_teaches_neither_network() -> None:
    both = adversarial(kind="plain")
    x = images(both.discriminator.config)
    nowhere = both(x, fool=True, valid=torch.zeros_like(x))[1]
    assert nowhere["distance"] == 0
    assert nowhere["discriminator"].item() == pytest.approx(hinge(*[both.discriminator(x)] * 2).item())
    assert all(not g.any() for g in gradients(sum(nowhere.values()), both.autoencoder))


def test_what_is_not_valid_counts_for_nothing() -> None:
    x, made = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    valid = torch.zeros(2, 1, 4, 4)
    valid[0, :, :2] = 1
    assert reconstruction_loss(made, x).item() == pytest.approx(0.5)
    loss = reconstruction_loss(made, x, valid=valid)
    assert loss.item() == pytest.approx(0.5)
    (gradient,) = torch.autograd.grad(loss, made)
    assert torch.equal(gradient != 0, valid > 0)
    assert reconstruction_loss(made, x, valid=torch.zeros_like(valid)) == 0


def test_a_perceptual_distance_is_added_where_there_is_one() -> None:
    x, made = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    loss = reconstruction_loss(made, x, perceptual=lambda m, i: (m - i).square(), perceptual_weight=2)
    assert loss.item() == pytest.approx(0.5 + 2 * 0.25)
    blind = reconstruction_loss(made, x, valid=torch.zeros_like(x), perceptual=lambda m, i: (m - i).square())
    assert blind == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": ()}, "strides is empty"),
        ({"strides": ((1, 2, 2),)}, "one number, or one for each of 2 axes"),
        ({"channels": 12}, "a multiple of groups = 8"),
    ],
)
def test_numbers_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiscriminatorConfig(**changes)


@pytest.mark.parametrize("changes", [{"layers": 3}, {"strides": (4,)}, {"channels": 0}, {"groups": -1}])
def test_a_configuration_is_strict(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DiscriminatorConfig(**changes)
