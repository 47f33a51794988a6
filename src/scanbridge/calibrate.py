"""The verb ``calibrate``: patients whom nothing in a run has touched turn its uncertainty into a promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from scanbridge import __version__
from scanbridge.calibration import FILE, FOLDER, Calibration, estimated, head_for, known_signals, procedure
from scanbridge.data.cohort import Cohort, Row, read_cohort
from scanbridge.errors import UserError, nearest
from scanbridge.files import sha256, write_json
from scanbridge.head import Head, cross_fit
from scanbridge.metrics.conformal import Control, Monotone, Promise, fit_monotone, ladder, worst
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.residuals import Residuals, Told
from scanbridge.runs.lock import locked
from scanbridge.signals import HEAD, OF_DRAWS
from scanbridge.truth import load_truth

PARTS = ("calibration", "external")
TOUCHED = {"train": "trained on", "val": "validated on", "test": "set apart for its test"}
CONSTANT = "constant"
"""Intervals of one width: no signal. Its width stands beside those of the signals, and it is never chosen."""
FLOOR = 1e-3
"""Smallest expected error, as a share of the scale: a voxel without doubt is no voxel without error."""


def calibrate_run(
    run: Path,
    cohort: Path,
    *,
    split: str = "calibration",
    miss: float = 0.1,
    patients: float | None = None,
    signal: str | None = None,
    control: str = "quantile",
    samples: int = 0,
    device: str = "auto",
    on_progress: Told = lambda done, of, words: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Calibration:
    """Translate the patients, compute the factor, and write ``calibration.json`` into the run.

    Parameters
    ----------
    run
        A trained run; the volumes are kept in ``calibration/`` below it, and the same command goes on with them.
    cohort
        The table that the patients stand in, and the run's val subjects where it has any.
    split
        calibration as the run chose it, or external for a cohort that it has not seen.
    miss, patients, control
        The promise, see `scanbridge.metrics.conformal.Promise`; None for patients is its default.
    signal
        The raw signal; None lets the val subjects choose among those that there are.
    samples
        Draws a patient, for the signals that need them.

    Raises
    ------
    UserError
        If a patient was touched before, there are too few of them, one has no foreground, or a name or number is none.
    """
    promise = _promise(control, miss, patients, say)
    model = Model.open(run, device=device)
    names = _signals(signal, samples, known_signals(model))
    table = read_cohort(cohort)
    target = model.common.task.targets[0]
    parts = _parts(model)
    rows = _untouched(table, model, parts, split)
    promise.enough(len({row.subject for row in rows}))
    val = [row for row in _pairs(table, model) if parts.get(sha256(row.images[target])) == "val"]
    known = None if val else _known_choice(model, names, samples)
    n_val = len({row.subject for row in val})
    names = [known.signal] if known else _with_val(names, n_val, named=signal, say=say)
    if samples and not set(names) & set(OF_DRAWS):
        say(f"--samples has no effect: the signal is '{names[0]}'")
        samples = 0
    for row in (*val, *rows):
        load_truth(table, row, model, "target")  # one without foreground is said before anything is translated
    with locked(run):
        fits = HEAD in names and known is None
        steps = len(rows) + len(val) * (1 + fits) + fits
        residuals = Residuals(table, model, run / FOLDER, on_progress, steps, say)
        if known:
            say(f"no val subjects in {table.path.name}: '{known.signal}' and its map stay as the run's val chose them")
        chosen = known or _choose(residuals, val, names, promise, samples, say)
        calibration = _calibration(residuals, rows, chosen, promise, samples)
        if (run / FILE).is_file():
            say(f"the calibration that {run} had is replaced")
        write_json(run / FILE, calibration.model_dump(mode="json"))
    return calibration


def _calibration(
    residuals: Residuals, rows: Sequence[Row], chosen: _Chosen, promise: Promise, samples: int
) -> Calibration:
    """Compute the factor on the calibration patients, with a signal and a map that they had no part in."""
    model = residuals.model
    options = Options(samples=samples if chosen.signal in OF_DRAWS else 0, interval=False)
    heads = {} if chosen.head is None else dict.fromkeys((row.subject for row in rows), chosen.head)
    ladders = residuals.ladders(rows, chosen.signal, chosen.expected, options, heads)
    own = {subject: worst([each for each, _ in visits]) for subject, visits in ladders.items()}
    flat = [worst([each for _, each in visits]) for visits in ladders.values()]
    made_with = procedure(model, residuals.target, options)
    about_head = {"procedure": estimated(made_with), "fitted": chosen.fitted}
    return Calibration(
        sentence=promise.sentence(len(own)),
        control=promise.control,
        miss=promise.miss,
        patients=promise.patients,
        n=len(own),
        signal=chosen.signal,
        origin=chosen.origin,
        doubt=list(chosen.expected.doubt),
        error=list(chosen.expected.error),
        floor=chosen.expected.floor,
        factor=promise.factor(list(own.values())),
        constant=promise.factor(flat),
        head=None if chosen.head is None else chosen.head.save(residuals.folder / HEAD, about_head),
        choice=chosen.widths,
        procedure=made_with,
        cohort=residuals.table.path.name,
        content={row.name: _hashes(row, model) for row in rows},
        fitted=chosen.fitted,
        scores={subject: promise.needs(each) for subject, each in own.items()},
        scanbridge=__version__,
    )


def _promise(control: str, miss: float, patients: float | None, say: Callable[[str], None]) -> Promise:
    if patients is not None and control == "risk":
        say("--patients has no effect with --control risk, which promises a mean over patients")
    patients = Promise.patients if patients is None else patients
    for name, share in {"miss": miss, "patients": patients}.items():
        if not 0 < share < 1:
            raise UserError(f"--{name} {share:g}", "a share between 0 and 1", f"for example --{name} 0.1")
    known: dict[str, Control] = {name: name for name in get_args(Control)}
    if control not in known:
        raise UserError(f"--control {control}", "a way to control misses", nearest(control, known))
    return Promise(known[control], miss, patients)


def _signals(signal: str | None, samples: int, known: Sequence[str]) -> list[str]:
    """Give the signals to try: the one that is named, or all that so many samples have."""
    if signal is not None and signal not in known:
        raise UserError(f"--signal {signal}", "a signal that exists", nearest(signal, known))
    if samples == 1 or (signal in OF_DRAWS and samples < 2):
        raise UserError(f"--samples {samples} has no spread", "two samples at least", "for example --samples 8")
    if signal is not None:
        return [signal]
    return [name for name in known if samples or name not in OF_DRAWS]


def _with_val(names: list[str], n_val: int, *, named: str | None, say: Callable[[str], None]) -> list[str]:
    """Leave the head out where there are not two val subjects, since none would be judged by a head of others."""
    if HEAD not in names or n_val > 1:
        return names
    if named == HEAD:
        raise UserError(
            f"--signal {HEAD}: {n_val} val subject{'' if n_val == 1 else 's'} of the run in the table",
            "two at least, each to be judged by a head that was fitted on others",
            "leave --signal out, or give the run's own table first, with two in split.val",
        )
    if n_val:
        say(f"one val subject: '{HEAD}' is left out, since nobody would be left to judge it by")
    return [name for name in names if name != HEAD]


def _pairs(table: Cohort, model: Model) -> list[Row]:
    """Give the rows that have source and target."""
    task = (model.common.task.source, model.common.task.targets[0])
    model.refuse_table(table, "the run")
    return [row for row in table.rows if all(column in row.images for column in task)]


def _parts(model: Model) -> dict[str, str]:
    """Give what every image that the run knows was for, by SHA-256: one in two parts was touched by the later one."""
    content, found = model.cohort["content"].values(), dict[str, str]()
    for part in ("calibration", "test", "val"):
        people = set(model.cohort["split"][part])
        found |= {digest: part for e in content if e["subject"] in people for digest in e["images"].values()}
    return found | dict.fromkeys(model.trained_on, "train")


def _hashes(row: Row, model: Model) -> dict[str, str]:
    task = model.common.task
    return {column: sha256(row.images[column]) for column in (task.source, task.targets[0])}


def _untouched(table: Cohort, model: Model, parts: Mapping[str, str], split: str) -> list[Row]:
    """Give the rows of the calibration, by content none that the run knows from elsewhere, nobody twice."""
    if split not in PARTS:
        raise UserError(f"--split {split}", "patients for nothing but the calibration", nearest(split, PARTS))
    rows = _pairs(table, model)
    if split == "calibration":
        rows = [row for row in rows if row.subject in model.cohort["split"]["calibration"]]
    if not rows:
        raise UserError(
            f"{table.path}: nobody is in '{split}' of {model.run}",
            "patients set apart for the calibration",
            "train with --set split.calibration=[...], or use --split external for a new cohort",
        )
    owners: dict[str, Row] = {}
    for row in rows:
        for column, digest in _hashes(row, model).items():
            what = f"{row.images[column]} ({row.name})"
            if (part := parts.get(digest, "")) in TOUCHED:
                raise UserError(f"{what} is an image that the run has {TOUCHED[part]}", "patients it has not touched")
            other = owners.setdefault(digest, row)
            if other.subject != row.subject:
                raise UserError(f"{what} is the scan of {other.name} too", "each patient once", "leave one out")
    return rows


@dataclass(frozen=True)
class _Chosen:
    """A signal, its map to expected |error|, where that comes from, and mean widths by signal on the val patients.

    `fitted` is the SHA-256 of their images by row. `head` is there where it is the signal: fitted on all of them, of
    whom it judged none for the choice.
    """

    signal: str
    expected: Monotone
    origin: str
    widths: dict[str, float]
    fitted: dict[str, dict[str, str]]
    head: Head | None = None


def _known_choice(model: Model, names: Sequence[str], samples: int) -> _Chosen | None:
    """Give what val patients chose for the calibration that the run has: no calibration patient had a part in that."""
    try:
        held = None if model.run is None else Calibration.of_run(model.run)
        if held is None or not held.fitted or held.signal not in names or held.samples not in (0, samples):
            return None
        if held.of_estimate != estimated(procedure(model, model.common.task.targets[0], Options())):
            return None
        head = head_for(model, held)
    except UserError:  # it is damaged, and about to be replaced
        return None
    return _Chosen(held.signal, held.expected, held.origin, held.choice, held.fitted, head)


def _choose(
    residuals: Residuals,
    val: Sequence[Row],
    names: Sequence[str],
    promise: Promise,
    samples: int,
    say: Callable[[str], None],
) -> _Chosen:
    """Let the val patients choose the signal of the narrowest intervals."""
    if not val:
        name = names[0]
        say(f"no val subjects of the run in {residuals.table.path.name}: nothing is chosen, the map is '{name}' itself")
        return _Chosen(name, Monotone((), (), _floor(residuals)), "the identity, for want of val subjects", {}, {})
    learned, flat = learn_signals(residuals, val, names, promise, samples)
    widths = {name: each.width for name, each in learned.items()}
    best = min(widths, key=lambda name: widths[name])
    say("mean width on the val subjects: " + ", ".join(f"{n} {w:.4g}" for n, w in {**widths, CONSTANT: flat}.items()))
    if flat <= widths[best]:
        say("no signal is narrower than one width for all voxels; a signal says beyond that where to look")
    n = len({row.subject for row in val})
    origin = f"a rising map fitted on {n} val subject{'' if n == 1 else 's'}"
    fitted = {row.name: _hashes(row, residuals.model) for row in val}
    return _Chosen(best, learned[best].expected, origin, {**widths, CONSTANT: flat}, fitted, learned[best].head)


@dataclass(frozen=True)
class Learned:
    """What the val patients know of a signal.

    Parameters
    ----------
    expected
        Its map to the expected |error|.
    width
        Mean width, in the target's unit, of the intervals that would have served just them.
    head
        What makes the signal, where that is learned: fitted on all of them, while each was judged by one of others.
    """

    expected: Monotone
    width: float
    head: Head | None = None


def learn_signals(
    residuals: Residuals, val: Sequence[Row], names: Sequence[str], promise: Promise, samples: int = 0
) -> tuple[dict[str, Learned], float]:
    """Give what the val patients know of the signals that they have, by name, and the width that needs no signal.

    Parameters
    ----------
    residuals, val
        What translates, and whom; two patients at least where the head is among `names`.
    names, promise, samples
        The signals, what is to be promised, and the draws that signals of draws are made of.
    """
    options = Options(samples=samples, interval=False)
    judges, head = _heads(residuals, val, options) if HEAD in names else ({}, None)
    held = residuals.samples(val, names, options, judges)
    learned: dict[str, Learned] = {}
    for name, people in held.items():
        doubts, errors = zip(*people, strict=True)
        expected = fit_monotone(doubts, errors, floor=_floor(residuals))
        halves = [expected(doubt) for doubt in doubts]
        factor = promise.plain_factor([ladder(error, half) for error, half in zip(errors, halves, strict=True)])
        width = 2 * factor * float(np.mean([half.mean(dtype=np.float64) for half in halves]))
        learned[name] = Learned(expected, width, head if name == HEAD else None)
    flat = promise.plain_factor([ladder(error, 1.0) for _, error in next(iter(held.values()))])
    return learned, 2 * flat


def _floor(residuals: Residuals) -> float:
    return FLOOR * residuals.model.scales[residuals.target].range


def _heads(residuals: Residuals, val: Sequence[Row], options: Options) -> tuple[dict[str, Head], Head]:
    """Fit the heads that judge the val patients, each without those whom it judges, and the one of all."""

    def told(share: float) -> None:
        residuals.went_on(share, "fitting the head")

    lessons = residuals.lessons(val, options)
    return cross_fit(lessons, device=residuals.model.device, told=told)
