"""The verb ``translate``: a scan in; the translated scan on the same grid out, with its uncertainty."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from scanbridge import __version__
from scanbridge.data.intensity import Scale
from scanbridge.data.nifti import read, write
from scanbridge.errors import UserError
from scanbridge.files import make_folder, read_json, sha256, write_json
from scanbridge.model import Model
from scanbridge.runs.config import to_toml
from scanbridge.translation import Options, chosen_target, translate_volume

ENDINGS = (".nii.gz", ".nii")


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
    """Give all that the bytes of a translation depend on."""
    return {
        "source_sha256": content,
        "weights": model.weights,
        "settings_sha256": hashlib.sha256(to_toml(model.common, model.config).encode()).hexdigest(),
        "target": target,
        "options": {k: v for k, v in vars(options).items() if k not in ("target", "style", "foreground")},
        "foreground": options.foreground and sha256(options.foreground),
        "style": options.style and (sha256(Path(options.style)) if Path(options.style).exists() else options.style),
        "residual_scale": model.residual_scale,
    }


def is_done(path: Path, wanted: dict[str, Any], *, overwrite: bool) -> bool:
    """Say whether the translation at ``path`` (its JSON) is there and was made with just these settings.

    Raises
    ------
    UserError
        If it was made otherwise and `overwrite` is off.
    """
    if not path.is_file():
        return False
    made = read_json(path, "use --overwrite to write it anew").get("recipe")
    if made == wanted:
        return True
    if overwrite:
        return False
    differs = next((k for k in wanted if not isinstance(made, dict) or made.get(k) != wanted[k]), "recipe")
    raise UserError(
        f"{path} was made with another '{differs}'",
        "the same weights and settings",
        "use --overwrite, or another --out",
    )


def translate_file(
    model: Model,
    path: Path,
    out: Path,
    options: Options,
    *,
    overwrite: bool = False,
    on_call: Callable[[int, int], None] = lambda call, calls: None,  # noqa: ARG005
) -> bool:
    """Translate one file into the folder `out`; False where it was there already.

    The JSON is written last: where it is, all is.
    """
    target = chosen_target(model, options.target)
    volume = read(path)
    base = out / f"{stem(path)}_{target}"
    about = base.with_name(base.name + ".json")
    wanted = recipe(model, target, volume.sha256, options)
    if is_done(about, wanted, overwrite=overwrite):
        return False
    make_folder(out)
    try:
        made = translate_volume(model, volume, options, on_call)
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.expected, error.remedy) from error
    about.unlink(missing_ok=True)
    for left in out.glob(f"{glob.escape(base.name)}_draw-*.nii.gz"):
        left.unlink()
    for index, draw in enumerate(made.draws, start=1):
        write(base.with_name(f"{base.name}_draw-{index:02d}.nii.gz"), draw, made.affine)
    write(base.with_name(base.name + "_uncertainty.nii.gz"), made.uncertainty, made.affine)
    write(base.with_name(base.name + ".nii.gz"), made.data, made.affine)
    scale: Scale = model.scales[target]
    write_json(
        about,
        {
            "source": path.name,
            "target": target,
            "method": model.common.method,
            "product": "estimate",
            "scale": {"low": scale.low, "high": scale.high, "unit": scale.unit, "origin": _origin(scale)},
            "uncertainty": "standard deviation, a ranking and not a promise: this run is not calibrated",
            "made": made.facts,
            "recipe": wanted,
            "scanbridge": __version__,
            "torch": torch.__version__,
        },
    )
    return True


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
    """Translate files one after another; give how many were made and how many were there already."""
    part, parts = _shard(shard)
    files = list(find_inputs(inputs).values())[part - 1 :: parts]
    model = Model.open(run, device=device)
    say(f"{len(files)} scans, {model.common.task.source} -> {chosen_target(model, options.target)} on {model.device}")
    made = 0
    for index, path in enumerate(files):

        def told(call: int, calls: int, index: int = index, path: Path = path) -> None:
            on_progress(index + call / calls * 0.99, len(files), path.name)

        made += translate_file(model, path, out, options, overwrite=overwrite, on_call=told)
        on_progress(index + 1, len(files), path.name)
    return made, len(files) - made


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {text}", "i/n with 1 <= i <= n", "for example --shard 1/4")
    return int(part), int(parts)
