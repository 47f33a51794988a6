"""Before to after contrast: RLBCD on the two women of a cohort, each held out in turn, as pictures.

    python benchmarks/contrast.py --cohort breast/cohort.csv --runs RUNS/contrast [--rows RLBCD] [--dry-run]

One woman to learn from makes no result, only pictures that say what such a model does. What is trained, kept and
written, and how it resumes: held_out.py.
"""

from __future__ import annotations

from held_out import CONFIGS, Study, run
from leave_one_out import people
from scanbridge.trials import Row

CONTRAST = {
    "task.source": "pre",
    "task.targets": ["post1"],
    "grid.spacing": [2.0, 2.0, 2.0],
    "grid.orientation": "RIP",
    "train.augment.flip": [],
}
"""Sagittal slices of one breast."""
ROWS = [
    Row(
        "RLBCD",
        CONFIGS / "rlbcd-small.toml",
        {
            **CONTRAST,
            "autoencoder.kind": "kl",
            "autoencoder.images": 4000,
            "consistency.images": 400,
            "train.images": 3000,
        },
    ),
    Row("regression", CONFIGS / "regression-small.toml", {**CONTRAST, "mirror": [], "train.images": 3000}),
]

STUDY = Study(
    name="contrast",
    title="Before to after contrast, each woman held out in turn",
    rows=ROWS,
    default=tuple(row.name for row in ROWS),
    parts=people,
    settings=lambda person, every: [f'split.test=["{person}"]'],  # noqa: ARG005
    prefix="contrast-",
)

if __name__ == "__main__":
    run(STUDY, __doc__)
