"""Laws of draws that are made one by one: their number alone decides what they are."""

from __future__ import annotations

import pytest
import torch
from test_laws import BRIDGES, made, volume

from scanbridge.errors import UserError

every_bridge = pytest.mark.parametrize("name", BRIDGES)


@every_bridge
def test_k_draws_one_by_one_are_k_draws_at_once_to_the_bit(name: str) -> None:
    bridge, source = made(name, draw={"calls": 2}), volume(5)
    together = bridge.draw(source, product="draw", samples=3)
    for number in (2, 0, 1):
        alone = bridge.draw(source, product="draw", samples=3, draw=number)
        assert torch.equal(alone.volumes, together.volumes[number : number + 1])
        assert alone.calls == together.calls
    assert not torch.equal(together.volumes[0], together.volumes[2])


@every_bridge
def test_a_draw_depends_on_its_number_and_not_on_how_many_are_asked_for(name: str) -> None:
    bridge, source = made(name, draw={"calls": 2}), volume(5)
    few, many = (bridge.draw(source, product="draw", samples=n, draw=1).volumes for n in (2, 64))
    assert torch.equal(few, many)


@every_bridge
def test_one_of_several_draws_without_spread_is_refused_as_all_of_them_are(name: str) -> None:
    bridge = made(name, draw={"calls": 2, "temperature": 0.0})
    with pytest.raises(UserError, match="would all be equal"):
        bridge.draw(volume(5), product="draw", samples=2, draw=0)
