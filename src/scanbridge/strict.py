"""The strict table: every key is known, every value has the stated type."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A table of a configuration or of a cohort file: unknown keys and wrong types are errors; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
