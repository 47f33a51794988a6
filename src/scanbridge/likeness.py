"""The input warning: what a run noted of its training scans, and whether a new scan is like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, ValidationError, model_validator

from scanbridge import __version__
from scanbridge.data.cache import Case
from scanbridge.errors import UserError
from scanbridge.files import read_json
from scanbridge.metrics.likeness import Reference, describe, describe_parts, fit_reference
from scanbridge.strict import Strict

FILE = "likeness.json"


@dataclass(frozen=True)
class Found:
    """How far a scan is from the training scans of a run, and the distance beyond which that is said.

    `warning` completes a sentence that begins with "scan.nii.gz is"; None within the limit.
    """

    distance: float
    limit: float
    warning: str | None

    def to_json(self) -> dict[str, Any]:
        """Give what the JSON of a translation says of its input."""
        return {f"input_{name}": value for name, value in vars(self).items()}


class Likeness(Strict):
    """What training scans look like: a `scanbridge.metrics.likeness.Reference` as the file in the run folder has it."""

    n: int = Field(gt=0)
    level: float = Field(gt=0, lt=1)
    limit: FiniteFloat = Field(gt=0)
    largest: FiniteFloat | None
    centre: dict[str, FiniteFloat]
    spread: dict[str, FiniteFloat]
    words: dict[str, str]
    scanbridge: str

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        alike = self.centre.keys() == self.spread.keys() == self.words.keys()
        if not (alike and self.centre and min(self.spread.values()) > 0):
            raise ValueError("every feature needs a centre, a spread above 0, and words")
        return self

    @classmethod
    def of_cases(cls, cases: Sequence[Case]) -> Likeness:
        """Learn what the sources of training look like; several visits of one person count as one."""
        people: dict[str, list[Case]] = {}
        for case in cases:
            people.setdefault(case.subject, []).append(case)
        reference = fit_reference(
            [[describe(c.source, c.foreground, c.grid.spacing) for c in visits] for visits in people.values()],
            [[part for c in visits for part in describe_parts(c.source, c.foreground)] for visits in people.values()],
        )
        return cls(**vars(reference), scanbridge=__version__)

    @classmethod
    def of_run(cls, run: Path) -> Likeness | None:
        """Read what a run noted; None for a run that was trained before runs did.

        Raises
        ------
        UserError
            If the file is damaged.
        """
        path = run / FILE
        if not path.is_file():
            return None
        remedy = "restore it, or remove it to go without the input warning"
        held = read_json(path, remedy)
        try:
            return cls.model_validate(held)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
            raise UserError(
                f"{path}: {where} is not what 'train' wrote", "the file as it was written", remedy
            ) from None

    @property
    def scans(self) -> str:
        """The training scans in words."""
        return f"the scans of {self.n} {'person' if self.n == 1 else 'people'} that the run was trained on"

    def of_scan(self, source: NDArray[np.floating], foreground: NDArray[np.bool_], spacing: Sequence[float]) -> Found:
        """Hold a source (D, H, W) in [-1, 1] on the run's model grid, spacing in mm, against the training scans."""
        reference = Reference(**self.model_dump(exclude={"scanbridge"}))
        measured = describe(source, foreground, spacing)
        distance = reference.distance(measured)
        if distance <= self.limit:
            return Found(distance, self.limit, None)
        own = "" if self.largest is None else f", their own largest {self.largest:.1f}"
        return Found(
            distance,
            self.limit,
            f"unlike {self.scans}: distance {distance:.1f}, limit {self.limit:.1f}{own} "
            f"({', '.join(reference.drivers(measured))})",
        )
