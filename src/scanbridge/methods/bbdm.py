"""BBDM: a Brownian bridge from the source to the target, on single slices or windows of slices.

Source: Li et al., "BBDM: image-to-image translation with Brownian bridge diffusion models", CVPR 2023 (eq. 4 to 12).
Deviations: pixels, not latents; the source is concatenated to the state, as in CT2MRI's released code; our preset puts
a regression first and gives the bridge its residual (`scanbridge.methods.window_bridge`), with L2: the score is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scanbridge.methods.base import Fitted, Stage, Translator
from scanbridge.methods.volumes import WindowTranslator
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
    return WindowTranslator(config, fitted)
