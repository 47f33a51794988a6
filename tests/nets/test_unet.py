"""Laws of the U-Net, over one list of configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.nets.blocks import Attention, SelfAttention
from scanbridge.nets.condition import sinusoid
from scanbridge.nets.unet import UNet, UNetConfig

SMALL: dict[str, Any] = {"in_channels": 3, "out_channels": 2, "channels": 16, "multipliers": (1, 2), "head_channels": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "level skips": {"skips": "level", "resample": "pointwise", "multipliers": (1, 2, 3)},
    "level skips, convolutions": {"skips": "level", "blocks": 2},
    "published": {"resample": "resblock", "blocks": 2, "middle": "transformer", "token_channels": 6},
    "published, pure": {"resample": "resblock", "blocks": 2, "middle": "self"},
    "pointwise, skips by block": {"resample": "pointwise"},
    "attention everywhere": {"attention": (1, 2), "token_channels": 6},
    "transformer without tokens": {"middle": "transformer"},
    "vector": {"vector_channels": 5},
    "vector, no time": {"vector_channels": 5, "time": False},
    "no time": {"time": False, "middle": "self"},
    "embedding added": {"scale_shift": False},
    "blocks by level": {"blocks": (1, 2), "dropout": 0.1},
    "recomputed": {"checkpoint": True, "middle": "self"},
    "volumes": {"dims": 3, "middle": "transformer", "token_channels": 6},
    "volumes, residual resizing": {"dims": 3, "resample": "resblock", "skips": "level"},
}
PUBLISHED = {
    "in_channels": 6,
    "out_channels": 3,
    "channels": 128,
    "multipliers": (1, 4, 8),
    "blocks": 2,
    "resample": "resblock",
    "groups": 32,
    "head_channels": 64,
    "init": "published",
}
every_configuration = pytest.mark.parametrize("name", CONFIGS)


def build(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UNetConfig(**{**SMALL, **CONFIGS[name], "zero_output": False, **changes})
        return UNet(config).to(dtype).eval()


def inputs(net: UNet, batch: int = 2, size: int = 8, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
    config, generator = net.config, torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, config.in_channels, *[size] * config.dims),
        "t": torch.linspace(1, 999, batch, dtype=dtype) if config.time else None,
        "tokens": normal(batch, 4, config.token_channels) if config.token_channels else None,
        "vector": normal(batch, config.vector_channels) if config.vector_channels else None,
    }


def n_parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_published_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        keyed = UNet(UNetConfig(**PUBLISHED, middle="transformer", token_channels=128))
        pure = UNet(UNetConfig(**PUBLISHED, middle="self"))
    assert n_parameters(keyed) == 254_149_507
    assert n_parameters(pure) == 237_094_787
    before, transformer, after = keyed.middle
    shares = [n_parameters(*part) / 1e6 for part in ([keyed.encoder], [before, after], [transformer], [keyed.decoder])]
    assert shares == pytest.approx([51.0, 39.9, 21.3, 141.7], abs=0.05)


@every_configuration
def test_every_parameter_learns(name: str) -> None:
    net = build(name)
    net(**inputs(net)).square().mean().backward()
    still = [key for key, p in net.named_parameters() if p.grad is None or p.grad.abs().max() <= 1e-12]
    assert still == []


@every_configuration
@pytest.mark.parametrize("size", [(8, 12, 6), (7, 9, 5), (1, 3, 2)])
def test_output_has_the_size_of_the_input(name: str, size: tuple[int, int, int]) -> None:
    net = build(name)
    given = inputs(net) | {"x": torch.zeros(2, 3, *size[: net.config.dims], dtype=torch.float64)}
    output = net(**given)
    assert output.shape == (2, 2, *size[: net.config.dims])
    assert torch.isfinite(output).all()


@every_configuration
def test_an_item_does_not_see_its_batch(name: str) -> None:
    net = build(name)
    given = inputs(net, batch=3)
    alone = {key: None if value is None else value[1:2] for key, value in given.items()}
    torch.testing.assert_close(net(**given)[1:2], net(**alone), rtol=0, atol=1e-11)


@every_configuration
def test_memory_layout_changes_nothing_but_rounding(name: str) -> None:
    layout = torch.channels_last if build(name).config.dims == 2 else torch.channels_last_3d
    contiguous, last = build(name, torch.float32), build(name, torch.float32).to(memory_format=layout)
    given = inputs(contiguous, dtype=torch.float32)
    exact = build(name)(**inputs(build(name))).detach()
    for output in (contiguous(**given), last(**given | {"x": given["x"].contiguous(memory_format=layout)})):
        torch.testing.assert_close(output.double(), exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].get("dims") != 3])
def test_channels_last_maps_stay_channels_last(name: str) -> None:
    net = build(name, torch.float32)  # in 3D torch's pooling, and its 1x1x1 convolution on one thread, do not
    strayed = []

    def watch(module: nn.Module, _: Any, output: Tensor) -> None:
        if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            strayed.append(type(module).__name__)

    for module in net.to(memory_format=torch.channels_last).modules():
        module.register_forward_hook(watch)
    net(**inputs(net, dtype=torch.float32))
    assert strayed == []


@every_configuration
def test_inference_equals_training_mode_arithmetic(name: str) -> None:
    net = build(name, torch.float32)
    given = inputs(net, dtype=torch.float32)
    with torch.inference_mode():
        inferred = net(**given)
    assert torch.equal(inferred, net(**given))


@every_configuration
def test_what_a_network_is_told_changes_what_it_says(name: str) -> None:
    net = build(name)
    given = inputs(net)
    base = net(**given)
    for key, value in given.items():
        if value is not None:
            assert (net(**given | {key: 0.5 * value + 0.1}) - base).abs().max() > 1e-6, key


def test_the_order_of_tokens_says_nothing() -> None:
    net = build("published")
    given = inputs(net)
    torch.testing.assert_close(net(**given), net(**given | {"tokens": given["tokens"].flip(1)}))


@pytest.mark.parametrize(
    ("name", "missing"), [("published", "tokens"), ("plain", "t"), ("vector", "vector"), ("vector, no time", "vector")]
)
def test_a_missing_condition_is_an_error(name: str, missing: str) -> None:
    net = build(name)
    with pytest.raises(ValueError, match=f"^{missing} is missing"):
        net(**inputs(net) | {missing: None})


@pytest.mark.parametrize(("name", "extra"), [("plain", "tokens"), ("no time", "t"), ("plain", "vector")])
def test_a_condition_that_nobody_hears_is_an_error(name: str, extra: str) -> None:
    net = build(name)
    with pytest.raises(ValueError, match=f"^{extra} is given"):
        net(**inputs(net) | {extra: torch.zeros(2, dtype=torch.float64)})


def test_padding_repeats_the_border_on_both_sides_and_is_cut_off_again() -> None:
    net = build("level skips")  # stride 4
    given = inputs(net)
    x = given["x"][..., :6, :5]
    padded = torch.nn.functional.pad(x, (1, 2, 1, 1), mode="replicate")
    assert torch.equal(net(**given | {"x": x}), net(**given | {"x": padded})[..., 1:7, 1:6])


@every_configuration
def test_a_fresh_network_says_nothing(name: str) -> None:
    net = build(name, zero_output=True)
    assert not net(**inputs(net)).any()


def test_published_init_redraws_convolutions_and_linear_maps_alone() -> None:
    net = build("published, pure", init="published", zero_output=True, channels=32)
    attention = next(part for part in net.modules() if isinstance(part, SelfAttention)).attention
    assert not attention.out.weight.any()  # a Conv1d in the release: kept, and that one starts at zero
    assert attention.query.weight.abs().max() <= 1 / math.sqrt(attention.query.in_features)
    for layer in (net.last, net.middle[0].last, net.middle[0].embed, net.time[0], net.stem):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not net.last.bias.any()


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        net = build("recomputed", checkpoint=recompute)
        net(**inputs(net)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_attention_is_the_softmax_of_scaled_products() -> None:
    attention = Attention(12, 6, head_channels=4, bias=True).double()
    x, keys = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    query = attention.query(x)
    key, value = attention.key_value(keys).split(12, dim=2)
    heads = []
    for head in range(3):
        one = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(query[..., one] @ key[..., one].mT / math.sqrt(4), dim=-1)
        heads.append(weights @ value[..., one])
    torch.testing.assert_close(attention(x, keys), attention.out(torch.cat(heads, dim=2)))


def test_sinusoids_are_cosines_then_sines_of_the_step() -> None:
    embedding = sinusoid(torch.tensor([0, 7, 999]), 128)
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding[0], torch.cat([torch.ones(64), torch.zeros(64)]))
    frequency = 1e4 ** (-5 / 64)
    assert embedding[1, [0, 5, 64, 69]].tolist() == pytest.approx(
        [math.cos(7), math.cos(7 * frequency), math.sin(7), math.sin(7 * frequency)], abs=1e-6
    )
    torch.testing.assert_close(
        embedding.double(), sinusoid(torch.tensor([0.0, 7, 999]).double(), 128), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multipliers": ()}, "multipliers is empty"),
        ({"blocks": (1, 2, 3)}, "blocks has 3 numbers; expected one, or one a level: 2"),
        ({"groups": 5}, "a multiple of groups = 5"),
        ({"channels": 7, "groups": 7}, "an even number"),
        ({"attention": (1, 8)}, r"attention at \[8\].*\[1, 2\]"),
        ({"middle": "self", "head_channels": 24}, r"a divisor of the widths with attention, \[32\]"),
        ({"token_channels": 4}, "middle = 'transformer'"),
        ({"token_channels": 4, "middle": "self"}, "middle = 'transformer'"),
    ],
)
def test_numbers_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNetConfig(**{**SMALL, **changes})


@pytest.mark.parametrize("changes", [{"channel": 8}, {"channels": 8.5}, {"channels": 0}, {"dropout": 1.0}, {"dims": 1}])
def test_a_configuration_is_strict(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        UNetConfig(**{**SMALL, **changes})


def test_a_table_of_toml_is_a_configuration() -> None:
    table = {"in_channels": 3, "out_channels": 2, "multipliers": [1, 2], "blocks": [1, 2], "attention": [2]}
    config = UNetConfig(**table)
    assert config.multipliers == (1, 2)
    assert config.depths == (1, 2)
    assert config.stride == 2
