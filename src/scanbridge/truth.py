"""One subject's truth: source, target and regions, on the grid and in the unit in which metrics are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.cohort import Cohort, Row
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, resample
from scanbridge.data.intensity import Scale, scale_of
from scanbridge.data.nifti import Volume, read
from scanbridge.errors import UserError
from scanbridge.metrics.draws import contrast, grain
from scanbridge.model import Model
from scanbridge.translation import foreground_of, grid_of

Array = NDArray[np.float32]
On = Literal["target", "model"]


@dataclass(frozen=True)
class Truth:
    """One subject's source and target on the grid and in the unit in which metrics are computed.

    Parameters
    ----------
    row, names
        The cohort's row, and the columns of source and target.
    source, target
        (I, J, K): the source in [0, 1]; the target mapped and clipped.
    native
        The target in its own unit, unclipped.
    regions
        Name to the voxels that count.
    grid, on
        Where metrics are computed: the target's own grid, or the run's model grid.
    scale, source_scale
        Those of the two images; the unit of the target's is that of the metrics.
    kinds
        What source and target are: mr, ct, pet or other.
    outside
        Share of the grid that the source's field of view does not hold.
    looks
        What else measures an image, where that is asked for, by (region, metric, unit): grain, and the contrast of
        each region that a mask marks.
    """

    row: Row
    names: tuple[str, str]
    source: Array
    target: Array
    native: Array
    regions: dict[str, NDArray[np.bool_]]
    grid: Grid
    on: On
    scale: Scale
    source_scale: Scale
    kinds: tuple[str, str]
    outside: float
    looks: Mapping[tuple[str, str, str], Callable[[Array], float | None]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The unit of the metrics."""
        return self.scale.unit

    @property
    def data_range(self) -> float:
        """R of the metrics."""
        return 1.0 if self.unit == "1" else self.scale.range

    @property
    def encoded(self) -> Array:
        """The target as networks see it, in [-1, 1]."""
        return 2 * self.target - 1 if self.unit == "1" else self.scale.encode(self.target)

    def with_looks(self) -> Truth:
        """Give this truth with what measures grain, and the contrast of each marked region against its rim."""
        marked = [name for name in self.regions if f"not_{name}" in self.regions]
        body = self.regions["foreground"]
        contrasts = {(name, "contrast", self.unit): contrast(self.regions[name], body) for name in marked}
        return replace(self, looks={("foreground", "grain", "1"): grain(body, self.target), **contrasts})

    def written(self, scale: Scale) -> Array:
        """Give the target as metrics see it, on the scale of a written volume: what an interval is about."""
        return scale.decode(2 * self.target - 1) if self.unit == "1" else self.target


def load_truth(table: Cohort, row: Row, model: Model, on: On) -> Truth:
    """Read a subject's source, target and masks onto the grid where metrics are computed.

    Raises
    ------
    UserError
        If the target shows nothing of the source's foreground.
    """
    source, target = model.common.task.source, model.common.task.targets[0]
    y, x = read(row.images[source]), read(row.images[target])
    body = source_foreground(table, row, source, y)
    grid = x.grid if on == "target" else grid_of(model, y)
    held, inside = resample(body.astype(np.float32), y.grid, grid, order=0)
    seen = inside & resample(x.data, x.grid, grid)[1]
    regions = {"volume": seen, "foreground": (held > 0) & seen}
    if not regions["foreground"].any():
        what = f"{row.name}: no foreground of {source} where {target} is"
        raise UserError(what, "scans that overlap", "see 'check', or leave the row out")
    scale = scale_of(table.images[target], x.data, resample(body.astype(np.float32), y.grid, x.grid, order=0)[0] > 0)
    source_scale = scale_of(table.images[source], y.data, body)
    for name, spec in table.masks.items():
        if spec.role == "region" and name in row.masks:
            mask = read(row.masks[name], mask=True)
            marked = resample(mask.data, mask.grid, grid, order=0)[0] > 0
            regions[name] = marked & seen
            regions[f"not_{name}"] = regions["foreground"] & ~marked
    native = resample(x.data, x.grid, grid, fill=scale.low)[0]
    return Truth(
        row=row,
        names=(source, target),
        source=in_unit(source_scale.encode(resample(y.data, y.grid, grid, fill=source_scale.low)[0])),
        target=in_metric_unit(native, scale),
        native=native,
        regions=regions,
        grid=grid,
        on=on,
        scale=scale,
        source_scale=source_scale,
        kinds=(table.images[source].kind, table.images[target].kind),
        outside=1 - float(inside.mean()),
    )


def source_foreground(table: Cohort, row: Row, source: str, volume: Volume) -> NDArray[np.bool_]:
    """Give the source's foreground on its own grid: a mask with that role if the cohort has one, else computed."""
    mask = table.foreground_file(row, source)
    return foreground(volume.data, table.images[source].kind) if mask is None else foreground_of(mask, volume)


def in_metric_unit(values: NDArray[Any], scale: Scale) -> Array:
    """Map values of a scale to the unit of the metrics: [0, 1] for MR, clipped HU or SUV else."""
    share = in_unit(scale.encode(values))
    return (share if scale.unit == "1" else scale.low + scale.range * share).astype(np.float32)


def in_unit(encoded: NDArray[Any]) -> Array:
    """Map [-1, 1] to [0, 1]."""
    return np.asarray((encoded + 1) / 2, dtype=np.float32)
