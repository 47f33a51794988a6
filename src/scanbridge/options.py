"""What a user may ask of a translation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from scanbridge.errors import UserError, nearest
from scanbridge.files import sha256
from scanbridge.methods.base import Asked, Product, Quality, Request


@dataclass(frozen=True)
class Options(Asked):
    """What a user may ask of a translation; None leaves a choice to the run.

    `quality` is the estimate's walk: draft is one call, normal the run's own, paper the published one; what is named
    beside it (`calls`, `order`, `grid`, `eta`, `temperature`) wins, and means the draws where `samples` are asked for.
    `style` is a name or a file, `foreground` a mask on the source that replaces the computed one, `on` the grid of the
    result; `oracle` lets a style come from an image that the run set apart, for evaluation alone. `interval` asks for
    intervals (True: or an error), or for none (False); None gives them where the run's calibration holds.
    """

    target: str | None = None
    samples: int = 0
    seed: int = 0
    style: str | None = None
    foreground: Path | None = None
    product: Literal["estimate", "one-call"] = "estimate"
    on: Literal["source", "model"] = "source"
    oracle: bool = False
    interval: bool | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and self.quality not in get_args(Quality):
            raise UserError(
                f"--quality {self.quality}", "draft, normal or paper", nearest(self.quality, get_args(Quality))
            )

    def request(
        self,
        target: str,
        subject: str,
        product: Product,
        on_call: Callable[[int, int], None],
        style: str | Tensor | None = None,
    ) -> Request:
        """Give the request for one product; what is asked of a walk means the draws, where draws are asked for.

        A quality means the estimate.
        """
        return Request(
            target,
            subject,
            product,
            samples=max(1, self.samples) if product == "draw" else 1,
            seed=self.seed,
            style=style,
            on_call=on_call,
            quality=self.quality if product == "estimate" else None,
            **({} if self.samples and product != "draw" else self.walk),
        )

    @property
    def reads_style(self) -> bool:
        """Whether the style is taken from a file, which may be the truth."""
        return self.style is not None and Path(self.style).exists()

    @property
    def named_style(self) -> str | None:
        """The name of the style, or the SHA-256 of the file that it is taken from."""
        return sha256(Path(self.style)) if self.style is not None and self.reads_style else self.style
