"""From one number a patient to what can be said of patients.

The patient is the unit: voxels, slices and visits of one person are no further people. Several rows of a patient are
averaged before anything else. A mean never stands without its interval, nor a p-value without its difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from scanbridge.metrics.image import direction

N_RESAMPLES = 10_000
FAMILY = ("psnr", "ssim_3d", "mae")
"""Named in advance: the metrics whose paired tests pages correct for together."""
FEW = 10
"""Below this many patients an interval is too narrow, and says so."""
LEAST = 6
"""Below this many patients no difference is beyond chance: that all lie on one side has probability 2^(1 - n)."""

Values = npt.NDArray[np.float64]

_KEY = ["run", "target", "region", "metric", "unit"]


@dataclass(frozen=True)
class Interval:
    """A mean over patients with its 95 % interval; `low` and `high` are None for fewer than two patients."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    note: str = ""


def side(n: int, low: float | None, high: float | None) -> int:
    """Say on which side of 0 an interval over n patients lies: 1 above, -1 below, 0 where that may be chance.

    >>> side(12, 0.1, 0.4), side(12, -0.4, -0.1), side(12, -0.1, 0.4), side(3, 0.1, 0.4)
    (1, -1, 0, 0)
    """
    if n < LEAST or low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def mean_interval(values: Sequence[float] | Values, *, seed: int = 0) -> Interval:
    """Give the mean over patients with its 95 % bootstrap interval (BCa, 10,000 resamples).

    Parameters
    ----------
    values
        One number a patient; NaN is a patient without one.
    seed
        Of the resampling. One seed for all gives every cell of a table the same resampled patients.

    Returns
    -------
    Interval
        Without a mean where a value is infinite (PSNR of a volume identical to the truth): the note says how many.

    Notes
    -----
    The bootstrap knows only the patients at hand: with fewer than ten its intervals are too narrow.

    Source: Efron, Better bootstrap confidence intervals, JASA 82 (1987).
    """
    held = np.asarray(values, dtype=np.float64)
    held = held[~np.isnan(held)]
    n = held.size
    infinite = int(np.isinf(held).sum())
    if infinite or not n:
        note = f"infinite in {infinite} of {n}: identical to the truth" if infinite else "no value"
        return Interval(n, None, None, None, None, note)
    mean = float(held.mean())
    if n == 1:
        return Interval(1, mean, None, None, None, "one patient: no interval")
    low, high = _bca(held, seed)
    note = f"{n} patients: the interval is too narrow" if n < FEW else ""
    return Interval(n, mean, float(held.std(ddof=1)), low, high, note)


def summarise(frame: pd.DataFrame, *, seed: int = 0) -> list[dict[str, Any]]:
    """Give one row for every run, target, region and metric: mean over patients with its 95 % interval.

    Parameters
    ----------
    frame
        Columns run, subject, target, region, metric, unit, value: `metrics.csv`. An empty value is NaN or None.
    seed
        Of the bootstrap.

    Returns
    -------
    list of dict
        run, target, region, metric, unit, n, mean, sd, low, high, note; None where there is no number, never NaN or
        infinity, so that it is JSON. In the order in which the runs, regions and metrics first appear.
    """
    rows = []
    for key, values in _by_patient(frame).groupby(_KEY, sort=False)["value"]:
        found = mean_interval(values.to_numpy(dtype=np.float64), seed=seed)
        rows.append({**dict(zip(_KEY, key, strict=True)), **vars(found)})
    return rows


