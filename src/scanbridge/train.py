"""The verb ``train``: from a configuration and a cohort to a run folder, resumable with the same command."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self, overload

import numpy as np
import torch
from lightning_fabric import Fabric

from scanbridge.bridge.sample import DEFAULT_RESIDUAL_SCALE
from scanbridge.ceiling import note_ceiling
from scanbridge.data.cache import Case
from scanbridge.data.cohort import Row
from scanbridge.data.intensity import amplified, gain_to, median_of
from scanbridge.errors import UserError
from scanbridge.files import read_json, sha256, write_json, write_text
from scanbridge.fit import Progress, forecast, train_stage
from scanbridge.likeness import FILE as LIKENESS
from scanbridge.likeness import Likeness
from scanbridge.methods.base import Fitted, Request, Stage, TrainingCase
from scanbridge.metrics.floors import fit_floors
from scanbridge.model import Model, device_of
from scanbridge.nets.precision import precision_of
from scanbridge.plan import Plan, prepare_rows, resolved
from scanbridge.runs.checkpoint import Generations, environment
from scanbridge.runs.config import Train
from scanbridge.runs.lock import locked
from scanbridge.runs.pictures import save_strip
from scanbridge.stages import borrowed, learned_from, open_stage, take_over

Content = dict[str, dict[str, Any]]
"""By row: ``subject``, and ``images``, SHA-256 by column."""


def train_run(
    plan: Plan,
    run: Path,
    *,
    device: str = "auto",
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    on_progress: Callable[[Progress], None] = lambda progress: None,  # noqa: ARG005
) -> int:
    """Train all stages of a run in its folder; give 0, or 128 + n if signal n asked to leave (all is saved then).

    Raises
    ------
    UserError
        If the folder holds another run, if another process works in it, or if training does not converge.
    """
    fabric = _fabric(plan.common.train, device)
    if fabric.is_global_zero:
        with locked(run):
            return _train(plan, run, fabric, cache or run / "cache", say, on_progress)
    return _train(plan, run, fabric, cache or run / "cache", lambda text: None, on_progress)  # noqa: ARG005


def _train(
    plan: Plan,
    run: Path,
    fabric: Fabric,
    cache: Path,
    say: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> int:
    settings, targets = plan.common.train, tuple(plan.common.task.targets)
    if settings.batch_size % fabric.world_size:
        raise UserError(
            f"train.batch_size = {settings.batch_size} on {fabric.world_size} processes",
            "a multiple of their number",
            "change train.batch_size or the number of processes",
        )
    stages = plan.method.stages(plan.config, targets)
    waiting = [stage for stage in stages if not (run / "stages" / stage.name / "weights.json").is_file()]
    given = borrowed(stages) if any(stage.weights for stage in waiting) else {}
    content = _content(plan)
    _refuse_leak(plan, content, [stage for stage in waiting if stage.weights])
    cases = prepare_rows(plan, plan.rows("train"), cache)
    median = _source_median(plan, cases)
    val = prepare_rows(plan, plan.rows("val"), cache) if settings.keep == "best" else []
    if median is not None:
        cases, val = ([_brought(case, median) for case in some] for some in (cases, val))
    people = _Tensors(cases)
    at_first = stages[0].fit(people, Fitted())  # before anything is written: it may refuse these people
    if fabric.is_global_zero:
        _describe(plan, run, content, cases, median)
        for stage in waiting:
            if stage.weights is not None:
                take_over(stage, run, given[stage.name], _origin(plan, run))
                say(f"{stage.name}: weights of {stage.weights}")
    fabric.barrier()
    before, hashes = Fitted(), dict[str, str]()
    with _Stop() as stop:
        for stage in stages:
            folder = run / "stages" / stage.name
            if not (folder / "weights.json").is_file():
                own = _own_settings(stage, settings)
                statistics = at_first if stage is stages[0] else stage.fit(people, before)
                folder.mkdir(parents=True, exist_ok=True)
                done = Generations(folder).images
                say(forecast(stage, own, cases, targets, fabric, before, statistics, done))
                picture = partial(_picture, plan, cases[0], folder, fabric.device)
                finished = train_stage(
                    stage,
                    own,
                    cases,
                    targets,
                    folder,
                    fabric,
                    before=before,
                    statistics=statistics,
                    facts={**_origin(plan, run), "stage": stage.name, "before": dict(hashes)},
                    val=val,
                    on_progress=on_progress,
                    stop=stop,
                    picture=picture if stage is stages[-1] else _no_picture,
                )
                if not finished:
                    return 128 + (stop.signal or signal.SIGTERM)  # another process was asked to leave
                if after := read_json(folder / "weights.json").get("kept_after"):
                    say(f"{stage.name}: the weights after {after:,} images are kept, the best on the val subjects")
            if stage is not stages[-1]:
                made, told = open_stage(stage, run, fabric.device)
                before, hashes = before | made, {**hashes, stage.name: told["sha256"]}
    if fabric.is_global_zero and not (run / "done").is_file():
        _finish(plan, run, cache, cases, fabric.device)
        write_text(run / "done", "")
    fabric.barrier()
    return 0


def _origin(plan: Plan, run: Path) -> dict[str, Any]:
    """Give what ties weights to a run: they open with its configuration alone."""
    return {"method": plan.common.method, "config_sha256": sha256(run / "config.toml")}


def _own_settings(stage: Stage, settings: Train) -> Train:
    """Give the settings of a stage: the run's, but for what it sets itself."""
    own = {"images": stage.images, "learning_rate": stage.learning_rate}
    return settings.model_copy(update={name: value for name, value in own.items() if value is not None})


