"""Laws of the comparison of features: what is alike, what is not, and where it is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from scanbridge.branches.features import Gathered
from scanbridge.nets.dual import Features

SHAPE = (6, 12, 16)  # slices, rows, columns of a map


def foreground() -> Tensor:
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[1:5, 2:10, 3:13] = True
    return inside


def gathered(residual: Tensor, enhanced: Tensor) -> dict[str, float]:
    """Compare two stacks of maps (slices, C, rows, columns), taken in by unequal parts."""
    held = Gathered(lambda scale: foreground() if scale == 1 else foreground()[:0])
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        maps: Features = {("residual", "encoder", 1): residual[part], ("enhanced", "encoder", 1): enhanced[part]}
        held.add(maps, part.start)
    return {metric: value for (metric, _, _), value in held.similarity().items()}


def maps(seed: int, channels: int = 8) -> Tensor:
    return torch.randn((SHAPE[0], channels, *SHAPE[1:]), generator=torch.Generator().manual_seed(seed))


def test_a_rotation_of_the_channels_changes_no_alignment_and_every_cosine():
    first = maps(1)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    turned = torch.einsum("dcij,ec->deij", first, rotation)
    same, found = gathered(first, first), gathered(first, 3 * turned)
    assert abs(same["cka"] - 1) < 1e-6
    assert abs(same["cosine"] - 1) < 1e-6
    assert abs(found["cka"] - 1) < 1e-6
    assert abs(found["cosine"]) < 0.9


def test_maps_that_have_nothing_in_common_score_what_chance_scores():
    found = gathered(maps(1), maps(2))
    assert found["cka"] < 0.1
    assert found["cka_shuffled"] < 0.1
    assert gathered(maps(1), maps(1))["cka_shuffled"] < 0.1


def test_what_lies_outside_the_foreground_does_not_count():
    first, second, spoiled = maps(1), maps(2), maps(2)
    spoiled[(~foreground())[:, None].expand_as(spoiled)] = 1e6
    assert gathered(first, second) == gathered(first, spoiled)


def test_many_positions_are_thinned_evenly(monkeypatch):
    whole = gathered(maps(1), maps(1) + 0.5 * maps(2))
    monkeypatch.setattr("scanbridge.branches.features.MOST_POSITIONS", int(foreground().sum()) // 2)
    half = gathered(maps(1), maps(1) + 0.5 * maps(2))
    assert half != whole
    assert abs(half["cka"] - whole["cka"]) < 0.1
