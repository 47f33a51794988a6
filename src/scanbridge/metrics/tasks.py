"""How well a task is done: classes told apart, regions found; with patients as the unit of every interval.

A patient may count more than once or not at all: the numbers of classes take weights, so that a bootstrap over patients
is one call with many rows of weights, and a paired difference is the difference of two such calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from scanbridge.metrics.statistics import FEW, N_RESAMPLES, Interval

Values = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
Statistic = Callable[[Values], Values]
Scored = tuple[Values, Labels, Labels]
"""Probabilities (n, C), class (n,) and fold (n,) of patients."""


def auc(probabilities: Values, truth: Labels, folds: Labels, weights: Values) -> Values:
    """Give the area under the ROC curve: the share of pairs of patients of two classes that are put in the right order.

    A pair counts where one network scored both: scores of the networks of two folds are not on one scale, and pooling
    them pulls the area below one half where there is nothing to learn. With more than two classes it is the mean over
    classes, each against all others.

    Parameters
    ----------
    probabilities
        (n, C): of every class.
    truth, folds
        (n,): the class, and the fold whose network has scored the patient.
    weights
        (..., n): how often each patient counts.

    Returns
    -------
    ndarray
        (...), in [0, 1]; NaN where there is no pair.

    Source: Hanley and McNeil, Radiology 143 (1982); Forman and Scholz, Apples-to-apples in cross-validation studies,
    SIGKDD Explorations 12 (2010).
    """
    classes = range(probabilities.shape[1])
    chosen = classes if len(classes) > 2 else classes[1:]
    areas = [_area(probabilities[:, c], truth == c, folds, weights) for c in chosen]
    return np.asarray(np.mean(areas, axis=0), dtype=np.float64)


def _area(scores: Values, positive: Mask, folds: Labels, weights: Values) -> Values:
    difference = scores[positive][:, None] - scores[~positive]
    same = (folds[positive][:, None] == folds[~positive]).astype(np.float64)
    right = same * (0.5 + 0.5 * np.sign(difference))  # a tie is half right
    of_positive, of_negative = weights[..., positive], weights[..., ~positive]
    pairs = ((of_positive @ same) * of_negative).sum(axis=-1)
    ordered = ((of_positive @ right) * of_negative).sum(axis=-1)
    return np.asarray(np.divide(ordered, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0))


def accuracy(probabilities: Values, truth: Labels, weights: Values) -> Values:
    """Give the share of patients whose most probable class is theirs; `weights` (..., n) as in `auc`."""
    right = probabilities.argmax(axis=1) == truth
    return np.asarray((weights * right).sum(axis=-1) / weights.sum(axis=-1))


def f1(probabilities: Values, truth: Labels, weights: Values) -> Values:
    """Give F1, the mean over classes of 2 TP / (2 TP + FP + FN), counted over all folds together.

    The mean over classes needs nobody to say which class is the positive one. A class that nobody has and nobody is
    given counts 0, as in scikit-learn.
    """
    told = probabilities.argmax(axis=1)
    scores = []
    for c in range(probabilities.shape[1]):
        hit, either = (told == c) & (truth == c), (told == c).astype(np.float64) + (truth == c)
        count = (weights * either).sum(axis=-1)
        twice = 2 * (weights * hit).sum(axis=-1)
        scores.append(np.divide(twice, count, out=np.zeros(np.shape(count)), where=count > 0))
    return np.asarray(np.mean(scores, axis=0))


def dice(found: Mask, truth: Mask) -> float | None:
    """Give 2 |A and B| / (|A| + |B|); None where the truth is empty: then there is nothing to find."""
    if not truth.any():
        return None
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def jaccard(found: Mask, truth: Mask) -> float | None:
    """Give |A and B| / |A or B|; None where the truth is empty."""
    return float((found & truth).sum() / (found | truth).sum()) if truth.any() else None


def resampled(truth: Labels, *, n: int = N_RESAMPLES, seed: int = 0) -> Values:
    """Draw patients with replacement, class by class: (n, patients) counts, so that no resample lacks a class.

    One seed gives every statistic the same patients: differences of arms are paired.

    Source: Robin et al., pROC, BMC Bioinformatics 12 (2011).
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((n, truth.size))
    for c in np.unique(truth):
        members = np.flatnonzero(truth == c)
        weights[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), size=n)
    return weights


def bootstrap(statistic: Statistic, weights: Values) -> Interval:
    """Give a statistic of all patients with its 95 % percentile interval over resampled ones.

    Parameters
    ----------
    statistic
        Of weights (..., patients) to (...).
    weights
        (resamples, patients), as `resampled` draws them.
    """
    n = weights.shape[1]
    value = float(statistic(np.ones(n)))
    drawn = statistic(weights)
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not drawn.size:
        return Interval(n, None, None, None, None, "no value")
    low, high = (float(bound) for bound in np.quantile(drawn, (0.025, 0.975)))
    notes = [f"{n} patients: the interval is too narrow"] if n < FEW else []
    if low == high:
        notes.append("all resamples are alike: the interval says nothing")
    return Interval(n, value, float(drawn.std()), low, high, "; ".join(notes))


CLASSIFY = ("auc", "accuracy", "f1")
SEGMENT = ("dice", "jaccard")


def statistics_of(probabilities: Values, truth: Labels, folds: Labels) -> dict[str, Statistic]:
    """Give the three numbers of a classification by name, as statistics of weights."""
    return {
        "auc": lambda weights: auc(probabilities, truth, folds, weights),
        "accuracy": lambda weights: accuracy(probabilities, truth, weights),
        "f1": lambda weights: f1(probabilities, truth, weights),
    }


def summarise_classes(runs: Mapping[str, Scored], target: str, region: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """Give one row for every run and metric, in the form of `metrics.statistics.summarise`.

    Parameters
    ----------
    runs
        Name to (probabilities (n, C), truth (n,), folds (n,)): the same patients in the same order for all.
    """
    rows = []
    for run, (probabilities, truth, folds) in runs.items():
        weights = resampled(truth, seed=seed)
        for metric, statistic in statistics_of(probabilities, truth, folds).items():
            cell = {"run": run, "target": target, "region": region, "metric": metric, "unit": "1"}
            rows.append({**cell, **vars(bootstrap(statistic, weights))})
    return rows


def compare_classes(
    runs: Mapping[str, Scored],
    pairs: Sequence[tuple[str, str]],
    target: str,
    region: str,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Give the paired difference of every (run, reference), in the form of `metrics.statistics.paired`; without p."""
    rows = []
    for metric, reference in product(CLASSIFY, dict.fromkeys(reference for _, reference in pairs)):
        for run in (run for run, other in pairs if other == reference):
            found = bootstrap(_difference(runs[run], runs[reference], metric), resampled(runs[run][1], seed=seed))
            cell = {"run": run, "reference": reference, "target": target, "region": region, "metric": metric}
            values = {"difference": found.mean, "low": found.low, "high": found.high, "note": found.note}
            rows.append({**cell, "unit": "1", "n": found.n, **values, "p": None, "p_holm": None, "family": 0})
    return rows


def _difference(run: Scored, reference: Scored, metric: str) -> Statistic:
    own, other = statistics_of(*run)[metric], statistics_of(*reference)[metric]
    return lambda weights: own(weights) - other(weights)
