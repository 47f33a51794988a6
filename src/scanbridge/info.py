"""The verb ``info``: a run in plain words."""

from __future__ import annotations

from pathlib import Path

from scanbridge.calibration import Calibration
from scanbridge.errors import UserError
from scanbridge.files import read_json
from scanbridge.likeness import Likeness
from scanbridge.methods.base import in_words, lengths, load_method
from scanbridge.runs.config import Common, read_tree, split_tree, validate


def describe(run: Path) -> str:
    """Say what a run translates, what it was trained on, on which grid and scale, and how it walks.

    Raises
    ------
    UserError
        If the folder is no run.
    """
    path = run / "config.toml"
    if not path.is_file():
        raise UserError(f"{run} is not a run folder", "a folder made by 'scanbridge train'", "check the path")
    shared, own = split_tree(read_tree(path))
    common = validate(Common, shared, str(path))
    method = load_method(common.method)
    config = validate(method.Config, own, str(path))
    cohort = read_json(run / "cohort.json")
    grid = common.grid
    lines = [
        f"{common.method}: translates {common.task.source} into {', '.join(common.task.targets)}",
        f"state: {'trained' if (run / 'done').is_file() else 'training has not finished'}",
    ]
    for part, subjects in cohort["split"].items():
        if subjects:
            lines.append(
                f"{part}: {len(subjects)} people ({', '.join(map(str, subjects[:8]))}{', ...' * (len(subjects) > 8)})"
            )
    spacing = " x ".join(f"{step:g}" for step in grid.spacing)
    axes = ", ".join(_WORDS[letter] for letter in grid.orientation)
    lines.append(f"model grid: {spacing} mm (slices, rows, columns), axes point to {axes}")
    for name, scale in cohort["scales"].items():
        kind = cohort["images"][name]["kind"]
        unit = f" {scale['unit']}" if scale["unit"] != "1" else ", mean percentiles of the training scans"
        lines.append(f"{name}: {kind}, {scale['low']:.4g} to {scale['high']:.4g}{unit}")
    lines.append(
        f"trained on {in_words(lengths(method.stages(config, common.task.targets), common.train.images))} "
        f"in batches of {common.train.batch_size}, seed {common.train.seed}"
    )
    for product in ("estimate", "draw"):
        walk = getattr(config, product, None)
        if walk is not None:
            calls = f"{walk.calls} network call{'s' * (walk.calls > 1)}"
            lines.append(f"{product}: {walk.walk}, {calls}, grid {walk.grid}, order {walk.order}")
    lines += [*_promised(run), _warned(run)]
    return "\n".join(lines)


def _promised(run: Path) -> list[str]:
    """Say what the uncertainty of a run is worth."""
    calibration = Calibration.of_run(run)
    if calibration is None:
        return ["uncertainty: a ranking, not a promise (not calibrated)"]
    weights = {path.parent.name: read_json(path).get("sha256") for path in sorted(run.glob("stages/*/weights.json"))}
    if calibration.procedure.get("weights") != weights:
        return ["uncertainty: a ranking, not a promise (calibration.json was made with other weights)"]
    return [
        f"uncertainty: calibrated for {calibration.procedure.get('target')}; {calibration.sentence}",
        f"interval: {calibration.made}",
    ]


def _warned(run: Path) -> str:
    """Say from when on a scan counts as unlike those of the training."""
    likeness = Likeness.of_run(run)
    if likeness is None:
        return "input warning: none, the run has not noted what its training scans look like"
    own = "" if likeness.largest is None else f"; their own largest is {likeness.largest:.1f}"
    return f"input warning: beyond a distance of {likeness.limit:.1f} from {likeness.scans}{own}"


_WORDS = {"S": "superior", "I": "inferior", "A": "anterior", "P": "posterior", "L": "left", "R": "right"}
