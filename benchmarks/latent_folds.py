"""CT to PET in five folds: RLBCD, BBDM in the same latents, BBDM in pixels, and a regression, at equal training time.

    python benchmarks/latent_folds.py --cohort sts/cohort.csv --runs RUNS/pet-folds [--rows RLBCD regression]
        [--parts 0 1] [--seeds 0] [--set k=v] [--dry-run]

Fold i is judged, the next one is val, the others train. The images that a row sees are chosen so that all rows take
about the same time on one processor; the autoencoder that two rows share is trained once and counted in both. Two rows
have half as long, since with 20 people to learn from longer is not always better. What is kept and written, and how it
resumes: held_out.py.
"""

from __future__ import annotations

from pathlib import Path

from held_out import CONFIGS, PLACE, Study, run
from scanbridge.data.cohort import read_cohort
from scanbridge.trials import Row

RLBCD, BBDM, REGRESSION = (CONFIGS / f"{name}-small.toml" for name in ("rlbcd", "bbdm", "regression"))
PET = {
    "task.source": "ct",
    "task.targets": ["pet"],
    "task.match_median": False,
    "grid.spacing": [4.0, 4.0, 4.0],
}
FIRST = f"{PLACE}/rlbcd-small-rlbcd/stages"
LATENT = {"autoencoder.images": 4000, "consistency.images": 800}
SHARED = {**LATENT, "autoencoder.weights": f"{FIRST}/autoencoder"}
ALONE = {**SHARED, "branches": "enhanced"}
NOT_TOLD = {"condition": "none", "train.images": 6000}
"""The paper's networks, which know of the source what the state says."""
PIXELS = {**PET, "train.images": 7200, "bridge.images": 3000}
ROWS = [
    Row("RLBCD", RLBCD, {**LATENT, "train.images": 6000}),
    Row("BBDM in its latents", RLBCD, {**ALONE, "train.images": 12000}),
    Row("BBDM in its latents, 6,000", RLBCD, {**ALONE, "train.images": 6000}),
    Row("RLBCD, not told", RLBCD, {**SHARED, "consistency.weights": f"{FIRST}/consistency", **NOT_TOLD}),
    Row("BBDM in its latents, not told", RLBCD, {**ALONE, **NOT_TOLD}),
    Row("BBDM", BBDM, {**PIXELS, "estimate.calls": 1}),
    Row("BBDM, 2 calls", BBDM, {**PIXELS, "estimate.calls": 2}),
    Row("regression", REGRESSION, {**PET, "train.images": 11600}),
    Row("regression, 5,800", REGRESSION, {**PET, "train.images": 5800}),
]
TIME = (
    "about 450 to 500 s of one processor for each row, the autoencoder that two rows share counted in both: equal "
    "time, not equal images; less for the two rows that name their images"
)


def folds(cohort: Path) -> list[str]:
    """Give the folds of a cohort."""
    return sorted({row.group for row in read_cohort(cohort).rows if row.group is not None})


def settings(fold: str, every: list[str]) -> list[str]:
    """Set a fold apart to be judged, and the next one as val."""
    following = every[(every.index(fold) + 1) % len(every)]
    return [f"split.test=[{fold}]", f"split.val=[{following}]"]


STUDY = Study(
    name="latent_folds",
    title="CT to PET, folds held out in turn",
    rows=ROWS,
    default=tuple(row.name for row in ROWS if not row.name.endswith("not told")),
    parts=folds,
    settings=settings,
    facts=[("Time", TIME)],
    pictures=False,
)

if __name__ == "__main__":
    run(STUDY, __doc__)
