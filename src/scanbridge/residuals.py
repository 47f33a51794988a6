"""Patients translated and held against their truth, voxel by voxel: what a calibration measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.cohort import Cohort, Row
from scanbridge.data.grid import resample
from scanbridge.data.nifti import read, write
from scanbridge.errors import UserError
from scanbridge.files import make_folder, write_json
from scanbridge.judge import load_truth
from scanbridge.metrics.conformal import Monotone, Values, ladder
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.translate import facts_of, is_done, recipe, stem
from scanbridge.translation import translate_volume

SAMPLE = 100_000
"""Voxels a scan that maps are fitted on."""

Array = NDArray[np.float32]
Told = Callable[[float, float, str], None]
Seen = Callable[[str, Callable[[Array], Array]], tuple[Array, Array]]


class Residuals:
    """Translates rows of a cohort into a folder, one subfolder a row, and reads them back beside their truth.

    Parameters
    ----------
    table, model
        The cohort and the run.
    folder
        Where estimates and raw signals are kept: what is there and was made just so is not made again.
    told
        Called with (done, of, words).
    of
        Number of rows to come.
    """

    def __init__(self, table: Cohort, model: Model, folder: Path, told: Told, of: int) -> None:
        self.table, self.model, self.target = table, model, model.common.task.targets[0]
        self._folder, self._told, self._of, self._done = folder, told, of, 0

    def samples(
        self, rows: Sequence[Row], names: Sequence[str], options: Options
    ) -> dict[str, list[tuple[Array, Array]]]:
        """Give by signal one (doubt, error) a patient: voxels of the foreground, all visits, thinned."""
        found: dict[str, dict[str, list[tuple[Array, Array]]]] = {name: {} for name in names}
        for row, seen in self._walk(rows, options):
            for name in names:
                error, doubt = seen(name, lambda raw: raw)
                every = -(-error.size // SAMPLE)
                found[name].setdefault(row.subject, []).append((doubt[::every], error[::every]))
        return {name: [_joined(visits) for visits in people.values()] for name, people in found.items()}

    def ladders(
        self, rows: Sequence[Row], signal: str, expected: Monotone, options: Options
    ) -> dict[str, list[tuple[Values, Values]]]:
        """Give by patient, for every visit, the ladder of the map and that of one width for all voxels."""
        found: dict[str, list[tuple[Values, Values]]] = {}
        for row, seen in self._walk(rows, options):
            error, half = seen(signal, expected)
            found.setdefault(row.subject, []).append((ladder(error, half), ladder(error, 1.0)))
        return found

    def _walk(self, rows: Sequence[Row], options: Options) -> Iterator[tuple[Row, Seen]]:
        for row in rows:
            base = self._translated(row, options)
            yield row, self._seen(row, base)
            self._done += 1
            self._told(self._done, self._of, row.name)

    def _seen(self, row: Row, base: Path) -> Seen:
        """Give what reads (error, map of a signal) in the foreground, in the target's unit, on the target's grid."""
        truth, scale = load_truth(self.table, row, self.model, "target"), self.model.scales[self.target]
        body = truth.regions["foreground"]
        made = read(base.with_name(f"{base.name}.nii.gz"))
        error = truth.written(scale)[body] - resample(made.data, made.grid, truth.grid, fill=scale.low)[0][body]

        def seen(name: str, expected: Callable[[Array], Array]) -> tuple[Array, Array]:
            raw = read(base.with_name(f"{base.name}_{name}.nii.gz"))
            return error, resample(expected(raw.data), raw.grid, truth.grid)[0][body]

        return seen

    def _translated(self, row: Row, options: Options) -> Path:
        """Translate a row unless that is done: the estimate and its raw signals; give the stem of the files."""
        source = row.images[self.model.common.task.source]
        mask = self.table.foreground_mask(row, self.model.common.task.source)
        asked = options if mask is None else replace(options, foreground=row.masks[mask])
        volume = read(source)
        base = self._folder / row.name / f"{stem(source)}_{self.target}"
        about = base.with_name(f"{base.name}.json")
        wanted = recipe(self.model, self.target, volume.sha256, asked)
        if is_done(about, wanted, overwrite=True):
            return base

        def told(call: int, calls: int) -> None:
            self._told(self._done + call / calls * 0.99, self._of, row.name)

        try:
            made = translate_volume(self.model, volume, asked, told)
        except UserError as error:
            raise UserError(f"{source}: {error.what}", error.expected, error.remedy) from error
        make_folder(base.parent)
        about.unlink(missing_ok=True)
        for name, raw in made.signals.items():
            write(base.with_name(f"{base.name}_{name}.nii.gz"), raw, made.affine)
        write(base.with_name(f"{base.name}.nii.gz"), made.data, made.affine)
        facts = facts_of(self.model, self.target, made)
        write_json(about, {"source": source.name, **facts, "signals": sorted(made.signals), "recipe": wanted})
        return base


def _joined(visits: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    doubt, error = (np.concatenate(each) for each in zip(*visits, strict=True))
    return doubt, error
