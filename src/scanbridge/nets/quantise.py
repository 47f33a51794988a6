"""A codebook: the nearest of K learned vectors for every position of a latent.

Source: van den Oord et al., "Neural discrete representation learning" (2017), eq. 2 and 3, and its appendix A.1 for the
moving average; Dhariwal et al., "Jukebox" (2020), for the restart of codes that nobody uses.
Deviations: distances are summed pair by pair, not expanded into |z|^2 - 2 z e + |e|^2, so that a code has distance 0
to itself and a position does not depend on what stands beside it; the moving average starts as if every code had been
hit once, since sums that start at the codes over counts that start at 0 throw all unused codes far away.
Axes: B batch, C channels, N = B * positions, K codes; ``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.nets.precision import wide

_PAIRS = 2**22  # distances at a time: 16 MiB of float32
_RECENT = 100  # updates


class Quantised(NamedTuple):
    """What a codebook says of a latent (B, C, *S).

    Parameters
    ----------
    latent
        The nearest codes (B, C, *S); their gradient is handed to the latent as it is (straight-through).
    codes
        Their indices (B, *S).
    codebook
        Mean of |sg(z) - e|^2 over all elements: draws the codes to the latents. 0 where the codes are moving averages.
    commitment
        Mean of |z - sg(e)|^2: draws the latents to the codes.
    """

    latent: Tensor
    codes: Tensor
    codebook: Tensor
    commitment: Tensor


class Usage(NamedTuple):
    """How much of a codebook is used: `perplexity` from 1 to K, and the `share` of codes in use."""

    perplexity: float
    share: float


class Codebook(nn.Module):
    """K vectors of C channels, learned by gradient or as moving averages of the latents that they stand for.

    `forward` changes nothing. `update` keeps the statistics, the moving averages and the restarts: a training calls it
    once a batch. All it remembers is in buffers, and its randomness comes from outside.

    Parameters
    ----------
    n_codes, channels
        K and C.
    moving_average
        The codes follow the latents by exponential moving averages instead of the codebook term's gradient.
    decay
        Of these averages, and of the running counts of hits.
    patience
        Updates without a hit after which a code is restarted; 0 for never. A new codebook counts as unused: its first
        update puts all codes that are not hit where latents of the first batch are.
    """

    weight: Tensor
    count: Tensor
    idle: Tensor

    def __init__(
        self, n_codes: int, channels: int, *, moving_average: bool = False, decay: float = 0.99, patience: int = _RECENT
    ) -> None:
        super().__init__()
        self.moving_average, self.decay, self.patience = moving_average, decay, patience
        weight = torch.empty(n_codes, channels).uniform_(-1 / n_codes, 1 / n_codes)
        if moving_average:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)
        self.register_buffer("count", torch.ones(n_codes))  # running hits an update
        self.register_buffer("idle", torch.full((n_codes,), patience or _RECENT))  # updates since the last hit

    def forward(self, latent: Tensor) -> Quantised:
        """Give the nearest codes of a latent (B, C, *S), and the two terms of the loss, in float32 at least."""
        codes = self.nearest(latent)
        z, e = wide(latent), _map(wide(F.embedding(codes, self.weight)))
        commitment = (z - e.detach()).square().mean()
        codebook = commitment.new_zeros(()) if self.moving_average else (z.detach() - e).square().mean()
        through = e.detach() + (z - z.detach())  # exactly e, where z + (e - z) is e but for rounding
        return Quantised(through.to(latent.dtype), codes, codebook, commitment)

    def nearest(self, latent: Tensor) -> Tensor:
        """Give the indices (B, *S) of the codes nearest to a latent (B, C, *S); the first one of equals."""
        with torch.no_grad():
            positions = _positions(latent)
            weight = self.weight.to(positions.dtype)
            found = [
                torch.cdist(part, weight, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
                for part in torch.split(positions, max(1, _PAIRS // len(weight)))
            ]
        return torch.cat(found).reshape(latent.shape[0], *latent.shape[2:])

    def snap(self, latent: Tensor) -> Tensor:
        """Give the nearest codes of a latent (B, C, *S), without gradient."""
        return _map(self.weight.detach()[self.nearest(latent)]).to(latent.dtype)

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Learn from one batch who is used: hits, moving averages, restarts.

        Under distributed training all processes end with the same codes: hits are summed over them, and candidates for
        a restart come from the first.

        Parameters
        ----------
        latent, codes
            (B, C, *S) before the codebook, and the indices (B, *S) that `forward` gave for it.
        generator
            On the CPU: draws the positions of `latent` from which codes restart.
        """
        positions = _positions(latent)
        hits = _summed(torch.bincount(codes.flatten(), minlength=len(self.weight)).to(self.count.dtype))
        self.count.lerp_(hits, 1 - self.decay)
        if self.moving_average:  # (decayed sum of latents) / (decayed count), without keeping the sum
            sums = _summed(
                torch.zeros_like(self.weight).index_add_(0, codes.flatten(), positions.to(self.weight.dtype))
            )
            share = (1 - self.decay) / self.count.clamp(min=torch.finfo(self.count.dtype).tiny)
            self.weight.add_(share[:, None] * (sums - hits[:, None] * self.weight))
        self.idle.add_(1).masked_fill_(hits > 0, 0)
        if self.patience:
            self._restart(positions, generator)

    def _restart(self, positions: Tensor, generator: torch.Generator) -> None:
        """Put the codes that nobody has used for `patience` updates where latents (N, C) are."""
        dead = torch.nonzero(self.idle >= self.patience).flatten()
        order = torch.randperm(len(positions), generator=generator)[: len(dead)].to(positions.device)
        candidates = _from_first(positions[order])
        dead = dead[: len(candidates)]  # with more dead codes than positions, the others wait
        self.weight[dead] = candidates.to(self.weight.dtype)
        self.count[dead], self.idle[dead] = 0.0, 0  # nobody has hit the new code yet

    def usage(self) -> Usage:
        """Give the use over the last updates: perplexity of the hits, share of codes hit in `patience` of them."""
        used = (self.count > 0) & (self.idle < (self.patience or _RECENT))
        return Usage(float(perplexity(self.count)), float(used.float().mean()))

    def check(self) -> None:
        """Look whether all codes are numbers.

        Raises
        ------
        UserError
            If not: from then on every latent snaps to them.
        """
        broken = int((~torch.isfinite(self.weight)).any(dim=1).sum())
        if broken:
            raise UserError(
                f"{broken} of {len(self.weight)} codes of the codebook are not finite",
                "numbers",
                "lower train.learning_rate, and train the autoencoder again",
            )


def perplexity(counts: Tensor) -> Tensor:
    """Give exp(entropy) of the hits (K,) of K codes: K where all are used alike, 1 where one is used alone.

    >>> perplexity(torch.tensor([3, 3, 0, 0]))
    tensor(2.)
    """
    p = counts.float() / counts.sum()
    return torch.exp(torch.special.entr(p).sum())


def _positions(latent: Tensor) -> Tensor:
    """(B, C, *S) -> (N, C), without gradient: no copy of a float32 map in channels-last."""
    return wide(latent.detach().movedim(1, -1).flatten(0, -2))


def _map(vectors: Tensor) -> Tensor:
    """(B, *S, C) -> (B, C, *S), a channels-last view."""
    return vectors.movedim(-1, 1)


def _summed(values: Tensor) -> Tensor:
    """Sum over all processes, where there are several."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def _from_first(values: Tensor) -> Tensor:
    """Give the first process's values to all."""
    values = values.contiguous()
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(values, src=0)
    return values
