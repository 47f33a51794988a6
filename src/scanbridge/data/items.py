"""Training items: windows of neighbouring slices of prepared cases, in an order that the seed alone decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanbridge.data.augment import BACKGROUND, AugmentSettings, Change, Order, Spline, bend, draw_change, sample
from scanbridge.data.box import box_of, take, widened
from scanbridge.data.cache import Case
from scanbridge.data.intensity import amplified

MOST_BYTES = 2**30
"""Memory for the splines of all images together; a cohort that needs more fits one for every window that turns."""

Array = NDArray[np.float32]
Read = Callable[[NDArray[Any], float, Order], Array]
"""``(volume, fill, order) -> window (d, H, W)``."""


@dataclass(frozen=True)
class ItemArrays:
    """A batch of windows (B, 1, d, H, W), their validity, and the index of each one's case."""

    source: Tensor
    targets: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    case: Tensor


class Items:
    """All windows of 2 `radius` + 1 slices that hold foreground, over all cases.

    Item n is the (n mod N)-th of a permutation of all N windows drawn for epoch n div N: it depends on `seed` and n
    alone, so a resumed training, another batch size or more processes see the same items.

    Parameters
    ----------
    cases
        The training cases.
    radius
        N of the windows.
    size
        Rows and columns of an item; empty for the largest foreground box, rounded up to `multiple`.
    targets
        Names of the target images; one that a case lacks is nowhere valid.
    augment
        The [train.augment] table.
    seed
        The run's seed.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        radius: int,
        size: Sequence[int],
        targets: Sequence[str],
        augment: AugmentSettings,
        seed: int,
        multiple: int = 8,
    ) -> None:
        self.cases, self.radius, self._augment, self._seed = cases, radius, augment, seed
        self._targets = tuple(targets)
        self._boxes = [box_of(case.foreground) for case in cases]
        extents = np.array([[s.stop - s.start for s in box[1:]] for box in self._boxes])
        self.size = tuple(size) if size else tuple(int(-(-n // multiple) * multiple) for n in extents.max(axis=0))
        self._index = np.array(
            [(i, z) for i, case in enumerate(cases) for z in np.flatnonzero(case.foreground.any(axis=(1, 2)))]
        )

        volumes = [volume for case in cases for volume in (case.source, *case.targets.values())]
        self._keeps = sum(Spline.n_bytes(volume.shape) for volume in volumes) <= MOST_BYTES
        self._splines: dict[int, Spline] = {}

    def __len__(self) -> int:
        return len(self._index)

    @lru_cache(maxsize=2)  # noqa: B019  (one object a stage, and it lives as long as the training)
    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self))

    def batch(self, numbers: Sequence[int], salt: int = 0) -> ItemArrays:
        """Give items by number; `salt` changes their augmentation, not their choice."""
        which, windows = [], []
        for n in numbers:
            epoch, position = divmod(n, len(self))
            case, z = (int(v) for v in self._index[self._order(epoch)[position]])
            which.append(case)
            windows.append(self._window(case, z, np.random.default_rng([self._seed, salt, n])))
        images, known = (torch.from_numpy(np.stack(part)) for part in zip(*windows, strict=True))
        return ItemArrays(
            source=images[:, :1],
            targets={name: images[:, 1 + i : 2 + i] for i, name in enumerate(self._targets)},
            valid={name: known[:, i : i + 1] for i, name in enumerate(self._targets)},
            case=torch.tensor(which),
        )

    def _window(self, index: int, z: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Give one window, changed: images (1 + T, d, H, W) and validity (T, d, H, W)."""
        case = self.cases[index]
        spans = [self._span(s, n, rng) for s, n in zip(self._boxes[index][1:], self.size, strict=True)]
        change = draw_change(rng, self._augment)
        view = self._turned if change.turns else self._copied
        read, exists = view(index, z, spans, change)
        images, known = [bend(amplified(read(case.source, BACKGROUND, 3), case.gain), change)], []
        for name in self._targets:
            if name in case.targets:
                images.append(read(case.targets[name], BACKGROUND, 3).clip(-1, 1))
                known.append(read(case.inside[name], 0.0, 0) * exists)
            else:
                images.append(np.full_like(images[0], BACKGROUND))
                known.append(np.zeros_like(images[0]))
        mirrored = tuple(axis for axis, flipped in enumerate(change.flip, start=1) if flipped)
        return np.flip(np.stack(images), mirrored).copy(), np.flip(np.stack(known), mirrored).copy()

    def _span(self, extent: slice, size: int, rng: np.random.Generator) -> slice:
        """Give the voxels of an item along an axis: about the box's middle where it fits, else at random inside it."""
        spare = (extent.stop - extent.start) - size
        start = int(extent.start) + int(rng.integers(spare + 1)) if spare > 0 else widened(extent, size).start
        return slice(start, start + size)

    def _copied(self, index: int, z: int, spans: Sequence[slice], change: Change) -> tuple[Read, Array]:
        """Read a window that copies voxels; missing neighbours copy the end slice and are not valid."""
        box = self._boxes[index][0]
        wanted = np.arange(z - self.radius, z + self.radius + 1)
        slices = wanted.clip(box.start, box.stop - 1)
        moved = [slice(s.start - int(by), s.stop - int(by)) for s, by in zip(spans, change.shift, strict=True)]

        def read(volume: NDArray[Any], fill: float, order: Order) -> Array:  # noqa: ARG001  (copies need no order)
            return np.stack([take(volume[at], moved, fill) for at in slices])

        return read, (wanted == slices).astype(np.float32)[:, None, None]

    def _turned(self, index: int, z: int, spans: Sequence[slice], change: Change) -> tuple[Read, Array]:
        """Read a window between voxels: the subject turned about the middle of its foreground's box."""
        middle = np.array([(span.start + span.stop - 1) / 2 for span in self._boxes[index]])
        rows, columns = (np.arange(s.start, s.stop) - by for s, by in zip(spans, change.shift, strict=True))
        grid = np.meshgrid(np.arange(z - self.radius, z + self.radius + 1), rows, columns, indexing="ij")
        offsets = np.stack(grid) - middle.reshape(3, 1, 1, 1)
        matrix = change.matrix(self.cases[index].grid.spacing)
        points = np.tensordot(matrix, offsets, axes=1) + middle.reshape(3, 1, 1, 1)

        def read(volume: NDArray[Any], fill: float, order: Order) -> Array:
            if order == 3 and self._keeps:
                return self._spline(volume, fill)(points)
            return sample(volume, points, fill, order=order)

        return read, np.ones((1, 1, 1), np.float32)

    def _spline(self, volume: NDArray[Any], fill: float) -> Spline:
        """Give the spline of an image of a case, fitted once."""
        if id(volume) not in self._splines:
            self._splines[id(volume)] = Spline.through(volume, fill)
        return self._splines[id(volume)]
