"""Laws of windows, tiles and the lift: no voxel is lost, none is weighted wrongly, no piece is run twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scanbridge.bridge.volume import Cover, Lift, Overlap, Tiles, Windows, overlap_mean
from scanbridge.errors import UserError

Box = tuple[int, int, int]


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def tilings(draw: st.DrawFn) -> Tiles:
    shape = draw(st.tuples(*[st.integers(1, 13)] * 3))
    d, h, w = (draw(st.integers(1, length)) for length in shape)
    return Tiles(shape, (d, h, w), draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.8, 0.9])))


@st.composite
def strided(draw: st.DrawFn) -> Windows:
    radius = draw(st.integers(0, 3))
    ends = draw(st.sampled_from(["copy", "live"]))
    stride = draw(st.integers(1, 2 * radius + 1))
    n_slices = draw(st.integers(1, 17)) + (2 * radius if ends == "live" else 0)
    return Windows(n_slices, radius, ends, stride, draw(st.integers(0, stride - 1)))


def pieces_of(cover: Cover, image: Tensor) -> Tensor:
    return cover.cut(image, range(len(cover)))


def covers() -> list[Cover]:
    windows: list[Cover] = [
        Windows(n_slices, radius, ends)
        for radius in (0, 1, 2, 3)
        for n_slices in (1, 2, 3, 7)
        for ends in ("copy", "live")
        if ends == "copy" or n_slices > 2 * radius
    ]
    thin: list[Cover] = [
        Windows(n_slices, radius, ends, stride, offset)
        for radius, stride in ((1, 3), (2, 4))
        for n_slices in (1, 2, 8)
        for ends in ("copy", "live")
        if ends == "copy" or n_slices > 2 * radius
        for offset in (0, stride - 1)
    ]
    return [*windows, *thin, Tiles((7, 6, 5), (4, 3, 5), 0.5), Tiles((1, 6, 5), (1, 2, 5), 0.0)]


def shape_of(cover: Cover) -> Box:
    return cover.shape if isinstance(cover, Tiles) else (cover.n_slices, 3, 4)


every_cover = pytest.mark.parametrize("cover", covers(), ids=str)


@every_cover
def test_the_mean_of_a_volumes_own_pieces_is_the_volume(cover: Cover) -> None:
    image = volume(2, *shape_of(cover))
    assert torch.equal(overlap_mean(pieces_of(cover, image), cover, image), image)


@every_cover
def test_pieces_that_agree_have_no_spread(cover: Cover) -> None:
    image = volume(2, *shape_of(cover))
    overlap = Overlap(cover, image)
    for index, piece in enumerate(pieces_of(cover, image)):
        overlap.add(index, piece)
    assert float(overlap.spread.abs().max()) == 0


@settings(max_examples=120, deadline=None, derandomize=True)
@given(tilings())
def test_tiles_cover_every_voxel_and_average_to_the_volume(tiles: Tiles) -> None:
    image = volume(1, *tiles.shape)
    assert torch.equal(overlap_mean(pieces_of(tiles, image), tiles, image), image)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(tilings())
def test_neighbouring_tiles_share_at_least_the_overlap_asked_for(tiles: Tiles) -> None:
    for axis, size in enumerate(tiles.size):
        starts = sorted({corner[axis] for corner in tiles.corners})
        assert starts[0] == 0
        assert starts[-1] + size == tiles.shape[axis]
        steps = np.diff(starts)
        assert all(step == 1 or size - step >= size * tiles.overlap - 1e-9 for step in steps)


@every_cover
def test_mean_and_spread_are_numpys_weighted_ones(cover: Cover) -> None:
    image = volume(1, *shape_of(cover))
    pieces = volume(*pieces_of(cover, image).shape, seed=1)
    overlap = Overlap(cover, image)
    held: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for index, piece in enumerate(pieces):
        overlap.add(index, piece)
        region, part, weight = cover.place(index)
        values = piece[0][part].double().numpy()
        share = np.broadcast_to(np.asarray(weight, dtype=float), values.shape)
        first = [axis.start or 0 for axis in region]
        for offset in np.ndindex(values.shape):
            voxel = tuple(a + b for a, b in zip(first, offset, strict=True))
            held.setdefault(voxel, []).append((values[offset], share[offset]))
    for voxel, entries in held.items():
        values, share = np.array(entries).T
        mean = np.average(values, weights=share)
        spread = np.sqrt(np.average((values - mean) ** 2, weights=share))
        assert abs(float(overlap.mean[0][voxel]) - mean) < 2e-6
        assert abs(float(overlap.spread[0][voxel]) - spread) < 2e-6


@settings(max_examples=200, deadline=None, derandomize=True)
@given(strided())
def test_windows_of_any_stride_and_offset_cover_every_slice_and_average_to_the_volume(windows: Windows) -> None:
    image = volume(1, windows.n_slices, 1, 2)
    assert torch.equal(overlap_mean(pieces_of(windows, image), windows, image), image)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(strided())
def test_over_a_cycle_every_window_of_stride_one_is_run_once_away_from_the_ends(windows: Windows) -> None:
    run = [centre for each in windows.cycle for centre in each.centres]
    whole = Windows(windows.n_slices, windows.radius, windows.ends)
    assert len(windows.cycle) == windows.stride
    assert sorted(set(run)) == list(whole.centres)
    assert all(run.count(centre) == 1 for centre in whole.centres[1:-1])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(strided())
def test_a_stride_saves_its_share_of_the_windows_up_to_one_at_each_end(windows: Windows) -> None:
    assert list(windows.centres) == sorted(set(windows.centres))
    assert windows.n_slices / (2 * windows.radius + 1) <= len(windows) <= windows.n_slices / windows.stride + 2
    assert (np.diff(windows.centres)[1:-1] == windows.stride).all()


def test_at_full_stride_a_slice_inside_lies_in_one_window() -> None:
    held = torch.zeros(12)
    cover = Windows(12, radius=1, stride=3, offset=1)
    for index in range(len(cover)):
        held[cover.place(index)[0][0]] += 1
    assert held.tolist() == [1] * 12
    assert len(cover) == 4


@pytest.mark.parametrize(("radius", "stride"), [(0, 2), (1, 4), (1, 0), (2, 6)])
def test_a_stride_that_leaves_slices_out_is_refused(radius: int, stride: int) -> None:
    with pytest.raises(UserError, match=f"stride = {stride}; expected 1 to {2 * radius + 1}"):
        Windows(9, radius, stride=stride)


@pytest.mark.parametrize("n_slices", [1, 2, 4])
def test_a_copied_window_is_centred_and_repeats_the_current_end_slice(n_slices: int) -> None:
    image = volume(2, n_slices, 3, 3)
    windows = pieces_of(Windows(n_slices, radius=2), image)
    assert windows.shape == (n_slices, 2, 5, 3, 3)
    for i in range(n_slices):
        for k in range(5):
            assert torch.equal(windows[i, :, k], image[:, min(max(i + k - 2, 0), n_slices - 1)])


def test_predictions_for_copied_neighbours_are_dropped() -> None:
    image = volume(1, 3, 2, 2)
    cover = Windows(3, radius=1)
    pieces = pieces_of(cover, image)
    pieces[0, :, 0] = pieces[2, :, 2] = 1e6
    assert torch.equal(overlap_mean(pieces, cover, image), image)


@pytest.mark.parametrize(
    ("n_real", "counts"),
    [(1, [1, 1, 1]), (2, [1, 2, 2, 1]), (3, [1, 2, 3, 2, 1]), (7, [1, 2, 3, 3, 3, 3, 3, 2, 1])],
)
def test_live_ends_have_the_counts_of_every_window_that_holds_them(n_real: int, counts: list[int]) -> None:
    cover = Windows(n_real + 2, radius=1, ends="live")
    assert len(cover) == n_real
    held = torch.zeros(n_real + 2)
    for index in range(len(cover)):
        held[cover.place(index)[0][0]] += 1
    assert held.tolist() == counts


def test_a_cover_with_holes_is_an_error_and_not_a_division_by_zero() -> None:
    cover = Windows(3, radius=0)
    overlap = Overlap(cover, volume(1, 3, 2, 2))
    overlap.add(0, volume(1, 1, 2, 2))
    with pytest.raises(ValueError, match="without a piece"):
        _ = overlap.mean


def test_tiles_larger_than_the_volume_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Tiles((4, 4, 4), (4, 5, 4))


def test_a_tiles_weights_fall_from_one_at_the_centre_and_are_nowhere_zero() -> None:
    weights = Tiles((9, 9, 9), (5, 7, 9)).weights
    assert float(weights[2, 3, 4]) == float(weights.max()) == 1
    assert float(weights.min()) == pytest.approx(1e-4)
    assert torch.equal(weights, weights.flip(0, 1, 2))
    assert float(weights[3, 3, 4]) == pytest.approx(np.exp(-0.5 * (8 / 5) ** 2), rel=1e-6)


class Recorder:
    """A denoiser that works element by element and remembers which pieces it was given."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.batches: list[int] = []

    def __call__(self, state: Tensor, source: Tensor, t: float) -> Tensor:
        self.states.extend(state)
        self.batches.append(len(state))
        ramp = torch.linspace(0.5, 1.5, state[0].numel()).reshape(state.shape[1:])
        return torch.tanh(ramp * state - t * source)


