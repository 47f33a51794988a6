"""Laws of augmentation: images move together, values are copied where they can be, and the truth is never bent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanbridge.data.augment import Change, apply_changes, draw_change
from scanbridge.runs.config import Augment

MOVES = [
    Change(flip=(True, False, False)),
    Change(flip=(False, True, True)),
    Change(shift=(3.0, -2.0)),
    Change(angle=0.3, scale=1.2, shift=(1.5, 0.25), flip=(False, False, True)),
]


def windows(n: int = 4, channels: int = 2, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-1, 1, (n, channels, 3, 12, 16)).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("settings", [Augment(), Augment(rotate=15.0, scale=0.2, flip=["columns", "rows", "slices"])])
def test_source_and_target_move_together(settings):
    source = windows(6, 1)
    rng = np.random.default_rng(1)
    changes = [draw_change(rng, settings) for _ in range(6)]
    moved, _ = apply_changes(torch.cat([source, source], 1), torch.ones_like(source), changes, n_source=1)
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert not torch.equal(moved[:, :1], source)


def test_contrast_changes_the_source_alone():
    images = windows()
    changes = [Change(gamma=1.3, gain=0.9)] * 4
    moved, valid = apply_changes(images, torch.ones_like(images[:, :1]), changes, n_source=1)
    assert torch.equal(moved[:, 1], images[:, 1])
    assert not torch.equal(moved[:, 0], images[:, 0])
    assert (moved.abs() <= 1).all()
    assert valid.all()


def test_no_change_changes_no_bit():
    images = windows()
    images[0, 0, 0, 0, :4] = torch.tensor([5.9604645e-08, 6.1035156e-05, -5.9604645e-08, 3.0e-05]).half().float()
    moved, valid = apply_changes(images, torch.ones_like(images[:, :1]), [Change()] * 4, n_source=1)
    assert torch.equal(moved, images)
    assert valid.all()


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2)])
def test_a_flip_copies_bits_and_two_flips_are_none(axes):
    images, valid = windows(), (windows(channels=1, seed=2) > 0).float()
    change = [Change(flip=tuple(axis in axes for axis in range(3)))] * 4
    moved, known = apply_changes(images, valid, change, n_source=1)
    assert torch.equal(moved, images.flip([axis + 2 for axis in axes]))
    assert torch.equal(known, valid.flip([axis + 2 for axis in axes]))
    back, known = apply_changes(moved, known, change, n_source=1)
    assert torch.equal(back, images)
    assert torch.equal(known, valid)


def test_a_shift_copies_bits_and_what_enters_is_background_and_not_valid():
    images, valid = windows(), torch.ones(4, 1, 3, 12, 16)
    moved, known = apply_changes(images, valid, [Change(shift=(2.0, -3.0))] * 4, n_source=1)
    assert torch.equal(moved[..., 2:, :-3], images[..., :-2, 3:])
    assert (moved[..., :2, :] == -1).all()
    assert (moved[..., -3:] == -1).all()
    assert known[..., 2:, :-3].all()
    assert not known[..., :2, :].any()
    assert not known[..., -3:].any()


@pytest.mark.parametrize("change", MOVES)
def test_every_item_is_changed_its_own_way(change):
    images, valid = windows(2), torch.ones(2, 1, 3, 12, 16)
    both, _ = apply_changes(images, valid, [change, Change()], n_source=1)
    alone, _ = apply_changes(images[:1], valid[:1], [change], n_source=1)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1:], images[1:], rtol=0, atol=1e-5)


def test_a_turn_is_a_turn_in_voxels_also_where_the_image_is_not_square():
    images = torch.full((1, 2, 1, 24, 40), -1.0)
    images[..., 11:13, 5:35] = 1  # a bar along the columns
    quarter = [Change(angle=np.pi / 2)]
    moved, _ = apply_changes(images, torch.ones(1, 1, 1, 24, 40), quarter, n_source=1)
    assert (moved[0, 1, 0, :, 19:21] > 0.9).all()
    assert (moved[0, 1, 0, :, :18] < -0.9).all()


def test_a_scale_above_one_makes_the_image_larger():
    images = torch.full((1, 2, 1, 32, 32), -1.0)
    images[..., 12:20, 12:20] = 1
    larger, _ = apply_changes(images, torch.ones(1, 1, 1, 32, 32), [Change(scale=1.5)], n_source=1)
    assert int((larger[0, 1] > 0).sum()) == pytest.approx(144, abs=24)


def test_validity_stays_zero_or_one():
    valid = torch.zeros(1, 1, 3, 12, 16)
    valid[..., 3:9, 4:12] = 1
    _, known = apply_changes(windows(1), valid, [MOVES[-1]], n_source=1)
    assert set(known.unique().tolist()) <= {0.0, 1.0}
    assert known.any()


def test_switching_one_kind_off_does_not_move_the_others():
    full, part = Augment(contrast=0.2, flip=["rows"]), Augment(contrast=0.0, flip=[])
    for seed in range(20):
        one, other = (draw_change(np.random.default_rng(seed), settings) for settings in (full, part))
        assert one.shift == other.shift
        assert other.flip == (False, False, False)
        assert (other.gamma, other.gain) == (1.0, 1.0)


def test_draws_fill_their_ranges():
    rng, settings = np.random.default_rng(0), Augment(rotate=20.0, scale=0.1, contrast=0.2, shift=5.0, flip=["columns"])
    drawn = [draw_change(rng, settings) for _ in range(500)]
    assert 0.4 < np.mean([change.flip[2] for change in drawn]) < 0.6
    assert not any(change.flip[0] or change.flip[1] for change in drawn)
    assert 15 < np.degrees(max(abs(change.angle) for change in drawn)) <= 20
    assert 0.9 <= min(change.scale for change in drawn) < 0.92
    assert 4.5 < max(abs(v) for change in drawn for v in change.shift) <= 5
    assert all(
        float(v).is_integer() for change in (draw_change(rng, Augment()) for _ in range(50)) for v in change.shift
    )
