"""CT2MRI: a 2D Brownian bridge on windows of slices, told a style, walked as one volume.

Style key conditioning (SKC): three tokens made of the target's histogram, cross-attended in the middle of the U-Net.
Inter-slice trajectory alignment (ISTA): estimates of overlapping windows are averaged at every call (co-prediction,
eq. 4), and each new state is moved along the averaged score (correction, eq. 5 and 6).

Source: Choo et al., "Slice-consistent 3D volumetric brain CT-to-MRI translation with 2D Brownian bridge diffusion
model", MICCAI 2024. Deviations, ours and the release's: docs/explanation/ct2mri.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from scanbridge.bridge.noise import ItemNoise
from scanbridge.bridge.sample import Langevin
from scanbridge.errors import UserError, nearest
from scanbridge.methods.base import Batch, Fitted, Stage, Statistics, TrainingCase, Translator
from scanbridge.methods.regressing import Tokens
from scanbridge.methods.volumes import WindowTranslator
from scanbridge.methods.window_bridge import WindowBridge, window_stages
from scanbridge.methods.windows import Network, one_target
from scanbridge.strict import Strict

TRANSLATION = ("correction", "coprediction", "style.choice")
"""Keys that training never reads, see `scanbridge.trials`."""
STYLES = ("average", "nearest")
N_BINS = 128

_FULL_WALK = {"estimate.calls": 100}
ABLATIONS: dict[str, dict[str, Any]] = {
    "Pure BBDM": {"style.use": False, "coprediction": False, "correction.corrections": 0},
    "+ SKC average": {"coprediction": False, "correction.corrections": 0},
    "+ ISTA": {"style.use": False},
    "+ SKC average, ISTA co-prediction only": {**_FULL_WALK, "correction.corrections": 0},
    "+ SKC average, ISTA": {"estimate.calls": 50, "correction.corrections": 1},
    "+ SKC nearest, ISTA": {"style.choice": "nearest"},
}


class Style(Strict):
    """Style key conditioning."""

    use: bool = True
    choice: Literal["average", "nearest"] = "average"
    average: float = Field(
        default=0.0, ge=0, le=1, description="share of the training items that are told the average key, not their own"
    )


class Correction(Strict):
    """The Langevin corrector of ISTA (eq. 5)."""

    corrections: int = Field(default=0, ge=0, description="M, moves per new time; each costs one more call")
    strength: float = Field(default=0.5, ge=0, description="lambda")
    norm: Literal["code", "paper"] = "code"
    cap: float = Field(default=0.02, gt=0, description="largest RMS move of a slice, as a share of the range [-1, 1]")
    reuse: bool = False


class Config(WindowBridge):
    """CT2MRI."""

    coprediction: bool = Field(default=True, description="average overlapping windows; off: centre slices alone")
    network: Network = Network(middle="transformer")
    style: Style = Style()
    correction: Correction = Correction()


def style_key(image: Tensor) -> Tensor:
    """Give the style key (3, 128) of a volume in [-1, 1]: its histogram, cumulative sum and difference.

    128 bins on [0.001, 1] of the image mapped to [0, 1]; h = 10 counts / sum; the difference is scaled by 10, with its
    first entry repeated. Permuting the voxels changes nothing.

    Source: CT2MRI, section 2.2 (c_SKC), with the released code's scales.
    """
    values = ((image.double() + 1) / 2).flatten()
    counts = torch.histc(values[(values >= 0.001) & (values <= 1)].cpu(), N_BINS, min=0.001, max=1.0)
    h = 10 * counts / counts.sum().clamp(min=1)
    rise = 10 * torch.diff(h)
    return torch.stack([h, h.cumsum(0), torch.cat([rise[:1], rise])]).float()


def stages(config: Config, targets: Sequence[str]) -> tuple[Stage, ...]:
    """Give the stages; the statistics are the style keys and source histograms of the training cases."""
    target = one_target("ct2mri", targets)
    for table, settings in config.walks.items():
        if settings.stride > 1 and not config.coprediction:
            what = f"{table}.stride = {settings.stride} for windows that walk by themselves"
            raise UserError(what, "1", f"set {table}.stride = 1, or coprediction = true")

    def keys(cases: Sequence[TrainingCase], before: Fitted) -> Statistics:  # noqa: ARG001  (there is none before)
        return {
            "style_keys": torch.stack([style_key(case.targets[target]) for case in cases]),
            "source_keys": torch.stack([style_key(case.source) for case in cases]),
        }

    def told(fitted: Fitted, batch: Batch, noise: ItemNoise) -> Tensor:
        every = fitted.statistics["style_keys"]
        blind = batch.case < 0  # a val subject is told what a new one would be
        if config.style.average > 0:
            blind = blind | (noise.uniform() < config.style.average)
        return torch.where(blind[:, None, None], average_key(every), every[batch.case])

    tokens = Tokens(N_BINS, told, keys) if config.style.use else Tokens()
    corrector = langevin(config, torch.zeros(1, 1, 1, 1, device="cpu")) if config.correction.corrections else None
    return window_stages(config, target, tokens, corrector)


def translator(config: Config, fitted: Fitted) -> Translator:
    """Give the translator."""
    own = config.correction
    return WindowTranslator(
        config,
        fitted,
        tokens=partial(style_tokens, config, fitted.statistics),
        corrector=partial(langevin, config) if own.corrections else None,
        moves=max(0, own.corrections - own.reuse),
        coprediction=config.coprediction,
    )


def style_tokens(config: Config, statistics: Statistics, source: Tensor, style: str | Tensor | None) -> Tensor | None:
    """Give the style tokens (3, 128) that the user chose; None where the run has no style."""
    if not config.style.use:
        if style is not None:
            raise UserError("this run was trained without style keys", "no --style", "leave --style out")
        return None
    if isinstance(style, Tensor):
        return style if style.ndim == 2 else style_key(style)
    style = style or config.style.choice
    keys = statistics["style_keys"]
    if style == "average":
        return average_key(keys)
    if style == "nearest":
        # Wasserstein-1 between histograms of one support is the L1 distance of their cumulative sums
        distance = (statistics["source_keys"][:, 1].cpu() - style_key(source)[1]).abs().sum(dim=1)
        return keys[int(distance.argmin())]
    raise UserError(f"--style {style}", "average, nearest, or a file", nearest(style, STYLES))


def average_key(keys: Tensor) -> Tensor:
    """Give the mean (3, 128) of keys (n, 3, 128)."""
    return keys.double().mean(dim=0).float()


def langevin(config: Config, source: Tensor) -> Langevin:
    """Give ISTA's corrector for a source (1, D, H, W) as the walk sees it."""
    process = config.bridge.process()
    spacing = 0.998 / 999

    def increment(m: float) -> float:
        """Variance added by one training step at m: 2 s (1 - m) (m - m') / (1 - m'), m' the step before."""
        before = m - spacing if m > 1.5 * spacing else 0.0
        return 2 * config.bridge.s * (1 - m) * (m - before) / (1 - before)

    return Langevin(
        process,
        source,
        strength=config.correction.strength,
        increment=increment,
        corrections=config.correction.corrections,
        norm=config.correction.norm,
        cap=2 * config.correction.cap if math.isfinite(config.correction.cap) else math.inf,
        reuse=config.correction.reuse,
    )
