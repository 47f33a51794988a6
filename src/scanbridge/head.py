"""A learned signal of doubt: a small network that predicts the magnitude of the error of any method's estimate.

It sees what every translation has, the source, the estimate and the raw signals, slice by slice on the model grid, and
so no method needs code of its own. It is fitted on held-out errors alone: errors of training subjects are too small.

Source: Angelopoulos, Kohli, Bates, Jordan, Malik, Alshaabi, Upadhyayula, Romano, Image-to-image regression with
distribution-free uncertainty quantification and applications in imaging, ICML 2022 (residual magnitude).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scanbridge.bridge.noise import generator, stable_seed
from scanbridge.errors import UserError
from scanbridge.files import sha256 as hash_of
from scanbridge.nets.memory import channels_last
from scanbridge.nets.unet import UNet, UNetConfig
from scanbridge.runs.checkpoint import load_tensors, save_tensors

FILE = "weights.safetensors"
RESTORE = "calibrate the run again"
IMAGES = ("source", "estimate")
"""What is seen as it is; all else is a magnitude, and seen as its logarithm."""

LEAST, MOST = 1e-3, 2.0
"""Smallest and largest |error| that is predicted, in the scale of [-1, 1]."""
VISITS = 15
"""Times that a fit sees each slice."""
PIXELS = 2**15
"""Most pixels of an update, one slice at least."""
BATCH = 8
"""Most slices of an update."""
MOST_UPDATES = 400
FOLDS = 3
"""Most groups of patients that are judged by a head fitted on the others."""
RATE, DECAY = 2e-3, 1e-2

Seen = Mapping[str, Tensor]
"""Volumes (D, H, W) on the model grid by name: source and estimate in [-1, 1], raw signals in that scale."""


@dataclass(frozen=True)
class Lesson:
    """One held-out scan: what was seen, |error| (D, H, W) in the scale of [-1, 1], and where that counts."""

    seen: Seen
    error: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Head:
    """What predicts |error|.

    Parameters
    ----------
    network
        From channels (B, C, H, W) to the logarithm of the expected |error|, (B, 1, H, W).
    names
        The volumes that it sees.
    mean, deviation
        (C,) of the channels over the voxels it was fitted on.
    """

    network: UNet
    names: tuple[str, ...]
    mean: Tensor
    deviation: Tensor

    def __call__(self, seen: Seen) -> Tensor:
        """Give the expected |error|, (D, H, W), in the scale of [-1, 1]."""
        if tuple(sorted(seen)) != self.names:
            raise ValueError(f"fitted on {self.names}, given {tuple(sorted(seen))}")
        channels = self.standard(channels_of(seen).to(self.mean.device))
        with torch.inference_mode():
            logs = [self.network(part)[:, 0] for part in torch.split(channels, _slices(channels))]
        return torch.cat(logs).clamp(math.log(LEAST), math.log(MOST)).exp()

    def standard(self, channels: Tensor) -> Tensor:
        """Bring channels (D, C, H, W) to mean 0 and deviation 1."""
        return (channels - self.mean[:, None, None]) / self.deviation[:, None, None]

    def save(self, folder: Path, facts: Mapping[str, Any]) -> str:
        """Write weights and, beside them, what they are for; give the hash of the weights."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {"mean": self.mean, "deviation": self.deviation}
        save_tensors(folder / FILE, tensors, {**facts, "names": list(self.names)})
        return hash_of(folder / FILE)

    @classmethod
    def open(cls, folder: Path, procedure: Mapping[str, Any], device: torch.device, *, sha256: str | None) -> Head:
        """Read the head of a run.

        Parameters
        ----------
        folder
            Where it was saved.
        procedure
            How the estimates are made that it is to judge; the head must have been fitted on such.
        sha256
            Hash of the weights that are asked for.

        Raises
        ------
        UserError
            If it is missing, damaged, another, or was fitted on estimates of other weights, walk or grid.
        """
        tensors, facts = load_tensors(folder / FILE, RESTORE)
        if facts["sha256"] != sha256:
            raise UserError(f"{folder / FILE} is not the head that the run was calibrated with", "that one", RESTORE)
        fitted_on = facts.get("procedure") or {}
        for part, value in procedure.items():
            if fitted_on.get(part) != value:
                raise UserError(f"{folder / FILE} was fitted on other {part}", "the head of this very run", RESTORE)
        try:
            names = tuple(map(str, facts["names"]))
            network = _network(len(names) + 1)
            network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if "network." in n})
            mean, deviation = tensors["mean"].to(device), tensors["deviation"].to(device)
        except (KeyError, TypeError, RuntimeError):
            raise UserError(f"{folder / FILE} holds no such network", "the file as it was written", RESTORE) from None
        return cls(_ready(network, device), names, mean, deviation)


def channels_of(seen: Seen) -> Tensor:
    """Give what the network sees of each slice, (D, C, H, W): images, log magnitudes, the estimate's log gradient."""
    volumes = {name: seen[name].float() for name in sorted(seen)}
    magnitudes = [volume for name, volume in volumes.items() if name not in IMAGES]
    logs = [torch.log(each + LEAST / 10) for each in (*magnitudes, _gradient(volumes["estimate"]))]
    return torch.stack([*(volumes[name] for name in IMAGES), *logs], dim=1)