@every_cover
@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_a_lift_gives_the_same_bits_whatever_the_batch_size(cover: Cover, batch_size: int) -> None:
    state, source = volume(1, *shape_of(cover)), volume(1, *shape_of(cover), seed=1)
    right = Lift(Recorder(), source, cover, batch_size=5)
    given_ = Lift(Recorder(), source, cover, batch_size=batch_size)
    assert torch.equal(given_(state, 0.3), right(state, 0.3))
    assert right.disagreement is not None
    assert given_.disagreement is not None
    assert torch.equal(given_.disagreement, right.disagreement)


@every_cover
@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_a_lift_runs_every_piece_exactly_once_a_call(cover: Cover, batch_size: int) -> None:
    state, source = volume(1, *shape_of(cover)), volume(1, *shape_of(cover), seed=1)
    network = Recorder()
    Lift(network, source, cover, batch_size)(state, 0.3)
    assert torch.equal(torch.stack(network.states), pieces_of(cover, state))
    assert max(network.batches) <= batch_size


@every_cover
def test_a_lift_of_a_denoiser_of_voxels_is_that_denoiser(cover: Cover) -> None:
    state, source = volume(1, *shape_of(cover)), volume(1, *shape_of(cover), seed=1)
    lifted = Lift(lambda x, y, t: torch.tanh(x - t * y), source, cover, batch_size=4)
    torch.testing.assert_close(lifted(state, 0.3), torch.tanh(state - 0.3 * source), atol=0, rtol=0)


