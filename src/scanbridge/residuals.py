"""Patients translated and held against their truth, voxel by voxel: what a calibration measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scanbridge.data.cohort import Cohort, Row
from scanbridge.data.grid import resample
from scanbridge.data.nifti import Volume, read, write
from scanbridge.errors import UserError
from scanbridge.files import make_folder, read_json, write_json
from scanbridge.head import Head, Lesson
from scanbridge.metrics.conformal import Monotone, Values, ladder
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.runs.checkpoint import load_tensors, save_tensors
from scanbridge.signals import HEAD
from scanbridge.translate import facts_of, is_done, recipe, stem
from scanbridge.translation import grid_of, translate_volume
from scanbridge.truth import load_truth

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
    say
        Told of scans that are unlike those of the training.
    """

    def __init__(
        self,
        table: Cohort,
        model: Model,
        folder: Path,
        told: Told,
        of: int,
        say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    ) -> None:
        self.table, self.model, self.target = table, model, model.common.task.targets[0]
        self.folder, self._told, self._of, self._done, self._say = folder, told, of, 0, say
        self._warned: set[str] = set()

    def lessons(self, rows: Sequence[Row], options: Options) -> dict[str, list[Lesson]]:
        """Give by patient, for every visit, what a head is fitted on; on the model grid."""
        found: dict[str, list[Lesson]] = {}
        for row, base, _ in self._walk(rows, options):
            seen, truth = load_tensors(_seen_file(base))[0], load_truth(self.table, row, self.model, "model")
            error = (torch.from_numpy(truth.encoded) - seen["estimate"].float()).abs()
            found.setdefault(row.subject, []).append(Lesson(seen, error, torch.from_numpy(truth.regions["foreground"])))
        return found

    def samples(
        self, rows: Sequence[Row], names: Sequence[str], options: Options, heads: Mapping[str, Head]
    ) -> dict[str, list[tuple[Array, Array]]]:
        """Give by signal one (doubt, error) a patient: voxels of the foreground, all visits, thinned.

        `heads` holds what judges each patient, by subject, where that is among the signals.
        """
        found: dict[str, dict[str, list[tuple[Array, Array]]]] = {name: {} for name in names}
        for row, base, volume in self._walk(rows, options):
            seen = self._seen(row, base, volume, heads)
            for name in names:
                if name != HEAD and not _file(base, name).is_file():
                    continue  # a signal that the method has, and not this configuration of it
                error, doubt = seen(name, lambda raw: raw)
                every = -(-error.size // SAMPLE)
                found[name].setdefault(row.subject, []).append((doubt[::every], error[::every]))
        there = {name: [_joined(visits) for visits in people.values()] for name, people in found.items() if people}
        if not there:
            raise UserError(
                f"--signal {names[0]}: the translations have none", "a signal that they have", "leave it out"
            )
        return there

    def ladders(
        self, rows: Sequence[Row], signal: str, expected: Monotone, options: Options, heads: Mapping[str, Head]
    ) -> dict[str, list[tuple[Values, Values]]]:
        """Give by patient, for every visit, the ladder of the map and that of one width for all voxels."""
        found: dict[str, list[tuple[Values, Values]]] = {}
        for row, base, volume in self._walk(rows, options):
            error, half = self._seen(row, base, volume, heads)(signal, expected)
            found.setdefault(row.subject, []).append((ladder(error, half), ladder(error, 1.0)))
        return found

    def went_on(self, share: float, words: str) -> None:
        """Tell that something else than a row is under way, or with a share of 1 is done."""
        self._told(self._done + share, self._of, words)
        self._done += share == 1

    def _walk(self, rows: Sequence[Row], options: Options) -> Iterator[tuple[Row, Path, Volume]]:
        for row in rows:
            base, volume = self._translated(row, options)
            warning = read_json(base.with_name(f"{base.name}.json")).get("input_warning")
            if warning and row.name not in self._warned:  # rows are walked more than once
                self._say(f"{row.name} is {warning}")
                self._warned.add(row.name)
            yield row, base, volume
            self._done += 1
            self._told(self._done, self._of, row.name)

    def _seen(self, row: Row, base: Path, volume: Volume, heads: Mapping[str, Head]) -> Seen:
        """Give what reads (error, map of a signal) in the foreground, in the target's unit, on the target's grid."""
        truth, scale = load_truth(self.table, row, self.model, "target"), self.model.scales[self.target]
        body = truth.regions["foreground"]
        made = read(base.with_name(f"{base.name}.nii.gz"))
        error = truth.written(scale)[body] - resample(made.data, made.grid, truth.grid, fill=scale.low)[0][body]

        def raw(name: str) -> Array:
            if name != HEAD:
                return read(_file(base, name)).data
            predicted = heads[row.subject](load_tensors(_seen_file(base))[0]).cpu().numpy() * (scale.range / 2)
            return resample(predicted, grid_of(self.model, volume), volume.grid, order=3)[0]

        def seen(name: str, expected: Callable[[Array], Array]) -> tuple[Array, Array]:
            return error, resample(expected(raw(name)), made.grid, truth.grid)[0][body]

        return seen

    def _translated(self, row: Row, options: Options) -> tuple[Path, Volume]:
        """Translate a row unless that is done: the estimate and its raw signals; give the files' stem and the scan."""
        source = row.images[self.model.common.task.source]
        mask = self.table.foreground_file(row, self.model.common.task.source)
        asked = options if mask is None else replace(options, foreground=mask)
        volume = read(source)
        base = self.folder / row.name / f"{stem(source)}_{self.target}"
        about = base.with_name(f"{base.name}.json")
        wanted = recipe(self.model, self.target, volume.sha256, asked)
        if is_done(about, wanted, overwrite=True) and _seen_file(base).is_file():
            return base, volume

        def told(call: int, calls: int) -> None:
            self._told(self._done + call / calls * 0.99, self._of, row.name)

        try:
            made = translate_volume(self.model, volume, asked, told)
        except UserError as error:
            raise UserError(f"{source}: {error.what}", error.expected, error.remedy) from error
        make_folder(base.parent)
        about.unlink(missing_ok=True)
        for name, raw in made.signals.items():
            write(_file(base, name), raw, made.affine)
        write(base.with_name(f"{base.name}.nii.gz"), made.data, made.affine)
        save_tensors(_seen_file(base), made.seen, {})
        facts = facts_of(self.model, self.target, made)
        write_json(about, {"source": source.name, **facts, "signals": sorted(made.signals), "recipe": wanted})
        return base, volume


def _file(base: Path, name: str) -> Path:
    """Give the file of a raw signal."""
    return base.with_name(f"{base.name}_{name}.nii.gz")


def _seen_file(base: Path) -> Path:
    """Give the file of what a head sees of a scan."""
    return base.with_name(f"{base.name}_seen.safetensors")


def _joined(visits: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    doubt, error = (np.concatenate(each) for each in zip(*visits, strict=True))
    return doubt, error
