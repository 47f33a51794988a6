"""Training items: windows of neighbouring slices of prepared cases, in an order that the seed alone decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanbridge.data.augment import BACKGROUND, AugmentSettings, apply_changes, draw_change
from scanbridge.data.box import Box, box_of, take, widened
from scanbridge.data.cache import Case


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

    def __len__(self) -> int:
        return len(self._index)

    @lru_cache(maxsize=2)  # noqa: B019  (one object a stage, and it lives as long as the training)
    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self))

    def batch(self, numbers: Sequence[int], salt: int = 0) -> ItemArrays:
        """Give items by number; `salt` changes their augmentation, not their choice."""
        which, images, valid, changes = [], [], [], []
        for n in numbers:
            epoch, position = divmod(n, len(self))
            case, z = (int(v) for v in self._index[self._order(epoch)[position]])
            rng = np.random.default_rng([self._seed, salt, n])
            window, known = self._window(self.cases[case], self._boxes[case], z, rng)
            which.append(case)
            images.append(window)
            valid.append(known)
            changes.append(draw_change(rng, self._augment))
        moved, known = apply_changes(torch.stack(images), torch.stack(valid), changes, n_source=1)
        return ItemArrays(
            source=moved[:, :1],
            targets={name: moved[:, 1 + i : 2 + i] for i, name in enumerate(self._targets)},
            valid={name: known[:, i : i + 1] for i, name in enumerate(self._targets)},
            case=torch.tensor(which),
        )

    def _window(self, case: Case, box: Box, z: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Cut one window: images (1 + T, d, H, W) and validity (T, d, H, W); missing neighbours copy the end slice."""
        low, high = box[0].start, box[0].stop
        wanted = np.arange(z - self.radius, z + self.radius + 1)
        slices = wanted.clip(low, high - 1)
        spans = [self._span(s, n, rng) for s, n in zip(box[1:], self.size, strict=True)]
        exists = (wanted == slices)[:, None, None]
        images = [_cut(case.source, slices, spans, BACKGROUND)]
        known = []
        for name in self._targets:
            if name in case.targets:
                images.append(_cut(case.targets[name], slices, spans, BACKGROUND))
                known.append(_cut(case.inside[name], slices, spans, 0.0) * exists)
            else:
                images.append(np.full_like(images[0], BACKGROUND))
                known.append(np.zeros_like(images[0]))
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(known).astype(np.float32))

    def _span(self, extent: slice, size: int, rng: np.random.Generator) -> slice:
        """Give the voxels of an item along an axis: about the box's middle where it fits, else at random inside it."""
        spare = (extent.stop - extent.start) - size
        if spare <= 0:
            return widened(extent, size)
        start = int(extent.start) + int(rng.integers(spare + 1))
        return slice(start, start + size)


def _cut(
    volume: NDArray[np.generic], slices: NDArray[np.int64], spans: Sequence[slice], fill: float
) -> NDArray[np.float32]:
    return np.stack([take(volume[z], spans, fill) for z in slices])
