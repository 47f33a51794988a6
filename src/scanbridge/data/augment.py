"""Random changes of training windows: spatial for all images together, intensity for the source alone.

What changes is drawn by `draw_change` from one generator an item; `apply_changes` is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor

BACKGROUND = -1.0


class AugmentSettings(Protocol):
    """What `draw_change` reads; see the [train.augment] table."""

    @property
    def flip(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def shift(self) -> float: ...  # noqa: D102
    @property
    def rotate(self) -> float: ...  # noqa: D102
    @property
    def scale(self) -> float: ...  # noqa: D102
    @property
    def contrast(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Change:
    """One drawn change: mirrored axes, an in-plane map, and gamma and gain of the source."""

    flip: tuple[bool, bool, bool] = (False, False, False)
    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    scale: float = 1.0
    gamma: float = 1.0
    gain: float = 1.0


def draw_change(rng: np.random.Generator, settings: AugmentSettings) -> Change:
    """Draw a change; a fixed number of draws, so that switching one kind off does not move the others."""
    coin = rng.random(3) < 0.5
    shift = rng.uniform(-1, 1, 2) * settings.shift
    angle, scale, gamma, gain = rng.uniform(-1, 1, 4)
    axes = ("slices", "rows", "columns")
    flip = [bool(c) and axis in settings.flip for c, axis in zip(coin, axes, strict=True)]
    whole = settings.rotate == 0 and settings.scale == 0
    rows, columns = np.round(shift) if whole else shift
    return Change(
        flip=(flip[0], flip[1], flip[2]),
        shift=(float(rows), float(columns)),
        angle=math.radians(float(angle) * settings.rotate),
        scale=float(1 + scale * settings.scale),
        gamma=math.exp(float(gamma) * settings.contrast),
        gain=math.exp(float(gain) * settings.contrast),
    )


def apply_changes(images: Tensor, valid: Tensor, changes: Sequence[Change], n_source: int) -> tuple[Tensor, Tensor]:
    """Change windows of images (B, C, d, H, W) in [-1, 1] and their validity (B, V, d, H, W), each item its own way.

    The first `n_source` channels are the source, whose intensity changes too. What comes from outside is background
    (-1) and not valid. Whole-voxel shifts and flips copy values; rotation and scale interpolate (bicubic).
    """
    n_channels, depth = images.shape[1], images.shape[2]
    flipped = [_flip(torch.cat([i, v]), c.flip) for i, v, c in zip(images, valid, changes, strict=True)]
    moved = _move(torch.stack(flipped), changes, n_channels).reshape(len(images), -1, depth, *images.shape[-2:])
    images, valid = moved[:, :n_channels], moved[:, n_channels:].round()
    source = images[:, :n_source]
    bent = [_bend(item, change) for item, change in zip(source, changes, strict=True)]
    return torch.cat([torch.stack(bent), images[:, n_source:].clamp(-1, 1)], dim=1), valid


def _flip(window: Tensor, flip: tuple[bool, bool, bool]) -> Tensor:
    axes = [axis for axis, mirrored in enumerate(flip, start=1) if mirrored]
    return torch.flip(window, axes) if axes else window


def _move(windows: Tensor, changes: Sequence[Change], n_images: int) -> Tensor:
    """Map windows (B, C, d, H, W) in plane, slices as channels; images bicubic, validity nearest."""
    images, valid = windows[:, :n_images].flatten(1, 2), windows[:, n_images:].flatten(1, 2)
    if all(c.angle == 0 and c.scale == 1 for c in changes):
        pairs = zip(images, valid, changes, strict=True)
        return torch.stack([torch.cat([_roll(i, c.shift, BACKGROUND), _roll(v, c.shift, 0.0)]) for i, v, c in pairs])
    height, width = windows.shape[-2:]
    theta = torch.tensor([_map(c, height, width) for c in changes], dtype=windows.dtype)
    grid = F.affine_grid(theta, [len(windows), 1, height, width], align_corners=False)
    above = images - BACKGROUND  # what enters from outside is zero
    images = F.grid_sample(above, grid, mode="bicubic", padding_mode="zeros", align_corners=False) + BACKGROUND
    valid = F.grid_sample(valid, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return torch.cat([images, valid], dim=1)


def _map(change: Change, height: int, width: int) -> list[list[float]]:
    """Give the 2 x 3 map from output to input in the coordinates of `affine_grid`, exact for non-square images."""
    cos, sin = math.cos(change.angle) / change.scale, math.sin(change.angle) / change.scale
    rows, columns = change.shift
    return [[cos, -sin * height / width, -2 * columns / width], [sin * width / height, cos, -2 * rows / height]]


def _roll(window: Tensor, shift: tuple[float, float], fill: float) -> Tensor:
    """Shift (C, H, W) by whole voxels; `fill` enters."""
    rows, columns = (int(step) for step in shift)
    height, width = window.shape[-2:]
    padded = F.pad(window, (abs(columns),) * 2 + (abs(rows),) * 2, value=fill)
    top, left = abs(rows) - rows, abs(columns) - columns
    return padded[:, top : top + height, left : left + width]


def _bend(source: Tensor, change: Change) -> Tensor:
    """Change gamma and gain of a source in [-1, 1]."""
    if change.gamma == 1 and change.gain == 1:
        return source.clamp(-1, 1)
    return 2 * (((source + 1) / 2).clamp(0, 1) ** change.gamma * change.gain).clamp(0, 1) - 1
