"""One volume translated: from its own grid to the model's, through the run's translator, and home again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scanbridge.calibration import calibration_for, head_for
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.intensity import scale_of
from scanbridge.data.nifti import Volume, read, write
from scanbridge.errors import UserError
from scanbridge.likeness import Likeness
from scanbridge.methods.base import Draws, Product
from scanbridge.metrics.draws import Moments
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.signals import HEAD, WINDOWS, Drawn, signals_of

OnDraw = Callable[[int, NDArray[np.float32], NDArray[np.float64]], None]
"""Takes a draw as soon as it is made: its number (0-based), its values and its affine, as in `Translation`."""


@dataclass(frozen=True)
class Translation:
    """A translated volume, on the source's own grid unless the model grid was asked for.

    Parameters
    ----------
    data
        The estimate, (I, J, K) float32 in the target's unit.
    uncertainty
        (I, J, K), high = unsure, in the target's unit: a ranking, not a promise.
    affine
        (4, 4), that of the grid it lies on.
    draws
        (I, J, K) each, where samples were asked for and kept.
    facts
        How it was made.
    low, high
        (I, J, K) in the target's unit, low <= data <= high: the interval of the run's calibration; None where that
        promises nothing for this translation, and `facts` says why.
    signals
        Raw signals by name, (I, J, K) in the target's unit, `uncertainty` among them; beside an interval no more than
        it takes.
    seen
        What a learned signal sees, on the model grid, see `scanbridge.signals.Drawn`.
    """

    data: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    affine: NDArray[np.float64]
    draws: list[NDArray[np.float32]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None
    signals: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    seen: dict[str, torch.Tensor] = field(default_factory=dict)

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


def input_of(model: Model, prepared: Prepared) -> dict[str, Any]:
    """Say how far a source is from the training scans; nothing for a run that did not note what these are like."""
    likeness = None if model.run is None else Likeness.of_run(model.run)
    if likeness is None:
        return {}
    return likeness.of_scan(prepared.source, prepared.foreground, prepared.grid.spacing).to_json()


def foreground_of(mask: Path, volume: Volume) -> NDArray[np.bool_]:
    """Read a foreground mask onto the grid of a volume."""
    drawn = read(mask, mask=True)
    return resample(drawn.data, drawn.grid, volume.grid, order=0)[0] > 0


def translate_volume(
    model: Model,
    volume: Volume,
    options: Options = Options(),  # noqa: B008  (frozen)
    on_call: Callable[[int, int], None] = lambda call, calls: None,  # noqa: ARG005
    on_draw: OnDraw | None = None,
) -> Translation:
    """Translate one volume: the estimate and its uncertainty; draws, where asked for, go to `on_draw` one by one.

    Raises
    ------
    UserError
        If the volume has no foreground, or the run cannot do what is asked.
    """
    target = chosen_target(model, options.target)
    check_quality(model, options)
    calibration, why = calibration_for(model, target, options)
    head = head_for(model, calibration)
    prepared = prepare_source(model, volume, options.foreground)
    scale = model.scales[target]

    def home(array: torch.Tensor, *, difference: bool = False) -> NDArray[np.float32]:
        values = array.cpu().numpy()
        values = values * (scale.range / 2) if difference else scale.decode(values)
        if options.on == "model":
            return np.asarray(values, dtype=np.float32)
        return resample(values, prepared.grid, prepared.own, order=3, fill=0.0 if difference else scale.low)[0]

    style = style_of(model, target, options)

    def drawn(product: Product, number: int | None = None) -> Draws:
        request = options.request(target, prepared.subject, product, on_call, style)
        return model.draw(prepared.source, prepared.foreground, replace(request, draw=number))

    affine = volume.affine if options.on == "source" else prepared.grid.affine
    estimate = drawn(options.product)
    facts: dict[str, Any] = {"estimate": {"calls": estimate.calls, **estimate.facts}}
    facts["input"] = input_of(model, prepared)
    moments, made = Moments(), []
    for number in range(options.samples):  # each by itself, so that memory does not grow with their number
        one = drawn("draw", number)
        (sample,) = one.volumes
        moments.add(sample.cpu().numpy())
        made.append({"calls": one.calls, "samples": options.samples, **one.facts})
        if on_draw is not None:
            on_draw(number, home(sample), affine)
    if made:
        facts["draws"] = _of_all(made)
    spread = torch.from_numpy(moments.spread) if moments.n > 1 else None
    data = home(estimate.volumes[0])
    made_of = Drawn(estimate, spread, torch.from_numpy(prepared.source), head)
    raw = signals_of(made_of)
    shown = next(name for name in (HEAD, "spread", WINDOWS, *raw) if name in raw)
    needed = raw if calibration is None else {shown, calibration.signal}  # others would be resampled for nobody
    signals = {name: home(each, difference=True) for name, each in raw.items() if name in needed}
    low, high = None, None
    if calibration is None:
        facts["interval"] = {"none": why}
    else:
        low, high = calibration.interval(data, signals[calibration.signal])
        facts["interval"] = {
            "promise": calibration.sentence,
            "made": calibration.made,
            "calibration": calibration.digest,
        }
    return Translation(
        data=data,
        uncertainty=signals[shown],
        affine=affine,
        facts=facts,
        low=low,
        high=high,
        signals=signals,
        seen=made_of.seen,
    )


def _of_all(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give what is said of several draws: once where it is the same for all, else a list."""
    said = {key: [each.get(key) for each in facts] for key in facts[0]}
    return {key: values[0] if all(v == values[0] for v in values) else values for key, values in said.items()}


def style_of(model: Model, target: str, options: Options) -> str | torch.Tensor | None:
    """Give a named style, or the reference volume (1, I, J, K) in [-1, 1] of a file; its histogram is what counts.

    Raises
    ------
    UserError
        If the method knows no style, or the file is an image that the run set apart, whose style would leak what is
        to be predicted.
    """
    if options.style is not None and not model.has_styles:
        what = f"--style {options.style}: this {model.common.method} run knows no style"
        raise UserError(what, "a ct2mri run with style.use", "leave it out")
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


def check_quality(model: Model, options: Options) -> None:
    """Refuse to change the walk of a run that has none."""
    if options.quality not in (None, "normal") and not hasattr(model.config, "estimate"):
        raise UserError(
            f"--quality {options.quality}: a {model.common.method} has no walk", "the run of a bridge", "leave it out"
        )


def chosen_target(model: Model, target: str | None) -> str:
    """Give the target that the user named, or the run's first."""
    names = model.common.task.targets
    if target is not None and target not in names:
        raise UserError(f"--target {target}", f"one of: {', '.join(names)}", "see 'scanbridge info'")
    return target or names[0]
