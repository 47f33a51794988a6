"""The draws of a scan and their scores, and the tables that are made of them.

Group g of five holds the draws whose score, brought to [0, 1] over the draws of their scan, lies in its g-th fifth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanbridge.metrics.uncertainty import Ranking, RiskCoverage, spearman

METRICS = ("psnr", "ssim_3d", "mae")
HIGHER = ("psnr", "ssim_3d")
GROUPS = 5
TRIVIAL = ("gradient", "constant")
"""Maps that know nothing of the run: of the source, and of nothing."""
CHOICES = ("any draw, on average", "the draw with the best score", "the best draw, by the truth", "the estimate")


@dataclass(frozen=True)
class Sampled:
    """The draws of one scan.

    Parameters
    ----------
    row, subject, unit
        The cohort's row and patient, and the unit of the metrics.
    scores, normalised
        By draw the consistency score, 0 or less, higher is better, and the same from 0 to 1 over the scan's draws; NaN
        where all are equal.
    qualities, estimate
        `METRICS` of each draw, and of the run's estimate.
    maps
        How maps rank the errors of the estimate.
    """

    row: str
    subject: str
    unit: str
    scores: list[float]
    normalised: list[float]
    qualities: list[dict[str, float]]
    estimate: dict[str, float]
    maps: list[Ranking]

    @property
    def groups(self) -> list[int | None]:
        """By draw the group of its normalised score, 1 to 5: five equal parts of [0, 1]."""
        return [None if np.isnan(u) else min(int(u * GROUPS), GROUPS - 1) + 1 for u in self.normalised]

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values; what is not a number is None."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Sampled:
        """Read what `to_json` gave.

        Raises
        ------
        AttributeError, KeyError, TypeError
            If it is something else.
        """
        maps = []
        for each in tree["maps"]:
            points = {name: np.array(each["curve"][name]) for name in ("coverage", "risk")}
            maps.append(Ranking(each["name"], each["spearman"], RiskCoverage(**{**each["curve"], **points})))
        measured = {
            "normalised": [_number(u) for u in tree["normalised"]],
            "qualities": [{name: _number(value) for name, value in each.items()} for each in tree["qualities"]],
            "estimate": {name: _number(value) for name, value in tree["estimate"].items()},
        }
        return cls(**{**tree, **measured, "maps": maps})

    def values(self, metric: str) -> NDArray[np.float64]:
        """Give one metric of all draws."""
        return np.array([each[metric] for each in self.qualities], dtype=np.float64)


def draws_frame(found: Sequence[Sampled]) -> pd.DataFrame:
    """Give ``draws.csv``: a line for every draw."""
    return pd.DataFrame(
        {"subject": scan.subject, "row": scan.row, "draw": index + 1, "score": scan.scores[index]}
        | {"normalised": scan.normalised[index], "group": scan.groups[index], **scan.qualities[index]}
        for scan in found
        for index in range(len(scan.scores))
    ).astype({"group": "Int64"})


def metrics_frame(found: Sequence[Sampled], run: str, target: str) -> pd.DataFrame:
    """Give ``metrics.csv``: run, subject, target, region, metric, unit, value; a region is what the number is of."""
    lines = [
        {"run": run, "subject": scan.subject, "target": target, "region": region, "metric": metric, "unit": unit}
        | {"value": value}
        for scan in found
        for region, metric, unit, value in _numbers(scan)
    ]
    return pd.DataFrame(lines)


def _numbers(scan: Sampled) -> Iterator[tuple[str, str, str, float | None]]:
    """Give (of what, metric, unit, value) of one scan."""
    groups, scores = np.array([each or 0 for each in scan.groups]), np.array(scan.scores)
    for metric in METRICS:
        unit, values = {"psnr": "dB", "mae": scan.unit}.get(metric, "1"), scan.values(metric)
        best = int(values.argmax() if metric in HIGHER else values.argmin())
        chosen = (values.mean(), values[int(scores.argmax())], values[best], scan.estimate[metric])
        for name, value in zip(CHOICES, chosen, strict=True):
            yield name, metric, unit, float(value)
        yield "choosing by the score", f"{metric}_gain", unit, float(chosen[1] - chosen[0])
        yield "choosing by the truth", f"{metric}_gain", unit, float(chosen[2] - chosen[0])
        yield "score over the draws", f"spearman_{metric}", "1", spearman(values, scores, np.ones(len(values), bool))
        for group in range(1, GROUPS + 1):
            if (held := groups == group).any():
                yield f"group {group}", metric, unit, float(values[held].mean())
                yield f"group {group}", f"{metric}_from_own_mean", unit, float(values[held].mean() - values.mean())
    for rank in scan.maps:
        yield f"map {rank.name}", "spearman", "1", rank.spearman
        yield f"map {rank.name}", "aurc", scan.unit, rank.curve.area
        yield f"map {rank.name}", "e_aurc", scan.unit, rank.curve.excess
        for trivial in (each for each in scan.maps if each.name in TRIVIAL):
            beyond = rank.curve.area - trivial.curve.area
            yield f"map {rank.name}", f"aurc_from_{trivial.name}", scan.unit, beyond


def _plain(value: Any) -> Any:
    """Give a tree of JSON values."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
