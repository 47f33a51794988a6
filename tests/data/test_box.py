"""Laws of boxes: they hold the foreground, and what is cut from a volume is the volume."""

from __future__ import annotations

import numpy as np
import pytest

from scanbridge.data.box import box_of, take, widened


@pytest.mark.parametrize("size", [0, 3, 8, 9, 10, 30])
@pytest.mark.parametrize("span", [slice(4, 12), slice(0, 3), slice(5, 6)])
def test_a_widened_span_holds_the_old_one_in_its_middle(span, size):
    wide = widened(span, size)
    assert wide.stop - wide.start == max(size, span.stop - span.start)
    below, above = span.start - wide.start, wide.stop - span.stop
    assert below >= 0
    assert above - below in (0, 1)


def test_what_is_taken_is_the_volume_and_what_is_not_there_is_the_fill():
    volume = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    padded = np.pad(volume, 4, constant_values=-1.0)
    for spans in [(slice(1, 3), slice(-4, 9), slice(2, 11)), (slice(0, 5), slice(0, 6), slice(0, 7))]:
        shifted = tuple(slice(s.start + 4, s.stop + 4) for s in spans)
        assert np.array_equal(take(volume, spans, -1.0), padded[shifted])


def test_a_box_is_tight_through_the_slices_and_has_a_margin_in_plane():
    foreground = np.zeros((9, 20, 30), bool)
    foreground[2:5, 8:12, 1:29] = True
    assert box_of(foreground) == (slice(2, 5), slice(4, 16), slice(0, 30))
