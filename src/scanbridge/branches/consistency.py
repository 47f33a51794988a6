"""The verb ``consistency``: what the consistency score of a run of two branches says of its errors.

Source: Lv et al., "RLBCD" (fig. 4: ten samples a source, in five groups by normalised score). The paper leaves out
whether the score tells good draws from bad within a patient, and whether its map points at errors: both are here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scanbridge.branches.consistency_page import consistency_page
from scanbridge.branches.opened import about, choose, name_of, open_branches, weights_of
from scanbridge.branches.sampled import METRICS, Sampled, draws_frame, metrics_frame
from scanbridge.data.cohort import Cohort, Row
from scanbridge.data.grid import resample
from scanbridge.data.nifti import Volume, read
from scanbridge.errors import UserError
from scanbridge.files import atomic, make_folder, read_json, sha256, write_json, write_text
from scanbridge.methods.base import Request
from scanbridge.metrics.image import measure
from scanbridge.metrics.statistics import summarise
from scanbridge.metrics.uncertainty import Ranking, gradient_magnitude, risk_coverage, spearman
from scanbridge.model import Model
from scanbridge.nets.fusion import normalise
from scanbridge.options import Options
from scanbridge.translate import recipe
from scanbridge.translation import translate_volume
from scanbridge.truth import Array, On, Truth, in_metric_unit, load_truth

Told = Callable[[float, float, str], None]


def judge_consistency(
    run: Path,
    cohort: Path,
    out: Path,
    *,
    split: str = "test",
    samples: int = 10,
    on: On = "target",
    seed: int = 0,
    device: str = "auto",
    on_progress: Told = lambda done, of, words: None,  # noqa: ARG005
) -> Path:
    """Draw several targets of every scan of a split and hold their scores against their errors; give the page's path.

    Parameters
    ----------
    run
        An RLBCD run with both branches, whose draws have spread.
    cohort, split
        The table, and test, val or calibration as the run chose it, or external.
    out
        Folder for ``draws.csv``, ``metrics.csv``, ``summary.json`` and ``report.html``; what was found of a scan is
        kept in ``scans/`` as it is found, so that the same command goes on.
    samples, seed
        Draws a scan, two at least, and their seed.
    on
        Where metrics are computed: on the target's own grid, or on the run's model grid, which is faster.

    Raises
    ------
    UserError
        For a run, a split or a number of draws that cannot be had, before anything is drawn.
    """
    if samples < 2:
        raise UserError(f"--samples {samples} cannot be ranked", "two draws at least", "for example --samples 10")
    model, pair = open_branches(run, device)
    pair.config.draw.refuse_equal(Request(model.common.task.targets[0], "", "draw", samples=samples))
    table, rows = choose(model, cohort, split)
    for row in rows:
        load_truth(table, row, model, on)  # one without foreground is said before anything is drawn
    found = []
    for index, row in enumerate(rows):

        def told(share: float, index: int = index, name: str = row.name) -> None:
            on_progress(index + share, len(rows), name)

        options = Options(samples=samples, seed=seed, interval=False)
        found.append(_kept(table, row, model, options, on, told, out / "scans" / f"{row.name}.json"))
    on_progress(len(rows), len(rows), "")
    frame = metrics_frame(found, name_of(model), model.common.task.targets[0])
    summary = summarise(frame)
    make_folder(out)
    for name, table_of in (("draws.csv", draws_frame(found)), ("metrics.csv", frame)):
        with atomic(out / name) as beside:
            table_of.to_csv(beside, index=False)
    write_json(out / "summary.json", summary)
    walk = pair.config.draw
    head = [
        *about(model, rows, cohort, split),
        ("Draws", f"{samples} a scan, {walk.calls} calls each on the grid {walk.grid}, seed {seed}"),
        ("Metrics", f"in the foreground of the source, on {'the target' if on == 'target' else 'the model'}'s grid"),
    ]
    names = (model.common.task.source, model.common.task.targets[0])
    write_text(out / "report.html", consistency_page(found, summary, names, head, weights_of(model)))
    return out / "report.html"


def _kept(
    table: Cohort, row: Row, model: Model, options: Options, on: On, told: Callable[[float], None], file: Path
) -> Sampled:
    """Give what was found of one scan, drawn and judged if it was not, or was with anything else."""
    source, target = model.common.task.source, model.common.task.targets[0]
    wanted = {
        **recipe(model, target, sha256(row.images[source]), options),
        "truth_sha256": sha256(row.images[target]),
        "masks": {name: sha256(path) for name, path in row.masks.items()},
        "judged_on": on,
    }
    if file.is_file():
        kept = read_json(file, "remove it")
        if isinstance(kept, dict) and kept.get("recipe") == wanted:
            with suppress(AttributeError, KeyError, TypeError):  # written by nobody that we know: it is made anew
                return Sampled.from_json(kept["found"])
    found = _sampled(table, row, model, options, on, told)
    make_folder(file.parent)
    write_json(file, {"recipe": wanted, "found": found.to_json()})
    return found


def _sampled(table: Cohort, row: Row, model: Model, options: Options, on: On, told: Callable[[float], None]) -> Sampled:
    """Draw and judge one scan."""
    truth = load_truth(table, row, model, on)
    scale, name = model.scales[model.common.task.targets[0]], model.common.task.source
    asked = Options(
        samples=options.samples,
        seed=options.seed,
        interval=False,
        foreground=table.foreground_file(row, name),
        on="source" if on == "target" else "model",
    )
    qualities: list[dict[str, float]] = []
    steps = options.samples + 1

    def on_truth(values: Array, affine: NDArray[np.float64], fill: float) -> Array:
        return resample(values, Volume(values, affine, None, "").grid, truth.grid, fill=fill)[0]

    def judged(number: int, values: Array, affine: NDArray[np.float64]) -> None:
        qualities.append(quality(truth, in_metric_unit(on_truth(values, affine, scale.low), scale)))
        told((number + 2) / steps)

    made = translate_volume(model, read(row.images[name]), asked, on_draw=judged)
    estimate = in_metric_unit(on_truth(made.data, made.affine, scale.low), scale)
    scores = _scores(made.facts["draws"]["consistency"], options.samples)
    maps = {name: on_truth(made.signals[name], made.affine, 0.0) for name in ("consistency", "branches", "spread")}
    return Sampled(
        row=row.name,
        subject=row.subject,
        unit=truth.unit,
        scores=scores,
        normalised=normalise(torch.tensor(scores, dtype=torch.float64)).tolist(),
        qualities=qualities,
        estimate=quality(truth, estimate),
        maps=_rankings(truth, estimate - truth.target, maps),
    )


def quality(truth: Truth, image: Array) -> dict[str, float]:
    """Give PSNR, SSIM and MAE of an image in the unit of the metrics, in the foreground."""
    regions = {"foreground": truth.regions["foreground"]}
    lines = measure(image, truth.target, regions, data_range=truth.data_range, unit=truth.unit, axes={}, slice_axis=0)
    values = {each.metric: float("nan") if each.value is None else each.value for each in lines}
    return {metric: values[metric] for metric in METRICS}


def _scores(told: list[list[float]] | list[float], samples: int) -> list[float]:
    """Give a score for every draw: what a translation says of all draws alike it says once."""
    scores = [each[0] if isinstance(each, list) else each for each in told]
    return scores if len(scores) == samples else scores * samples


def _rankings(truth: Truth, error: Array, maps: dict[str, Array]) -> list[Ranking]:
    """Judge how maps rank the errors of one estimate, beside two that know nothing of the run."""
    body = truth.regions["foreground"]
    trivial = {
        "gradient": gradient_magnitude(truth.source, truth.grid.spacing),
        "constant": np.zeros(error.shape, np.float32),
    }
    return [
        Ranking(name, spearman(error, each, body), risk_coverage(error, each, body))
        for name, each in {**maps, **trivial}.items()
    ]
