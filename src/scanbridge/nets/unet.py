"""One U-Net for slices and volumes, with three ways in: channels, tokens and a vector.

The family is that of guided diffusion and latent diffusion: residual blocks of two convolutions, skip connections,
the time as a learned scale and shift behind a normalisation.

Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis" (2021); Rombach et al., "High-resolution
image synthesis with latent diffusion models" (2022), for the transformer.
Axes: B batch, C channels, L tokens; ``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scanbridge.nets.blocks import CONV, ResBlock, SelfAttention, Transformer, silu
from scanbridge.nets.condition import Condition, mlp, sinusoid
from scanbridge.nets.layout import Stage, UNetConfig, decoder, encoder, middle
from scanbridge.nets.strides import crop, pad

__all__ = ["UNet", "UNetConfig", "Visit", "Way"]

Way = Literal["encoder", "decoder"]
Visit = Callable[[Way, int, Tensor], Tensor]
"""``(way, downsample factor, map) -> map``: sees the last map of a level on a way, and gives the one to go on with."""


class UNet(nn.Module):
    """(B, in_channels, *S) -> (B, out_channels, *S), for any size S.

    `encoder`, `middle` and `decoder` are `Stage` objects. Whoever looks at the maps between them, or joins two networks
    there (co-diffusion), gives `forward` a `visit`.

    Parameters
    ----------
    config
        The shape.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        conv = CONV[config.dims]
        embedding = config.embedding_channels
        self.time = mlp(config.channels, embedding) if config.time else None
        self.vector = mlp(config.vector_channels, embedding) if config.vector_channels else None
        self.stem = conv(config.in_channels, config.channels, 3, padding=1)
        self.encoder = nn.ModuleList(encoder(config))
        self.middle = middle(config)
        self.decoder = nn.ModuleList(decoder(config))
        self.norm = nn.GroupNorm(config.groups, config.widths[0])
        self.last = conv(config.widths[0], config.out_channels, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        branches = [part for part in self.modules() if isinstance(part, ResBlock | SelfAttention | Transformer)]
        if self.config.zero_output:
            for last in (self.last, *(branch.last for branch in branches)):
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)
        if self.config.init == "published":
            kept = {layer for part in branches if isinstance(part, SelfAttention) for layer in part.modules()}
            for layer in self.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d) and layer not in kept:
                    nn.init.normal_(layer.weight, std=0.02)

    def condition(self, t: Tensor | None, tokens: Tensor | None = None, vector: Tensor | None = None) -> Condition:
        """Give what the blocks are told, from times (B,), tokens (B, L, K) and a vector (B, V), each as configured."""
        given = {"t": t, "tokens": tokens, "vector": vector}
        asked = {"t": self.config.time, "tokens": self.config.token_channels, "vector": self.config.vector_channels}
        for name, value in given.items():
            if (value is None) == bool(asked[name]):
                raise ValueError(f"{name} is {'missing' if value is None else 'given'}, against the configuration")
        like = self.stem.weight
        parts = []
        if self.time is not None and t is not None:
            parts.append(self.time(sinusoid(t, self.config.channels).to(like.dtype)))
        if self.vector is not None and vector is not None:
            parts.append(self.vector(vector))
        return Condition(F.silu(sum(parts)) if parts else None, tokens)  # all blocks start with this SiLU

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        tokens: Tensor | None = None,
        vector: Tensor | None = None,
        *,
        visit: Visit | None = None,
    ) -> Tensor:
        """Give the output of `x` (B, in_channels, *S), at its size.

        Parameters
        ----------
        x
            State, source and whatever else is told voxel by voxel, concatenated.
        t
            Times (B,) as the sinusoids take them: 0 .. 999 for a network of 1000 steps.
        tokens
            (B, L, token_channels).
        vector
            (B, vector_channels).
        visit
            Called with the last map of every level, on the way down (before it is kept for the decoder) and up.

        Raises
        ------
        ValueError
            If a condition is missing that the configuration names, or given that it does not.
        """
        condition = self.condition(t, tokens, vector)

        def run(way: Way, stage: nn.Module, h: Tensor) -> Tensor:
            h = self._run(stage, h, condition)
            return visit(way, stage.ends, h) if visit is not None and isinstance(stage, Stage) and stage.ends else h

        size = x.shape[2:]
        h = self.stem(pad(x, [self.config.stride] * self.config.dims))
        kept = [h] if self.config.skips == "block" else []
        for stage in self.encoder:
            h = run("encoder", stage, h)
            if stage.skips:
                kept.append(h)
        h = run("decoder", self.middle, h)
        for stage in self.decoder:
            h = run("decoder", stage, torch.cat([h, kept.pop()], dim=1) if stage.skips else h)
        return crop(self.last(silu(self.norm(h))), size).to(x.dtype)  # whatever it was computed in

    def _run(self, stage: nn.Module, x: Tensor, condition: Condition) -> Tensor:
        if self.config.checkpoint and torch.is_grad_enabled():
            out: Tensor = checkpoint(stage, x, condition, use_reentrant=False)
        else:
            out = stage(x, condition)
        return out
