"""The ceiling of a latent run: what its autoencoder keeps of an image, which no translation can pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.cache import Case
from scanbridge.errors import UserError
from scanbridge.files import read_json, write_json
from scanbridge.metrics.image import psnr, ssim_map
from scanbridge.model import Model

FILE = "reconstruction.json"
METRICS = ("psnr", "ssim_3d")


def ceiling(model: Model, image: NDArray[np.float32], foreground: NDArray[np.bool_]) -> dict[str, float] | None:
    """Give PSNR and 3D SSIM of an image's reconstruction in its foreground; None where a run has no autoencoder.

    Parameters
    ----------
    model
        A run.
    image, foreground
        (D, H, W) on the model grid; the image, source or target, in [-1, 1], whose range is that of the metrics.
    """
    made = model.reconstruct(image, foreground)
    if made is None:
        return None
    found = {"psnr": psnr(made, image, foreground, data_range=2.0)}
    similarity = ssim_map(made, image, data_range=2.0)
    return found if similarity is None else {**found, "ssim_3d": float(similarity[foreground].mean())}


def note_ceiling(model: Model, run: Path, cases: Sequence[Case], target: str) -> None:
    """Write the ceilings of people whom the run was not trained on: by subject, and their means."""
    kept: dict[str, list[dict[str, float]]] = {"source": [], "target": []}
    for case in cases:
        for name, image in (("source", case.source), ("target", case.targets.get(target))):
            found = None if image is None else ceiling(model, np.asarray(image, np.float32), case.foreground)
            if found is not None:
                kept[name].append(found)
    if not any(kept.values()):
        return
    means = {
        name: {metric: float(np.mean([each[metric] for each in people])) for metric in people[0]}
        for name, people in kept.items()
        if people
    }
    write_json(run / FILE, {**means, "origin": f"{len(cases)} val subjects", "per_subject": kept})


def known_ceiling(run: Path) -> list[dict[str, float]]:
    """Read what a run's autoencoder keeps of the targets of its val subjects: PSNR and SSIM of each; none without them.

    Raises
    ------
    UserError
        If the file is not what training wrote.
    """
    path = run / FILE
    if not path.is_file():
        return []
    try:
        people = read_json(path)["per_subject"]["target"]
        found = [{metric: float(each[metric]) for metric in METRICS if metric in each} for each in people]
    except (AttributeError, KeyError, TypeError, ValueError):
        found = [{}]
    if not all(each and all(isfinite(value) for value in each.values()) for each in found):
        raise UserError(f"{path} is not what training wrote", "PSNR and SSIM by subject", "restore or remove it")
    return found
