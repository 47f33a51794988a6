"""Sizes that shrink by 1 or 2 an axis: strides, the convolutions that make them, and the padding that they need.

``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from pydantic import Field
from torch import Tensor, nn

from scanbridge.nets.blocks import CONV

Stride = Literal[1, 2] | Annotated[tuple[Literal[1, 2], ...], Field(strict=False)]
Strides = Annotated[tuple[Stride, ...], Field(strict=False)]  # a TOML array is a list
Steps = tuple[tuple[int, ...], ...]


def per_axis(strides: Sequence[Stride], dims: int) -> Steps:
    """Give strides axis by axis.

    >>> per_axis([2, (1, 2, 2)], 3)
    ((2, 2, 2), (1, 2, 2))
    """
    return tuple((stride,) * dims if isinstance(stride, int) else tuple(stride) for stride in strides)


def misfits(strides: Sequence[Stride], dims: int) -> list[Stride]:
    """Give the strides that have not one number for each of `dims` axes.

    >>> misfits([2, (1, 2), (1, 2, 2)], 3)
    [(1, 2)]
    """
    return [stride for stride, step in zip(strides, per_axis(strides, dims), strict=True) if len(step) != dims]


def shrinking(width_in: int, width: int, step: Sequence[int], kernel: Sequence[int], *, bias: bool = True) -> nn.Module:
    """Give a convolution (B, width_in, *S) -> (B, width, *S / step), padded by one voxel on every side."""
    layer: nn.Module = CONV[len(step)](width_in, width, kernel, stride=step, padding=1, bias=bias)  # type: ignore[arg-type]
    return layer


def pad(x: Tensor, factor: Sequence[int]) -> Tensor:
    """Repeat the border of a map (B, C, *S) on both sides until every size is a multiple of `factor`."""
    missing = [-length % step for length, step in zip(x.shape[2:], factor, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [side for n in reversed(missing) for side in (n // 2, n - n // 2)], mode="replicate")


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Undo `pad`: the middle of size `size`."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - length) // 2, length)
    return x
