"""Laws of augmentation: images move together, values are copied where they can be, and the truth is never bent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scanbridge.data import items as items_module
from scanbridge.data.augment import Change, Spline, bend, draw_change, sample
from scanbridge.data.cache import Case
from scanbridge.data.grid import Grid
from scanbridge.data.intensity import Scale
from scanbridge.data.items import Items
from scanbridge.runs.config import Augment

SHAPE = (9, 24, 20)
FLIPS = [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]


def case(source: np.ndarray, target: np.ndarray | None = None, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Case:
    target = source if target is None else target
    grid = Grid(SHAPE, np.diag([*spacing, 1.0]))
    return Case(
        name="p",
        subject="p",
        source=source.astype(np.float16),
        targets={"t": target.astype(np.float16)},
        inside={"s": np.ones(SHAPE, np.bool_), "t": np.ones(SHAPE, np.bool_)},
        foreground=np.ones(SHAPE, np.bool_),
        grid=grid,
        source_grid=grid,
        scales={"t": Scale(0.0, 1.0, "1")},
        clipped={},
        content={},
        covariates={},
    )


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float16).astype(np.float32)


@pytest.fixture
def changed(monkeypatch):
    """Give the windows of a case under one change, in the order of their middle slices: source, target, validity."""

    def make(of: Case, change: Change, radius: int = 0, size: tuple[int, ...] = SHAPE[1:]):
        monkeypatch.setattr(items_module, "draw_change", lambda *_: change)
        made = Items([of], radius=radius, size=size, targets=("t",), augment=Augment(), seed=0)
        order = np.argsort([made._index[i][1] for i in made._order(0)])
        batch = made.batch([int(i) for i in order])
        return batch.source[:, 0].numpy(), batch.targets["t"][:, 0].numpy(), batch.valid["t"][:, 0].numpy()

    return make


def test_no_change_changes_no_bit(changed):
    image = noise()
    image[0, 0, :4] = np.array([5.9604645e-08, 6.1035156e-05, -5.9604645e-08, 3.0e-05], np.float16)
    source, target, valid = changed(case(image), Change())
    assert np.array_equal(source[:, 0], image)
    assert np.array_equal(target[:, 0], image)
    assert valid.all()


@pytest.mark.parametrize("flip", FLIPS)
def test_a_flip_copies_bits(changed, flip):
    image, other = noise(), noise(1)
    axes = tuple(axis for axis, flipped in enumerate(flip) if flipped)
    source, target, _ = changed(case(image, other), Change(flip=flip), radius=1)
    plain, plain_target, _ = changed(case(image, other), Change(), radius=1)
    assert np.array_equal(source, np.flip(plain, [axis + 1 for axis in axes]))
    assert np.array_equal(target, np.flip(plain_target, [axis + 1 for axis in axes]))


def test_a_shift_copies_bits_and_what_enters_is_background_and_not_valid_beyond_the_volume(changed):
    image = noise()
    source, target, valid = changed(case(image), Change(shift=(2.0, -3.0)))
    assert np.array_equal(source[:, 0, 2:, :-3], image[:, :-2, 3:])
    assert np.array_equal(target, source)
    assert (source[:, 0, :2] == -1).all()
    assert (source[:, 0, :, -3:] == -1).all()
    assert valid[:, 0, 2:, :-3].all()
    assert not valid[:, 0, :2].any()
    assert not valid[:, 0, :, -3:].any()


@pytest.mark.parametrize(
    "change",
    [Change(angle=0.3), Change(tilt=(0.2, -0.1)), Change(angle=0.3, tilt=(0.1, 0.2), scale=1.2, shift=(1.5, 0.25))],
)
def test_source_target_and_validity_move_together(changed, change):
    image = noise()
    source, target, valid = changed(case(image), change, radius=1)
    assert np.array_equal(source, target)
    assert not np.array_equal(source, changed(case(image), Change(), radius=1)[0])
    assert set(np.unique(valid)) == {0.0, 1.0}  # the corners come from beyond the volume
    assert np.abs(source).max() <= 1
    beyond = changed(case(np.full(SHAPE, 1.0)), change, radius=1)[0]
    assert beyond[valid == 1].mean() > 0.9
    assert beyond[valid == 0].mean() < -0.5


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_a_turn_is_a_turn_in_millimetres(spacing):
    steps = np.diag(spacing)
    for change in (Change(angle=0.4), Change(tilt=(0.3, 0.0)), Change(angle=-0.2, tilt=(0.1, 0.3), scale=1.3)):
        rotation = steps @ change.matrix(spacing) @ np.linalg.inv(steps) * change.scale
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(Change().matrix(spacing), np.eye(3), atol=1e-15)
    in_plane = Change(angle=0.4).matrix(spacing)
    assert in_plane[0].tolist() == in_plane[:, 0].tolist() == [1.0, 0.0, 0.0]


def test_a_quarter_turn_is_that_of_the_slices(changed):
    image = np.full(SHAPE, -1.0, np.float32)
    image[:, 11:13, 3:17] = 1  # a bar along the columns
    source, *_ = changed(case(image), Change(angle=np.pi / 2))
    np.testing.assert_allclose(source[:, 0, :, 9:11].mean(), np.where(image[:, 11:13] > 0, 1, -1).mean(), atol=0.3)
    assert (source[4, 0, 6:18, 9:11] > 0.9).all()
    assert (source[4, 0, :, :8] < -0.9).all()


def test_a_tilted_window_shows_the_slices_it_passes(changed):
    ramp = np.broadcast_to(np.linspace(-0.8, 0.8, SHAPE[0])[:, None, None], SHAPE)
    source, *_ = changed(case(ramp), Change(tilt=(0.1, 0.0)))
    rows = source[4, 0].mean(axis=1)
    expected = np.sin(0.1) * (np.arange(SHAPE[1]) - (SHAPE[1] - 1) / 2) * 0.2
    inner = slice(6, -6)  # away from what enters
    np.testing.assert_allclose(rows[inner], -expected[inner], atol=5e-3)
    np.testing.assert_allclose(source[4, 0, inner, inner].std(axis=1), 0, atol=1e-3)  # and not along the columns


def test_a_scale_above_one_makes_the_image_larger(changed):
    image = np.full(SHAPE, -1.0, np.float32)
    image[:, 8:16, 6:14] = 1
    source, *_ = changed(case(image), Change(scale=1.5))
    assert int((source[4, 0] > 0).sum()) == pytest.approx(144, abs=24)


def test_sampling_at_voxels_gives_the_voxels_and_the_fill_beyond():
    image = noise()
    points = np.stack(np.meshgrid(*(np.arange(-2, n + 2) for n in SHAPE), indexing="ij")).astype(np.float64)
    padded = np.pad(image, 2, constant_values=-1.0)
    assert np.array_equal(sample(image, points, -1.0, order=0), padded)
    np.testing.assert_allclose(sample(image, points, -1.0), padded, atol=1e-4)
    one = np.array([[4.0], [7.0], [9.0]])
    np.testing.assert_allclose(sample(image, one, -1.0), image[4, 7, 9], atol=1e-3)  # however little is read


def test_sampling_between_voxels_is_exact_for_a_plane():
    volume = np.einsum("i,j,k->ijk", np.ones(40), np.arange(40), np.ones(40)) * 0.02 - 0.4
    points = np.random.default_rng(0).uniform(14, 26, (3, 50))
    np.testing.assert_allclose(sample(volume, points, -1.0), points[1] * 0.02 - 0.4, atol=1e-4)


def test_a_spline_fitted_once_reads_what_sampling_reads():
    image, rng = noise(), np.random.default_rng(1)
    points = rng.uniform(-4, 4, (3, 4, 5, 6)) + np.array(SHAPE).reshape(3, 1, 1, 1) * rng.uniform(0, 1, (3, 4, 5, 6))
    spline = Spline.through(image, -1.0)
    np.testing.assert_allclose(spline(points), sample(image, points, -1.0), atol=1e-4)
    far = np.full((3, 2), 1000.0)
    assert np.array_equal(spline(far), [-1.0, -1.0])
    assert Spline.n_bytes(SHAPE) == spline.coefficients.nbytes


def test_contrast_changes_the_source_alone_and_keeps_its_range(changed):
    image = noise()
    source, target, valid = changed(case(image), Change(gamma=1.3, gain=0.9))
    assert np.array_equal(target[:, 0], image)
    assert not np.array_equal(source[:, 0], image)
    assert np.abs(source).max() <= 1
    assert valid.all()
    assert np.array_equal(bend(image, Change()), image)
    assert bend(np.float32([-1, 1]), Change(gamma=1.3, gain=2.0)).tolist() == [-1, 1]


def test_switching_one_kind_off_does_not_move_the_others():
    full = Augment(contrast=0.2, flip=["rows"], tilt=5.0)
    part = full.model_copy(update={"contrast": 0.0, "flip": []})
    for seed in range(20):
        one, other = (draw_change(np.random.default_rng(seed), settings) for settings in (full, part))
        assert (one.shift, one.tilt) == (other.shift, other.tilt)
        assert other.flip == (False, False, False)
        assert (other.gamma, other.gain) == (1.0, 1.0)


def test_draws_fill_their_ranges():
    rng = np.random.default_rng(0)
    settings = Augment(turned=0.8, rotate=20.0, tilt=10.0, scale=0.1, contrast=0.2, shift=5.0, flip=["columns"])
    drawn = [draw_change(rng, settings) for _ in range(500)]
    assert 0.4 < np.mean([change.flip[2] for change in drawn]) < 0.6
    assert not any(change.flip[0] or change.flip[1] for change in drawn)
    assert 0.7 < np.mean([change.turns for change in drawn]) < 0.9
    assert 15 < np.degrees(max(abs(change.angle) for change in drawn)) <= 20
    assert 8 < np.degrees(max(abs(angle) for change in drawn for angle in change.tilt)) <= 10
    assert 0.9 <= min(change.scale for change in drawn) < 0.92
    assert 4.5 < max(abs(v) for change in drawn for v in change.shift) <= 5
    assert all(
        float(v).is_integer() for change in (draw_change(rng, Augment()) for _ in range(50)) for v in change.shift
    )


def test_a_change_is_still_unless_it_turns():
    assert not Change(shift=(1.0, 2.0), flip=(True, True, True), gamma=1.2).turns
    assert all(replace(Change(), **turn).turns for turn in ({"angle": 0.1}, {"tilt": (0.0, 0.1)}, {"scale": 1.1}))