def _content(plan: Plan) -> Content:
    """Give by row whose it is, and the SHA-256 of its images; refuse an image that stands in two parts of the split."""
    columns, part_of = _columns(plan), {name: part for part, people in plan.split.items() for name in people}
    found, first = Content(), dict[str, Row]()
    for row in plan.cohort.rows:
        images = {column: sha256(file) for column, file in row.images.items() if column in columns}
        for column, digest in images.items():
            other = first.setdefault(digest, row)
            if part_of[other.subject] != part_of[row.subject]:
                raise UserError(
                    f"{row.images[column]} ({row.name}, {part_of[row.subject]}) is an image of {other.name} too, "
                    f"who is in '{part_of[other.subject]}'",
                    "each person in one part of the split",
                    "find out whose scan it is: 'scanbridge check' names all copies",
                )
        found[row.name] = {"subject": row.subject, "images": images}
    return found


def _refuse_leak(plan: Plan, content: Content, stages: Sequence[Stage]) -> None:
    """Refuse weights that were trained on an image of somebody whom this run sets apart."""
    apart = [row for part in ("test", "val", "calibration") for row in plan.rows(part)]
    digests = {digest: row.images[c] for row in apart for c, digest in content[row.name]["images"].items()}
    for stage in stages:
        seen = digests.keys() & learned_from(stage)
        if seen:
            raise UserError(
                f"{stage.weights} was trained on {digests[min(seen)]}, which this run sets apart",
                "weights of a run with the same split",
                f"change [split], or leave {stage.name}.weights out",
            )


def _fabric(settings: Train, device: str) -> Fabric:
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its remarks would break the progress bar
    place = device_of(device)
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=place.type,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=precision_of(settings.precision, place),
    )
    fabric.launch()
    return fabric


class _Stop:
    """Notes SIGTERM and Ctrl-C while it is entered, so that the loop can save and leave between two updates."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = number

    def __call__(self) -> bool:
        return self.signal is not None


def _describe(plan: Plan, run: Path, content: Content, cases: Sequence[Case], median: float | None) -> None:
    """Write what the run is, or hold it against what the folder already says."""
    scales = {
        name: _mean_scale([case.scales[name] for case in cases if name in case.scales])
        for name in (plan.common.task.source, *plan.common.task.targets)
    }
    described = {
        "table": plan.cohort.path.name,
        "images": {name: vars_of(spec) for name, spec in plan.cohort.images.items()},
        "split": {part: list(subjects) for part, subjects in plan.split.items()},
        "content": content,
        "scales": scales,
        "source_median": median,
    }
    text = plan.text
    if (run / "config.toml").is_file():
        before = resolved(run / "config.toml")
        if before != text:
            raise UserError(
                f"{run}/config.toml is another configuration than the one asked for{_first_difference(before, text)}",
                "the command that made the run",
                "repeat that command to resume, or choose another --run",
            )
        before = read_json(run / "cohort.json")
        if before != described:
            raise UserError(
                f"{run}/cohort.json does not fit {plan.cohort.path}: {_first_change(before, described)} has changed",
                "the cohort that the run was started on",
                "choose another --run",
            )
        return
    write_json(run / "cohort.json", described)
    write_json(run / "environment.json", environment())
    write_text(run / "config.toml", text)


def _source_median(plan: Plan, cases: Sequence[Case]) -> float | None:
    """Give the mean of the training sources' medians; None where they stay as they are, or are in a unit."""
    if not plan.common.task.match_median or plan.cohort.images[plan.common.task.source].kind in ("ct", "pet"):
        return None
    return float(np.mean([median_of(case.source, case.foreground) for case in cases]))


def _brought(case: Case, median: float) -> Case:
    """Give a case whose source is brought to a median as it is read."""
    return replace(case, gain=gain_to(median, case.source, case.foreground))


