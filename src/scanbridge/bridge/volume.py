"""From a denoiser of pieces to a denoiser of volumes.

A volume is (C, D, H, W). A *cover* cuts it into overlapping pieces of one shape and says where each counts:
`Windows` of 2N + 1 neighbouring slices, or `Tiles`, 3D boxes with Gaussian weights. Averaging estimates of x_0, of
the difference or of the score over the overlaps is the same, since they are affine in each other at a shared state.
Noise belongs to the volume, never to a piece.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from scanbridge.errors import UserError

Region = tuple[slice, slice, slice]


class Cover(Protocol):
    """How a volume (C, D, H, W) is cut into pieces and put together again."""

    def __len__(self) -> int:
        """Give the number of pieces."""

    def cut(self, volume: Tensor, index: Sequence[int]) -> Tensor:
        """Give the pieces `index` of `volume`, shape (len(index), C, d, h, w)."""

    def place(self, index: int) -> tuple[Region, Region, Tensor | float]:
        """Give where a piece counts in the volume, which part of the piece that is, and its weights there."""


@dataclass(frozen=True)
class Windows:
    """Windows of 2 `radius` + 1 neighbouring slices of a volume of `n_slices`, centred on every `stride`-th slice.

    Parameters
    ----------
    n_slices
        D of the volume.
    radius
        N; a window holds 2 N + 1 slices.
    ends
        ``"copy"``: a missing neighbour is a copy of the current end slice, is no state, and its prediction is dropped.
        ``"live"``: as released by CT2MRI: the volume comes padded by N slices at both ends, which are states like any
        other; windows are centred on the real slices only.
    stride
        1 to 2 N + 1: slices from one centre to the next. At 2 N + 1 a slice lies in one window.
    offset
        Of the centres, modulo `stride`. A centre that would lie beyond an end stands on the end slice: no slice is left
        out, and every window is centred on a slice, as in training.

    Raises
    ------
    UserError
        For a stride that would leave slices out.
    """

    n_slices: int
    radius: int = 1
    ends: Literal["copy", "live"] = "copy"
    stride: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        width = 2 * self.radius + 1
        if not 1 <= self.stride <= width:
            raise UserError(f"stride = {self.stride}", f"1 to {width} for windows of {width}", f"set stride to {width}")

    @cached_property
    def centres(self) -> tuple[int, ...]:
        """The slice in the middle of every window, rising."""
        first = self.radius if self.ends == "live" else 0
        around = range(-self.radius, self.n_slices + self.radius)
        on_grid = (i for i in around if (i - first - self.offset) % self.stride == 0)
        return tuple(dict.fromkeys(min(max(i, first), self.n_slices - 1 - first) for i in on_grid))

    @property
    def cycle(self) -> tuple[Windows, ...]:
        """These windows at every offset: in all of them together a slice has each place of a window once."""
        return tuple(replace(self, offset=offset) for offset in range(self.stride))

    def __len__(self) -> int:
        return len(self.centres)

    def cut(self, volume: Tensor, index: Sequence[int]) -> Tensor:
        """Give the windows `index` of `volume` (C, D, H, W), shape (len(index), C, 2N + 1, H, W)."""
        centres = torch.tensor([self.centres[i] for i in index], device=volume.device)
        slices = centres[:, None] + torch.arange(-self.radius, self.radius + 1, device=volume.device)
        return volume[:, slices.clamp(0, self.n_slices - 1)].transpose(0, 1)

    def place(self, index: int) -> tuple[Region, Region, float]:
        """Give where window `index` counts: on its slices that exist, with weight one."""
        first = self.centres[index] - self.radius
        low, high = max(first, 0), min(first + 2 * self.radius + 1, self.n_slices)
        rest = (slice(None), slice(None))
        return (slice(low, high), *rest), (slice(low - first, high - first), *rest), 1.0


@dataclass(frozen=True)
class Tiles:
    """3D boxes of `size` that overlap by at least `overlap` of their length, with Gaussian weights.

    Parameters
    ----------
    shape
        (D, H, W) of the volume, at least `size` in every axis.
    size
        (d, h, w) of a tile.
    overlap
        Share of a tile that its neighbour covers too, in [0, 1).
    """

    shape: tuple[int, int, int]
    size: tuple[int, int, int]
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if any(tile > length for tile, length in zip(self.size, self.shape, strict=True)):
            raise ValueError(f"tiles of {self.size} do not fit into a volume of {self.shape}: pad the volume first")

    @cached_property
    def corners(self) -> tuple[tuple[int, ...], ...]:
        """First voxels of all tiles, evenly spread so that both ends of every axis are covered."""
        starts = []
        for length, tile in zip(self.shape, self.size, strict=True):
            room = length - tile
            n_tiles = 1 + math.ceil(room / max(1, tile - math.ceil(tile * self.overlap)))
            starts.append([round(room * i / max(1, n_tiles - 1)) for i in range(n_tiles)])
        return tuple(itertools.product(*starts))

    @cached_property
    def weights(self) -> Tensor:
        """Gaussian weights (d, h, w) with sd an eighth of the tile, 1 at the centre, nowhere 0."""
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.size]
        bells = [torch.exp(-0.5 * (axis / (n / 8)) ** 2) for axis, n in zip(axes, self.size, strict=True)]
        return torch.clamp(torch.einsum("i,j,k->ijk", *bells), min=1e-4)

    def __len__(self) -> int:
        return len(self.corners)

    def _region(self, index: int) -> Region:
        d, h, w = (slice(first, first + n) for first, n in zip(self.corners[index], self.size, strict=True))
        return d, h, w

    def cut(self, volume: Tensor, index: Sequence[int]) -> Tensor:
        """Give the tiles `index` of `volume` (C, D, H, W), shape (len(index), C, d, h, w)."""
        return torch.stack([volume[:, *self._region(i)] for i in index])

    def place(self, index: int) -> tuple[Region, Region, Tensor]:
        """Give where tile `index` counts: everywhere, with Gaussian weights."""
        whole = slice(None)
        return self._region(index), (whole, whole, whole), self.weights


class Overlap:
    """Weighted mean and spread of overlapping pieces, streamed one piece at a time (West 1979).

    Pieces are added in the order of their index, so the result does not depend on how they are split into batches.
    """

    def __init__(self, cover: Cover, like: Tensor) -> None:
        self._cover = cover
        self._weight = torch.zeros_like(like[:1], dtype=torch.float32)
        self._mean = torch.zeros_like(like, dtype=torch.float32)
        self._square = torch.zeros_like(like, dtype=torch.float32)

    def add(self, index: int, piece: Tensor) -> None:
        """Add the piece (C, d, h, w) with number `index`."""
        region, part, weight = self._cover.place(index)
        if isinstance(weight, Tensor):
            weight = weight.to(piece.device)
        where = (slice(None), *region)
        value = piece[:, *part].float()
        self._weight[where] += weight
        delta = value - self._mean[where]
        self._mean[where] += delta * (weight / self._weight[where])
        self._square[where] += weight * delta * (value - self._mean[where])

    @property
    def mean(self) -> Tensor:
        """The weighted mean, shape of the volume."""
        if bool((self._weight == 0).any()):
            raise ValueError("the cover leaves voxels of the volume without a piece")
        return self._mean

    @property
    def spread(self) -> Tensor:
        """The weighted standard deviation over the pieces that hold a voxel; 0 where one piece does."""
        return torch.sqrt(torch.clamp(self._square / self._weight, min=0))


def overlap_mean(pieces: Tensor, cover: Cover, like: Tensor) -> Tensor:
    """Average all `pieces` (n, C, d, h, w) of a `cover` into a volume shaped as `like` (C, D, H, W)."""
    overlap = Overlap(cover, like)
    for index, piece in enumerate(pieces):
        overlap.add(index, piece)
    return overlap.mean


class Lift:
    """A denoiser of volumes made of a denoiser of pieces: cut, run each piece once, average where they overlap.

    Parameters
    ----------
    denoise
        ``(state, source, t) -> estimate of x_0`` for pieces (B, C, d, h, w); t is a float.
    source
        The source volume (C, D, H, W).
    cover
        How volumes are cut.
    batch_size
        Pieces per call of `denoise`; memory grows with it, the result does not depend on it.
    cycle
        Thinner covers, taken in turn by the number of the call, at all times before `last`; none: `cover` always.
    last
        From this time on `cover` itself counts, so that the last estimate is averaged and has a `disagreement`.

    Attributes
    ----------
    disagreement
        Spread of the last call's estimates over the pieces that hold a voxel, shape of the volume.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor, float], Tensor],
        source: Tensor,
        cover: Cover,
        batch_size: int,
        *,
        cycle: Sequence[Cover] = (),
        last: float = 1.0,
    ) -> None:
        self._denoise, self._source, self._cover, self._batch_size = denoise, source, cover, batch_size
        self._cycle, self._last, self._calls = cycle, last, 0
        self.disagreement: Tensor | None = None

    def __call__(self, state: Tensor, t: float) -> Tensor:
        """Give the estimate of x_0 (C, D, H, W) at `state` and time `t`."""
        thin = self._cycle if t > self._last else ()
        cover = thin[self._calls % len(thin)] if thin else self._cover
        self._calls += 1
        overlap = Overlap(cover, state)
        for first in range(0, len(cover), self._batch_size):
            index = range(first, min(first + self._batch_size, len(cover)))
            pieces = self._denoise(cover.cut(state, index), cover.cut(self._source, index), t)
            for i, piece in zip(index, pieces, strict=True):
                overlap.add(i, piece)
        self.disagreement = overlap.spread
        return overlap.mean
