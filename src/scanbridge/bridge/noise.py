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
