"""The configuration of a run: TOML in, strictly validated, written out resolved.

A file has the tables that all methods share (`Common`), and the tables of its method, which that method's own
``Config`` validates. Every mistake is one line that names the file, the key, and what was expected.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tomlkit
from pydantic import AfterValidator, BaseModel, Field, PositiveInt, ValidationError

from scanbridge.errors import UserError, nearest
from scanbridge.strict import Strict

Tree = dict[str, Any]


Axis = Literal["columns", "rows", "slices"]


Decay = Annotated[float, Field(ge=0, lt=1)]


def _pair_or_none(size: list[int]) -> list[int]:
    if len(size) not in (0, 2):
        raise ValueError("rows and columns, or [] to fit the cohort")
    return size


def _mirrored() -> list[Axis]:
    return ["columns"]


class Task(Strict):
    """What is translated into what: names of image columns."""

    source: str
    targets: list[str] = Field(min_length=1)
    match_median: bool = Field(default=False, description="bring an MR source's median to that of training")


class GridSettings(Strict):
    """The model grid: spacing in mm and orientation, both in array order (slices, rows, columns)."""

    spacing: list[float] = Field(default_factory=lambda: [2.0, 2.0, 2.0], min_length=3, max_length=3)
    orientation: str = Field(default="SPL", pattern="^[RLAPSI]{3}$")
    on: str = "source"


class Split(Strict):
    """Subjects or groups set apart; the rest trains."""

    test: list[str | int] = Field(default_factory=list)
    val: list[str | int] = Field(default_factory=list)
    calibration: list[str | int] = Field(default_factory=list)


class Augment(Strict):
    """Random changes of a training item: spatial for all images together, intensity for the source alone."""

    flip: list[Axis] = Field(default_factory=_mirrored)
    shift: float = Field(default=4.0, ge=0, description="voxels, in plane")
    turned: float = Field(default=0.5, ge=0, le=1, description="share of the items that rotate, tilt and scale")
    rotate: float = Field(default=0.0, ge=0, lt=180, description="degrees, in plane")
    tilt: float = Field(default=0.0, ge=0, lt=90, description="degrees, of the plane")
    scale: float = Field(default=0.0, ge=0, lt=1, description="share of the size")
    contrast: float = Field(default=0.0, ge=0, lt=1, description="log-gamma and gain of the source, share")


class Train(Strict):
    """The training loop; counts are in images: windows of slices."""

    images: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(default=4e-4, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = Field(default=400, ge=0, description="images")
    weight_decay: float = Field(default=0.0, ge=0)
    betas: list[Decay] = Field(default_factory=lambda: [0.9, 0.99], min_length=2, max_length=2)
    clip: float = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1, description="decay per update, after a warm-up")
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    keep: Literal["last", "best"] = Field(
        default="last", description="weights of the end, or of the checkpoint with the lowest loss on the val subjects"
    )
    checkpoint_every: int = Field(default=2000, gt=0)
    log_every: int = Field(default=200, gt=0)
    picture_every: int = Field(default=4000, gt=0)
    size: Annotated[list[PositiveInt], AfterValidator(_pair_or_none)] = Field(
        default_factory=list, description="rows and columns of an item; [] fits the cohort"
    )
    augment: Augment = Augment()


class Common(Strict):
    """The tables that all methods share."""

    method: str
    task: Task
    grid: GridSettings = GridSettings()
    split: Split = Split()
    train: Train


Model = TypeVar("Model", bound=BaseModel)


def read_tree(path: Path, settings: Sequence[str] = ()) -> Tree:
    """Read a TOML file and apply ``--set a.b=c`` settings, without validation."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "a configuration in TOML", "see configs/ for presets") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", "a configuration in TOML") from None
    try:
        tree: Tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error})", "a configuration in TOML") from None
    for setting in settings:
        _assign(tree, setting)
    return tree


def _assign(tree: Tree, setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(f"--set {setting}", "key=value with a dotted key", "for example --set train.images=8000")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *tables, last = (part.strip() for part in key.split("."))
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {setting}: '{table}' is a value", "a table", "check the dotted key")
    tree[last] = value


def split_tree(tree: Tree) -> tuple[Tree, Tree]:
    """Part a tree into the common tables and those of the method."""
    known = set(Common.model_fields)
    return {k: v for k, v in tree.items() if k in known}, {k: v for k, v in tree.items() if k not in known}


def validate(model: type[Model], tree: Mapping[str, Any], where: str, extra: Sequence[str] = ()) -> Model:
    """Validate `tree` as `model`; the first mistake becomes one line naming `where` and the key.

    `extra` are further names to suggest when a top-level key is misspelt.
    """
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        problems = error.errors()
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        if first["type"] == "extra_forbidden":
            names = list(_fields_at(model, first["loc"][:-1])) + (list(extra) if len(first["loc"]) == 1 else [])
            raise UserError(f"{where}: unknown key '{key}'{more}", "", nearest(str(first["loc"][-1]), names)) from None
        if first["type"] == "missing":
            raise UserError(
                f"{where}: '{key}' is missing{more}", "a value", f"add it, or use --set {key}=..."
            ) from None
        got = first.get("input")
        raise UserError(f"{where}: '{key}' is {got!r}{more}", _plain(first["msg"])) from None


def _plain(message: str) -> str:
    for head in ("Input should be ", "Value error, ", "String should "):
        message = message.removeprefix(head)
    return message


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> Sequence[str]:
    """Names of the fields of the table at `path` below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        kinds = [field.annotation, *get_args(field.annotation)] if field is not None else []
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not tables:
            return []
        model = tables[0]
    return list(model.model_fields)


def to_toml(common: BaseModel, method: BaseModel) -> str:
    """Give the resolved configuration as TOML that reads back to the same values."""
    return tomlkit.dumps({**_drop_none(common.model_dump()), **_drop_none(method.model_dump())})


def _drop_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    return value
