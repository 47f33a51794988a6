"""From the predictions of all folds to numbers: arms, their differences, and folds, with patients as the unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanbridge.downstream.plan import Plan
from scanbridge.files import atomic, write_json
from scanbridge.metrics.statistics import paired, summarise
from scanbridge.metrics.tasks import CLASSIFY, SEGMENT, Scored, compare_classes, statistics_of, summarise_classes

FLOOR = "floor:blind"
"""Looks at no image: the commonest class, or all of the foreground."""
ALL = "all folds"
SEEN = "(seen)"
PAIRS = (("synthetic", "source"), ("real", "source"), ("synthetic", "real"))
"""(arm, reference): what synthetic images bring, what real ones would, and how far apart the two are."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Folded:
    """What one arm predicted of the subjects of one fold: lines as they stand in its file, and losses as it learned."""

    arm: str
    fold: int
    rows: Sequence[Mapping[str, Any]]
    losses: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Results:
    """All numbers of a task.

    Parameters
    ----------
    predictions
        One line a scan and arm.
    summary, differences
        In the form of `metrics.statistics.summarise` and `paired`.
    folds
        arm, fold, metric, n, value; None where there is no number.
    """

    predictions: pd.DataFrame
    summary: Rows
    differences: Rows
    folds: Rows


def arm_name(arm: str, *, seen: bool) -> str:
    """Name an arm for a reader; one whose run was trained on its subjects is marked."""
    if arm in ("source", FLOOR):
        return arm
    return f"source + {arm}{f' {SEEN}' if seen and arm == 'synthetic' else ''}"


def results_of(plan: Plan, folded: Sequence[Folded]) -> Results:
    """Compute all numbers.

    Classes: AUC, accuracy and F1, stratified percentile intervals over subjects, visits of a subject averaged. Masks:
    Dice and Jaccard of every scan, BCa intervals over subjects.
    """
    seen = bool(plan.seen)
    names = {arm: arm_name(arm, seen=seen) for arm in dict.fromkeys(each.arm for each in folded)}
    pairs = [(names[arm], names[reference]) for arm, reference in PAIRS]
    predictions = _predictions(plan, folded, names)
    return (_of_classes if plan.classes else _of_masks)(plan, predictions, pairs)


def _predictions(plan: Plan, folded: Sequence[Folded], names: Mapping[str, str]) -> pd.DataFrame:
    lines = []
    for each in folded:
        for row in each.rows:
            line: dict[str, Any] = {"arm": names[each.arm], "fold": each.fold, **row}
            if plan.classes:
                probabilities = line.pop("probabilities")
                line["truth"] = plan.classes[row["truth"]]
                line["predicted"] = plan.classes[int(np.argmax(probabilities))]
                line |= {f"probability_{c}": p for c, p in zip(plan.classes, probabilities, strict=True)}
            lines.append(line)
    return pd.DataFrame(lines)


def _of_classes(plan: Plan, predictions: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> Results:
    runs = {str(arm): _scored(plan, lines) for arm, lines in predictions.groupby("arm", sort=False)}
    folds: Rows = []
    for arm, (probabilities, truth, of) in runs.items():
        for fold in range(plan.settings.folds):
            here = of == fold
            ones = np.ones(int(here.sum()))
            for metric, statistic in statistics_of(probabilities[here], truth[here], of[here]).items():
                folds.append(
                    {"arm": arm, "fold": fold, "metric": metric, "n": ones.size, "value": _number(statistic(ones))}
                )
    return Results(
        predictions,
        summarise_classes(runs, plan.column, ALL, seed=plan.settings.seed),
        compare_classes(runs, pairs, plan.column, ALL, seed=plan.settings.seed),
        folds,
    )


def _scored(plan: Plan, lines: pd.DataFrame) -> Scored:
    """Give probabilities, class and fold of every subject, in one order for all arms; visits are averaged."""
    columns = [f"probability_{name}" for name in plan.classes]
    people = lines.groupby("subject", sort=True)
    truth = [plan.classes.index(name) for name in people["truth"].first()]
    folds = np.asarray(people["fold"].first(), dtype=np.intp)
    return np.asarray(people[columns].mean(), dtype=np.float64), np.asarray(truth, dtype=np.intp), folds


def _number(value: Any) -> float | None:
    """Give a number, None where there is none, as JSON wants it."""
    return float(value) if np.isfinite(value) else None


def _of_masks(plan: Plan, predictions: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> Results:
    frame = predictions.rename(columns={"arm": "run"}).melt(
        id_vars=["run", "subject", "fold"], value_vars=list(SEGMENT), var_name="metric"
    )
    frame = frame.assign(target=plan.column, region=ALL, unit="1", value=pd.to_numeric(frame["value"]))
    people = frame.groupby(["run", "fold", "metric", "subject"], sort=False)["value"].mean().reset_index()
    folds: Rows = [
        {"arm": arm, "fold": fold, "metric": metric, "n": int(values.count()), "value": _number(values.mean())}
        for (arm, fold, metric), values in people.groupby(["run", "fold", "metric"], sort=False)["value"]
    ]
    differences: Rows = []
    for reference in dict.fromkeys(reference for _, reference in pairs):
        held = [arm for arm, other in pairs if other == reference]
        differences += paired(frame, reference, SEGMENT, ALL, runs=held, seed=plan.settings.seed)
    return Results(predictions, summarise(frame, seed=plan.settings.seed), differences, folds)


def write_tables(out: Path, plan: Plan, results: Results) -> None:
    """Write ``predictions.csv``, ``metrics.csv`` and ``summary.json``."""
    kept = ("run", "metric", "n", "mean", "low", "high")
    over_all = pd.DataFrame([{key: row[key] for key in kept} for row in results.summary])
    over_all = over_all.rename(columns={"run": "arm", "mean": "value"}).assign(fold="all")
    metrics = pd.concat([over_all, pd.DataFrame(results.folds)], ignore_index=True)
    columns = ["arm", "fold", "metric", "n", "value", "low", "high"]
    for name, frame in (("predictions", results.predictions), ("metrics", metrics[columns])):
        with atomic(out / f"{name}.csv") as beside:
            frame.to_csv(beside, index=False)
    facts = {
        "task": plan.column,
        "kind": plan.settings.kind,
        "classes": list(plan.classes),
        "subjects": len(plan.fold_of),
        "seen": len(plan.seen),
        "left_out": len(plan.left_out),
        "runs": sorted(set(plan.by.values())),
        "metrics": list(CLASSIFY if plan.classes else SEGMENT),
    }
    write_json(
        out / "summary.json",
        {**facts, "arms": results.summary, "differences": results.differences, "folds": results.folds},
    )