def _gradient(volume: Tensor) -> Tensor:
    """Magnitude of the gradient per voxel; an axis of one voxel has none."""
    axes = [axis for axis, n in enumerate(volume.shape) if n > 1]
    parts = torch.gradient(volume, dim=axes) if axes else [torch.zeros_like(volume)]
    return torch.stack([part.square() for part in parts]).sum(dim=0).sqrt()


def fit_head(
    lessons: Sequence[Lesson],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    told: Callable[[float], None] = lambda share: None,  # noqa: ARG005
) -> Head:
    """Fit a head on held-out scans, every scan weighing the same.

    The loss is the negative log-likelihood of a Laplace distribution, log b + |error| / b, which the expected |error|
    minimises; voxels that do not count have no part in it.

    Parameters
    ----------
    lessons
        One at least; each needs voxels that count.
    seed
        On a CPU the same seed gives the same bits.
    told
        Called with the share that is done.
    """
    names = tuple(sorted(lessons[0].seen))
    channels = [channels_of(lesson.seen) for lesson in lessons]
    mean, deviation = _moments(channels, lessons)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("head", seed) % 2**32)
        network = _network(mean.numel())
    channels_last(network.to(device))
    head = Head(network, names, mean.to(device), deviation.to(device))
    scans = [
        _Scan(head.standard(each.to(device)).contiguous(), lesson.error.to(device), lesson.counts.to(device))
        for each, lesson in zip(channels, lessons, strict=True)
    ]
    level = math.log(sum(scan.mean_error for scan in scans) / len(scans))
    network.last.bias = nn.Parameter(torch.full((1,), level, device=device))
    _train(network, scans, seed, told)
    _ready(network, torch.device(device))
    return head


def cross_fit(
    lessons: Mapping[str, Sequence[Lesson]],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    told: Callable[[float], None] = lambda share: None,  # noqa: ARG005
) -> tuple[dict[str, Head], Head]:
    """Give for each patient a head that was fitted on others, and one that was fitted on all.

    Parameters
    ----------
    lessons
        Scans by patient; two patients at least.
    seed, device, told
        As in `fit_head`.
    """
    people = list(lessons)
    folds = [people[first::FOLDS] for first in range(min(FOLDS, len(people)))]
    groups = [[name for name in people if name not in fold] for fold in folds] + [people]
    heads = []
    for index, group in enumerate(groups):

        def going(share: float, index: int = index) -> None:
            told((index + share) / len(groups))

        heads.append(fit_head([each for name in group for each in lessons[name]], seed=seed, device=device, told=going))
    return {name: head for fold, head in zip(folds, heads, strict=False) for name in fold}, heads[-1]


class _Scan:
    """One scan as it is fitted on: channels (D, C, H, W), |error| and weight (D, H, W), slices that hold anything."""

    def __init__(self, channels: Tensor, error: Tensor, counts: Tensor) -> None:
        self.channels, self.error, self.weight = channels, error.clamp_min(LEAST), counts.float()
        self.held = self.weight.sum(dim=(1, 2)).cpu().nonzero()[:, 0]
        self.mean_error = float((self.error * self.weight).sum() / self.weight.sum())
        self.batch = min(_slices(channels), BATCH, len(self.held))

    def loss(self, network: nn.Module, random: torch.Generator) -> Tensor:
        """Give the loss of some slices, each as it is or mirrored."""
        chosen = self.held[torch.randperm(len(self.held), generator=random)[: self.batch]]
        mirrored = bool(torch.randint(2, (), generator=random))
        channels, error, weight = (
            each[chosen].flip(-1) if mirrored else each[chosen] for each in (self.channels, self.error, self.weight)
        )
        log_b: Tensor = network(channels)[:, 0]
        return ((log_b + error * torch.exp(-log_b)) * weight).sum() / weight.sum()


def _train(network: nn.Module, scans: Sequence[_Scan], seed: int, told: Callable[[float], None]) -> None:
    """Update the network on one scan after another, in a random order, while the rate falls to zero."""
    updates = min(MOST_UPDATES, sum(math.ceil(VISITS * len(scan.held) / scan.batch) for scan in scans))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    random = generator("head", seed)
    order: list[int] = []
    for update in range(updates):
        order = order or torch.randperm(len(scans), generator=random).tolist()
        loss = scans[order.pop()].loss(network, random)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        told((update + 1) / updates)


def _moments(channels: Sequence[Tensor], lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C,) over the voxels that count."""
    pairs = zip(channels, lessons, strict=True)
    counted = torch.cat([each.movedim(1, -1)[lesson.counts] for each, lesson in pairs]).double()
    return counted.mean(dim=0).float(), counted.std(dim=0, correction=0).clamp_min(1e-3).float()


def _network(n_channels: int) -> UNet:
    return UNet(
        UNetConfig(
            in_channels=n_channels,
            out_channels=1,
            channels=16,
            multipliers=(1, 2, 2),
            skips="level",
            resample="pointwise",
            time=False,
            groups=2,
        )
    )


def _ready(network: UNet, device: torch.device) -> UNet:
    channels_last(network.to(device)).eval().requires_grad_(False)
    return network


def _slices(channels: Tensor) -> int:
    """Slices of a scan (D, C, H, W) that are seen at once."""
    return max(1, PIXELS // (channels.shape[-2] * channels.shape[-1]))
