"""One volume translated: from its own grid to the model's, through the run's translator, and home again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.intensity import scale_of
from scanbridge.data.nifti import Volume, read, write
from scanbridge.errors import UserError
from scanbridge.methods.base import Draws, Product, Request
from scanbridge.model import Model


@dataclass(frozen=True)
class Options:
    """What a user may ask of a translation; None leaves a choice to the run.

    `style` is a name or a file, `foreground` a mask on the source that replaces the computed one, `on` the grid of the
    result; `oracle` lets a style come from an image that the run set apart, for evaluation alone.
    """

    target: str | None = None
    samples: int = 0
    seed: int = 0
    calls: int | None = None
    order: Literal[1, 2] | None = None
    grid: str | None = None
    eta: float | None = None
    temperature: float | None = None
    style: str | None = None
    foreground: Path | None = None
    product: Literal["estimate", "one-call"] = "estimate"
    on: Literal["source", "model"] = "source"
    oracle: bool = False

    def request(
        self,
        target: str,
        subject: str,
        product: Product,
        on_call: Callable[[int, int], None],
        style: str | torch.Tensor | None = None,
    ) -> Request:
        """Give the request for one product; what is asked of a walk means the draws, where draws are asked for."""
        request = Request(target=target, subject=subject, product=product, seed=self.seed, style=style, on_call=on_call)
        if self.samples and product != "draw":
            return request
        return replace(
            request,
            samples=max(1, self.samples) if product == "draw" else 1,
            calls=self.calls,
            order=self.order,
            grid=self.grid,
            eta=self.eta,
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class Translation:
    """A translated volume, on the source's own grid unless the model grid was asked for.

    Parameters
    ----------
    data
        The estimate, (I, J, K) float32 in the target's unit.
    uncertainty
        (I, J, K), high = unsure, in the target's unit: a ranking, not a promise.
    draws
        (K, I, J, K) where samples were asked for, else None.
    affine
        (4, 4), that of the grid it lies on.
    facts
        How it was made.
    """

    data: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    draws: list[NDArray[np.float32]]
    affine: NDArray[np.float64]
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the estimate as NIfTI."""
        write(Path(path), self.data, self.affine)


@dataclass(frozen=True)
class Prepared:
    """A source on the model grid: (D, H, W) in [-1, 1], its foreground, its grids, and its name by content."""

    source: NDArray[np.float32]
    foreground: NDArray[np.bool_]
    grid: Grid
    own: Grid
    subject: str


def grid_of(model: Model, volume: Volume) -> Grid:
    """Give the model grid of a run for a source volume."""
    settings = model.common.grid
    spacing = (settings.spacing[0], settings.spacing[1], settings.spacing[2])
    return model_grid(volume.grid, spacing=spacing, orientation=settings.orientation)


def prepare_source(model: Model, volume: Volume, mask: Path | None = None) -> Prepared:
    """Bring a source volume to a run's model grid, exactly as training did."""
    spec = model.specs[model.common.task.source]
    body = foreground(volume.data, spec.kind) if mask is None else foreground_of(mask, volume)
    scale = scale_of(spec, volume.data, body)
    grid = grid_of(model, volume)
    values, _ = resample(volume.data, volume.grid, grid, fill=scale.low)
    source = scale.encode(values).astype(np.float16).astype(np.float32)
    inside = resample(body.astype(np.float32), volume.grid, grid, order=0)[0] > 0
    return Prepared(source, inside, grid, volume.grid, hashlib.sha256(source.tobytes()).hexdigest())


def foreground_of(mask: Path, volume: Volume) -> NDArray[np.bool_]:
    """Read a foreground mask onto the grid of a volume."""
    drawn = read(mask, mask=True)
    return resample(drawn.data, drawn.grid, volume.grid, order=0)[0] > 0


def translate_volume(
    model: Model,
    volume: Volume,
    options: Options = Options(),
    on_call: Callable[[int, int], None] = lambda call, calls: None,  # noqa: ARG005
) -> Translation:
    """Translate one volume: the estimate, its uncertainty, and draws where asked for.

    Raises
    ------
    UserError
        If the volume has no foreground, or the run cannot do what is asked.
    """
    target = chosen_target(model, options.target)
    prepared = prepare_source(model, volume, options.foreground)
    scale = model.scales[target]

    def home(array: torch.Tensor, *, difference: bool = False) -> NDArray[np.float32]:
        values = array.cpu().numpy()
        values = values * (scale.range / 2) if difference else scale.decode(values)
        if options.on == "model":
            return np.asarray(values, dtype=np.float32)
        return resample(values, prepared.grid, prepared.own, order=3, fill=0.0 if difference else scale.low)[0]

    style = style_of(model, target, options)

    def drawn(product: Product) -> Draws:
        request = options.request(target, prepared.subject, product, on_call, style)
        return model.draw(prepared.source, prepared.foreground, request)

    estimate = drawn(options.product)
    facts = {"estimate": {"calls": estimate.calls, **estimate.facts}}
    uncertainty, draws = estimate.uncertainty, []
    if options.samples:
        made = drawn("draw")
        facts["draws"] = {"calls": made.calls, "samples": options.samples, **made.facts}
        draws = [home(each) for each in made.volumes]
        uncertainty = made.uncertainty if options.samples > 1 else uncertainty
    return Translation(
        data=home(estimate.volumes[0]),
        uncertainty=home(uncertainty, difference=True),
        draws=draws,
        affine=volume.affine if options.on == "source" else prepared.grid.affine,
        facts=facts,
    )


def style_of(model: Model, target: str, options: Options) -> str | torch.Tensor | None:
    """Give a named style, or the reference volume (1, I, J, K) in [-1, 1] of a file; its histogram is what counts.

    Raises
    ------
    UserError
        If the method knows no style, or the file is an image that the run set apart, whose style would leak what is
        to be predicted.
    """
    if options.style is not None and not hasattr(model.config, "style"):
        raise UserError(
            f"--style {options.style}: {model.common.method} knows no style", "a ct2mri run", "leave it out"
        )
    if options.style is None or not Path(options.style).exists():
        return options.style
    volume = read(options.style)
    if volume.sha256 in model.set_apart and not options.oracle:
        raise UserError(
            f"--style {options.style} is an image of a subject that this run set apart",
            "a style from training subjects or from elsewhere",
            "use 'average' or 'nearest', or evaluate with --style own --allow-oracle to know the oracle",
        )
    spec = model.specs[target]
    scale = scale_of(spec, volume.data, foreground(volume.data, spec.kind))
    return torch.from_numpy(scale.encode(volume.data))[None]


def chosen_target(model: Model, target: str | None) -> str:
    """Give the target that the user named, or the run's first."""
    names = model.common.task.targets
    if target is not None and target not in names:
        raise UserError(f"--target {target}", f"one of: {', '.join(names)}", "see 'scanbridge info'")
    return target or names[0]
