"""The verb ``translate``: a scan in; the translated scan on the same grid out, with its uncertainty."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scanbridge import __version__
from scanbridge.calibration import calibration_for, settings_sha256
from scanbridge.data.intensity import Scale
from scanbridge.data.nifti import read, write
from scanbridge.errors import UserError
from scanbridge.files import make_folder, read_json, sha256, write_json
from scanbridge.forecast import forecast
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.translation import Translation, chosen_target, translate_volume

ENDINGS = (".nii.gz", ".nii")
ENDS = ("low", "high")
"""The two volumes of an interval."""
QUICK = 1
"""gzip's level for bounds: rounded as they are, level 6 takes four times as long for two fifths less."""


def find_inputs(paths: Sequence[Path]) -> dict[str, Path]:
    """Give the scans to translate by stem, in sorted order; a folder stands for the scans directly in it.

    Raises
    ------
    UserError
        For a path that is no scan, an empty folder, and two scans of one stem.
    """
    found: dict[str, Path] = {}
    for path in _expanded(paths):
        name = stem(path)
        if name in found:
            raise UserError(
                f"{path} and {found[name]} have the same stem", "one name an output", "translate them into two folders"
            )
        found[name] = path
    return dict(sorted(found.items()))


def _expanded(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS) and not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path} holds no scan", "files ending in .nii.gz or .nii", "check the folder")
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: no such file or folder", "a scan in NIfTI", "check the path")


def stem(path: Path) -> str:
    """Give a file's name without .nii.gz or .nii.

    Raises
    ------
    UserError
        If it ends otherwise.
    """
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    raise UserError(f"{path}: not a NIfTI name", "a file ending in .nii.gz or .nii", "convert it, e.g. with dcm2niix")


def recipe(model: Model, target: str, content: str, options: Options) -> dict[str, Any]:
    """Give all that the bytes of a translation depend on, its interval aside."""
    elsewhere = ("target", "style", "foreground", "interval")
    return {
        "source_sha256": content,
        "weights": model.weights,
        "settings_sha256": settings_sha256(model),
        "target": target,
        "options": {k: v for k, v in vars(options).items() if k not in elsewhere},
        "foreground": options.foreground and sha256(options.foreground),
        "style": options.named_style,
        "residual_scale": model.residual_scale,
    }


def is_done(path: Path, wanted: dict[str, Any], *, overwrite: bool | None) -> bool:
    """Say whether the translation at ``path`` (its JSON) is there and was made with just these settings.

    One that lacks nothing but the interval is not done, and is not refused either: its estimate will not change.
    `overwrite` is None where the user has no such choice; where it is on, what cannot be read is not done.

    Raises
    ------
    UserError
        If it was made otherwise and `overwrite` is off.
    """
    if not path.is_file():
        return False
    remedy = "use another --out" if overwrite is None else "use --overwrite, or another --out"
    try:
        held = read_json(path, remedy)
    except UserError:
        if overwrite:
            return False
        raise
    made = held.get("recipe") if isinstance(held, dict) else None
    if made == wanted:
        return True
    if overwrite or made == {k: v for k, v in wanted.items() if k != "calibration"}:
        return False
    known = made if isinstance(made, dict) else {}
    differs = next((k for k in {**wanted, **known} if known.get(k) != wanted.get(k)), "recipe")
    raise UserError(
        f"{path} was made with another '{differs}'",
        "the same weights and settings",
        remedy,
    )


