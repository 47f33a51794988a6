"""How a network lies in memory, and how much of that is taken."""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(network: nn.Module) -> nn.Module:
    """Lay the weights of 2D and 3D convolutions out as they are fastest, on a CPU by about a third; in place."""
    for parameter in network.parameters():
        if parameter.ndim in _FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=_FORMATS[parameter.ndim])
    return network


def peak_memory(device: torch.device) -> int:
    """Give the most bytes taken so far: of a GPU's own memory, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
