"""Noise that depends on (seed, subject, draw, stage, step) alone: never on batch, order, shard or device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def stable_seed(*parts: object) -> int:
    """Give a 63-bit seed from the text of `parts`; the same on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """Give a CPU generator seeded by `stable_seed`."""
    return torch.Generator().manual_seed(stable_seed(*parts))


@dataclass(frozen=True)
class NoiseSource:
    """Standard normal noise of whole volumes.

    Parameters
    ----------
    seed
        The run's or the user's seed.
    subject
        SHA-256 of the source on the model grid, so that a renamed file gives the same bytes.
    draw
        Index of the draw, 0-based.
    stage
        Stage or branch of the method.
    """

    seed: int
    subject: str
    draw: int = 0
    stage: str = "bridge"

    def __call__(self, step: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Give float32 noise of `shape` for one step of a walk, drawn on the CPU, then moved."""
        source = generator("noise", self.seed, self.subject, self.draw, self.stage, step)
        return torch.randn(tuple(shape), generator=source, dtype=torch.float32).to(device)


class ItemNoise:
    """Randomness of a batch in which every item has a generator of its own.

    What an item draws does not depend on the batch it is in, so neither batch size nor number of processes matters.

    Parameters
    ----------
    seeds
        One seed an item, from `stable_seed`.
    device
        Where the results go; they are drawn on the CPU.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device

    def uniform(self) -> Tensor:
        """Give one float64 in [0, 1) an item, shape (B,)."""
        draws = [torch.rand((), generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(draws).to(self._device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Give standard normal float32 of `shape` an item, shape (B, *shape)."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators]).to(self._device)