def _columns(plan: Plan) -> set[str]:
    return {plan.common.task.source, *plan.common.task.targets}


def vars_of(spec: Any) -> dict[str, Any]:
    """Give a specification as JSON values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(spec).items()}


def _mean_scale(scales: Sequence[Any]) -> dict[str, Any]:
    return {
        "low": float(np.mean([s.low for s in scales])),
        "high": float(np.mean([s.high for s in scales])),
        "unit": scales[0].unit,
    }


def _first_difference(old: str, text: str) -> str:
    for before, now in zip(old.splitlines(), text.splitlines(), strict=False):
        if before != now:
            return f" ('{before.strip()}' there, '{now.strip()}' now)"
    return ""


def _first_change(old: Any, new: Any, where: str = "the file") -> str:
    """Name the first place where two JSON values differ, as ``content.p2.images.t1w``."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if key not in old or key not in new or old[key] != new[key])
        return _first_change(old.get(key), new.get(key), key if where == "the file" else f"{where}.{key}")
    return where


class _Tensors(Sequence[TrainingCase]):
    """The training cases as a stage fits its statistics on them, one in memory at a time."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases

    def __len__(self) -> int:
        return len(self._cases)

    @overload
    def __getitem__(self, index: int) -> TrainingCase: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TrainingCase]: ...
    def __getitem__(self, index: int | slice) -> TrainingCase | Sequence[TrainingCase]:
        if isinstance(index, slice):
            return _Tensors(self._cases[index])
        case = self._cases[index]
        return TrainingCase(
            torch.from_numpy(amplified(case.source, case.gain)),
            {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in case.targets.items()},
            torch.from_numpy(np.array(case.foreground)),
            case.subject,
        )


def _no_picture(fitted: Fitted, images: int) -> None:
    """Draw nothing: a stage that is not the last translates nothing yet."""


def _picture(plan: Plan, case: Case, folder: Path, device: torch.device, fitted: Fitted, images: int) -> None:
    """Draw the slice with the most foreground: source, what the network makes of it in one call, and the truth."""
    model = Model(
        common=plan.common,
        config=plan.config,
        translator=plan.method.translator(plan.config, fitted),
        fitted=fitted,
        cohort={},
        specs=plan.cohort.images,
        scales={},
        device=device,
    )
    middle = int(np.sum(case.foreground, axis=(1, 2)).argmax())
    thin = slice(max(0, middle - 3), middle + 4)
    at = middle - thin.start
    source, foreground = amplified(case.source[thin], case.gain), np.array(case.foreground[thin])
    request = Request(target=plan.common.task.targets[0], subject="picture", product="one-call")
    estimate = model.draw(source, foreground, request).volumes[0, at].cpu().numpy()
    truth = case.targets.get(request.target)
    strip = [source[at], estimate] + ([] if truth is None else [np.array(truth[middle], np.float32)])
    save_strip(folder / "pictures" / f"{images:08d}.png", strip)


def _finish(plan: Plan, run: Path, cache: Path, cases: Sequence[Case], device: torch.device) -> None:
    """Fit what later verbs need: the floors, what training scans look like, and the residual scale."""
    target = plan.common.task.targets[0]
    pairs = (
        (
            (np.asarray(c.source, np.float32) + 1) / 2,
            (np.asarray(c.targets[target], np.float32) + 1) / 2,
            c.foreground & c.inside[target],
        )
        for c in cases
        if target in c.targets
    )
    write_json(run / "floors.json", fit_floors(pairs).to_json())
    write_json(run / LIKENESS, Likeness.of_cases(cases).model_dump())
    held_out = prepare_rows(plan, plan.rows("val"), cache)
    if not held_out:
        write_json(run / "residual_scale.json", {"value": DEFAULT_RESIDUAL_SCALE, "origin": "default, no val subjects"})
        return
    model = Model.open(run, device=str(device))
    note_ceiling(model, run, held_out, target)
    values = [_residual(model, case, target) for case in held_out if target in case.targets]
    facts = {"value": float(np.mean(values)), "origin": f"{len(values)} val subjects", "per_subject": values}
    write_json(run / "residual_scale.json", facts)


def _residual(model: Model, case: Case, target: str) -> float:
    """RMS of x_0 - D(y, 1) over the foreground, in [-1, 1]."""
    request = Request(target=target, subject="residual", product="one-call")
    estimate = model.draw(np.asarray(case.source, np.float32), case.foreground, request).volumes[0].cpu().numpy()
    error = (np.asarray(case.targets[target], np.float32) - estimate)[case.foreground & case.inside[target]]
    return float(np.sqrt(np.mean(error.astype(np.float64) ** 2)))
