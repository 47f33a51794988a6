"""What latent methods share: the scale of latents, training items as latents, and volumes slice by slice.

A latent is continuous, before the codebook, and brought to mean 0 and sd 1 channel by channel: a bridge's noise is
absolute (sd up to 0.71) while latents have any scale. Every role (source, target, residual) has its own numbers. The
codebook snaps once, on decoding. Images are in [-1, 1].

Source: Li et al., "BBDM" (CVPR 2023), whose release keeps such numbers for source and target, switched off.
Axes: B batch, D slices, c channels of a latent; (h, w) is (H, W) over the autoencoder's factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor

from scanbridge.errors import UserError
from scanbridge.methods.autoencoding import Residual, Role, autoencoder_of, images_of, residual_image
from scanbridge.methods.base import Batch, Fitted, Statistics, TrainingCase
from scanbridge.nets.autoencoder import Autoencoder, AutoencoderConfig
from scanbridge.nets.precision import wide
from scanbridge.nets.strides import crop, pad

SLICES = 8
"""Slices at a time where nobody says how many."""
SMALLEST_SD = 1e-6


@dataclass(frozen=True)
class Latents:
    """From images to normalised latents and back.

    Parameters
    ----------
    autoencoder
        Frozen.
    scales
        Mean and sd (2, c) by role, float64.
    residual
        What the residual is.
    """

    autoencoder: Autoencoder
    scales: Mapping[str, Tensor]
    residual: Residual

    @classmethod
    def of(cls, fitted: Fitted, residual: Residual) -> Latents:
        """Read what the stages have made."""
        return cls(
            autoencoder_of(fitted), {role: fitted.statistics[f"latent_{role}"] for role in roles(residual)}, residual
        )

    def encode(self, images: Mapping[Role, Tensor]) -> dict[Role, Tensor]:
        """Give the normalised latents (B, c, h, w) of images (B, 1, H, W) by role, without gradient.

        The residual latent is there where both images are, or the residual image is.

        Raises
        ------
        UserError
            If an image is smaller than one position of the latent.
        """
        return {role: self.normalise(role, raw) for role, raw in raw_latents(self.autoencoder, images, self.residual)}

    def decode(self, role: Role, latent: Tensor, size: Sequence[int]) -> Tensor:
        """Give the image (B, 1, H, W) of a normalised latent (B, c, h, w), through the codebook where there is one."""
        return self.draw(self.denormalise(role, latent), size)

    def draw(self, latent: Tensor, size: Sequence[int]) -> Tensor:
        """Give the image (B, 1, H, W), float32, of a latent on the autoencoder's own scale."""
        return self.autoencoder.decode(latent, size=size).float()

    def normalise(self, role: Role, latent: Tensor) -> Tensor:
        """Bring a latent (B, c, h, w) to the scale of the bridge."""
        latent, mean, sd = self._scaled(role, latent)
        return (latent - mean) / sd

    def denormalise(self, role: Role, latent: Tensor) -> Tensor:
        """Bring a latent (B, c, h, w) back to the autoencoder's scale."""
        latent, mean, sd = self._scaled(role, latent)
        return latent * sd + mean

    def _scaled(self, role: Role, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give a latent in float32 at least, with its mean and sd alike: a walk's state is not rounded to bfloat16."""
        latent = wide(latent)
        mean, sd = (part[:, None, None].to(latent) for part in self.scales[role])
        return latent, mean, sd

    def known(self, valid: Tensor) -> Tensor:
        """Give the positions (B, 1, h, w) of a latent all whose voxels are known, from `valid` (B, 1, H, W)."""
        return -F.max_pool2d(-pad(valid, self.factor), self.factor)

    def spread(self, latent: Tensor, size: Sequence[int]) -> Tensor:
        """Give a map (B, 1, h, w) of the latent on the voxels (B, 1, H, W) of the image."""
        rows, columns = self.factor
        return crop(latent.repeat_interleave(rows, 2).repeat_interleave(columns, 3), size)

    @property
    def factor(self) -> tuple[int, int]:
        """Voxels to a position, rows and columns."""
        rows, columns = self.autoencoder.config.factor
        return rows, columns


@dataclass(frozen=True)
class LatentItems:
    """Training items as latents (B, c, h, w) by role, and the positions (B, c, h, w) at which the target is known."""

    latents: dict[Role, Tensor]
    known: Tensor

    @classmethod
    def of(cls, scale: Latents, batch: Batch, target: str) -> LatentItems:
        """Encode a batch."""
        images = images_of(batch, target, scale.residual)
        latents = scale.encode({role: image for role, (image, _) in images.items()})
        return cls(latents, scale.known(images["target"][1]).expand_as(latents["source"]))


def roles(residual: Residual) -> tuple[Role, ...]:
    """Give the roles that have a latent."""
    return ("source", "target") if residual == "none" else ("source", "target", "residual")


def raw_latents(
    autoencoder: Autoencoder, images: Mapping[Role, Tensor], residual: Residual
) -> Iterator[tuple[Role, Tensor]]:
    """Give the latents (B, c, h, w) of images (B, 1, H, W) on the autoencoder's own scale, without gradient."""
    with torch.no_grad():
        found: dict[Role, Tensor] = {}
        for role, image in images.items():
            _refuse_small(image, autoencoder.config)
            found[role] = autoencoder.encode(image)
        if residual == "latent" and {"source", "target"} <= found.keys():
            found["residual"] = found["target"] - found["source"]
        yield from found.items()


def _refuse_small(image: Tensor, config: AutoencoderConfig) -> None:
    size = tuple(image.shape[2:])
    if any(length < factor for length, factor in zip(size, config.factor, strict=True)):
        raise UserError(
            f"slices of {size[0]} x {size[1]} voxels are smaller than one position of the latent",
            f"at least {config.factor[0]} x {config.factor[1]} voxels",
            "use a finer grid.spacing, a larger train.size, or fewer autoencoder.strides",
        )


def fit_latents(cases: Sequence[TrainingCase], before: Fitted, target: str, residual: Residual) -> Statistics:
    """Give mean and sd (2, c) of every role's latents over the foreground's slices of the training cases, float64.

    Slices are cut as training items are: about the foreground, as large as the largest of them.

    Raises
    ------
    UserError
        If a channel is constant or not finite, with the likely cause.
    """
    autoencoder = autoencoder_of(before)
    sums: dict[Role, tuple[Tensor, Tensor, int]] = {}
    for images in _slices(cases, target, residual, next(autoencoder.parameters()).device):
        for role, latent in raw_latents(autoencoder, images, residual):
            wide = latent.double().movedim(1, 0).flatten(1).cpu()
            total, squares, n = sums.get(role, (0 * wide[:, 0], 0 * wide[:, 0], 0))
            sums[role] = total + wide.sum(1), squares + wide.square().sum(1), n + wide.shape[1]
    found: Statistics = {}
    for role, (total, squares, n) in sums.items():
        mean = total / n
        sd = (squares / n - mean.square()).clamp(min=0).sqrt()
        _refuse_constant(role, sd)
        found[f"latent_{role}"] = torch.stack([mean, sd])
    return found


def _refuse_constant(role: Role, sd: Tensor) -> None:
    broken = torch.nonzero(~(sd >= SMALLEST_SD)).flatten()
    if len(broken) == 0:
        return
    channel = int(broken[0])
    value, more = float(sd[channel]), f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    equal = "; or source and target are the same images" if role == "residual" else ""
    raise UserError(
        f"the sd of channel {channel} of the {role}'s latents is {value:.2g}{more}",
        "latents that differ from place to place",
        f"the autoencoder has collapsed{equal}: look at its reconstructions, train it longer or at a lower rate",
    )


def _slices(
    cases: Sequence[TrainingCase], target: str, residual: Residual, device: torch.device
) -> Iterator[dict[Role, Tensor]]:
    """Give the slices (n, 1, H, W) of the training cases that hold foreground, by role, a few at a time."""
    boxes = [[_extent(case.foreground.any(dim=other)) for other in ((0, 2), (0, 1))] for case in cases]
    size = [-(-max(box[axis].stop - box[axis].start for box in boxes) // 8) * 8 for axis in range(2)]
    for case, box in zip(cases, boxes, strict=True):
        spans = [_widened(s, n, length) for s, n, length in zip(box, size, case.source.shape[1:], strict=True)]
        inside = case.foreground.any(dim=2).any(dim=1)
        images: dict[Role, Tensor] = {"source": case.source}
        if target in case.targets:
            images["target"] = case.targets[target]
            if residual == "image":
                images["residual"] = residual_image(case.source, case.targets[target])
        cut = {role: image[inside][:, None, spans[0], spans[1]] for role, image in images.items()}
        for first in range(0, int(inside.sum()), SLICES):
            yield {role: image[first : first + SLICES].to(device) for role, image in cut.items()}


def _extent(there: Tensor) -> slice:
    """Give the span from the first to the last True."""
    at = torch.nonzero(there).flatten()
    return slice(int(at[0]), int(at[-1]) + 1)


def _widened(span: slice, size: int, length: int) -> slice:
    """Give `span` widened about its middle to `size`, inside an axis of `length`."""
    start = min(max(0, (span.start + span.stop - size) // 2), max(0, length - size))
    return slice(start, min(length, start + size))


def by_slices(run: Callable[..., Tensor], *volumes: Tensor, slices: int = SLICES) -> Tensor:
    """Run ``(n, C, ...) tensors -> (n, C', ...)`` over the slices of volumes (C, D, ...): (C', D, ...).

    How many are run at a time changes nothing but memory.
    """
    parts = zip(*(torch.split(volume.transpose(0, 1), slices) for volume in volumes), strict=True)
    return torch.cat([run(*part) for part in parts]).transpose(0, 1)


def reconstruct(fitted: Fitted, image: Tensor, *, slices: int = SLICES) -> Tensor:
    """Give what the autoencoder makes of an image (1, D, H, W) by itself: the ceiling of every translation."""
    autoencoder = autoencoder_of(fitted)

    def run(part: Tensor) -> Tensor:
        return autoencoder.decode(autoencoder.encode(part), size=part.shape[2:]).float()

    with torch.no_grad():
        return by_slices(run, image, slices=slices)
