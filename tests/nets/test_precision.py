"""The precision that networks compute in: chosen by what the device has, and seen by nothing around them."""

from __future__ import annotations

import pytest
import torch

from scanbridge.nets.precision import computing_in, precision_of
from scanbridge.nets.unet import UNet, UNetConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("able", ["amx_bf16", "avx512_bf16"])
def test_a_processor_with_bfloat16_computes_in_it(able: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, able: True})
    assert precision_of("auto", CPU) == "bf16-mixed"


def test_a_processor_without_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert precision_of("auto", CPU) == "32-true"
    assert precision_of("auto", torch.device("mps")) == "32-true"
    assert precision_of("bf16-mixed", CPU) == "bf16-mixed"


def test_a_network_in_bfloat16_takes_and_gives_float32_and_stays_near() -> None:
    torch.manual_seed(0)
    net = UNet(UNetConfig(in_channels=2, out_channels=1, channels=8, groups=2, middle="self", head_channels=8))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, t = torch.randn(2, 2, 16, 16), torch.tensor([10.0, 900.0])
    with torch.inference_mode():
        exact = net(x, t)
        with computing_in("bf16-mixed", CPU):
            near = net(x, t)
        with computing_in("32-true", CPU):
            same = net(x, t)
    assert near.dtype == exact.dtype == torch.float32
    assert torch.equal(same, exact)
    error = float((near - exact).square().mean().sqrt() / exact.std())
    assert 1e-4 < error < 0.05
