"""The plots and pictures of a downstream task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanbridge.data.grid import model_grid, resample
from scanbridge.data.intensity import Scale
from scanbridge.data.nifti import read
from scanbridge.display import DISPLAY, display_spacing, look
from scanbridge.downstream.learn import ARMS
from scanbridge.downstream.plan import Plan
from scanbridge.downstream.results import FLOOR, Folded, Results, arm_name
from scanbridge.downstream.volumes import Sample
from scanbridge.report.figures import Dots, Series, dot_plot, training_curves
from scanbridge.report.picture import Picture
from scanbridge.report.task_page import Pictured, Shown, side_by_side

MOST_PICTURED = 12


def dots(plan: Plan, results: Results) -> Picture:
    """Draw every subject: the probability of its own class, or its Dice."""
    rows = []
    for arm, lines in results.predictions.groupby("arm", sort=False):
        values = _own(lines) if plan.classes else lines.set_index("subject")["dice"]
        people = pd.to_numeric(values).groupby(level=0).mean().dropna()
        of = (
            next(row for row in results.summary if (row["run"], row["metric"]) == (arm, "dice"))
            if not plan.classes
            else {}
        )
        mean = of.get("mean", float(people.mean()) if len(people) else None)
        rows.append(Dots(str(arm), people.tolist(), mean, of.get("low"), of.get("high"), reference=arm == FLOOR))
    label = "probability of the subject's own class" if plan.classes else "Dice"
    return dot_plot(rows, label=label, alt=f"{label}, a dot for every subject, a row for every input")


def _own(lines: pd.DataFrame) -> pd.Series[float]:
    """Give by subject the probability of the class that is right."""
    values = [line[f"probability_{line['truth']}"] for _, line in lines.iterrows()]
    return pd.Series(values, index=lines["subject"])


def curves(plan: Plan, folded: Sequence[Folded]) -> Picture:
    """Draw the loss of every input as it learned."""
    series = []
    for arm in ARMS:
        losses = np.array([each.losses for each in folded if each.arm == arm])  # (folds, points, 2)
        name = arm_name(arm, seen=bool(plan.seen))
        series.append(Series(name, losses[0, :, 0], losses[:, :, 1].mean(axis=0)))
    return training_curves(series, y_label="loss, mean over folds", log_y=False)


def worst_subjects(plan: Plan, predictions: pd.DataFrame, samples: Sequence[Sample], out: Path) -> list[Pictured]:
    """Draw the slices of the subjects that the arm with synthetic images did worst on."""
    lines = predictions[predictions["arm"] == arm_name("synthetic", seen=bool(plan.seen))].set_index("name")
    score = pd.to_numeric(lines["dice"]) if not plan.classes else _own(lines.reset_index()).set_axis(lines.index)
    by_name = {sample.name: sample for sample in samples}
    names = list(score.sort_values(kind="stable", na_position="last").index)[:MOST_PICTURED]
    return [_pictured(plan, by_name[name], predictions[predictions["name"] == name], out) for name in names]


def _pictured(plan: Plan, sample: Sample, lines: pd.DataFrame, out: Path) -> Pictured:
    turned = model_grid(sample.grid, spacing=display_spacing(sample.grid), orientation=DISPLAY)

    def there(values: NDArray[Any]) -> NDArray[np.float32]:
        return resample(values.astype(np.float32), sample.grid, turned)[0]

    source, target = plan.names
    truth = None if plan.classes else there(np.asarray(sample.truth)) > 0.5
    area = (there(sample.foreground) > 0.5 if truth is None or not truth.any() else truth).sum(axis=(1, 2))
    at = int(np.argmax(area))
    titles = (source, f"synthetic {target}", f"real {target}")
    shown, told = [], []
    for index, (title, arm) in enumerate(zip(titles, ARMS, strict=True)):
        name = arm_name(arm, seen=bool(plan.seen))
        line = lines[lines["arm"] == name].iloc[0]
        found = None if truth is None else there(_kept(out, int(line["fold"]), arm, sample.name))[at] >= 0.5
        column, true = (source, 0) if index == 0 else (target, 2)
        scale, kind = _scale(plan, column), plan.table.images[column].kind
        window = look(title, kind, scale, scale.decode(sample.images[true][sample.foreground]))
        shown.append(Shown(window, scale.decode(there(sample.images[index])[at]), found))
        told.append(f"{name} {_score(plan, line)}")
    one = None if truth is None else truth[at]
    alt = f"{', '.join(titles)} of {sample.name} in one axial slice, the patient's right on the left"
    right = f"is {lines.iloc[0]['truth']}; " if plan.classes else ""
    return Pictured(
        sample.name,
        right + "; ".join(told),
        side_by_side(shown, spacing=(turned.spacing[1], turned.spacing[2]), truth=one, alt=alt),
    )


def _scale(plan: Plan, column: str) -> Scale:
    """Give the scale that an image is shown on: its unit, or for MR the share of its own range."""
    spec = plan.table.images[column]
    fixed = {"ct": Scale(*spec.window, "HU"), "pet": Scale(0.0, spec.ceiling, "SUV")}
    return fixed.get(spec.kind, Scale(0.0, 1.0, "1"))


def _kept(out: Path, fold: int, arm: str, name: str) -> NDArray[np.float32]:
    return read(out / "folds" / f"fold-{fold}" / arm / f"{name}.nii.gz").data


def _score(plan: Plan, line: Mapping[str, Any] | pd.Series[Any]) -> str:
    if plan.classes:
        return f"{line['predicted']} ({line['probability_' + str(line['predicted'])]:.2f})"
    return "no mask" if pd.isna(line["dice"]) else f"Dice {line['dice']:.2f}"
