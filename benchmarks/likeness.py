"""Does the input warning tell a wrong scan from a right one? AUROC and rates of alarm, by kind of shift and people.

    python benchmarks/likeness.py --data DATA --simulated SIM --out benchmarks/results
    python benchmarks/likeness.py --described OUT/likeness.json --out OUT

DATA holds the cohorts ms, stroke, breast and sts, SIM what ``scanbridge simulate brain --subjects 20 --size 64``
writes. Every person is held out in turn; the reference is learned from n of the others (all, or drawn several times),
and the person's own scan, as it is and shifted, is held against it. AUROC is the probability that a shifted scan lies
further out than an unshifted one, both pooled over people and draws; alarms are shares beyond the limit for 5 %, of
unshifted scans false ones. All descriptions are kept in OUT/likeness.json: tables can be made of them again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from machine import machine
from scanbridge.data.cohort import ImageSpec, Kind
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import model_grid, resample
from scanbridge.data.intensity import scale_of
from scanbridge.data.nifti import read
from scanbridge.files import read_json, write_json, write_text
from scanbridge.metrics.likeness import LEVEL, PRIOR_PEOPLE, describe, describe_parts, fit_reference

Array = NDArray[np.float32]
SEED = 0
DRAWS = 10
"""Reference sets of n people for every person held out."""


class Study(NamedTuple):
    """One model's sources: where they lie, what they are, on which grid, and what is given instead of them."""

    name: str
    kind: Kind
    spacing: float
    people: dict[str, Path]
    own_others: dict[str, Callable[[Path], Path]]
    strangers: dict[str, list[Path]]
    n: Sequence[int]


def main() -> None:
    """Describe all scans, or read their descriptions; write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path)
    options.add_argument("--simulated", type=Path)
    options.add_argument("--described", type=Path, help="likeness.json of an earlier invocation")
    options.add_argument("--out", type=Path, required=True)
    asked = options.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.described:
        held = read_json(asked.described)
    elif asked.data and asked.simulated:
        held = {"machine": machine(), "studies": [described(each) for each in studies(asked.data, asked.simulated)]}
        write_json(asked.out / "likeness.json", held)
    else:
        options.error("give --data and --simulated, or --described")
    text = page(held)
    write_text(asked.out / "likeness.md", text)
    print(text)


def studies(data: Path, simulated: Path) -> Iterator[Study]:
    """Give the three models whose inputs are tried."""

    def instead(old: str, new: str) -> Callable[[Path], Path]:
        return lambda path: path.with_name(path.name.replace(old, new))

    def by_person(folder: Path, ending: str) -> dict[str, Path]:
        return {path.parent.name: path for path in sorted(folder.rglob(f"*{ending}.nii.gz"))}

    cts = by_person(data / "sts", "_CT")
    stroke = {name: [data / f"stroke/sub-01/sub-01_{name}.nii.gz"] for name in ("FLAIR", "T1w", "T2w")}
    yield Study(
        name="FLAIR of ms, 2 mm",
        kind="mr",
        spacing=2.0,
        people=by_person(data / "ms", "_FLAIR"),
        own_others={name: instead("_FLAIR", f"_{name}") for name in ("T1w", "T2w", "ce-gd_T1w")},
        strangers={
            **{f"{name} of stroke (another scanner)": paths for name, paths in stroke.items()},
            "MR of the breast": sorted((data / "breast").rglob("*_pre.nii.gz")),
            "CT of sts": list(cts.values())[:6],
        },
        n=(2,),
    )
    yield Study(
        name="simulated FLAIR, 3 mm",
        kind="mr",
        spacing=3.0,
        people=by_person(simulated, "_FLAIR"),
        own_others={name: instead("_FLAIR", f"_{name}") for name in ("T1w", "T2w")},
        strangers={},
        n=(2, 5, 10, 19),
    )
    yield Study(
        name="CT of sts, 4 mm",
        kind="ct",
        spacing=4.0,
        people=cts,
        own_others={"PET (SUV)": instead("_CT", "_PET")},
        strangers={"MR of ms": list(by_person(data / "ms", "_FLAIR").values())},
        n=(2, 5, 10, 33),
    )


def shifts(kind: Kind) -> dict[str, Callable[[Array], Array]]:
    """Give the shifts that are planted; a range is 0.5 to 99.5 percentiles of the foreground, or 2000 HU."""

    def span(data: Array) -> tuple[float, float]:
        if kind == "ct":
            return -1000.0, 2000.0
        low, high = np.percentile(data[foreground(data, kind)], [0.5, 99.5])
        return float(low), float(high - low)

    def noisy(share: float) -> Callable[[Array], Array]:
        def change(data: Array) -> Array:
            body = foreground(data, kind)
            noise = np.random.default_rng(SEED).standard_normal(data.shape, dtype=np.float32) * share * span(data)[1]
            return np.where(body, np.abs(data + noise) if kind == "mr" else data + noise, data)

        return change

    def bent(gamma: float) -> Callable[[Array], Array]:
        def change(data: Array) -> Array:
            low, size = span(data)
            inside = low + size * np.clip((data - low) / size, 0, 1) ** gamma
            return np.where(foreground(data, kind), inside, data).astype(np.float32)

        return change

    made: dict[str, Callable[[Array], Array]] = {
        "noise, sd 5 % of the range": noisy(0.05),
        "noise, sd 10 % of the range": noisy(0.10),
        "gamma 0.7": bent(0.7),
        "gamma 1.4": bent(1.4),
        "blur, sd 1 voxel": lambda data: ndimage.gaussian_filter(data, 1),
    }
    if kind == "ct":
        made["wrong scale: HU + 1024"] = lambda data: data + 1024
    else:
        made["another gain: x 10"] = lambda data: data * 10
    return made


def seen(
    study: Study, path: Path, change: Callable[[Array], Array] | None = None
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Give a scan as the study's model would see it, changed before, and its foreground."""
    volume = read(path)
    data, spec = volume.data if change is None else change(volume.data), ImageSpec(kind=study.kind)
    body = foreground(data, spec.kind)
    scale = scale_of(spec, data, body)
    grid = model_grid(volume.grid, spacing=(study.spacing,) * 3, orientation="SPL")
    values = scale.encode(resample(data, volume.grid, grid, fill=scale.low)[0])
    return values.astype(np.float16), resample(body, volume.grid, grid, order=0)[0] > 0


