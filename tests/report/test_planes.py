import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread

from scanbridge.report.planes import Look, cut, draw, limit_of

SHAPE = (20, 30, 24)  # slices to superior, rows to posterior, columns to the left


def pixels(picture):
    assert picture.uri.startswith("data:image/png;base64,")
    return imread(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))[..., :3]


def drawn(volume, *, truth=None, spacing=(1.0, 1.0, 1.0), foreground=None, **options):
    foreground = np.ones(volume.shape, bool) if foreground is None else foreground
    limit = options.pop("error_limit", None)
    planes = cut(
        volume,
        volume,
        truth,
        spacing=spacing,
        looks=(Look("CT", 0, 1), options.pop("look", Look("T1w", 0, 1))),
        foreground=foreground,
        **options,
    )
    return draw(planes, error_limit=limit)


def centroid_of_bright(image, rows, columns):
    """Middle of the pixels that are white in a part of the picture, as shares of that part."""
    height, width = image.shape[:2]
    part = image[int(rows[0] * height) : int(rows[1] * height), int(columns[0] * width) : int(columns[1] * width)]
    bright = np.argwhere(part.min(-1) > 0.95)
    return (bright.mean(0) / part.shape[:2]).tolist()


def marked(d, h, w):
    volume = np.zeros(SHAPE, np.float32)
    volume[d, h, w] = 1
    return volume


HALF = np.s_[:]
COLUMN = (0.0, 0.5)  # of the first of two panels


@pytest.mark.parametrize(
    ("volume", "rows", "expected"),
    [
        (marked(HALF, slice(0, 6), HALF), (0.06, 0.4), "up"),  # anterior is up in the axial plane
        (marked(HALF, HALF, slice(18, 24)), (0.06, 0.4), "right"),  # the patient's left is on the viewer's right
        (marked(slice(15, 20), HALF, HALF), (0.42, 0.64), "up"),  # superior is up in the coronal plane
        (marked(HALF, HALF, slice(18, 24)), (0.42, 0.64), "right"),
        (marked(slice(15, 20), HALF, HALF), (0.68, 0.9), "up"),  # and in the sagittal plane
        (marked(HALF, slice(0, 6), HALF), (0.68, 0.9), "left"),  # where anterior is on the left
    ],
)
def test_planes_follow_the_radiological_convention(volume, rows, expected):
    row, column = centroid_of_bright(pixels(drawn(volume).images), rows, COLUMN)
    assert {"up": row < 0.4, "right": column > 0.6, "left": column < 0.4}[expected]


def test_a_voxel_is_drawn_with_the_shape_that_it_has():
    volume = np.ones(SHAPE, np.float32)
    square, flat = (drawn(volume, spacing=(step, 1.0, 1.0)).images for step in (1.0, 3.0))
    assert square.width == flat.width
    scale = 1.9 / 30 * 96  # CSS pixels per mm: the longest side in plane fills its column
    assert flat.height - square.height == pytest.approx(2 * 20 * 2 * scale, abs=2)  # two planes, 2 mm more a slice


def test_error_is_signed_and_zero_is_black():
    truth = np.full(SHAPE, 0.5, np.float32)
    high, low, right = (truth + d for d in (0.2, -0.2, 0.0))
    colours = []
    for volume in (high, low, right):
        image = pixels(drawn(volume, truth=truth, error_limit=0.4).maps)
        colours.append(image[int(0.2 * image.shape[0]), image.shape[1] // 2])
    assert colours[0][0] > colours[0][2]  # too high: orange
    assert colours[1][2] > colours[1][0]  # too low: blue
    np.testing.assert_allclose(colours[2], 0, atol=0.02)


def test_maps_end_at_the_foreground_and_one_limit_serves_all():
    truth = np.zeros(SHAPE, np.float32)
    foreground = np.zeros(SHAPE, bool)
    foreground[5:15, 8:22, 6:18] = True
    error = np.where(foreground, 0.25, 90.0).astype(np.float32)
    assert limit_of(error, foreground) == pytest.approx(0.25)
    assert limit_of(error * 0, foreground) == 1.0
    assert limit_of(error, np.zeros(SHAPE, bool)) == 1.0
    a = drawn(truth + error, truth=truth, foreground=foreground)
    b = drawn(truth + np.where(foreground, 0.25, 0).astype(np.float32), truth=truth, foreground=foreground)
    assert a.maps.uri == b.maps.uri


def test_a_strip_has_what_there_is():
    volume = np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)
    assert drawn(volume).maps is None
    both = drawn(volume, truth=volume, uncertainty=volume)
    assert both.maps.width == pytest.approx(both.images.width * 2 / 3, abs=1)
    assert both.maps.height == both.images.height  # rows align when they stand beside each other
    assert both.images.alt == (
        "CT, predicted T1w and measured T1w; axial, coronal, sagittal planes, the patient's right on the left"
    )
    assert drawn(volume, uncertainty=volume).maps.alt.startswith("uncertainty;")


def test_the_same_arrays_give_the_same_bytes_and_an_outline_shows():
    volume = np.full(SHAPE, 0.2, np.float32)
    foreground = np.zeros(SHAPE, bool)
    foreground[4:16, 6:24, 5:19] = True
    first, second = drawn(volume, foreground=foreground), drawn(volume, foreground=foreground)
    assert first == second
    assert drawn(volume, foreground=foreground, outline=True).images.uri != first.images.uri


def test_planes_go_where_they_are_told():
    volume = marked(2, HALF, HALF)
    foreground = np.ones(SHAPE, bool)
    middle, told = (pixels(drawn(volume, foreground=foreground, at=at).images) for at in (None, (2, 15, 12)))
    where = (int(0.2 * middle.shape[0]), middle.shape[1] // 4)
    assert middle[where].max() < 0.1
    assert told[where].min() > 0.9


def test_an_inverted_image_has_its_high_values_dark_and_is_no_map():
    volume = np.full(SHAPE, 0.9, np.float32)
    plain, inverted = (drawn(volume, look=Look("PET", 0, 1, "SUV", inverted=turned)).images for turned in (False, True))
    where = (int(0.2 * pixels(plain).shape[0]), int(0.75 * pixels(plain).shape[1]))
    assert pixels(plain)[where].min() > 0.8
    assert pixels(inverted)[where].max() < 0.2
    assert plain.height == inverted.height


def test_a_draw_stands_beside_the_estimate_in_a_picture_of_its_own():
    volume = np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)
    strip = drawn(volume, truth=volume, draw=volume)
    assert strip.images.alt.startswith("CT and measured T1w;")
    assert strip.draws.alt.startswith("T1w, estimate and T1w, one draw;")
    assert strip.draws.height == strip.images.height == strip.maps.height
    assert drawn(volume, truth=volume).draws is None
