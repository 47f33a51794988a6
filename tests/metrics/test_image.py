import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from scanbridge.metrics.image import Measurement, bounding_box, direction, measure, psnr, ssim_map

AXES = {"axial": 2, "coronal": 1, "sagittal": 0}


@pytest.fixture
def truth():
    """A smooth head in [0, 1] with three voxels of background around it, half the window of SSIM."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1.6, 1.6, n) for n in (18, 20, 22)), indexing="ij"))
    inside = (grid**2).sum(0) < 1
    values = 0.5 + 0.3 * np.sin(5 * grid[0]) * np.cos(4 * grid[1]) + 0.1 * grid[2]
    return np.where(inside, values, 0.0).astype(np.float32), inside


@pytest.fixture
def noisy(truth):
    image, inside = truth
    noise = np.random.default_rng(0).normal(0, 0.05, image.shape)
    return np.where(inside, image + noise, 0.0).astype(np.float32)


def regions_of(inside):
    lesion = np.zeros_like(inside)
    lesion[5:8, 6:9, 7:10] = True
    return {"volume": np.ones_like(inside), "foreground": inside, "lesion": lesion, "not_lesion": inside & ~lesion}


def values(rows):
    return {(row.region, row.metric): row.value for row in rows}


def measured(prediction, target, regions, *, data_range=1.0, unit="1", axes=AXES, slice_axis=2):
    return values(
        measure(prediction, target, regions, data_range=data_range, unit=unit, axes=axes, slice_axis=slice_axis)
    )


PERFECT = {"psnr": math.inf, "sharpness": 1.0} | {f"ssim_{name}": 1.0 for name in ("3d", *AXES)}


def test_a_perfect_prediction_is_perfect_in_every_metric_and_region(truth):
    image, inside = truth
    found = measured(image, image.copy(), regions_of(inside))
    assert len(found) == 4 * 16
    for (_, metric), value in found.items():
        assert value == PERFECT.get(metric, 0.0), metric


def test_every_metric_says_which_way_is_better(truth, noisy):
    image, inside = truth
    for (region, metric), value in measured(noisy, image, {"foreground": inside}).items():
        perfect = PERFECT.get(metric, 0.0)
        worse = {"higher": value < perfect, "lower": value > perfect, "one": value != 1.0}
        assert worse[direction(metric)], (region, metric)


@pytest.mark.parametrize("width", [((3, 0), (2, 5), (4, 1)), ((9, 9), (9, 9), (9, 9))])
def test_padding_with_background_changes_no_foreground_number(truth, noisy, width):
    image, inside = truth
    regions = {name: region for name, region in regions_of(inside).items() if name != "volume"}
    before = measured(noisy, image, regions)
    padded = {name: np.pad(region, width) for name, region in regions.items()}
    assert measured(np.pad(noisy, width), np.pad(image, width), padded) == before


def test_errors_outside_a_region_leave_its_pointwise_numbers_alone(truth, noisy):
    image, inside = truth
    spoilt = np.where(inside, noisy, 7.0).astype(np.float32)
    before, after = (measured(p, image, {"foreground": inside}) for p in (noisy, spoilt))
    for metric in ("psnr", "mae", "nrmse", "nmse", "nmae", "slice_style_axial", "slice_shape_sagittal"):
        assert before["foreground", metric] == after["foreground", metric]


@pytest.mark.parametrize(("offset", "data_range"), [(0.1, 1.0), (50.0, 2000.0), (-3.0, 15.0)])
def test_a_constant_offset_costs_what_it_should(truth, offset, data_range):
    image, inside = truth
    target = (image * data_range).astype(np.float64)
    found = measured(target + offset, target, {"foreground": inside}, data_range=data_range, unit="HU")
    assert found["foreground", "psnr"] == pytest.approx(-20 * math.log10(abs(offset) / data_range))
    assert found["foreground", "mae"] == pytest.approx(abs(offset))
    assert found["foreground", "nrmse"] == pytest.approx(abs(offset) / data_range)
    assert found["foreground", "sharpness"] == pytest.approx(1.0, rel=1e-3)
    for plane in AXES:
        assert found["foreground", f"slice_style_{plane}"] == pytest.approx(0, abs=1e-9 * data_range)
        assert found["foreground", f"slice_shape_{plane}"] == pytest.approx(0, abs=1e-9)


def test_a_change_of_unit_changes_only_the_numbers_that_have_one(truth, noisy):
    image, inside = truth
    before = measured(noisy, image, {"foreground": inside})
    after = measured(1000 * noisy, 1000 * image, {"foreground": inside}, data_range=1000.0, unit="HU")
    for key, value in before.items():
        factor = 1000 if key[1] == "mae" or key[1].startswith("slice_style") else 1
        assert after[key] == pytest.approx(factor * value, rel=1e-4), key


def test_normalised_errors_by_hand():
    target, prediction = np.full((2, 2, 2), 2.0), np.full((2, 2, 2), 3.0)
    prediction[0] = 1.0
    found = measured(prediction, target, {"volume": np.ones((2, 2, 2), bool)}, data_range=4.0)
    assert found["volume", "nmse"] == 0.25
    assert found["volume", "nmae"] == 0.5
    assert found["volume", "nrmse"] == 0.25


@pytest.mark.parametrize("plane", AXES)
def test_ssim_of_a_plane_is_that_of_its_slices(truth, noisy, plane):
    image, inside = truth
    maps = np.zeros(image.shape)
    for index in range(image.shape[AXES[plane]]):
        at = tuple(index if axis == AXES[plane] else slice(None) for axis in range(3))
        maps[at] = reference_map(noisy[at], image[at])
    found = measured(noisy, image, {"foreground": inside})
    assert found["foreground", f"ssim_{plane}"] == pytest.approx(maps[inside].mean(), abs=1e-6)


def test_ssim_in_three_dimensions_is_the_librarys_even_at_the_volumes_end(truth, noisy):
    image, inside = truth
    expected = reference_map(noisy, image)
    found = measured(noisy, image, regions_of(inside))
    assert found["volume", "ssim_3d"] == pytest.approx(expected.mean(), abs=1e-6)
    corner = np.zeros(image.shape, bool)
    corner[:2, -2:, 0] = True
    assert measured(noisy, image, {"c": corner})["c", "ssim_3d"] == pytest.approx(expected[corner].mean(), abs=1e-6)


def reference_map(prediction, target):
    return structural_similarity(
        target, prediction, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]


def test_ssim_of_flat_images_by_hand():
    a, b, c1 = 0.5, 0.7, 0.01**2
    flat = np.ones((11, 11, 11))
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    np.testing.assert_allclose(ssim_map(a * flat, b * flat, data_range=1.0), expected, rtol=1e-9)


def test_permuting_the_axes_permutes_the_planes(truth, noisy):
    image, inside = truth
    before = measured(noisy, image, {"foreground": inside})
    order = (2, 0, 1)
    axes = {plane: order.index(axis) for plane, axis in AXES.items()}
    turned = (a.transpose(order) for a in (noisy, image))
    after = measured(*turned, {"foreground": inside.transpose(order)}, axes=axes)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-5), key
    assert before["foreground", "ssim_axial"] != pytest.approx(before["foreground", "ssim_sagittal"], abs=1e-4)


def test_small_volumes_and_empty_regions_say_why_a_number_is_missing(truth, noisy):
    image, inside = truth
    empty = np.zeros((18, 20, 8), bool)
    rows = measure(
        noisy[..., :8],
        image[..., :8],
        {"foreground": inside[..., :8], "lesion": empty},
        data_range=1.0,
        unit="1",
        axes=AXES,
        slice_axis=2,
    )
    found = {(row.region, row.metric): row for row in rows}
    assert found["foreground", "ssim_3d"] == Measurement(
        "foreground", "ssim_3d", "1", None, "an axis has fewer than 11 voxels"
    )
    assert found["foreground", "ssim_coronal"].value is None
    assert 0 < found["foreground", "ssim_axial"].value < 1
    lesion = [row for row in rows if row.region == "lesion"]
    assert len(lesion) == 16
    assert all(row.value is None and row.note == "the region is empty" for row in lesion)
    units = {(row.metric, row.unit) for row in rows}
    assert len(units) == 16  # a metric has one unit, whether or not it could be had


def test_blur_loses_sharpness_and_noise_gains_it(truth, noisy):
    image, inside = truth
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(image, 1.0)
    assert measured(blurred, image, {"f": inside})["f", "sharpness"] < 0.5
    assert measured(noisy, image, {"f": inside})["f", "sharpness"] > 1.05
    half = measured(image / 2, image, {"f": inside})["f", "sharpness"]
    assert half == pytest.approx(0.25, rel=1e-5)  # an energy, not an amplitude


@pytest.mark.parametrize("margin", [0, 3, 5])
def test_a_box_holds_the_region_its_margin_and_at_least_a_window(margin):
    region = np.zeros((30, 12, 7), bool)
    region[10:12, 11, 0] = True
    box = bounding_box(region, margin)
    assert np.count_nonzero(region[box]) == 2
    for extent, size in zip(box, region.shape, strict=True):
        assert 0 <= extent.start < extent.stop <= size
        assert extent.stop - extent.start >= min(size, 2 * margin + 1)
    assert (box[0].start, box[0].stop) == (10 - margin, 12 + margin)


@pytest.mark.parametrize(
    ("prediction", "data_range", "said"),
    [(np.zeros((4, 4, 5)), 1.0, "one shape"), (np.full((4, 4, 4), np.nan), 1.0, "finite"), (None, 0.0, "data_range")],
)
def test_what_cannot_be_measured_is_refused(prediction, data_range, said):
    target = np.zeros((4, 4, 4))
    prediction = target if prediction is None else prediction
    with pytest.raises(ValueError, match=said):
        measured(prediction, target, {"volume": np.ones(target.shape, bool)}, data_range=data_range)


def test_psnr_alone_agrees_with_the_table(truth, noisy):
    image, inside = truth
    assert psnr(noisy, image, inside, data_range=1.0) == measured(noisy, image, {"f": inside})["f", "psnr"]
