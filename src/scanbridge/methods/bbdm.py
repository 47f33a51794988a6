"""BBDM: a Brownian bridge from the source to the target, on single slices or windows of slices.

Source: Li et al., "BBDM: image-to-image translation with Brownian bridge diffusion models", CVPR 2023 (eq. 4 to 12).
Deviations: pixels, not latents; the source is concatenated to the state, as in CT2MRI's released code; our preset puts
a regression first and gives the bridge its residual (`scanbridge.methods.window_bridge`), with L2: the score is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scanbridge.methods.base import Draws, Effort, Fitted, Request, Stage, Translator
from scanbridge.methods.volumes import draw_volumes, effort_of
from scanbridge.methods.window_bridge import WindowBridge, window_stages
from scanbridge.methods.windows import one_target

ABLATIONS: dict[str, dict[str, Any]] = {
    "BBDM": {},
    "one slice": {"radius": 0},
    "s = 0.25": {"bridge.s": 0.25},
}


Config = WindowBridge


def stages(config: Config, targets: Sequence[str]) -> tuple[Stage, ...]:
    """Give the stages."""
    return window_stages(config, one_target("bbdm", targets))


def translator(config: Config, fitted: Fitted) -> Translator:
    """Give the translator."""

    class _Bridge:
        def draw(self, source: Tensor, request: Request) -> Draws:
            return draw_volumes(config, fitted, source, request)

        def effort(self, request: Request) -> Effort:
            return effort_of(config, request)

    return _Bridge()
