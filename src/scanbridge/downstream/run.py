"""The verb ``downstream``: the same network taught one task with and without synthetic images, fold by fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from scanbridge import __version__
from scanbridge.calibration import settings_sha256
from scanbridge.data.cohort import Row
from scanbridge.data.grid import resample
from scanbridge.data.nifti import read, write
from scanbridge.downstream.learn import ARMS, Learned, learn, need_monai, predict
from scanbridge.downstream.page import page_of
from scanbridge.downstream.plan import Plan, plan_task
from scanbridge.downstream.results import FLOOR, Folded, results_of, write_tables
from scanbridge.downstream.volumes import Sample, samples_of
from scanbridge.errors import UserError
from scanbridge.files import make_folder, read_json, sha256, write_json, write_text
from scanbridge.metrics.tasks import dice, jaccard

PLAN = "task.json"


def downstream_task(
    cohort: Path,
    runs: Sequence[Path],
    column: str,
    out: Path,
    *,
    kind: str | None = None,
    folds: int = 5,
    dims: int = 3,
    size: int | None = None,
    images: int | None = None,
    seed: int = 0,
    include_seen: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Path:
    """Teach a task from the source, with synthetic, and with real target images; write tables and a page.

    What is finished is kept: the same command goes on, and ends with the same numbers on a CPU.

    Parameters
    ----------
    cohort
        The cohort's table.
    runs
        One run, or folds of one cross-validation: each subject is translated by a run that was not trained on it.
    column
        A covariate that names classes, or a mask.
    out
        Folder for ``predictions.csv``, ``metrics.csv``, ``summary.json``, ``report.html``, ``downstream.md``, and the
        translations and predictions behind them.
    kind
        classify or segment; the column says which.
    folds, seed
        Folds of the task's own cross-validation, by subject, and the seed of everything.
    dims, size, images
        Volumes or slices, voxels a side, and what every network is shown; None is a default for two processor cores.
    include_seen
        Let subjects take part whom every run was trained on; the result is marked.
    cache
        Where scans on the model grid are kept; a folder in `out` if left out.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    UserError
        For whatever does not fit, before anything is taught; or if the folder holds another task.
    """
    need_monai()
    plan = plan_task(
        cohort,
        runs,
        column,
        kind=kind,
        dims=dims,
        size=size,
        images=images,
        folds=folds,
        seed=seed,
        include_seen=include_seen,
        device=device,
    )
    say(plan.summary)
    if plan.left_out:
        say(
            f"{len(plan.left_out)} subjects are left out, whom every run was trained on (--include-seen would take and "
            "mark them)"
        )
    _describe(plan, out)
    of = len(plan.rows) + len(ARMS) * folds
    samples = samples_of(
        plan, out / "translations", cache or out / "cache", lambda done, words: on_progress(done, of, words)
    )
    folded = []
    for fold in range(folds):
        for index, arm in enumerate(ARMS):
            before = len(plan.rows) + len(ARMS) * fold + index
            words = f"fold {fold + 1} of {folds}: {arm}"
            folded.append(_fold(plan, samples, fold, arm, out, lambda share: on_progress(before + share, of, words)))  # noqa: B023
        folded.append(_fold(plan, samples, fold, FLOOR, out))
    results = results_of(plan, folded)
    write_tables(out, plan, results)
    page, text = page_of(plan, results, samples, folded, out)
    write_text(out / "downstream.md", text)
    write_text(out / "report.html", page)
    return out / "report.html"


def _describe(plan: Plan, out: Path) -> None:
    """Write what is asked and who takes part, or hold it against what the folder already says."""
    columns = plan.names
    described = {
        "task": plan.column,
        **asdict(plan.settings),
        "classes": list(plan.classes),
        "include_seen": sorted(plan.seen),
        "left_out": sorted(plan.left_out),
        "runs": {name: {"weights": m.weights, "settings": settings_sha256(m)} for name, m in plan.models.items()},
        "rows": {row.name: _said(plan, row, columns) for row in plan.rows},
        "scanbridge": __version__,
    }
    if (out / PLAN).is_file():
        before = read_json(out / PLAN)
        if before != described:
            known = before if isinstance(before, dict) else {}
            differs = next((key for key in {**described, **known} if known.get(key) != described.get(key)), "task")
            raise UserError(
                f"{out / PLAN} is of another task: '{differs}' differs",
                "the command that the folder was started with",
                "repeat it to go on, or choose another --out",
            )
        return
    make_folder(out)
    write_json(out / PLAN, described)


def _said(plan: Plan, row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """Say of a row all that its numbers depend on."""
    masked = plan.settings.kind == "segment"
    return {
        "subject": row.subject,
        "fold": plan.fold_of[row.subject],
        "run": plan.by[row.name],
        "images": {name: sha256(row.images[name]) for name in columns},
        "truth": sha256(row.masks[plan.column]) if masked else plan.classes[plan.label(row)],
    }


def _fold(
    plan: Plan,
    samples: Sequence[Sample],
    fold: int,
    arm: str,
    out: Path,
    told: Callable[[float], None] = lambda share: None,  # noqa: ARG005
) -> Folded:
    """Give what one arm predicts of one fold's subjects, taught on the others; from its file where it is finished.

    The JSON is written last: where it is, all is.
    """
    path = out / "folds" / f"fold-{fold}" / f"{arm.removeprefix('floor:')}.json"
    if not path.is_file():
        apart = [sample for sample in samples if plan.fold_of[sample.subject] == fold]
        taught = [sample for sample in samples if plan.fold_of[sample.subject] != fold]
        guess, losses = _guesser(plan, taught, fold, arm, told)
        make_folder(path.with_suffix(""))
        rows = [_judged(plan, sample, guess(sample), path.with_suffix("")) for sample in apart]
        write_json(path, {"arm": arm, "fold": fold, "rows": rows, "losses": losses})
    told(1.0)
    made = read_json(path, "remove it; it is made again")
    return Folded(made["arm"], made["fold"], made["rows"], made["losses"])


def _guesser(
    plan: Plan, taught: Sequence[Sample], fold: int, arm: str, told: Callable[[float], None]
) -> tuple[Callable[[Sample], np.ndarray[Any, np.dtype[np.float64]]], Sequence[tuple[int, float]]]:
    """Give what predicts a sample: a network, or the floor, which looks at nothing."""
    segmenting = plan.settings.kind == "segment"
    if arm == FLOOR and segmenting:
        return lambda sample: sample.foreground.astype(np.float64), ()
    if arm == FLOOR:
        labels = [int(np.asarray(sample.truth)) for sample in taught]
        shares = np.bincount(labels, minlength=len(plan.classes)) / len(labels)
        return lambda sample: shares, ()  # noqa: ARG005
    device = plan.first.device
    learned: Learned = learn(taught, arm, plan.settings, fold, len(plan.classes), device, told)
    return lambda sample: predict(learned, sample, plan.settings, device), learned.losses


def _judged(plan: Plan, sample: Sample, guessed: np.ndarray[Any, Any], folder: Path) -> Mapping[str, Any]:
    """Give one line of results; a mask is held against the truth on the truth's own grid, and kept."""
    key = {"name": sample.name, "subject": sample.subject}
    if plan.settings.kind == "classify":
        return {**key, "truth": sample.truth, "probabilities": [float(p) for p in guessed]}
    row = next(row for row in plan.rows if row.name == sample.name)
    mask = read(row.masks[plan.column], mask=True)
    found = resample(guessed.astype(np.float32), sample.grid, mask.grid)[0] >= 0.5
    truth = mask.data > 0
    millilitre = float(np.prod(mask.grid.spacing)) / 1000
    write(folder / f"{sample.name}.nii.gz", guessed.astype(np.float32), sample.grid.affine)
    return {
        **key,
        "dice": dice(found, truth),
        "jaccard": jaccard(found, truth),
        "truth_ml": float(truth.sum()) * millilitre,
        "found_ml": float(found.sum()) * millilitre,
    }
