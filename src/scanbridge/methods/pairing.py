"""One or two branches on stacked channels, the residual one first: their noise, their maps, and what they end at.

Source: Lv et al., "RLBCD" (section 3.5, eq. 11), for the score.
Axes: B batch, D slices, n branches, c channels of a latent, (h, w) its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise, NoiseSource
from scanbridge.bridge.process import as_time
from scanbridge.methods.autoencoding import Role
from scanbridge.methods.base import Request
from scanbridge.methods.latent import Latents, by_slices
from scanbridge.methods.selection import End
from scanbridge.methods.walks import Bridge, embedded_time
from scanbridge.nets.dual import Branch, Features
from scanbridge.nets.fusion import Fusion, consistency_map

REACH = 4
"""Standard deviations at which the filter across slices ends."""


def paired_noise(noise: ItemNoise, branches: int, shape: Sequence[int], *, shared: bool) -> Tensor:
    """Draw the noise (B, n c, h, w) of training items, the enhanced branch's first: alone it is BBDM's to the bit."""
    first = noise.normal(shape)
    if branches == 1:
        return first
    return torch.cat([first if shared else noise.normal(shape), first], dim=1)


def walked_noise(
    request: Request,
    number: int,
    step: int,
    like: Tensor,
    order: Sequence[Branch],
    *,
    shared: bool,
    across: float = 0.0,
) -> Tensor:
    """Draw the noise (n c, D, h, w) of a step of a volume's walk, for latents `like` (c, D, h, w).

    `across` makes that of neighbouring slices alike, see `alike`.
    """
    names = ["enhanced"] * len(order) if shared and len(order) > 1 else order
    drawn = (NoiseSource(request.seed, request.subject, draw=number, stage=name) for name in names)
    return torch.cat([alike(each, step, like.shape, across).to(like.device) for each in drawn])


def alike(noise: NoiseSource, step: int, shape: Sequence[int], across: float) -> Tensor:
    """Draw the noise (c, D, h, w) of a step, filtered along the slices by a Gaussian whose sd is `across` slices.

    Every voxel stays standard normal and a slice white within itself, as the bridge was trained; slices at a distance
    d correlate, from one slice on by exp(-d^2 / (4 across^2)), so that neighbours walked one by one are drawn alike.
    """
    if not across:
        return noise(step, shape)
    channels, n_slices, *size = shape
    reach = math.ceil(REACH * across)
    white = noise(step, (channels, n_slices + 2 * reach, *size))
    away = torch.arange(-reach, reach + 1, dtype=torch.float64) / across
    weights = torch.exp(-away.square() / 2)
    weights /= weights.square().sum().sqrt()
    mixed = torch.zeros(tuple(shape))
    for i, weight in enumerate(weights.tolist()):
        mixed.add_(white[:, i : i + n_slices], alpha=weight)
    return mixed


def maps_between(
    bridge: Bridge, network: nn.Module, ends: Tensor, sources: Tensor, eps: Tensor, t: float, *, slices: int
) -> Iterator[Features]:
    """Give the maps of a `PairNet` at time `t` of the bridges from `sources` to `ends`, (n c, D, h, w), in turn."""
    for end, source, noise in zip(*(torch.split(x.transpose(0, 1), slices) for x in (ends, sources, eps)), strict=True):
        times, kept = as_time(t).to(end.device).expand(len(end)), Features()
        state = bridge.process().diffuse(end, source, noise, times)
        network(state, source, embedded_time(bridge, times), keep=kept)
        yield kept


@dataclass(frozen=True)
class Ending:
    """Reads the latents that the walks of one or two branches end at.

    Parameters
    ----------
    scale
        From latents to images.
    fusion
        Makes the source's latent of target and residual; needed where both branches are there.
    """

    scale: Latents
    fusion: Fusion | None

    def __call__(self, source: Tensor, x: Tensor, ends: Mapping[Role, Tensor], *, slices: int) -> End:
        """Give the volume (D, H, W), what says how unsure it is, and its score.

        Parameters
        ----------
        source
            (1, D, H, W) in [-1, 1].
        x, ends
            The source's latent, and by role what the branches end at, (c, D, h, w), normalised.
        slices
            Slices at a time.
        """
        scale, size, volumes = self.scale, source.shape[2:], list[Tensor]()
        if "target" in ends:
            volumes += by_slices(lambda y: scale.decode("target", y, size), ends["target"], slices=slices)
        if "residual" in ends:
            volumes += by_slices(self._by_residual, source, x, ends["residual"], slices=slices)
        if len(volumes) == 1 or self.fusion is None:
            return End(volumes[0], {}, None)
        fusion = self.fusion

        def scored(y: Tensor, r: Tensor, wanted: Tensor) -> Tensor:
            return consistency_map(fusion(y, r), wanted)

        score = by_slices(scored, ends["target"], ends["residual"], x, slices=slices)
        (doubt,) = by_slices(lambda part: scale.spread(part, size), (-score).clamp(min=0).sqrt(), slices=slices)
        signals = {"branches": (volumes[0] - volumes[1]).abs() / 2, "consistency": doubt}
        return End(volumes[0], signals, float(score.mean()))

    def _by_residual(self, source: Tensor, x: Tensor, residual: Tensor) -> Tensor:
        """Give the target (D, 1, H, W) that the residual branch says: source + 2 Dec(r), or Dec(x + r), clipped."""
        scale, size = self.scale, source.shape[2:]
        if scale.residual == "image":
            return (source + 2 * scale.decode("residual", residual, size)).clamp(-1, 1)
        latent = scale.denormalise("source", x) + scale.denormalise("residual", residual)
        return scale.draw(latent, size).clamp(-1, 1)
