"""Laws of a method's walk: what may be asked of it, what it costs, and windows that are thinned."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from test_laws import BRIDGES, FIRST, KINDS, made, volume

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods.base import Quality, Request
from scanbridge.methods.walks import Bridge, Walk, draw_times, embedded_time, theta
from scanbridge.methods.windows import WindowWalk

every_bridge = pytest.mark.parametrize("name", BRIDGES)
WINDOWED = [name for name in BRIDGES if made(name).windowed]
every_windowed_bridge = pytest.mark.parametrize("name", WINDOWED)
every_kind_of_bridge = pytest.mark.parametrize("name", [*WINDOWED, *(kind for kind in KINDS if kind.endswith(FIRST))])


def asked(walk: Walk, quality: Quality | None = None, **others: Any) -> dict[str, Any]:
    """Give what differs from the walk when this is asked of it."""
    own, given = walk.model_dump(), walk.asked(Request("t1w", "s", quality=quality, **others)).model_dump()
    return {name: value for name, value in given.items() if value != own[name]}


PRESET = WindowWalk(walk="mean_path", calls=4, grid="linear", start="source", mirror=["columns"])
RELEASED = WindowWalk(walk="mean_path", calls=50, grid="published", start="source", ends="live")
DRAW = WindowWalk(order=2, eta=0.5, variance="residual", stride=3)


def test_a_quality_is_a_walk() -> None:
    for walk in (PRESET, RELEASED, DRAW):
        assert asked(walk) == asked(walk, "normal") == {}
    assert asked(PRESET, "draft") == {"calls": 1, "mirror": []}
    assert asked(RELEASED, "draft") == {"calls": 1}
    assert asked(PRESET, "paper") == {"calls": 100, "grid": "published", "mirror": [], "ends": "live"}
    assert asked(DRAW, "draft") == {"calls": 1, "grid": "linear", "order": 1, "variance": "none"}


def test_the_paper_is_the_published_walk_and_a_run_that_has_it_keeps_its_calls() -> None:
    assert asked(RELEASED, "paper") == {}
    published = DRAW.asked(Request("t1w", "s", quality="paper"))
    assert published == WindowWalk(walk="mean_path", calls=100, grid="published", start="source", ends="live")


def test_what_is_named_wins_over_the_quality_and_one_call_over_both() -> None:
    assert asked(PRESET, "paper", calls=7) == {"calls": 7, "grid": "published", "mirror": [], "ends": "live"}
    assert asked(PRESET, "draft", calls=2, grid="theta") == {"calls": 2, "grid": "theta", "mirror": []}
    assert asked(PRESET, "paper", calls=7, product="one-call") == {"calls": 1, "mirror": []}


@every_kind_of_bridge
@pytest.mark.parametrize(("calls", "stride", "ends"), [*product([1, 2, 6], [1, 2, 3], ["copy", "live"])])
@pytest.mark.parametrize("mirror", [[], ["columns"]])
def test_a_forecast_of_calls_and_windows_is_what_is_made(
    name: str, calls: int, stride: int, ends: str, mirror: list[str]
) -> None:
    depth = 6
    source = volume(3, (depth, 8, 8))
    corrections: list[dict[str, Any]] = [{"corrections": 0}]
    if name.startswith("ct2mri"):
        corrections += [{"corrections": 1}, {"corrections": 2, "reuse": True}]
    for correction in corrections:
        tables = {"correction": correction} if name.startswith("ct2mri") else {}
        walk = {
            "walk": "mean_path",
            "start": "source",
            "calls": calls,
            "stride": stride,
            "ends": ends,
            "mirror": mirror,
        }
        bridge = made(name, estimate=walk, **tables)
        translator = bridge.module.translator(bridge.config, bridge.fitted)
        told, drawn = translator.effort(Request("t1w", "s")), bridge.draw(source)
        assert told.calls == drawn.calls
        most = told.images * drawn.calls
        whole = most if stride == 1 else told.passes
        assert depth * told.passes <= drawn.facts["windows"] <= depth * whole + 2 * most
        assert drawn.facts["windows"] == depth * most if stride == 1 else told.passes <= most


def test_a_forecast_of_draws_has_the_mirror_images_of_the_estimate_that_they_lie_about() -> None:
    source, mirror = volume(3, (6, 8, 8)), ["rows", "columns"]
    bridge = made("bbdm" + FIRST, estimate={"mirror": mirror}, draw={"calls": 3})
    told = bridge.module.translator(bridge.config, bridge.fitted).effort(Request("t1w", "s", "draw"))
    drawn = bridge.draw(source, product="draw")
    assert (told.calls, told.passes, told.images) == (drawn.calls, 4 + 2, 1) == (3, 6, 1)
    assert drawn.facts["windows"] == 6 * told.passes


@every_windowed_bridge
def test_thinned_windows_make_as_many_calls_and_a_last_one_of_all_windows(name: str) -> None:
    source = volume(3, (9, 8, 8))
    plain, thinned = (made(name, draw={"calls": 7, "stride": stride}).draw(source, product="draw") for stride in (1, 3))
    assert plain.calls == thinned.calls == 7
    assert plain.facts["windows"] == 63
    assert thinned.facts["windows"] == 2 * (4 + 3 + 4) + 9  # six thinned calls, then all windows
    assert bool((thinned.uncertainty[1:-1].amax(dim=(1, 2)) > 0).all())
    assert not torch.equal(plain.volumes, thinned.volumes)


@every_windowed_bridge
def test_thinned_draws_depend_on_their_number_alone(name: str) -> None:
    source = volume(3, (7, 8, 8))
    bridge = made(name, draw={"calls": 5, "stride": 3, "windows": 2})
    three, two = (bridge.draw(source, product="draw", samples=n).volumes for n in (3, 2))
    assert torch.equal(three[:2], two)
    other = bridge.with_windows(100).draw(source, product="draw", samples=2)
    torch.testing.assert_close(other.volumes, two, rtol=0, atol=2e-5)


@every_windowed_bridge
def test_a_stride_beyond_the_window_is_refused_before_any_call(name: str) -> None:
    told: list[int] = []
    with pytest.raises(UserError, match="stride = 4; expected 1 to 3"):
        made(name, estimate={"stride": 4}).draw(volume(3), on_call=lambda call, _: told.append(call))
    assert not told


def test_windows_that_walk_by_themselves_are_not_thinned() -> None:
    with pytest.raises(UserError, match="stride = 3 for windows that walk by themselves"):
        made("ct2mri", coprediction=False, estimate={"stride": 3}).draw(volume(3))


@every_bridge
def test_the_residual_variance_gives_draws_a_spread_of_their_own(name: str) -> None:
    bridge = made(name, draw={"calls": 2, "temperature": 0.0, "variance": "residual"})
    drawn = bridge.draw(volume(3), product="draw", samples=2, residual_scale=0.1)
    assert 0.01 < float(drawn.uncertainty.mean()) < 0.5
    with pytest.raises(UserError, match="mean_path with a variance"):
        made(name, estimate={"walk": "mean_path", "variance": "residual"}).draw(volume(3))
    one = made(name, estimate={"variance": "residual", "calls": 4}).draw(volume(3), product="one-call")
    assert torch.equal(one.volumes, made(name, estimate={"calls": 4}).draw(volume(3), product="one-call").volumes)


@pytest.mark.parametrize("name", ["regression", "ct2mri", "bbdm"])
@pytest.mark.parametrize("axes", [["columns"], ["rows", "columns"], ["slices"]])
def test_a_mirrored_call_commutes_with_mirroring(name: str, axes: list[str]) -> None:
    dims = [1 + ["slices", "rows", "columns"].index(axis) for axis in axes]
    walk = {"walk": "mean_path", "start": "source", "calls": 3, "mirror": axes}
    tables: dict[str, Any] = {"mirror": axes} if name == "regression" else {"estimate": walk}
    one, other = (made(name, **tables).draw(source).volumes[0] for source in (volume(3), volume(3).flip(dims)))
    torch.testing.assert_close(other, one.flip([dim - 1 for dim in dims]), rtol=0, atol=1e-5)
    plain = made(name).draw(volume(3)).volumes[0]
    assert not torch.allclose(made(name).draw(volume(3).flip(dims)).volumes[0], plain.flip([d - 1 for d in dims]))


@pytest.mark.parametrize("s", [0.25, 1.0])
def test_training_times_are_even_where_they_say_so(s: float) -> None:
    noise = ItemNoise(range(4000))
    even, angles = Bridge(s=s, at_source=0.25), Bridge(s=s, at_source=0.25, times="theta", residual_scale=0.3)
    for bridge, of in ((even, 999 - embedded_time(even, draw_times(even, noise))), (angles, None)):
        t = draw_times(bridge, noise)
        assert ((t > 0) & (t <= 1)).all()
        assert (t == 1).double().mean() == pytest.approx(0.25, abs=0.03)
        place = of / 999 if of is not None else theta(bridge, t) * 2 / torch.pi
        inside = place[place > 0]
        quantiles = torch.quantile(inside, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        assert quantiles.tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.03)
    t = draw_times(angles, noise)
    torch.testing.assert_close(embedded_time(angles, t), 999 * (1 - theta(angles, t) * 2 / torch.pi))
    assert embedded_time(angles, torch.ones(1, dtype=torch.float64)) == 999


@pytest.mark.parametrize("s", [0.25, 1.0])
def test_the_state_of_a_residual_is_shown_at_variance_one(s: float) -> None:
    bridge = Bridge(s=s, times="theta", at_source=0.0, residual_scale=0.3)
    n, t = 40000, torch.tensor([0.999, 0.7, 0.3, 1e-3, 1e-6], dtype=torch.float64)
    residual, eps = 0.3 * torch.randn(5, n, dtype=torch.float64), torch.randn(5, n, dtype=torch.float64)
    shown = bridge.scaled(t, bridge.process().diffuse(residual, torch.zeros_like(eps), eps, t))
    torch.testing.assert_close(shown.std(dim=1), torch.ones_like(t), rtol=0.02, atol=0)
    assert not bridge.scaled(torch.ones(1, dtype=torch.float64), torch.zeros(1, 4)).any()
