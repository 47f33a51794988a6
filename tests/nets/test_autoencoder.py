"""Laws of the autoencoders, over one list of configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from scanbridge.errors import UserError
from scanbridge.nets.adversarial import reconstruction_loss
from scanbridge.nets.autoencoder import Autoencoder, AutoencoderConfig, Reconstruction, kl_per_element

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2, 2), "groups": 2, "codes": 32, "head_channels": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "vq, factor 4": {},
    "vq, factor 2": {"multipliers": (1, 2), "strides": (2,)},
    "vq, factor 8": {"multipliers": (1, 1, 2, 2), "strides": (2, 2, 2), "attention": True},
    "vq, moving average": {"moving_average": True},
    "kl": {"kind": "kl", "attention": True},
    "plain": {"kind": "plain", "blocks": (1, 2, 1), "decoder_blocks": 2},
    "two channels in, three out": {"in_channels": 2, "out_channels": 3},
    "recomputed": {"kind": "kl", "checkpoint": True},
    "volumes": {"dims": 3, "multipliers": (1, 2), "strides": (2,), "attention": True},
    "volumes, halved in plane first": {"dims": 3, "strides": ((1, 2, 2), 2), "kind": "kl"},
    "volumes, halved in plane alone": {"dims": 3, "strides": ((1, 2, 2), (1, 2, 2))},
}
every_configuration = pytest.mark.parametrize("name", CONFIGS)


def build(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Autoencoder(AutoencoderConfig(**{**SMALL, **CONFIGS[name], **changes})).to(dtype)
        if net.codebook is not None:
            with torch.no_grad():
                net.codebook.weight.normal_(std=0.3)
        return net


def images(net: Autoencoder, batch: int = 2, size: tuple[int, ...] = (8, 16, 8)) -> Tensor:
    shape = (batch, net.config.in_channels, *size[-net.config.dims :])
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def n_parameters(net: Autoencoder) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ({"multipliers": (1, 2, 4), "latent_channels": 3, "codes": 8192}, 55_322_758),
        ({"multipliers": (1, 2, 2, 4), "strides": (2, 2, 2), "latent_channels": 4, "codes": 16384}, 62_459_015),
    ],
)
def test_published_autoencoders_have_the_published_numbers_of_parameters(shape: dict[str, Any], n: int) -> None:
    """Those of latent diffusion at factor 4 (55.32 M) and 8, without the two 1x1 convolutions around the codebook."""
    published = {"in_channels": 3, "out_channels": 3, "channels": 128, "blocks": 2, "decoder_blocks": 3, "groups": 32}
    with torch.device("meta"):
        net = Autoencoder(AutoencoderConfig(**published, **shape, attention=True, head_channels=512))
    assert n_parameters(net) == n


def test_the_recommended_autoencoder_is_small() -> None:
    with torch.device("meta"):
        net = Autoencoder(AutoencoderConfig(channels=16, multipliers=(1, 2, 4), groups=2, codes=512))
    assert n_parameters(net) == 550_005


@every_configuration
def test_every_parameter_learns(name: str) -> None:
    net = build(name)
    x = images(net)
    latent = net.encode(x)
    made = net(x, torch.ones_like(latent))
    (made.image.square().mean() + made.penalty()).backward()
    still = [key for key, p in net.named_parameters() if p.grad is None or p.grad.abs().max() <= 1e-12]
    assert still == []


@every_configuration
@pytest.mark.parametrize("size", [(8, 16, 8), (5, 13, 7), (1, 3, 2)])
def test_what_is_decoded_has_the_size_of_what_was_encoded(name: str, size: tuple[int, int, int]) -> None:
    net = build(name)
    x = images(net, size=size)
    latent = net.encode(x)
    padded = [n * step for n, step in zip(latent.shape[2:], net.config.factor, strict=True)]
    assert latent.shape == (2, net.config.latent_channels, *net.config.latent_size(x.shape[2:]))
    assert net.decode(latent).shape == (2, net.config.out_channels, *padded)
    for image in (net.decode(latent, size=x.shape[2:]), net(x).image):
        assert image.shape == (2, net.config.out_channels, *x.shape[2:])
        assert torch.isfinite(image).all()


@every_configuration
def test_an_image_does_not_see_its_batch(name: str) -> None:
    net = build(name)
    x = images(net, batch=3)
    alone = [net(item) for item in x.split(1)]
    torch.testing.assert_close(net.encode(x), torch.cat([net.encode(item) for item in x.split(1)]), rtol=0, atol=1e-12)
    torch.testing.assert_close(net(x).image, torch.cat([made.image for made in alone]), rtol=0, atol=1e-11)


@every_configuration
def test_encoding_and_decoding_is_what_training_sees(name: str) -> None:
    net = build(name)
    x = images(net, size=(5, 13, 7))
    made = net(x)
    torch.testing.assert_close(net.encode(x), made.latent, rtol=0, atol=0)
    torch.testing.assert_close(net.decode(net.encode(x), size=x.shape[2:]), made.image, rtol=0, atol=1e-12)


@every_configuration
def test_memory_layout_changes_nothing_but_rounding(name: str) -> None:
    layout = torch.channels_last if build(name).config.dims == 2 else torch.channels_last_3d
    contiguous, last = build(name, torch.float32), build(name, torch.float32).to(memory_format=layout)
    x = images(contiguous).float()
    exact = build(name).encode(x.double()).float()
    for latent in (contiguous.encode(x), last.encode(x.contiguous(memory_format=layout))):
        torch.testing.assert_close(latent, exact, rtol=0, atol=1e-5)
    decoded = contiguous.decode(exact, snap=False)
    torch.testing.assert_close(last.decode(exact, snap=False), decoded, rtol=0, atol=1e-5)


def test_strides_shrink_the_axes_that_they_name() -> None:
    config = build("volumes, halved in plane first").config
    assert config.factor == (2, 4, 4)
    assert config.latent_size((5, 16, 13)) == (3, 4, 4)
    assert build("volumes, halved in plane alone").config.factor == (1, 4, 4)


def test_padding_repeats_the_border_on_both_sides() -> None:
    net = build("kl")  # factor 4
    x = images(net)[..., :6, :5]
    padded = torch.nn.functional.pad(x, (1, 2, 1, 1), mode="replicate")
    assert torch.equal(net.encode(x), net.encode(padded))
    assert torch.equal(net(x).image, net(padded).image[..., 1:7, 1:6])


def test_decoding_snaps_once() -> None:
    net = build("vq, factor 4")
    latent = net.encode(images(net))
    snapped = net.codebook.snap(latent)
    assert not torch.equal(snapped, latent)
    assert torch.equal(net.decode(latent), net.decode(snapped))
    assert torch.equal(net.decode(latent), net.decode(snapped, snap=False))
    assert not torch.equal(net.decode(latent), net.decode(latent, snap=False))


@pytest.mark.parametrize("name", ["kl", "plain"])
def test_without_a_codebook_there_is_nothing_to_snap_to(name: str) -> None:
    net = build(name)
    latent = net.encode(images(net))
    assert torch.equal(net.decode(latent), net.decode(latent, snap=False))


def test_the_reconstruction_teaches_the_encoder_through_the_codebook() -> None:
    """As if decoding the latent itself had the gradient of decoding its codes."""
    net = build("vq, factor 4")
    x = images(net)
    weight = net.encoder[0].weight
    (through,) = torch.autograd.grad(net(x).image.square().mean(), weight)
    latent = net.encode(x)
    codes = net.codebook.snap(latent).requires_grad_()
    (at_codes,) = torch.autograd.grad(net.decode(codes, snap=False).square().mean(), codes)
    (by_hand,) = torch.autograd.grad(latent, weight, at_codes)
    torch.testing.assert_close(through, by_hand)


def test_penalties_weigh_the_codebook_by_one_and_commitment_by_a_quarter() -> None:
    net = build("vq, factor 4")
    made = net(images(net))
    assert set(made.terms) == {"codebook", "commitment"}
    torch.testing.assert_close(made.penalty(), 1.25 * made.terms["codebook"])
    (z,) = torch.autograd.grad(made.penalty(), made.latent, retain_graph=True)
    torch.testing.assert_close(z, 0.25 * 2 * (made.latent - net.codebook.snap(made.latent)) / made.latent.numel())
    assert made.penalty(codebook=0, commitment=2).item() == pytest.approx(2 * made.terms["commitment"].item())
    assert build("plain")(images(net)).penalty() == 0
    kl = Reconstruction(made.image, made.latent, {"kl": torch.tensor(3.0)})
    assert kl.penalty(kl=0.5).item() == 1.5


def test_the_divergence_of_a_standard_normal_is_zero() -> None:
    zero = torch.zeros(2, 4, 3, 3)
    assert (kl_per_element(zero, zero) == 0).all()
    mean, variance = 0.7, 0.3
    ours = kl_per_element(zero + mean, zero + math.log(variance))
    p = torch.distributions.Normal(mean, math.sqrt(variance))
    theirs = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(ours, theirs.expand_as(ours))
    assert kl_per_element(zero.bfloat16(), zero.bfloat16()).dtype == torch.float32


def test_noise_is_scaled_by_the_deviation_and_added_to_the_mean() -> None:
    net = build("kl")
    x = images(net)
    mean, log_variance = net._moments(x)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3), dtype=mean.dtype)
    expected = net.decode(mean + log_variance.exp().sqrt() * noise)
    torch.testing.assert_close(net(x, noise).image, expected)
    assert net(x).terms["kl"].item() == pytest.approx(kl_per_element(mean, log_variance).mean().item())


def test_log_variance_is_clamped() -> None:
    net = build("kl")
    with torch.no_grad():
        net.encoder[-1].bias[net.config.latent_channels :] = torch.tensor([1e3, -1e3, 0, 0])
    log_variance = net._moments(images(net))[1]
    assert (log_variance[:, 0] == 20).all()
    assert (log_variance[:, 1] == -30).all()


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        net = build("recomputed", checkpoint=recompute)
        net(images(net)).image.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_the_last_weight_is_the_decoders() -> None:
    net = build("kl")
    assert net.last.shape == (1, 8, 3, 3)
    net.decode(torch.randn(1, 4, 2, 2, dtype=torch.float64)).sum().backward()
    assert net.last.grad is not None


def test_a_tiny_autoencoder_overfits_four_images() -> None:
    """Circles and bars: the error falls to a fifth of that of the mean image."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 16), indexing="ij")
    shapes = [(rows**2 + columns**2 < r) for r in (0.2, 0.6)] + [rows.abs() < 0.3, (rows + columns) > 0]
    x = torch.stack(shapes)[:, None].float() * 1.6 - 0.8
    net, generator = build("vq, factor 4", torch.float32, channels=16), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(120):
        made = net(x)
        net.codebook.update(made.latent, made.codes, generator)
        optimizer.zero_grad()
        (reconstruction_loss(made.image, x) + made.penalty()).backward()
        optimizer.step()
    with torch.no_grad():
        error = (net.decode(net.encode(x)) - x).abs().mean()
    assert error < 0.2 * (x - x.mean(dim=0)).abs().mean()
    assert net.codebook.usage().share > 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multipliers": ()}, "multipliers is empty"),
        ({"strides": (2,)}, "strides has 1 entries; expected one less than levels: 2"),
        ({"strides": (2, (1, 2, 2))}, "one number, or one for each of 2 axes"),
        ({"blocks": (1, 2)}, "blocks has 2 numbers; expected one, or one a level: 3"),
        ({"decoder_blocks": (1, 2)}, "decoder_blocks has 2 numbers"),
        ({"groups": 3}, "a multiple of groups = 3"),
        ({"attention": True, "head_channels": 5}, "a divisor of the deepest width, 16"),
    ],
)
def test_numbers_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AutoencoderConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    "changes", [{"code": 8}, {"codes": 8.5}, {"kind": "vae"}, {"strides": (2, 3)}, {"latent_channels": 0}, {"dims": 1}]
)
def test_a_configuration_is_strict(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AutoencoderConfig(**{**SMALL, **changes})


def test_a_table_of_toml_is_a_configuration() -> None:
    table = {"dims": 3, "multipliers": [1, 2, 4], "strides": [[1, 2, 2], 2], "blocks": [1, 1, 2]}
    config = AutoencoderConfig(**table)
    assert config.steps == ((1, 2, 2), (2, 2, 2))
    assert config.decoder_depths == config.depths == (1, 1, 2)
