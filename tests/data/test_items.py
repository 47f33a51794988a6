"""Laws of training items: the seed and the number decide alone, and what is not known is not learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanbridge.data import items as items_module
from scanbridge.data.cache import Case
from scanbridge.data.grid import Grid
from scanbridge.data.intensity import Scale
from scanbridge.data.items import Items
from scanbridge.runs.config import Augment

STILL = Augment(flip=[], shift=0.0)
ALL = Augment(flip=["columns", "rows", "slices"], shift=3.0, rotate=10.0, tilt=8.0, scale=0.1, contrast=0.2)


def case(seed: int, shape: tuple[int, int, int] = (9, 20, 14), targets: tuple[str, ...] = ("t1w", "t2w")) -> Case:
    rng = np.random.default_rng(seed)
    body = np.zeros(shape, np.bool_)
    body[2:-2, 3:-3, 2:-2] = True
    images = {name: rng.uniform(-1, 1, shape).astype(np.float16) for name in ("flair", *targets)}
    grid = Grid(shape, np.eye(4))
    return Case(
        name=f"p{seed}",
        subject=f"p{seed}",
        source=images["flair"],
        targets={name: images[name] for name in targets},
        inside={name: np.ones(shape, np.bool_) for name in images},
        foreground=body,
        grid=grid,
        source_grid=grid,
        scales={name: Scale(0.0, 1.0, "1") for name in images},
        clipped={},
        content={},
        covariates={},
    )


def items(cases, *, radius: int = 1, size: tuple[int, ...] = (), augment: Augment = STILL, seed: int = 0) -> Items:
    return Items(cases, radius=radius, size=size, targets=("t1w", "t2w"), augment=augment, seed=seed)


def parts(batch) -> list[torch.Tensor]:
    return [batch.source, *batch.targets.values(), *batch.valid.values(), batch.case]


@pytest.mark.parametrize("augment", [STILL, ALL])
@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 7), (2, 3, 3, 4)])
def test_an_item_does_not_depend_on_its_batch(augment, sizes):
    made = items([case(0), case(1, (7, 16, 18))], augment=augment)
    whole, first, pieces = made.batch(range(12)), 0, []
    for size in sizes:
        pieces.append(made.batch(range(first, first + size)))
        first += size
    for together, *apart in zip(parts(whole), *map(parts, pieces), strict=True):
        torch.testing.assert_close(torch.cat(apart), together, rtol=0, atol=0)


def test_an_epoch_holds_every_window_once_and_the_next_in_another_order():
    made = items([case(0), case(1)])
    assert len(made) == 2 * 5
    epochs = [made.batch(range(first, first + 10)) for first in (0, 10)]
    seen = [{tuple(window[0, 1].ravel().tolist()) for window in epoch.source} for epoch in epochs]
    assert len(seen[0]) == 10
    assert seen[0] == seen[1]
    assert not torch.equal(epochs[0].source, epochs[1].source)


def test_another_seed_gives_another_order_and_a_salt_other_changes_alone():
    cases = [case(0), case(1)]
    assert not torch.equal(items(cases).batch(range(10)).source, items(cases, seed=1).batch(range(10)).source)
    made = items(cases, augment=ALL)
    one, other = made.batch(range(10)), made.batch(range(10), salt=1)
    assert torch.equal(one.case, other.case)
    assert not torch.equal(one.source, other.source)
    assert torch.equal(items(cases).batch(range(10)).source, items(cases).batch(range(10), salt=1).source)


def test_an_item_holds_the_slices_of_its_case():
    cases = [case(0), case(1)]
    made = items(cases, size=(20, 14))
    batch = made.batch(range(len(made)))
    for i, which in enumerate(batch.case.tolist()):
        volume = torch.from_numpy(cases[which].source.astype(np.float32))
        places = [z for z in range(9) if torch.equal(batch.source[i, 0, 1], volume[z])]
        assert len(places) == 1
        z = places[0]
        wanted = [min(max(z + step, 2), 6) for step in (-1, 0, 1)]  # the foreground is slices 2 to 6
        assert torch.equal(batch.source[i, 0], volume[wanted])


def test_missing_neighbours_copy_the_end_slice_and_are_not_valid():
    made = items([case(0)], radius=2, size=(20, 14))
    batch = made.batch(range(len(made)))
    n_copies = []
    for source, valid in zip(batch.source[:, 0], batch.valid["t1w"][:, 0], strict=True):
        known = valid.flatten(1).all(1)
        assert torch.equal(known, valid.flatten(1).any(1))
        assert known[2]
        for step in torch.nonzero(~known).flatten().tolist():
            nearest_real = int(torch.nonzero(known).flatten()[0 if step < 2 else -1])
            assert torch.equal(source[step], source[nearest_real])
        n_copies.append(int((~known).sum()))
    assert sorted(n_copies) == [0, 1, 1, 2, 2]


def test_a_target_that_a_case_lacks_is_nowhere_valid():
    made = items([case(0, targets=("t1w",)), case(1)], augment=ALL)
    batch = made.batch(range(len(made)))
    lacking = batch.case == 0
    assert not batch.valid["t2w"][lacking].any()
    assert batch.valid["t2w"][~lacking].any()
    assert batch.valid["t1w"][lacking].any()
    assert batch.targets["t2w"].isfinite().all()


def test_outside_its_field_of_view_a_target_is_not_valid():
    whole = case(0)
    half = np.ones(whole.source.shape, np.bool_)
    half[:, :, 7:] = False
    made = items([replace(whole, inside={**whole.inside, "t1w": half})], size=(20, 14))
    batch = made.batch(range(len(made)))
    assert not batch.valid["t1w"][..., 7:].any()
    assert batch.valid["t1w"][:, :, 1, :, :7].all()
    assert batch.valid["t2w"][:, :, 1].all()


@pytest.mark.parametrize(("size", "expected"), [((), (24, 16)), ((8, 8), (8, 8)), ((32, 40), (32, 40))])
def test_items_have_the_size_asked_for_and_what_lies_beyond_the_volume_is_not_valid(size, expected):
    made = items([case(0)], size=size)
    batch = made.batch(range(len(made)))
    assert batch.source.shape[-2:] == expected
    assert all(0 < valid[0, 1].sum() <= min(expected[0], 20) * min(expected[1], 14) for valid in batch.valid["t1w"])
    if expected == (32, 40):
        assert (batch.source[batch.valid["t1w"][:, :, 1:2].expand_as(batch.source) == 0] == -1).any()
        assert batch.valid["t1w"][0, 0, 1].sum() == 20 * 14


def test_splines_that_do_not_fit_into_memory_give_the_same_items(monkeypatch):
    cases, augment = [case(0), case(1)], ALL.model_copy(update={"turned": 1.0})
    kept = items(cases, augment=augment)
    monkeypatch.setattr(items_module, "MOST_BYTES", 0)
    anew = items(cases, augment=augment)
    for one, other in zip(parts(kept.batch(range(6))), parts(anew.batch(range(6))), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    assert kept._splines
    assert not anew._splines
