"""A run's calibration: what ``calibration.json`` holds, which translations it is for, and the intervals it makes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, ValidationError, model_validator

from scanbridge.errors import UserError, nearest
from scanbridge.files import read_json
from scanbridge.head import Head
from scanbridge.methods.base import Product, load_method
from scanbridge.metrics.conformal import Control, Monotone, Promise
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.runs.config import to_toml
from scanbridge.signals import HEAD, OF_DRAWS, SIGNALS, WINDOWS
from scanbridge.strict import Strict

FILE = "calibration.json"
FOLDER = "calibration"
HEADS = f"{FOLDER}/head"
RESTORE = "calibrate the run again, or remove the file"

STEPS = 2**11
"""Fewest steps of a bound from one end of the scale to the other: a step is far below any width."""

FOREIGN = ("weights", "grid", "scale")
"""Parts of a procedure that a run's own calibration cannot differ in."""


class Calibration(Strict):
    """What makes intervals of a signal, and whom and what they are promised for.

    Parameters
    ----------
    sentence
        The promise, for a reader.
    control, miss, patients, n
        The promise in numbers, and the patients that carry it.
    signal, origin, doubt, error, floor
        The signal, where its map to expected |error| comes from, and the map: knots in the target's unit.
    factor
        An interval is the estimate plus or minus this many expected errors.
    constant
        Half width, in the target's unit, of intervals of one width that keep the same promise: what no signal gives.
    head
        SHA-256 of the weights of the signal `head`, where it is the one.
    choice
        Mean width of the interval on the val patients, by signal; empty without val patients.
    procedure
        All that a translation must share with the calibration.
    cohort, content, fitted
        The table, and by row the SHA-256 of the images: of the calibration's patients, and of those behind the map.
    scores
        The factor that each calibration patient needs.
    scanbridge
        The version that wrote it.
    """

    sentence: str
    control: Control
    miss: float = Field(gt=0, lt=1)
    patients: float = Field(gt=0, lt=1)
    n: int = Field(gt=0)
    signal: str
    origin: str
    doubt: list[FiniteFloat]
    error: list[FiniteFloat]
    floor: FiniteFloat = Field(gt=0)
    factor: FiniteFloat = Field(ge=0)
    constant: FiniteFloat = Field(ge=0)
    head: str | None = None
    choice: dict[str, FiniteFloat]
    procedure: dict[str, Any]
    cohort: str
    content: dict[str, dict[str, str]]
    fitted: dict[str, dict[str, str]]
    scores: dict[str, FiniteFloat]
    scanbridge: str

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        rising = all(all(a <= b for a, b in pairwise(knots)) for knots in (self.doubt, self.error))
        if len(self.doubt) != len(self.error) or not rising:
            raise ValueError("the map must be rising knots")
        if self.sentence != self.promise.sentence(self.n):
            raise ValueError("the sentence must be that of the numbers")
        if (self.signal == HEAD) != (self.head is not None):
            raise ValueError("head must be the hash of its weights, where it is the signal")
        return self

    @classmethod
    def of_run(cls, run: Path) -> Calibration | None:
        """Read the calibration of a run; None where it has none.

        Raises
        ------
        UserError
            If the file is damaged.
        """
        path = run / FILE
        if not path.is_file():
            return None
        held = read_json(path, RESTORE)
        try:
            return cls.model_validate(held)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"{path}: {where} is not what 'calibrate' wrote", "the file as it was written", RESTORE
            ) from None

    @property
    def promise(self) -> Promise:
        """The promise in numbers."""
        return Promise(self.control, self.miss, self.patients)

    @property
    def expected(self) -> Monotone:
        """The map from the signal to expected |error|."""
        return Monotone(tuple(self.doubt), tuple(self.error), self.floor)

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says: what intervals carry as their origin."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def made(self) -> str:
        """How an interval is made, for a reader."""
        return f"estimate +- {self.factor:.4g} x expected error, which is read from '{self.signal}' by {self.origin}"

    @property
    def samples(self) -> int:
        """Draws that a translation needs for its interval; 0 for none."""
        draws = self.procedure.get("draws") if self.signal in OF_DRAWS else None
        return int(draws["samples"]) if draws else 0

    @property
    def of_estimate(self) -> dict[str, Any]:
        """The procedure without what concerns draws alone."""
        return estimated(self.procedure)

    def made_with(self, source: str) -> bool:
        """Say whether the image of this SHA-256 had a part in the calibration: coverage is not judged on it."""
        return any(source in images.values() for images in (*self.content.values(), *self.fitted.values()))

    def differs(self, procedure: dict[str, Any]) -> str | None:
        """Name the first part in which a translation's procedure differs; None where the promise is for it."""
        needed = [part for part in procedure if part != "draws" or self.signal in OF_DRAWS]
        return next((part for part in needed if self.procedure.get(part, ...) != procedure[part]), None)

    def interval(
        self, estimate: NDArray[np.float32], signal: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give low and high of every voxel, in the target's unit: low <= estimate <= high.

        They are rounded outwards to a step that is small beside the scale: half the bytes on disk, and no promise
        suffers. They are not cut at the ends of the target's window, so that they may be resampled like any image.
        """
        half, step = np.float32(self.factor) * self.expected(signal), np.float32(self.step)
        return np.floor((estimate - half) / step) * step, np.ceil((estimate + half) / step) * step

    @property
    def step(self) -> float:
        """What bounds are rounded to, in the target's unit: the power of two below a `STEPS`-th of the scale."""
        scale = self.procedure["scale"]
        return float(2.0 ** math.floor(math.log2((scale["high"] - scale["low"]) / STEPS)))


def calibration_for(model: Model, target: str, options: Options) -> tuple[Calibration | None, str]:
    """Give the calibration that makes this translation's intervals, or None and why there are none.

    Raises
    ------
    UserError
        If the run holds the calibration of another run, or intervals are asked for and cannot be had.
    """
    if options.interval is False:
        return None, "none was asked for"
    held = None if model.run is None else Calibration.of_run(model.run)
    if held is None:
        why, remedy = "this run is not calibrated", "see 'scanbridge calibrate --help'"
    elif options.product != "estimate" or options.on != "source":
        why, remedy = "the promise is about the estimate on the scan's own grid", "leave intervals out"
    else:
        if held.signal not in (known := known_signals(model)):
            raise UserError(f"{model.run}/{FILE}: signal '{held.signal}'", nearest(held.signal, known), RESTORE)
        part = held.differs(procedure(model, target, options))
        if part is None:
            return held, ""
        if part in FOREIGN:
            what = f"{model.run}/calibration.json was made with other {part}"
            raise UserError(what, "the calibration of this very run", RESTORE)
        why, remedy = f"the run was calibrated with {_said(part, held.procedure.get(part))}", "ask for just that"
    if options.interval:
        raise UserError(f"no interval can be promised: {why}", "", remedy)
    return None, why


def known_signals(model: Model) -> tuple[str, ...]:
    """Give the signals that every translation can have, and those that a run's method has alone."""
    name_own = getattr(load_method(model.common.method), "signals", None)
    own: tuple[str, ...] = () if name_own is None else name_own(model.config)
    return (*(name for name in SIGNALS if name != WINDOWS or not own), *own)


def head_for(model: Model, calibration: Calibration | None) -> Head | None:
    """Give the head that a calibration reads; None where it reads another signal.

    Raises
    ------
    UserError
        If it is missing, damaged, or not the one of the calibration.
    """
    if model.run is None or calibration is None or calibration.signal != HEAD:
        return None
    return Head.open(model.run / HEADS, calibration.of_estimate, model.device, sha256=calibration.head)


def estimated(procedure: Mapping[str, Any]) -> dict[str, Any]:
    """Give a procedure without its draws: all that an estimate depends on."""
    return {part: value for part, value in procedure.items() if part != "draws"}


def _said(part: str, value: Any) -> str:
    match part, value:
        case "draws", {"samples": int(samples)}:
            return f"the spread of draws as they are by default, --samples {samples}"
        case "walk", {"calls": int(calls)}:
            return f"another walk ({calls} call{'' if calls == 1 else 's'})"
        case "target" | "style", _:
            return f"another {part} ({value or 'the default'})"
    return f"other {part}"


def procedure(model: Model, target: str, options: Options) -> dict[str, Any]:
    """Give all that must be the same in a calibration and in the translations that its promise is for."""

    def walk(product: Product) -> dict[str, Any]:
        request = options.request(target, "", product, lambda call, calls: None)  # noqa: ARG005
        asked = getattr(getattr(model.config, product, None), "asked", None)
        return {} if asked is None else dict(asked(request).model_dump(mode="json"))

    grid, scale = model.common.grid, model.scales[target]
    return {
        "weights": dict(model.weights),
        "grid": {"spacing": list(grid.spacing), "orientation": grid.orientation},
        "scale": {"low": scale.low, "high": scale.high, "unit": scale.unit},
        "target": target,
        "walk": walk("estimate"),
        "draws": {"samples": options.samples, **walk("draw")} if options.samples > 1 else None,
        "style": options.named_style,
        "settings": settings_sha256(model),
        "residual_scale": model.residual_scale,
    }


def settings_sha256(model: Model) -> str:
    """Give the hash of a model's resolved configuration."""
    return hashlib.sha256(to_toml(model.common, model.config).encode()).hexdigest()
