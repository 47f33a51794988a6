"""Laws of grids: whatever the axes of a file, the same place keeps the same value."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.nifti import read, write
from scanbridge.errors import UserError

ORDERS = [(axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)]
OBLIQUE = Rotation.from_rotvec(np.radians(17) * np.array([1, 2, 3]) / np.sqrt(14)).as_matrix()


def affine_of(
    spacing: tuple[float, float, float], rotation: NDArray[np.float64], centre: float = 5.0
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = -40 + centre
    return affine.astype(np.float32).astype(np.float64)  # as a file would hold it


GRIDS = {
    "isotropic": Grid((40, 38, 42), affine_of((2, 2, 2), np.eye(3))),
    "anisotropic": Grid((70, 65, 27), affine_of((1.17, 1.17, 3), np.eye(3))),
    "oblique": Grid((45, 47, 50), affine_of((1.8, 1.8, 1.6), OBLIQUE)),
    "oblique and anisotropic": Grid((81, 79, 20), affine_of((0.97, 0.97, 4), OBLIQUE)),
}


def places(grid: Grid) -> NDArray[np.float64]:
    """Patient coordinates (mm) of all voxel centres, (I, J, K, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def smooth_image(grid: Grid) -> NDArray[np.float32]:
    """Two unlike blobs, 20 mm wide: no order of axes maps the image on itself, and half a voxel of shift is seen."""
    at, middle = places(grid), places(grid).mean(axis=(0, 1, 2))
    blobs = [(1.0, middle + np.array([6, -4, 3])), (-0.6, middle + np.array([-9, 5, -7]))]
    return sum(height * np.exp(-((at - c) ** 2).sum(-1) / (2 * 20**2)) for height, c in blobs).astype(np.float32)


def reordered(
    data: NDArray[np.float32], grid: Grid, order: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[NDArray[np.float32], Grid]:
    """The same volume as another file would order its axes, by nibabel."""
    code = np.array([[axis, flip] for axis, flip in zip(*order, strict=True)])
    turned = nib.orientations.apply_orientation(data, code)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(code, grid.shape)
    return np.ascontiguousarray(turned), Grid(turned.shape, affine)


def random_image(grid: Grid, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=grid.shape).astype(np.float32)


@pytest.mark.parametrize("name", GRIDS)
def test_there_and_back_is_the_same_image_in_the_same_place_for_every_order_of_axes(name, tmp_path):
    data, grid = smooth_image(GRIDS[name]), GRIDS[name]
    first = None
    for order in ORDERS:
        stored, own = reordered(data, grid, order)
        write(tmp_path / "scan.nii", stored, own.affine)
        volume = read(tmp_path / "scan.nii")
        assert np.allclose(volume.affine, own.affine, atol=1e-4)
        model = model_grid(volume.grid, spacing=(2, 2, 2), orientation="SPL")
        values, inside = resample(volume.data, volume.grid, model)
        assert inside.all()
        first = values if first is None else first
        assert np.array_equal(values, first), "how a file orders its axes changes the model's input"
        back, inside = resample(values, model, volume.grid)
        assert inside.all()
        assert np.abs(back - stored).max() < 0.01 * np.ptp(stored)
        for error in np.gradient(stored):  # a shift of s voxels is the error that goes as s times the gradient
            assert abs(np.vdot(back - stored, error) / np.vdot(error, error)) < 0.01


def test_a_change_of_axis_order_and_direction_alone_copies_every_bit():
    grid = GRIDS["oblique and anisotropic"]
    data = random_image(grid)
    for order in ORDERS:
        expected, turned = reordered(data, grid, order)
        for interpolation in (0, 1, 3):
            values, inside = resample(data, grid, turned, order=interpolation)
            assert np.array_equal(values, expected)
            assert inside.all()


def test_a_copy_stays_a_copy_when_a_header_has_rounded_the_affine():
    grid = GRIDS["oblique"]
    data = random_image(grid)
    affine = grid.affine.copy()
    affine[:3, 3] += 3e-5
    assert np.array_equal(resample(data, grid, Grid(grid.shape, affine))[0], data)


@pytest.mark.parametrize("start", GRIDS)
@pytest.mark.parametrize("end", GRIDS)
def test_a_ramp_in_space_is_the_same_ramp_on_any_grid(start, end):
    source, to = GRIDS[start], GRIDS[end]
    slope = np.array([0.3, -0.7, 0.5])
    values, _ = resample((places(source) @ slope).astype(np.float32), source, to)
    index = places(to) - source.affine[:3, 3]
    index = index @ np.linalg.inv(source.affine[:3, :3]).T
    deep = ((index > 5) & (index < np.array(source.shape) - 6)).all(-1)  # the filter feels the edge no deeper
    assert deep.any()
    assert np.abs(values - places(to) @ slope)[deep].max() < 1e-3


def test_doubling_the_voxel_is_the_average_of_eight():
    grid = Grid((12, 10, 8), affine_of((1, 1, 1), np.eye(3)))
    data = random_image(grid)
    values, _ = resample(data, grid, model_grid(grid, spacing=(2, 2, 2), orientation="RAS"))
    assert np.allclose(values, data.reshape(6, 2, 5, 2, 4, 2).mean(axis=(1, 3, 5)), atol=1e-6)


@pytest.mark.parametrize("factor", [3.0, 4.0, 5.5])
def test_what_the_new_grid_cannot_hold_does_not_come_back_as_something_else(factor):
    grid = Grid((64, 8, 8), affine_of((1, 1, 1), np.eye(3)))
    finest = np.where(np.arange(64) % 2, 1.0, -1.0)[:, None, None] * np.ones(grid.shape)
    values, _ = resample(finest, grid, model_grid(grid, spacing=(factor, 1, 1), orientation="RAS"))
    assert np.abs(values[2:-2]).max() < 0.3  # sampling without a filter gives 1


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("factor", [2, 4, 6])
def test_a_fine_blob_widens_by_the_variance_of_averaging_over_one_output_voxel(factor, order):
    grid = Grid((192, 4, 4), affine_of((1, 1, 1), np.eye(3)))
    x = np.arange(192) - 95.5
    blob = np.exp(-(x**2) / (2 * 6.0**2))[:, None, None] * np.ones(grid.shape)
    to = model_grid(grid, spacing=(factor, 1, 1), orientation="RAS")
    values = resample(blob, grid, to, order=order)[0][:, 0, 0].astype(np.float64)
    at = places(to)[:, 0, 0, 0] - places(grid)[:, 0, 0, 0].mean()
    variance = (values * at**2).sum() / values.sum()
    # a Gaussian of half a voxel, sampled at voxels, lacks 0.035 of its variance
    assert variance == pytest.approx(36 + (factor**2 - 1) / 12, abs=0.02 if order == 1 else 0.04)


@pytest.mark.parametrize("order", [0, 1])
def test_padding_changes_no_value_elsewhere(order):
    grid = Grid((20, 22, 24), affine_of((1, 1.5, 1), np.eye(3)))
    data, spacing = random_image(grid), (2.0, 3.0, 2.0)
    before, _ = resample(data, grid, model_grid(grid, spacing=spacing, orientation="RAS"), order=order)
    for widths in ([(2, 0), (0, 4), (6, 2)], [(0, 0), (4, 4), (0, 2)]):
        padded = np.pad(data, widths, constant_values=7.0)
        affine = grid.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ [low for low, _ in widths]
        wide = Grid(padded.shape, affine)
        after, _ = resample(padded, wide, model_grid(wide, spacing=spacing, orientation="RAS"), order=order)
        kept = tuple(slice(low // 2, low // 2 + n // 2) for (low, _), n in zip(widths, grid.shape, strict=True))
        assert np.array_equal(after[kept], before)


@pytest.mark.parametrize("end", GRIDS)
def test_a_cubic_spline_keeps_constants_and_the_range_of_an_edge(end):
    source, to = GRIDS["anisotropic"], GRIDS[end]
    values, inside = resample(np.full(source.shape, 7.3), source, to, order=3)
    assert np.allclose(values[inside], 7.3, atol=1e-5)
    step = (places(source)[..., 0] > places(source)[..., 0].mean()).astype(np.float32)
    values, inside = resample(step, source, to, order=3)
    assert values[inside].min() >= 0
    assert values[inside].max() <= 1
    assert 0.05 < values[inside].mean() < 0.95


@pytest.mark.parametrize("start", ["isotropic", "oblique"])
def test_a_cubic_spline_brings_a_smooth_image_home_better_than_lines_and_without_shift(start):
    """A blob just wide enough for a coarse grid; its very top, between voxels, is cut by holding the range."""

    def blob(grid: Grid) -> NDArray[np.float32]:
        centre = places(GRIDS[start]).mean(axis=(0, 1, 2)) + np.array([5, -3, 4])
        return np.exp(-((places(grid) - centre) ** 2).sum(-1) / (2 * 7**2)).astype(np.float32)

    fine = GRIDS[start]
    coarse = model_grid(fine, spacing=(4, 4, 4), orientation="SPL")
    image, error = blob(fine), {}
    for order in (1, 3):
        home, inside = resample(blob(coarse), coarse, fine, order=order)
        assert inside.all()
        error[order] = np.abs(home - image)[image < 0.8].max()
        for slope in np.gradient(image):
            assert abs(np.vdot(home - image, slope) / np.vdot(slope, slope)) < 0.01
    assert error[3] < 0.01
    assert error[3] < 0.25 * error[1]


def test_a_cubic_spline_is_scipys_and_does_not_care_how_the_axes_are_ordered():
    grid = Grid((9, 8, 1), affine_of((2, 2, 2), np.eye(3)))
    data, fine = random_image(grid), model_grid(grid, spacing=(0.8, 0.7, 2), orientation="RAS")
    values, _ = resample(data, grid, fine, order=3)
    index = ((places(fine) - grid.affine[:3, 3]) / 2).clip(0, np.array(grid.shape) - 1)
    expected = ndimage.map_coordinates(data.astype(np.float64), np.moveaxis(index, -1, 0), order=3, mode="mirror")
    assert np.allclose(values, expected.clip(data.min(), data.max()), atol=1e-5)
    for order in ORDERS:
        turned, own = reordered(data, grid, order)
        assert np.array_equal(resample(turned, own, fine, order=3)[0], values)


def test_outside_the_field_of_view_there_is_the_fill_and_no_claim():
    small = Grid((4, 4, 4), np.diag([3.0, 3, 3, 1]))  # outer edges at -1.5 and 10.5 mm
    large = Grid((20, 4, 4), np.diag([1.0, 3, 3, 1]) + np.array([[0, 0, 0, -4.0]] + [[0] * 4] * 3))  # from -4 to 15 mm
    values, inside = resample(np.ones(small.shape), small, large, fill=-5)
    at = places(large)[:, 0, 0, 0]
    assert np.array_equal(inside[:, 0, 0], (at >= -1.5) & (at <= 10.5))
    assert np.array_equal(values, np.where(inside, 1.0, -5.0))
    turned = Grid(large.shape, large.affine @ np.block([[OBLIQUE, np.zeros((3, 1))], [np.zeros((1, 3)), np.eye(1)]]))
    values, inside = resample(np.ones(small.shape), small, turned, fill=-5)
    at = places(turned)
    assert np.array_equal(inside, ((at > -1.5) & (at < 10.5)).all(-1))
    assert np.array_equal(values, np.where(inside, np.float32(1), np.float32(-5)))


@pytest.mark.parametrize("end", GRIDS)
def test_nearest_neighbour_makes_no_new_label(end):
    source = GRIDS["isotropic"]
    labels = np.random.default_rng(0).integers(0, 4, source.shape)
    values, _ = resample(labels, source, GRIDS[end], order=0)
    assert set(np.unique(values)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("end", GRIDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nearest_neighbour_takes_the_closest_voxel(end, axis):
    source, to = GRIDS["anisotropic"], GRIDS[end]
    values, inside = resample(np.indices(source.shape)[axis], source, to, order=0)
    position = ((places(to) - source.affine[:3, 3]) @ np.linalg.inv(source.affine[:3, :3]).T)[..., axis]
    assert np.abs(values - position)[inside].max() < 0.502


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 60)] * 3),
    own=st.tuples(*[st.floats(0.3, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 8)] * 3),
    turn=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    letters=st.sampled_from(["SPL", "RAS", "IRP", "LSA", "PIR"]),
)
def test_a_model_grid_covers_the_field_of_view_with_the_same_centre(shape, own, spacing, turn, letters):
    source = Grid(shape, affine_of(own, Rotation.from_rotvec(turn).as_matrix()))
    model = model_grid(source, spacing=spacing, orientation=letters)
    assert model.orientation == letters
    assert np.allclose(model.spacing, spacing)
    middle = [grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1] for grid in (source, model)]
    assert np.allclose(*middle, atol=1e-6)
    turned = resample(np.zeros(source.shape), source, model)[1]
    assert turned.all(), "a voxel of the model grid has its centre outside the image"
    covered, _ = resample(np.ones(model.shape), model, source)
    assert covered.min() == 1, "a voxel of the image lies outside the model grid"


def test_a_flipped_orientation_is_the_flipped_array():
    grid = GRIDS["oblique and anisotropic"]
    data = random_image(grid)
    one, _ = resample(data, grid, model_grid(grid, spacing=(3, 2, 2), orientation="SPL"))
    other, _ = resample(data, grid, model_grid(grid, spacing=(3, 2, 2), orientation="IPR"))
    assert np.allclose(one[::-1, :, ::-1], other, atol=1e-6)


def test_grids_are_equal_by_value():
    one, same = (Grid((2, 3, 4), np.diag([1.0, 2, 3, 1])) for _ in range(2))
    other = Grid((2, 3, 4), np.diag([1.0, 2, 3.5, 1]))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one.spacing == (1, 2, 3)
    assert one.orientation == "RAS"
    with pytest.raises(ValueError, match="read-only"):
        one.affine[0, 0] = 5


@pytest.mark.parametrize("letters", ["SPX", "SSL", "SP", "spl", "RLA"])
def test_an_orientation_that_is_none_is_refused(letters):
    with pytest.raises(UserError, match="orientation"):
        model_grid(GRIDS["isotropic"], spacing=(2, 2, 2), orientation=letters)


@pytest.mark.parametrize("spacing", [(0, 2, 2), (2, -1, 2), (2, 2, float("nan"))])
def test_a_spacing_that_is_none_is_refused(spacing):
    with pytest.raises(UserError, match="spacing"):
        model_grid(GRIDS["isotropic"], spacing=spacing, orientation="SPL")
