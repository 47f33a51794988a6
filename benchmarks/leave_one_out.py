"""Each person of a cohort held out in turn: the bridges, CT2MRI's ablation, the regression and the floors.

    python benchmarks/leave_one_out.py --cohort ms/cohort.csv --runs RUNS/real [--rows ct2mri regression]
        [--parts sub-07] [--seeds 0 1 2] [--set k=v] [--dry-run]

What is trained, kept and written, and how it resumes: held_out.py.
"""

from __future__ import annotations

from pathlib import Path

from held_out import CONFIGS, Study, run
from scanbridge.data.cohort import read_cohort
from scanbridge.trials import Row

CT2MRI, BBDM, REGRESSION = (CONFIGS / f"{name}-small.toml" for name in ("ct2mri", "bbdm", "regression"))
WALK = CONFIGS / "ct2mri-small-walk.toml"
PUBLISHED = {"estimate.grid": "published"}
THIRD = {"train.images": 4000, "bridge.images": 2000}
ROWS = [
    Row("ct2mri", CT2MRI),
    Row("no key", CT2MRI, {"style.use": False}),
    Row("bbdm", BBDM),
    Row("regression", REGRESSION),
    Row("regression, 18,000 windows", REGRESSION, {"train.images": 18000}),
    Row("ct2mri, 4,000 windows", CT2MRI, THIRD),
    Row("ct2mri, 4,000 windows, 1 call", CT2MRI, {**THIRD, "estimate.calls": 1}),
    Row("ct2mri, 4,000 windows, 4 calls", CT2MRI, {**THIRD, "estimate.calls": 4}),
    Row("bbdm, 4,000 windows", BBDM, THIRD),
    Row("regression, 6,000 windows", REGRESSION, {"train.images": 6000}),
    Row("walk", WALK),
    Row("walk, no key", WALK, {"style.use": False}),
    Row("walk, key nearest", WALK, {"style.choice": "nearest"}),
    Row("walk, no co-prediction", WALK, {"coprediction": False}),
    Row("walk, no key, no co-prediction", WALK, {"style.use": False, "coprediction": False}),
    Row("walk, ISTA 4 + 3", WALK, {"correction.corrections": 1}),
    Row("walk, 100 calls", WALK, {**PUBLISHED, "estimate.calls": 100}),
    Row("walk, ISTA 50 + 49", WALK, {**PUBLISHED, "estimate.calls": 50, "correction.corrections": 1}),
]
"""The presets, whole and a third as long, and a regression of as many windows as both stages of the latter; then, with
a bridge that is walked from the source, the paper's Table 2 in form: with and without key, co-prediction and corrector
(calls + moves), and its own two walks ("100 calls", "ISTA 50 + 49").
"""


def people(cohort: Path) -> list[str]:
    """Give the subjects of a cohort."""
    return list(dict.fromkeys(row.subject for row in read_cohort(cohort).rows))


STUDY = Study(
    name="leave_one_out",
    title="Each person held out in turn",
    rows=ROWS,
    default=("ct2mri", "regression"),
    parts=people,
    settings=lambda person, every: [f'split.test=["{person}"]'],  # noqa: ARG005
)

if __name__ == "__main__":
    run(STUDY, __doc__)