def described(study: Study) -> dict[str, Any]:
    """Describe every scan of a study as its model would see it."""
    people: dict[str, Any] = {}
    seconds = []

    def of(path: Path, change: Callable[[Array], Array] | None = None) -> dict[str, float]:
        source, body = seen(study, path, change)
        start = time.process_time()
        found = describe(source, body, (study.spacing,) * 3)
        seconds.append(time.process_time() - start)
        return found

    for name, path in study.people.items():
        people[name] = {
            "own": of(path),
            "parts": describe_parts(*seen(study, path)),
            "shifted": {shift: of(path, change) for shift, change in shifts(study.kind).items()}
            | {other: of(find(path)) for other, find in study.own_others.items()},
        }
        print(f"{study.name}: {name}", flush=True)
    return {
        "name": study.name,
        "n": list(study.n),
        "people": people,
        "strangers": {name: [of(path) for path in paths] for name, paths in study.strangers.items()},
        "seconds": float(np.median(seconds)),
    }


def tried(study: dict[str, Any], n: int) -> tuple[dict[str, list[float]], list[float], dict[str, list[str]]]:
    """Give distances over limits by shift ("" is none), the limits, and what drives the alarms by shift."""
    people, random = study["people"], np.random.default_rng(SEED)
    ratios: dict[str, list[float]] = {}
    drivers: dict[str, list[str]] = {}
    limits = []
    for held_out, scan in people.items():
        others = [name for name in people if name != held_out]
        draws = 1 if n >= len(others) else DRAWS
        for _ in range(draws):
            chosen = random.choice(others, size=min(n, len(others)), replace=False)
            reference = fit_reference(
                [[people[name]["own"]] for name in chosen], [people[name]["parts"] for name in chosen]
            )
            limits.append(reference.limit)
            given = {"": [scan["own"]], **{k: [v] for k, v in scan["shifted"].items()}, **study["strangers"]}
            for shift, scans in given.items():
                for each in scans:
                    ratios.setdefault(shift, []).append(reference.distance(each) / reference.limit)
                    drivers.setdefault(shift, []).extend(reference.drivers(each, most=1))
    return ratios, limits, drivers


def auroc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Give the probability that a wrong scan lies further out than a right one."""
    a, b = np.array(right)[:, None], np.array(wrong)[None]
    return float(np.mean((b > a) + 0.5 * (b == a)))


def page(held: dict[str, Any]) -> str:
    """Give the tables."""
    text = ["# Input warning", ""]
    for study in held["studies"]:
        text += [f"## {study['name']}", ""]
        text += [f"{len(study['people'])} people, each held out in turn; {1000 * study['seconds']:.0f} ms a scan.", ""]
        head = " | ".join(f"n = {n}: distance / limit | AUROC | alarms" for n in study["n"])
        text += [f"| given | {head} | by |", "| --- " * (3 * len(study["n"]) + 2) + "|"]
        columns = [tried(study, n) for n in study["n"]]
        for shift in columns[0][0]:
            cells = [shift or "**its own kind**"]
            for ratios, _, _ in columns:
                found = ratios[shift]
                cells += [f"{np.median(found):.2f}"]
                cells += [f"{auroc(ratios[''], found):.2f}" if shift else "", f"{np.mean(np.array(found) > 1):.0%}"]
            by = [name for _, _, drivers in columns for name in drivers[shift]]
            cells.append(max(set(by), key=by.count) if by else "-")
            text.append("| " + " | ".join(cells) + " |")
        limits = ", ".join(
            f"{np.median(limit):.1f} (n = {n})" for n, (_, limit, _) in zip(study["n"], columns, strict=True)
        )
        text += ["", f"Median limit: {limits}.", ""]
    text += [
        f"Distances are medians, as multiples of the limit; 'by' is what drives most alarms. Level {LEVEL:g}, typical "
        f"spread worth {PRIOR_PEOPLE:g} people, seed {SEED}, {DRAWS} draws of n people where there are more than n. "
        "The typical spreads were chosen by looking at these tables.",
        "",
        f"machine: {json.dumps(held['machine'])}",
        "",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
