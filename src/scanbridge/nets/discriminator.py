"""A discriminator of patches: one logit for every overlapping piece of an image.

Source: Isola et al., "Image-to-image translation with conditional adversarial networks" (2017), the 70 x 70 PatchGAN.
Deviation: norms are over groups of channels, or absent, instead of over the batch: a logit depends on its own image
alone.
Axes: B batch, C channels; ``*S`` is (H, W) or (D, H, W), ``*P`` the grid of patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import ConfigDict, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import nn

from scanbridge.errors import UserError
from scanbridge.nets.strides import Steps, Strides, misfits, per_axis, shrinking


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class DiscriminatorConfig:
    """The shape of a `Discriminator`.

    Parameters
    ----------
    in_channels
        C of the images.
    dims
        2 for slices (B, C, H, W), 3 for volumes (B, C, D, H, W).
    channels
        Width of the first convolution; it doubles up to eight times that.
    strides
        Of the convolutions that shrink the map, 1 or 2, or one of these for every axis. Three of them judge patches of
        70 voxels (published), two of 34, one of 16.
    groups
        Of every norm; 0 for no norm.

    Raises
    ------
    UserError
        For numbers that do not fit together.
    """

    in_channels: PositiveInt = 1
    dims: Literal[2, 3] = 2
    channels: PositiveInt = 64
    strides: Strides = (2, 2, 2)
    groups: NonNegativeInt = 8

    def __post_init__(self) -> None:
        for wrong, what, expected in self._conflicts():
            if wrong:
                raise UserError(what, expected)

    def _conflicts(self) -> Iterator[tuple[bool, str, str]]:
        yield not self.strides, "strides is empty", "one entry for every convolution that shrinks the map"
        odd = misfits(self.strides, self.dims)
        yield bool(odd), f"strides has {odd}", f"one number, or one for each of {self.dims} axes"
        uneven = self.groups and self.channels % self.groups != 0
        yield bool(uneven), f"channels is {self.channels}", f"a multiple of groups = {self.groups}"

    @property
    def steps(self) -> Steps:
        """Strides axis by axis."""
        return per_axis(self.strides, self.dims)

    @property
    def patch(self) -> tuple[int, ...]:
        """Voxels that one logit sees, axis by axis."""
        sizes = []
        for axis in range(self.dims):
            size = 1
            for kernel, step in reversed(self.convolutions):
                size = step[axis] * (size - 1) + kernel[axis]
            sizes.append(size)
        return tuple(sizes)

    @property
    def convolutions(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Kernel and stride of every convolution: 4 voxels, and 3 along an axis that a convolution does not shrink."""
        shrunk = tuple(any(step[axis] == 2 for step in self.steps) for axis in range(self.dims))
        ones = (1,) * self.dims
        final = tuple(4 if axis else 3 for axis in shrunk)
        shrinking = ((tuple(4 if s == 2 else 3 for s in step), step) for step in self.steps)
        return (*shrinking, (final, ones), (final, ones))


class Discriminator(nn.Sequential):
    """(B, in_channels, *S) -> logits (B, 1, *P): high where a patch looks real.

    Parameters
    ----------
    config
        The shape.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__(*_layers(config))
        self.config = config


def _layers(config: DiscriminatorConfig) -> Iterator[nn.Module]:
    """Give convolutions, norms (between the first and the last convolution) and leaky ReLUs."""
    width_in, last = config.in_channels, len(config.strides) + 1
    for index, (kernel, step) in enumerate(config.convolutions):
        width = 1 if index == last else config.channels * min(2**index, 8)
        normed = 0 < index < last and config.groups
        yield shrinking(width_in, width, step, kernel, bias=not normed)
        if normed:
            yield nn.GroupNorm(config.groups, width)
        if index < last:
            yield nn.LeakyReLU(0.2)
        width_in = width