def translate_file(
    model: Model,
    path: Path,
    out: Path,
    options: Options,
    *,
    overwrite: bool | None = None,
    on_call: Callable[[int, int], None] = lambda call, calls: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> bool:
    """Translate one file into the folder `out`; False where it was there already.

    The JSON is written last: where it is, all is. A scan that is unlike those of the training is said. `overwrite` as
    `is_done` takes it.
    """
    target = chosen_target(model, options.target)
    volume = read(path)
    base, about = out / f"{stem(path)}_{target}", _about(out, path, target)
    wanted = recipe(model, target, volume.sha256, options)
    if (calibration := calibration_for(model, target, options)[0]) is not None:
        wanted["calibration"] = calibration.digest
    if is_done(about, wanted, overwrite=overwrite):
        return False
    make_folder(out)

    def keep(number: int, draw: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
        about.unlink(missing_ok=True)  # from here on it would not be true
        write(draw_path(base, number), draw, affine)

    try:
        made = translate_volume(model, volume, options, on_call, keep)
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.expected, error.remedy) from error
    about.unlink(missing_ok=True)
    drawn = {draw_path(base, number) for number in range(options.samples)}
    left = {*out.glob(f"{glob.escape(base.name)}_draw-*.nii.gz"), *(_beside(base, end) for end in ENDS)}
    for old in left - drawn:
        old.unlink(missing_ok=True)
    for end, bound in zip(ENDS, (made.low, made.high), strict=True):
        if bound is not None:
            write(_beside(base, end), bound, made.affine, level=QUICK)
    write(_beside(base, "uncertainty"), made.uncertainty, made.affine)
    write(base.with_name(base.name + ".nii.gz"), made.data, made.affine)
    write_json(about, {"source": path.name, **facts_of(model, target, made), "recipe": wanted})
    if warning := made.facts["input"].get("input_warning"):
        say(f"{path.name} is {warning}")
    return True


def _about(out: Path, path: Path, target: str) -> Path:
    return out / f"{stem(path)}_{target}.json"


def draw_path(base: Path, number: int) -> Path:
    """Give the file of a draw, `number` 0-based, beside the estimate ``base``.nii.gz."""
    return _beside(base, f"draw-{number + 1:02d}")


def _beside(base: Path, end: str) -> Path:
    return base.with_name(f"{base.name}_{end}.nii.gz")


def facts_of(model: Model, target: str, made: Translation) -> dict[str, Any]:
    """Give what the JSON of a translation says of how it was made."""
    scale: Scale = model.scales[target]
    said = made.facts["interval"]
    promised = "low and high are calibrated; by itself this map is a ranking"
    ranking = f"high where the model is unsure; a ranking and not a promise: {said.get('none')}"
    return {
        "target": target,
        "method": model.common.method,
        "product": "estimate",
        "scale": {"low": scale.low, "high": scale.high, "unit": scale.unit, "origin": _origin(scale)},
        "uncertainty": promised if "promise" in said else ranking,
        "interval": said if "promise" in said else None,
        **made.facts["input"],
        "made": {k: v for k, v in made.facts.items() if k not in ("interval", "input")},
        "scanbridge": __version__,
        "torch": torch.__version__,
    }


def _origin(scale: Scale) -> str:
    return "mean percentiles of the training targets" if scale.unit == "1" else "fixed for the cohort"


def translate_all(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    options: Options,
    *,
    device: str = "auto",
    shard: str = "1/1",
    overwrite: bool = False,
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> tuple[int, int]:
    """Translate files one after another; give how many were made and how many were there already.

    What it will take is said before it starts.
    """
    part, parts = _shard(shard)
    every = list(find_inputs(inputs).values())
    if options.foreground is not None and len(every) > 1:
        raise UserError(f"--foreground for {len(every)} scans", "the mask of one scan", "translate them one by one")
    files = every[part - 1 :: parts]
    model = Model.open(run, device=device)
    target = chosen_target(model, options.target)
    say(f"{len(files)} scans, {model.common.task.source} -> {target} on {model.device}")
    calibration, why = calibration_for(model, target, options)
    say(f"with intervals: {calibration.sentence}" if calibration else f"without intervals: {why}")
    waiting = [path for path in files if overwrite or not _about(out, path, target).is_file()]
    for line in forecast(model, waiting, options):
        say(line)
    made = 0
    for index, path in enumerate(files):

        def told(call: int, calls: int, index: int = index, path: Path = path) -> None:
            on_progress(index + call / calls * 0.99, len(files), path.name)

        made += translate_file(model, path, out, options, overwrite=overwrite, on_call=told, say=say)
        on_progress(index + 1, len(files), path.name)
    return made, len(files) - made


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {text}", "i/n with 1 <= i <= n", "for example --shard 1/4")
    return int(part), int(parts)
