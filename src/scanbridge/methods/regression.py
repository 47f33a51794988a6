"""The floor: the U-Net alone, one call.

In paired translation a plain regression often wins PSNR and SSIM (YODA, arXiv 2505.02048): no claim without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from scanbridge.bridge.volume import Lift, Windows
from scanbridge.errors import UserError
from scanbridge.methods.base import Draws, Effort, Fitted, Request, Stage, Translator
from scanbridge.methods.regressing import Regression, regression_denoiser, regression_stage
from scanbridge.methods.volumes import images, mirrored
from scanbridge.methods.windows import Axis, Network, one_target
from scanbridge.strict import Strict

TRANSLATION = ("mirror", "windows")
"""Keys that training never reads, see `scanbridge.trials`."""

ABLATIONS: dict[str, dict[str, Any]] = {"L2": {"loss": "l2"}, "L1": {"loss": "l1"}}


class Config(Strict):
    """A window regression: the posterior mean (L2) or median (L1) of the target."""

    radius: int = Field(default=1, ge=0, description="N; a window holds 2 N + 1 slices")
    loss: Literal["l1", "l2"] = "l2"
    network: Network = Network()
    mirror: list[Axis] = Field(
        default=[], description="axes that training flips: the call is averaged with those of the mirrored images"
    )
    windows: int = Field(default=8, gt=0, description="windows per network call")


def stages(config: Config, targets: Sequence[str]) -> tuple[Stage, ...]:
    """Give the one stage."""
    target = one_target("regression", targets)
    return (regression_stage(config.radius, config.network, Regression(loss=config.loss), target),)


def translator(config: Config, fitted: Fitted) -> Translator:
    """Give the translator: one call, averaged over overlapping windows."""
    network = mirrored(regression_denoiser(fitted.networks["regression"], None), config.mirror)

    class _Regression:
        def draw(self, source: Tensor, request: Request) -> Draws:
            if request.product == "draw" or request.samples > 1:
                raise UserError("a regression has no draws", "a bridge method", "leave --samples out")
            for asked in request.walk:
                raise UserError(f"a regression has no {asked}", "a bridge method", f"leave --{asked} out")
            cover = Windows(source.shape[1], config.radius)
            lifted = Lift(network, source, cover, config.windows)
            estimate = lifted(source, 1.0)
            if request.on_call is not None:
                request.on_call(1, 1)
            assert lifted.disagreement is not None  # noqa: S101  (a call was just made)
            return Draws(estimate, lifted.disagreement[0], calls=1)

        def effort(self, request: Request) -> Effort:  # noqa: ARG002  (the same, whatever is asked)
            n = images(config.mirror)
            return Effort(passes=n, images=n, batch=config.windows)

    return _Regression()