def test_the_disagreement_is_that_of_the_last_call() -> None:
    state, cover = volume(1, 4, 3, 3), Windows(4, radius=1)
    lifted = Lift(Recorder(), torch.zeros_like(state), cover, batch_size=4)
    assert lifted.disagreement is None
    lifted(10 * state, 0.3)
    lifted(torch.zeros_like(state), 0.3)
    assert lifted.disagreement is not None
    assert float(lifted.disagreement.max()) == 0


THIN = Windows(8, radius=1, stride=3).cycle


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_thinned_lift_takes_its_covers_in_turn_by_the_number_of_the_call(batch_size: int) -> None:
    state, source, whole = volume(1, 8, 3, 4), volume(1, 8, 3, 4, seed=1), Windows(8, radius=1)
    network = Recorder()
    lifted = Lift(network, source, whole, batch_size, cycle=THIN, last=0.2)
    for cover, t in [(THIN[0], 1.0), (THIN[1], 0.8), (THIN[2], 0.8), (THIN[0], 0.3), (whole, 0.2)]:
        network.states.clear()
        right = Lift(Recorder(), source, cover, 100)
        torch.testing.assert_close(lifted(state, t), right(state, t), atol=0, rtol=0)
        assert torch.equal(torch.stack(network.states), pieces_of(cover, state))


def test_the_last_call_of_a_thinned_lift_has_a_disagreement_and_no_seams() -> None:
    state, source, whole = volume(1, 8, 3, 4), volume(1, 8, 3, 4, seed=1), Windows(8, radius=1)
    thinned, plain = Lift(Recorder(), source, whole, 4, cycle=THIN, last=0.2), Lift(Recorder(), source, whole, 4)
    thinned(state, 0.3)
    assert thinned.disagreement is not None
    assert float(thinned.disagreement[:, 1:-1].max()) == 0  # one window a slice cannot disagree
    assert torch.equal(thinned(state, 0.2), plain(state, 0.2))
    assert plain.disagreement is not None
    assert torch.equal(thinned.disagreement, plain.disagreement)
    assert float(plain.disagreement.min()) > 0


def test_a_thinned_lift_of_a_denoiser_of_voxels_is_that_denoiser() -> None:
    state, source = volume(1, 8, 3, 4), volume(1, 8, 3, 4, seed=1)
    lifted = Lift(lambda x, y, t: torch.tanh(x - t * y), source, Windows(8), 3, cycle=THIN, last=0.2)
    for t in (1.0, 0.5, 0.5, 0.3, 0.2):
        torch.testing.assert_close(lifted(state, t), torch.tanh(state - t * source), atol=0, rtol=0)
