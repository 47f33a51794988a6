"""The network of one or two branches on stacked channels: what a process on a pair of states is walked with.

Axes: B batch, n branches (1 or 2, the residual one first), c channels of a state; ``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scanbridge.nets.dual import DualConfig, DualUNet, Features
from scanbridge.nets.unet import UNet


class PairNet(nn.Module):
    """States (B, n c, *S) and sources alike -> (B, n c, *S): two guided branches, or one U-Net alone.

    Parameters
    ----------
    config
        The shape of the branches, and of what joins them where there are two.
    branches
        n.
    told
        Whether a branch sees the source beside its state.
    """

    def __init__(self, config: DualConfig, branches: int, *, told: bool) -> None:
        super().__init__()
        self.n, self.told = branches, told
        self.net: DualUNet | UNet = DualUNet(config) if branches == 2 else UNet(config.branch)

    def forward(self, state: Tensor, source: Tensor, t: Tensor, *, keep: Features | None = None) -> Tensor:
        """Give the outputs; `t` (B,) as the embedding takes it, `keep` as `DualUNet` fills it."""
        states, sources = state.chunk(self.n, dim=1), source.chunk(self.n, dim=1)
        seen = [torch.cat(each, dim=1) for each in zip(states, sources, strict=True)] if self.told else list(states)
        if isinstance(self.net, DualUNet):
            return torch.cat(self.net(seen[0], seen[1], t, keep=keep), dim=1)
        out: Tensor = self.net(seen[0], t)
        return out
