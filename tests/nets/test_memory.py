"""Laws of layout: the weights are the same, and what is fast stays so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanbridge.nets.memory import channels_last


@pytest.mark.parametrize(("conv", "layout"), [(nn.Conv2d, torch.channels_last), (nn.Conv3d, torch.channels_last_3d)])
def test_convolutions_are_laid_out_and_keep_their_values(conv, layout):
    network = nn.Sequential(conv(3, 4, 3), nn.GroupNorm(2, 4), conv(4, 2, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weight = network[0].weight
    assert channels_last(network) is network
    assert network[0].weight is weight  # an optimiser that holds it goes on
    assert weight.is_contiguous(memory_format=layout)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