def paired(
    frame: pd.DataFrame,
    reference_run: str,
    metrics: Sequence[str],
    region: str,
    *,
    runs: Sequence[str] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compare runs with a reference on the patients that both have.

    The difference is that of the means a table shows (run minus reference), with a BCa interval over patients; the test
    is the two-sided Wilcoxon signed-rank test, exact where there are no ties or at most 13 patients, and up to 50
    patients. The p-values are adjusted by Holm over all rows given here: runs x metrics x targets are the family, so
    name them before looking.

    Parameters
    ----------
    frame
        Columns run, subject, target, region, metric, unit, value.
    reference_run
        The run that the others are compared with.
    metrics, region
        What the family is about.
    runs
        The runs that are compared. Default: all but the floors, which are no hypothesis and would widen the family.
    seed
        Of the bootstrap.

    Returns
    -------
    list of dict
        run, reference, target, region, metric, unit, n, difference, low, high, p, p_holm, family, note; None where
        there is no number.

    Raises
    ------
    ValueError
        Where the reference is no run of the frame.
    """
    if reference_run not in set(frame["run"]):
        raise ValueError(f"{reference_run!r} is no run of this table")
    named = runs if runs is not None else [run for run in frame["run"].unique() if not run.startswith("floor:")]
    rows = []
    for (target, metric, unit), table in _wide(frame, metrics, region):
        for run in (name for name in table.columns if name in named and name != reference_run):
            if reference_run in table.columns:
                compared = _compare(table[run].to_numpy(), table[reference_run].to_numpy(), seed)
                cell = {"target": target, "region": region, "metric": metric, "unit": unit}
                rows.append({"run": run, "reference": reference_run, **cell, **compared})
    tested = [row for row in rows if row["p"] is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return [{**row, "family": len(tested)} for row in rows]


def leaders(
    frame: pd.DataFrame, metrics: Sequence[str], region: str, *, seed: int = 0
) -> dict[tuple[str, str], str | None]:
    """Name the best run of every target and metric, where it is better than the next beyond chance.

    Returns
    -------
    dict
        (target, metric) to the run whose paired 95 % interval against the next best excludes 0, or None. `LEAST`
        patients at least; runs that no patient shares with the best are not looked at.
    """
    best: dict[tuple[str, str], str | None] = {}
    for (target, metric, _), table in _wide(frame, metrics, region):
        cost = _cost(table, metric).mean().dropna().sort_values(kind="stable")
        if len(cost) < 2:
            best[target, metric] = None
            continue
        first, second = cost.index[:2]
        both = _cost(table, metric)[[first, second]].dropna()
        found = mean_interval((both[first] - both[second]).to_numpy(), seed=seed)
        best[target, metric] = str(first) if side(found.n, found.low, found.high) < 0 else None
    return best


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for all comparisons made (step-down, family-wise).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979).
    """
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def signed_rank(differences: Sequence[float] | Values) -> float | None:
    """Give the two-sided p-value of Wilcoxon's signed-rank test; differences of zero are dropped.

    None for fewer than two patients, 1 where no patient differs.
    """
    held = np.asarray(differences, dtype=np.float64)
    if held.size < 2:
        return None
    moved = held[held != 0]
    return float(stats.wilcoxon(moved, method="auto").pvalue) if moved.size else 1.0


def _compare(values: Values, reference: Values, seed: int) -> dict[str, Any]:
    """Compare two runs, patient by patient."""
    finite = np.isfinite(values) & np.isfinite(reference)
    difference = values[finite] - reference[finite]
    dropped = int((np.isinf(values) | np.isinf(reference)).sum())
    found = mean_interval(difference, seed=seed)
    notes = [found.note, f"{dropped} left out: identical to the truth" if dropped else ""]
    if 2 <= found.n < 6:
        notes.append(f"the smallest possible p is {2 ** (1 - found.n):g}")
    return {
        "n": found.n,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": signed_rank(difference),
        "p_holm": None,
        "note": "; ".join(note for note in notes if note),
    }


def _bca(values: Values, seed: int) -> tuple[float, float]:
    spread = float(np.ptp(values))
    if spread <= 1e-12 * np.abs(values).max():
        return float(values.mean()), float(values.mean())  # nothing to resample: every resample has this mean
    # The interval scales with the data: at a spread near one no skewness underflows, and a power of two rounds nothing.
    exponent = int(np.frexp(spread)[1])
    interval = stats.bootstrap(
        (np.ldexp(values, -exponent),),
        np.mean,
        n_resamples=N_RESAMPLES,
        method="BCa",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(np.ldexp(interval.low, exponent)), float(np.ldexp(interval.high, exponent))


def _by_patient(frame: pd.DataFrame) -> pd.DataFrame:
    """Average the rows of one patient (visits), so that nobody counts twice."""
    numeric = frame.assign(value=pd.to_numeric(frame["value"]).astype(np.float64))
    return numeric.groupby([*_KEY, "subject"], sort=False)["value"].mean().reset_index()


def _wide(
    frame: pd.DataFrame, metrics: Iterable[str], region: str
) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Give, for every target and metric, a table of patients (rows) by runs (columns)."""
    patients = _by_patient(frame[frame["region"] == region])
    for target in dict.fromkeys(patients["target"]):
        for metric in metrics:
            chosen = patients[(patients["target"] == target) & (patients["metric"] == metric)]
            if len(chosen):
                wide = chosen.pivot_table(index="subject", columns="run", values="value", sort=False)
                yield (str(target), metric, str(chosen["unit"].iloc[0])), wide


def _cost(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Turn a metric into one that is better the lower it is."""
    match direction(metric):
        case "one":
            return (table - 1.0).abs()
        case "higher":
            return pd.DataFrame(-table)
        case "lower":
            return table
