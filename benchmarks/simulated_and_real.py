"""Do simulated brains look like MRI? Draw them beside real ones and compare the numbers that a translation depends on.

    python benchmarks/simulated_and_real.py REAL/cohort.csv --out docs/images/simulated-and-real.png

REAL is a cohort of skull-stripped MRI with the columns flair, t1w, t2w, t1w_gd (as in open_ms_data). Everything is
compared at 2 mm, in units of the 0.5 to 99.5 percentiles of the foreground.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

from scanbridge.data import scanner
from scanbridge.data.cohort import read_cohort
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import model_grid, resample
from scanbridge.data.nifti import read

Images = dict[str, NDArray[np.float32]]
CONTRASTS = {"t1w": "T1w", "flair": "FLAIR", "t2w": "T2w", "t1w_gd": "T1w + Gd"}


def real_people(table: Path, n: int) -> list[tuple[str, Images]]:
    people = []
    for row in read_cohort(table).rows[:n]:
        images = {}
        for name in CONTRASTS:
            volume = read(row.images[name])
            grid = model_grid(volume.grid, spacing=(2.0, 2.0, 2.0), orientation="RAS")
            images[name] = resample(volume.data, volume.grid, grid)[0]
        people.append((f"real {row.name}", images))
    return people


def simulated_people(seed: int, n: int) -> list[tuple[str, Images]]:
    people = [scanner.scan_person(seed, i, size=96) for i in range(n)]
    return [(f"simulated, {p.age} {p.sex}", p.images) for p in people]


def scaled(image: NDArray[np.float32], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    low, high = np.percentile(image[where], [0.5, 99.5])
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def numbers(images: Images) -> dict[str, float]:
    """Give the volume, each contrast's high-frequency energy, and what FLAIR's value alone says of T1w (the floor)."""
    where = foreground(images["flair"], "mr")
    unit = {name: scaled(image, where) for name, image in images.items()}
    out = {"litres": float(where.sum()) * 8e-6}
    for name, image in unit.items():
        detail = image - ndimage.gaussian_filter(image, 1.0)
        out[f"high_frequency_{name}"] = float(np.sqrt(np.mean(detail[where] ** 2)))
    white = unit["t1w"] > np.percentile(unit["t1w"][where], 70)
    fluid = where & (unit["t2w"] > np.percentile(unit["t2w"][where], 97)) & (unit["t1w"] < 0.4)
    for name in ("t1w", "flair", "t2w"):
        ratio = np.median(images[name][fluid]) / np.median(images[name][white & where])
        out[f"fluid_over_white_{name}"] = float(ratio)
    source, target = unit["flair"], unit["t1w"]
    bins = np.minimum((source * 128).astype(int), 127)
    count = np.bincount(bins[where], minlength=128)
    curve = np.bincount(bins[where], weights=target[where], minlength=128) / np.maximum(count, 1)
    estimate = np.where(where, curve[bins], 0).astype(np.float32)
    error = np.mean((estimate - target)[where] ** 2)
    out["explained_t1w_by_flair"] = float(1 - error / target[where].var())
    out["floor_psnr"] = float(-10 * np.log10(error))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    out["floor_ssim"] = float(structural_similarity(np.where(where, target, 0), estimate, **settings)[1][where].mean())
    return {name: round(value, 4) for name, value in out.items()}


def planes(image: NDArray[np.float32], where: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
    """Axial through the basal ganglia, coronal, and sagittal beside the midline; superior and left on top and right."""
    box = ndimage.find_objects(where.astype(np.uint8))[0]
    image, n = image[box], where[box].shape
    i, j, k = int(0.58 * n[0]), int(0.50 * n[1]), int(0.53 * n[2])
    return [
        np.rot90(plane)[:, :: (-1 if a < 2 else 1)] for a, plane in enumerate((image[:, :, k], image[:, j], image[i]))
    ]


def draw(people: list[tuple[str, Images]], out: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    half = len(people) // 2
    figure, axes = plt.subplots(len(CONTRASTS) * half, 6, figsize=(13, 2.35 * len(CONTRASTS) * half), facecolor="black")
    for r in range(len(CONTRASTS) * half):
        contrast = list(CONTRASTS)[r // half]
        for side, (who, images) in enumerate((people[r % half], people[half + r % half])):
            where = foreground(images["flair"], "mr")
            low, high = np.percentile(images[contrast][where], [0.5, 99.7])
            for p, plane in enumerate(planes(images[contrast], where)):
                axis = axes[r, 3 * side + p]
                axis.imshow(plane, cmap="gray", vmin=min(low, 0.1 * high), vmax=high, interpolation="nearest")
                axis.set_axis_off()
            axes[r, 3 * side].set_title(f"{CONTRASTS[contrast]}, {who}", color="white", fontsize=9, loc="left")
    figure.tight_layout(pad=0.4)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=75, facecolor="black", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/simulated-and-real.png"))
    parser.add_argument("--people", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    people = real_people(args.real, args.people) + simulated_people(args.seed, args.people)
    for who, images in people:
        print(json.dumps({"who": who, **numbers(images)}))
    draw(people, args.out)


if __name__ == "__main__":
    main()
