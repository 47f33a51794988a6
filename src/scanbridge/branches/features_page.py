"""The page of the verb ``features``: how alike the branches are at every level, and what a few maps look like."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanbridge import __version__
from scanbridge.methods.rlbcd import Config
from scanbridge.metrics.statistics import Interval, mean_interval, side
from scanbridge.nets.dual import Branch
from scanbridge.nets.unet import Way
from scanbridge.report.figures import Dots, dot_plot
from scanbridge.report.picture import Picture
from scanbridge.report.planes import Look
from scanbridge.report.sections import Pictured, Section, SectionsContext, render_sections
from scanbridge.report.tables import Cell, Line, Table, interval, number, patients, remarks
from scanbridge.report.task_page import Shown, side_by_side

METRICS = {"cka": "CKA", "cosine": "Mean cosine", "cka_shuffled": "CKA, shuffled positions"}
LIMITS = (
    "Research use only. Nothing on this page supports a decision about a patient.",
    "CKA (linear centred kernel alignment) asks whether two sets of maps tell the same positions apart, and is blind "
    "to a rotation of their channels. A mean cosine compares channel with channel: it means something only where the "
    "channels of the two branches correspond, which nothing in their training asks for.",
    "Both are of one network: another seed gives others. The intervals are over patients, not over trainings.",
    "The paper's figure 2 is of networks in voxel space, of one image, compared by eye; these are of latents.",
)
GUIDED = (
    "In this run the enhanced branch listens to the residual one. Its maps at a level are taken before the two are "
    "joined there, but hold what was joined at earlier ones: some of the likeness is made by the guidance. A run "
    "trained with guidance.align and guidance.attend = 'none' has none of that."
)

Key = tuple[Branch, Way, int]
Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Planes:
    """What the picture of a scan shows.

    Parameters
    ----------
    source, target
        (rows, columns) in [-1, 1].
    maps
        By branch, way and downsample factor the mean of a map over its channels.
    inside
        By downsample factor, which positions of a map hold foreground.
    spacing
        Of rows and columns of source and target, in mm.
    """

    source: Plane
    target: Plane
    maps: Mapping[Key, Plane]
    inside: Mapping[int, NDArray[np.bool_]]
    spacing: tuple[float, float]


@dataclass(frozen=True)
class Scan:
    """One scan of a patient.

    Parameters
    ----------
    row, subject
        The cohort's row and patient.
    similarity
        By (metric, way, downsample factor): ``cka``, ``cosine``, and ``cka_shuffled`` of positions that do not belong
        together, which is what chance gives.
    planes
        Its picture, where there is one.
    """

    row: str
    subject: str
    similarity: dict[tuple[str, Way, int], float]
    planes: Planes | None


def place_name(way: Way, scale: int) -> str:
    """Name a level of a network: its way and its size.

    >>> place_name("encoder", 2)
    'encoder 1/2'
    """
    return f"{way} 1/{scale}"


def features_page(
    scans: Sequence[Scan],
    frame: pd.DataFrame,
    summary: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    kinds: Mapping[str, str],
    data: Sequence[tuple[str, str]],
    config: Config,
    weights: tuple[str, str],
) -> str:
    """Give the page as HTML.

    Parameters
    ----------
    scans, frame, summary
        What was found: by scan, as lines of ``metrics.csv``, and over patients.
    names, kinds
        Of source and target, and what each image is.
    data
        (name, text) for the head of the page.
    config, weights
        Of the run.
    """
    inverted = [name for name in names if kinds[name] == "pet"]
    guided = config.guidance.align != "none" or config.guidance.attend != "none"
    likeness = Section(
        "How alike are the two branches?",
        (
            "At each level the maps of both branches are held against each other over all positions that hold "
            "foreground, patient by patient. 1 is alike; shuffled positions show what chance gives.",
        ),
        tables=[_table(summary)],
        plots=[_dots(frame, summary, metric) for metric in ("cka", "cosine")],
    )
    pictures = Section(
        "What the maps look like",
        (
            "Mean over the channels, in the slice with most foreground; every map has a window of its own, from the "
            "2nd to the 98th percentile of its foreground. Above the residual branch beside the source, below the "
            "enhanced branch beside the target.",
        ),
        subjects=[
            Pictured(
                each.row, "", [_strip(each.planes, branch, names, inverted) for branch in ("residual", "enhanced")]
            )
            for each in scans
            if each.planes is not None
        ],
    )
    guidance = f"align {config.guidance.align}, attend {config.guidance.attend}, scales {config.guidance.scales}"
    return render_sections(
        SectionsContext(
            verb="features",
            title=f"{names[0]} to {names[1]}: features of the two branches",
            data=data,
            verdict=_verdict(frame),
            sections=[likeness, pictures],
            limits=(*LIMITS, *([GUIDED] if guided else [])),
            settings=[("scanbridge", __version__), ("Guidance", guidance), weights],
        )
    )


def _verdict(frame: pd.DataFrame) -> list[str]:
    """Say whether the encoders are more alike than the decoders, as the paper says they are."""
    cka = frame[frame["metric"] == "cka"]
    people = cka.assign(way=cka["region"].str.partition(" ")[0]).groupby(["subject", "way"])["value"].mean().unstack()
    encoder, decoder = (mean_interval(people[way].to_numpy()) for way in ("encoder", "decoder"))
    found = mean_interval((people["encoder"] - people["decoder"]).to_numpy())
    means = (
        f"Mean CKA of the two branches over all levels: {number(encoder.mean, '1')} on the way down, "
        f"{number(decoder.mean, '1')} on the way up, in {patients(found.n)}."
    )
    return [means, _standing(found)]


def _standing(found: Interval) -> str:
    claim = "The paper finds encoders alike and decoders different"
    if found.mean is None or found.low is None or found.high is None:
        return f"{claim}; with so few patients the difference has no interval."
    spans = (
        f"{number(found.mean, '1', signed=True)}, 95 % interval {interval({**vars(found), 'unit': '1'}, signed=True)}"
    )
    if side(found.n, found.low, found.high) > 0:
        return f"{claim}: so it is here, encoders less decoders are {spans}."
    if side(found.n, found.low, found.high) < 0:
        return f"{claim}: here it is the other way round, encoders less decoders are {spans}."
    return f"{claim}: here the two cannot be told apart, encoders less decoders are {spans}."


def _table(summary: Sequence[Mapping[str, Any]]) -> Table:
    cells = {(row["region"], row["metric"]): row for row in summary}
    places = list(dict.fromkeys(row["region"] for row in summary))
    lines = tuple(
        Line(
            place,
            tuple(
                Cell(number(row["mean"], "1"), interval(row), note=row["note"])
                for metric in METRICS
                if (row := cells[place, metric])
            ),
        )
        for place in places
    )
    notes = (
        "Mean over patients, beneath it the 95 % bootstrap interval (BCa, 10,000 resamples of patients). "
        "CKA: Kornblith et al., Similarity of neural network representations revisited (2019).",
        *remarks(lines),
    )
    return Table(
        f"Likeness of the branches, {patients(summary[0]['n'])}", "Level", tuple(METRICS.values()), lines, notes
    )


def _dots(frame: pd.DataFrame, summary: Sequence[Mapping[str, Any]], metric: str) -> Picture:
    values = frame[frame["metric"] == metric].groupby(["region", "subject"], sort=False)["value"].mean()
    rows = [
        Dots(row["region"], values[row["region"]].tolist(), row["mean"], row["low"], row["high"])
        for row in summary
        if row["metric"] == metric
    ]
    name = METRICS[metric]
    return dot_plot(rows, label=f"{name} of the two branches", alt=f"{name} of every patient at every level")


def _strip(planes: Planes, branch: Branch, names: tuple[str, str], inverted: Collection[str]) -> Picture:
    """Draw a branch's maps beside each other, after the image that belongs to it; PET is shown dark on white."""
    image, name = (planes.source, names[0]) if branch == "residual" else (planes.target, names[1])
    shown = [Shown(Look(name, -1.0, max(float(np.percentile(image, 99.5)), -0.5), inverted=name in inverted), image)]
    for (whose, way, scale), each in planes.maps.items():
        if whose == branch:
            held = each[planes.inside[scale]] if planes.inside[scale].any() else each
            low, high = np.percentile(held, (2, 98))
            shown.append(Shown(Look(place_name(way, scale), float(low), float(max(high, low + 1e-6))), each))
    alt = f"{name}, and the mean maps of the {branch} branch at every level"
    return side_by_side(shown, spacing=planes.spacing, alt=alt)
