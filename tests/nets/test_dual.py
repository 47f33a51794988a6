"""Laws of the two-branch network, over one list of configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scanbridge.errors import UserError
from scanbridge.nets.dual import (
    FIRST_GATE,
    ComplementaryAttention,
    DualConfig,
    DualUNet,
    Features,
    SemanticAlignment,
    feature_similarity,
)
from scanbridge.nets.unet import UNet, UNetConfig

BRANCH: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 2,
    "channels": 8,
    "multipliers": (1, 2, 3),
    "head_channels": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "spatial gate": {"align": "spatial"},
    "literal attention": {"attend": "literal"},
    "w/o SAM": {"align": "sum"},
    "w/o CMA": {"attend": "sum"},
    "w/o HGF": {"align": "sum", "attend": "sum"},
    "few keys": {"max_tokens": 8},
    "two scales": {"scales": (2, 4)},
    "detached": {"detach": True},
    "level skips": {"branch": {"skips": "level", "resample": "pointwise"}},
    "published": {"branch": {"resample": "resblock", "blocks": 2, "middle": "self", "attention": (4,)}},
    "told more": {"branch": {"middle": "transformer", "token_channels": 6, "vector_channels": 5}},
    "volumes": {"branch": {"dims": 3, "multipliers": (1, 2)}, "scales": (1, 2)},
    "volumes, spatial gate, few keys": {
        "branch": {"dims": 3, "multipliers": (1, 2), "skips": "level"},
        "scales": (1, 2),
        "align": "spatial",
        "max_tokens": 20,
    },
}
PUBLISHED = {
    "in_channels": 4,
    "out_channels": 4,
    "channels": 128,
    "multipliers": (1, 4, 8),
    "blocks": 2,
    "resample": "resblock",
    "groups": 32,
    "head_channels": 64,
}
SLIM = {"in_channels": 4, "out_channels": 4, "channels": 32, "multipliers": (1, 2, 4), "middle": "self"}
every_configuration = pytest.mark.parametrize("name", CONFIGS)
both_dims = pytest.mark.parametrize("dims", [2, 3])


def configured(name: str, **changes: Any) -> DualConfig:
    settings = {**CONFIGS[name], **changes}
    branch = {**BRANCH, "zero_output": False, **settings.pop("branch", {})}
    return DualConfig(branch=UNetConfig(**branch), **settings)


def build(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> DualUNet:
    """Give a network that is not at its start: gates, keys and W_o are random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DualUNet(configured(name, **changes))
        for part in (net.align, net.attend):
            for parameter in part.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
        return net.to(dtype).eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(net: DualUNet, batch: int = 2, size: int = 8, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    branch = net.config.branch
    shape = (batch, branch.in_channels, *[size] * branch.dims)
    given = {"residual": normal(*shape, seed=1), "enhanced": normal(*shape, seed=2)}
    given["t"] = torch.linspace(1, 999, batch, dtype=torch.float64)
    if branch.token_channels:
        given["tokens"] = normal(batch, 4, branch.token_channels, seed=3)
    if branch.vector_channels:
        given["vector"] = normal(batch, branch.vector_channels, seed=4)
    return {name: value.to(dtype) for name, value in given.items()}


def alone(net: nn.Module, given: dict[str, Tensor], branch: str) -> Tensor:
    output: Tensor = net(given[branch], *(given.get(name) for name in ("t", "tokens", "vector")))
    return output


def maps(dims: int = 2, batch: int = 2, width: int = 8, size: int = 5) -> tuple[Tensor, Tensor]:
    return tuple(normal(batch, width, *[size] * dims, seed=seed) for seed in (5, 6))  # type: ignore[return-value]


def random(module: nn.Module) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in module.parameters():
            parameter.data = 0.5 * torch.randn_like(parameter)
    return module.double()


# ---- the enhanced branch is a Brownian bridge with guidance, and the residual branch one without


@every_configuration
def test_without_guidance_the_enhanced_branch_is_its_own_unet_to_the_bit(name: str) -> None:
    net = build(name, torch.float32)
    for part in (*net.align.values(), *net.attend.values()):
        if isinstance(part, SemanticAlignment):
            nn.init.constant_(part.enhanced.bias, 1e4)
            nn.init.zeros_(part.enhanced.weight)
        if isinstance(part, ComplementaryAttention) and part.out is not None:
            nn.init.zeros_(part.out.weight)
            nn.init.zeros_(part.out.bias)
    config, given = net.config, inputs(net, dtype=torch.float32)
    for mode, joins in ((config.align, net.align), (config.attend, net.attend)):
        if mode in ("sum", "literal"):  # nothing to switch off but the part itself
            joins.clear()
    assert torch.equal(net(**given)[1], alone(net.enhanced, given, "enhanced"))


@pytest.mark.parametrize("name", ["paper", "level skips", "volumes"])
def test_branches_that_nothing_joins_are_two_unets(name: str) -> None:
    net = build(name, align="none", attend="none")
    given = inputs(net)
    expected = alone(net.residual, given, "residual"), alone(net.enhanced, given, "enhanced")
    assert all(torch.equal(one, other) for one, other in zip(net(**given), expected, strict=True))
    assert sum(p.numel() for p in net.parameters()) == 2 * sum(p.numel() for p in net.enhanced.parameters())


@every_configuration
def test_the_residual_branch_is_its_own_unet_whatever_the_other_sees(name: str) -> None:
    net = build(name)
    given = inputs(net)
    assert torch.equal(net(**given)[0], alone(net.residual, given, "residual"))
    assert torch.equal(net(**given | {"enhanced": given["residual"]})[0], net(**given)[0])


@every_configuration
def test_the_enhanced_branch_hears_the_residual_branch(name: str) -> None:
    net = build(name)
    given = inputs(net)
    moved = given["residual"] + 0.1
    assert (net(**given | {"residual": moved})[1] - net(**given)[1]).abs().max() > 1e-6


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("way", ["align", "attend"])
def test_every_scale_of_either_way_is_heard(way: str, scale: int) -> None:
    other = {"align": "attend", "attend": "align"}[way]
    net = build("paper", scales=(scale,), **{other: "none"})
    given = inputs(net)
    moved = given["residual"] + 0.1
    assert (net(**given | {"residual": moved})[1] - net(**given)[1]).abs().max() > 1e-9


@every_configuration
def test_a_fresh_network_says_nothing(name: str) -> None:
    branch = {**CONFIGS[name].get("branch", {}), "zero_output": True}
    net = build(name, branch=branch)
    assert not any(output.any() for output in net(**inputs(net)))


# ---- gradients


@pytest.mark.parametrize("align", ["gate", "spatial", "sum", "none"])
@pytest.mark.parametrize("attend", ["attention", "literal", "sum", "none"])
@pytest.mark.parametrize("detach", [False, True])
def test_the_enhanced_loss_trains_the_residual_branch_unless_detached(align: str, attend: str, detach: bool) -> None:
    net = build("paper", align=align, attend=attend, detach=detach)
    net(**inputs(net))[1].square().mean().backward()
    reached = any(p.grad is not None and p.grad.abs().max() > 0 for p in net.residual.parameters())
    assert reached == (not detach and (align, attend) != ("none", "none"))


@every_configuration
def test_every_parameter_learns(name: str) -> None:
    net = build(name)
    sum(output.square().mean() for output in net(**inputs(net))).backward()
    still = [key for key, p in net.named_parameters() if p.grad is None or p.grad.abs().max() <= 1e-13]
    assert still == []


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        net = build("paper", branch={"checkpoint": recompute})
        sum(output.square().mean() for output in net(**inputs(net))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


# ---- shapes, batches, layouts


@every_configuration
@pytest.mark.parametrize("size", [(8, 12, 6), (7, 9, 5), (1, 3, 2)])
def test_outputs_have_the_size_of_the_inputs(name: str, size: tuple[int, int, int]) -> None:
    net = build(name)
    shape = size[: net.config.branch.dims]
    image = normal(2, 3, *shape)
    outputs = net(**inputs(net) | {"residual": image, "enhanced": image})
    assert all(output.shape == (2, 2, *shape) and torch.isfinite(output).all() for output in outputs)


@every_configuration
def test_an_item_does_not_see_its_batch(name: str) -> None:
    net = build(name)
    given = inputs(net, batch=3)
    one = net(**{key: value[1:2] for key, value in given.items()})
    for together, single in zip(net(**given), one, strict=True):
        torch.testing.assert_close(together[1:2], single, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("volumes")])
def test_channels_last_maps_stay_channels_last(name: str) -> None:
    net = build(name, torch.float32)
    strayed = []

    def watch(module: nn.Module, _: Any, output: Any) -> None:
        images = [each for each in (output if isinstance(output, tuple) else (output,)) if each.ndim == 4]
        strayed.extend(type(module) for each in images if not each.is_contiguous(memory_format=torch.channels_last))

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
    assert all(torch.equal(one, other) for one, other in zip(inferred, net(**given), strict=True))


@every_configuration
def test_a_network_in_mixed_precision_stays_near(name: str) -> None:
    net = build(name, torch.float32)
    given = inputs(net, dtype=torch.float32)
    exact = torch.cat(net(**given)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = torch.cat(net(**given)).detach()
    assert (rounded - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


# ---- semantic alignment (eq. 7, 8)


@both_dims
def test_the_gate_is_equation_7_with_its_three_convolutions_and_pooling_last(dims: int) -> None:
    gate, (enhanced, residual) = SemanticAlignment(8, dims=dims).double(), maps(dims)
    first, second, third = (normal(8, 8, seed=seed) for seed in (7, 8, 9))
    bias_1, bias_2, bias_3 = (normal(8, seed=seed) for seed in (10, 11, 12))
    ones = [1] * dims
    gate.residual.weight.data = (third @ first).reshape(8, 8, *ones)
    gate.enhanced.weight.data = (third @ second).reshape(8, 8, *ones)
    gate.enhanced.bias.data = third @ (bias_1 + bias_2) + bias_3

    conv = F.conv2d if dims == 2 else F.conv3d
    pool = F.adaptive_avg_pool2d if dims == 2 else F.adaptive_avg_pool3d
    inner = conv(residual, first.reshape(8, 8, *ones), bias_1) + conv(enhanced, second.reshape(8, 8, *ones), bias_2)
    expected = torch.sigmoid(pool(conv(inner, third.reshape(8, 8, *ones), bias_3), 1))
    torch.testing.assert_close(gate.gate(enhanced, residual), expected, rtol=0, atol=1e-13)
    assert expected.shape == (2, 8, *ones)
    torch.testing.assert_close(  # eq. 8
        gate(enhanced, residual), enhanced * expected + residual * (1 - expected), rtol=0, atol=1e-13
    )


@both_dims
def test_the_spatial_gate_pools_to_the_channel_gate(dims: int) -> None:
    enhanced, residual = maps(dims)
    channel, spatial = (random(SemanticAlignment(8, dims=dims, spatial=each)) for each in (False, True))
    places = spatial.gate(enhanced, residual)
    assert places.shape == enhanced.shape
    pooled = torch.logit(places).mean(tuple(range(2, 2 + dims)), keepdim=True)
    torch.testing.assert_close(pooled, torch.logit(channel.gate(enhanced, residual)), rtol=0, atol=1e-11)


@both_dims
@pytest.mark.parametrize("spatial", [False, True])
def test_a_gate_of_one_gives_the_enhanced_map_and_of_zero_the_residual_one(dims: int, spatial: bool) -> None:
    gate, (enhanced, residual) = SemanticAlignment(8, dims=dims, spatial=spatial).double(), maps(dims)
    torch.testing.assert_close(
        gate.gate(enhanced, residual).unique(), torch.sigmoid(torch.tensor([FIRST_GATE]).double())
    )
    for logit, expected in ((1e4, enhanced), (-1e4, residual)):
        nn.init.constant_(gate.enhanced.bias, logit)
        assert torch.equal(gate(enhanced, residual), expected)


@pytest.mark.parametrize("spatial", [False, True])
def test_a_gate_is_strictly_between_zero_and_one(spatial: bool) -> None:
    gate = random(SemanticAlignment(8, spatial=spatial)).gate(*maps())
    assert gate.min() > 0
    assert gate.max() < 1


# ---- complementary attention (eq. 9, 10)


@both_dims
def test_literal_attention_is_equation_10(dims: int) -> None:
    attention, (enhanced, residual) = ComplementaryAttention(8, 4, 4, max_tokens=8192, literal=True), maps(dims)
    attention = random(attention)
    asking, asked = (x.flatten(2).mT for x in (enhanced, residual))
    query, key, value = (
        x @ layer.weight.mT
        for x, layer in ((asking, attention.query), (asked, attention.key), (asked, attention.value))
    )
    expected = torch.softmax(query @ key.mT / math.sqrt(8), dim=-1) @ value
    torch.testing.assert_close(attention(enhanced, residual), expected.mT.reshape(enhanced.shape), rtol=0, atol=1e-12)


@both_dims
def test_attention_adds_what_its_heads_find(dims: int) -> None:
    attention, (enhanced, residual) = random(ComplementaryAttention(8, 4, 2, max_tokens=8192)), maps(dims)
    norms = attention.norm_enhanced, attention.norm_residual
    asking, asked = (
        F.group_norm(x, 2, norm.weight, norm.bias).flatten(2).mT
        for x, norm in zip((enhanced, residual), norms, strict=True)
    )
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        query, key, value = (
            x @ layer.weight[head].mT
            for x, layer in ((asking, attention.query), (asked, attention.key), (asked, attention.value))
        )
        heads.append(torch.softmax(query @ key.mT / math.sqrt(4), dim=-1) @ value)
    found = torch.cat(heads, dim=2) @ attention.out.weight.mT + attention.out.bias
    expected = enhanced + found.mT.reshape(enhanced.shape)
    torch.testing.assert_close(attention(enhanced, residual), expected, rtol=0, atol=1e-12)


def test_attention_starts_as_nothing() -> None:
    enhanced, residual = maps()
    attention = ComplementaryAttention(8, 4, 4, max_tokens=8192).double()
    assert torch.equal(attention(enhanced, residual), enhanced)
    attention(enhanced, residual).square().mean().backward()
    assert attention.out.weight.grad.abs().max() > 0  # and leaves


@pytest.mark.parametrize("literal", [False, True])
def test_the_places_of_what_is_asked_say_nothing(literal: bool) -> None:
    attention, (enhanced, residual) = random(ComplementaryAttention(8, 4, 4, max_tokens=8192, literal=literal)), maps()
    shuffled = residual.flatten(2)[..., torch.randperm(25)].reshape(residual.shape)
    torch.testing.assert_close(attention(enhanced, shuffled), attention(enhanced, residual), rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_tokens", [8192, 8])
def test_a_constant_value_is_found_by_every_query(max_tokens: int) -> None:
    attention, (enhanced, residual) = (
        random(ComplementaryAttention(8, 4, 4, max_tokens=max_tokens, literal=True)),
        maps(),
    )
    constant = residual[..., :1, :1].expand_as(residual)
    expected = constant.flatten(2).mT @ attention.value.weight.mT
    torch.testing.assert_close(attention(enhanced, constant).flatten(2).mT, expected, rtol=0, atol=1e-12)


# ---- fewer keys


@pytest.mark.parametrize(("max_tokens", "factor"), [(25, 1), (24, 2), (8, 3), (2, 5), (1, 5)])
def test_keys_are_averaged_over_boxes(max_tokens: int, factor: int) -> None:
    attention, (enhanced, residual) = random(ComplementaryAttention(8, 4, 4, max_tokens=max_tokens)), maps()
    normed = attention.norm_residual(residual)
    starts = range(0, 5, factor)
    boxes = [normed[..., i : i + factor, j : j + factor].mean((2, 3)) for i in starts for j in starts]
    coarse = torch.stack(boxes, dim=2)[..., None]
    full = random(ComplementaryAttention(8, 4, 4, max_tokens=8192))
    full.norm_residual = nn.Identity()
    torch.testing.assert_close(attention(enhanced, residual), full(enhanced, coarse), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dims", "size", "fewer"),
    [
        (2, (64, 64), {}),
        (2, (88, 92), {}),
        (2, (128, 128), {1: (16384, 4096)}),
        (2, (129, 126), {1: (16896, 1892)}),
        (3, (32, 32, 6), {}),
        (3, (64, 64, 12), {1: (49152, 1936)}),
        (3, (256, 256, 48), {1: (3145728, 3380), 2: (393216, 3380), 4: (49152, 1936)}),
    ],
)
def test_a_configuration_says_where_keys_are_fewer(
    dims: int, size: tuple[int, ...], fewer: dict[int, tuple[int, int]]
) -> None:
    config = DualConfig(branch=UNetConfig(**BRANCH | {"dims": dims}))
    assert config.pooled(size) == fewer
    assert all(positions > 8192 and keys <= 4096 for positions, keys in fewer.values())
    assert DualConfig(branch=config.branch, attend="sum").pooled(size) == {}


@pytest.mark.parametrize("name", ["few keys", "volumes, spatial gate, few keys", "paper"])
def test_what_the_configuration_says_of_keys_is_what_the_network_does(name: str) -> None:
    net = build(name)
    keys = {}
    for scale, part in net.attend.items():
        part.key.register_forward_hook(lambda _, x, __, scale=int(scale): keys.update({scale: x[0].shape[1]}))
    image = normal(1, 3, *(7, 13, 6)[: net.config.branch.dims])
    net(image, image, torch.ones(1, dtype=torch.float64))
    told = net.config.pooled(image.shape[2:])
    assert bool(told) == ("few keys" in name)
    assert {scale: keys[scale] for scale in told} == {scale: after for scale, (_, after) in told.items()}


# ---- what may be looked at


@every_configuration
def test_kept_maps_are_those_that_meet_and_keeping_them_changes_nothing(name: str) -> None:
    net = build(name)
    given, seen, met = inputs(net), {}, {}
    for way, parts in (("encoder", net.align), ("decoder", net.attend)):
        for scale, part in parts.items():
            part.register_forward_hook(lambda _, x, __, key=(way, int(scale)): met.update({key: x}))
    with torch.no_grad():
        outputs = net(**given, keep=seen)
    levels = [2**level for level in range(len(net.config.branch.multipliers))]
    assert list(seen) == [
        (branch, way, scale)
        for branch in ("residual", "enhanced")
        for way, scales in (("encoder", levels), ("decoder", levels[::-1]))
        for scale in scales
    ]
    for (_, _, scale), x in seen.items():
        assert x.shape[1:] == (net.config.branch.widths[levels.index(scale)], *[8 // scale] * net.config.branch.dims)
    for (way, scale), (enhanced, residual) in met.items():
        assert torch.equal(seen["enhanced", way, scale], enhanced)
        assert torch.equal(seen["residual", way, scale], residual)
    assert all(torch.equal(one, other) for one, other in zip(outputs, net(**given), strict=True))


@pytest.mark.parametrize("name", ["paper", "level skips", "published"])
def test_the_branches_meet_at_the_last_map_of_a_level(name: str) -> None:
    net = build(name, branch={**CONFIGS[name].get("branch", {}), "blocks": (1, 2, 3)})
    last, seen = {}, {}
    for branch in ("residual", "enhanced"):
        unet = getattr(net, branch)
        for way, stages in (("encoder", unet.encoder), ("decoder", [unet.middle, *unet.decoder])):
            for stage in stages:
                stage.register_forward_hook(
                    lambda _, __, out, key=(branch, way): last.update({(*key, 8 // out.shape[-1]): out})
                )
    net(**inputs(net), keep=seen)
    assert seen.keys() == last.keys()
    assert all(torch.equal(seen[key], last[key]) for key in seen)


@pytest.mark.parametrize("kind", ["cosine", "cka"])
def test_the_same_network_on_the_same_input_has_the_same_features(kind: Any) -> None:
    net = build("paper", align="none", attend="none")
    net.enhanced.load_state_dict(net.residual.state_dict())
    given, seen = inputs(net), {}
    net(**given | {"enhanced": given["residual"]}, keep=seen)
    for value in feature_similarity(seen, kind).values():
        assert value.tolist() == pytest.approx([1, 1])


def similarity(first: Tensor, second: Tensor, kind: Any) -> Tensor:
    features: Features = {("residual", "encoder", 1): first, ("enhanced", "encoder", 1): second}
    return feature_similarity(features, kind)["encoder", 1]


@both_dims
def test_kernel_alignment_is_that_of_centred_gram_matrices(dims: int) -> None:
    first, second = maps(dims, size=4)
    n = 4**dims
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    grams = [centre @ (x.flatten(2).mT @ x.flatten(2)) @ centre for x in (first, second)]
    shared, own, other = ((a * b).sum((1, 2)) for a, b in (grams, grams[:1] * 2, grams[1:] * 2))
    torch.testing.assert_close(similarity(first, second, "cka"), shared / (own * other).sqrt(), rtol=0, atol=1e-12)


def test_kernel_alignment_is_blind_to_rotation_scale_and_offset_and_cosine_to_scale_alone() -> None:
    first, _ = maps(size=12)
    rotation, _ = torch.linalg.qr(normal(8, 8))
    turned = torch.einsum("ij,bjhw->bihw", rotation, 3 * first)
    assert similarity(first, turned + 2, "cka").tolist() == pytest.approx([1, 1])
    assert similarity(first, 3 * first, "cosine").tolist() == pytest.approx([1, 1])
    assert similarity(first, -first, "cosine").tolist() == pytest.approx([-1, -1])
    assert similarity(first, turned, "cosine").max() < 0.9


def test_unrelated_maps_are_not_similar_and_constant_ones_say_nothing() -> None:
    first, second = maps(size=40)
    assert similarity(first, second, "cka").max() < 0.02
    assert similarity(first, second, "cosine").abs().max() < 0.05
    assert similarity(first, torch.ones_like(first), "cka").tolist() == [0, 0]


# ---- cost


def multiply_adds(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def costs(branch: dict[str, Any], size: tuple[int, ...], **settings: Any) -> tuple[int, int]:
    with torch.device("meta"):
        net = DualUNet(DualConfig(branch=UNetConfig(**branch), **settings))
        x, t = torch.zeros(1, net.config.branch.in_channels, *size), torch.zeros(1)
        return multiply_adds(lambda: net.enhanced(x, t)), multiply_adds(lambda: net(x, x, t))


@pytest.mark.parametrize(
    ("branch", "size", "settings"),
    [
        (PUBLISHED, (32, 32), {}),
        (PUBLISHED, (128, 128), {}),
        (SLIM, (24, 24), {}),
        (SLIM, (48, 48), {"max_tokens": 1024}),
    ],
    ids=["published", "published, fewer keys", "slim", "slim, fewer keys"],
)
def test_two_branches_cost_at_most_a_tenth_more_than_two_networks(
    branch: dict[str, Any], size: tuple[int, ...], settings: dict[str, Any]
) -> None:
    one, both = costs(branch, size, **settings)
    assert 2 * one < both <= 2.2 * one


def test_the_price_of_guidance_is_that_of_its_equations() -> None:
    one, both = costs(SLIM, (64, 64))
    expected = 0
    for width, positions in ((32, 4096), (64, 1024), (128, 256)):
        expected += 2 * width**2  # the gate, on pooled vectors
        expected += 4 * positions * width**2 + 2 * positions**2 * width  # Q, K, V, W_o; Q K^T and A V
    assert both - 2 * one == expected


# ---- configurations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (1, 8)}, r"scales has \[8\].*\[1, 2, 4\]"),
        ({"branch": {"head_channels": 16}}, r"head_channels is 16; expected a divisor of the widths .*\[8, 24\]"),
        ({"branch": {"multipliers": (1, 2)}}, r"scales has \[4\].*\[1, 2\]"),
    ],
)
def test_numbers_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured("paper", **changes)


@pytest.mark.parametrize("changes", [{"align": "mean"}, {"attend": "gate"}, {"max_tokens": 0}, {"aligned": "sum"}])
def test_a_configuration_is_strict(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        configured("paper", **changes)


@pytest.mark.parametrize("name", ["paper", "w/o SAM", "w/o CMA", "w/o HGF"])
def test_the_rows_of_the_ablation_start_from_the_same_branches(name: str) -> None:
    whole, row = build("paper"), build(name)
    assert (row.config.align == "sum", row.config.attend == "sum") == (
        name in ("w/o SAM", "w/o HGF"),
        name in ("w/o CMA", "w/o HGF"),
    )
    for branch in ("residual", "enhanced"):
        weights = (getattr(net, branch).state_dict() for net in (whole, row))
        torch.testing.assert_close(*weights, rtol=0, atol=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        without_residual_branch = UNet(whole.config.branch).double()
    torch.testing.assert_close(without_residual_branch.state_dict(), whole.enhanced.state_dict(), rtol=0, atol=0)


def test_fewer_keys_in_translation_than_in_training():
    thrifty, plain = build("paper", eval_tokens=8), build("paper")
    few, given = build("few keys"), inputs(plain)
    assert torch.equal(thrifty(**given)[1], few(**given)[1])
    assert not torch.allclose(thrifty(**given)[1], plain(**given)[1])
    assert torch.equal(thrifty.train()(**given)[1], plain.train()(**given)[1])
    assert thrifty.config.pooled((8, 8)) == few.config.pooled((8, 8)) != {}
    assert configured("few keys", eval_tokens=100).tokens_in_eval == 8
