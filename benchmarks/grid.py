"""What does the model grid cost? The truth itself taken to the model grid and home again, with no model between.

python benchmarks/grid.py --cohort COHORT.csv --image t1w --source flair --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import machine
from scanbridge.data.cohort import read_cohort
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import model_grid, resample
from scanbridge.data.intensity import scale_of
from scanbridge.data.nifti import read
from scanbridge.files import write_text
from scanbridge.metrics.image import psnr


def main() -> None:
    """Measure and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--source", default="flair")
    options.add_argument("--image", default="t1w")
    options.add_argument("--spacing", type=float, default=2.0)
    options.add_argument("--out", type=Path, required=True)
    asked = options.parse_args()
    cohort = read_cohort(asked.cohort)
    lines = [
        f"# The model grid's own ceiling: {asked.image} at {asked.spacing:g} mm and home again",
        "",
        f"PSNR in dB, foreground of {asked.source}; machine: {json.dumps(machine())}",
        "",
        "| person | home by linear | home by cubic |",
        "| --- | --- | --- |",
    ]
    for row in cohort.rows:
        source, truth = read(row.images[asked.source]), read(row.images[asked.image])
        body = foreground(source.data, cohort.images[asked.source].kind)
        body = resample(body.astype("float32"), source.grid, truth.grid, order=0)[0] > 0
        scale = scale_of(cohort.images[asked.image], truth.data, body)
        grid = model_grid(truth.grid, spacing=(asked.spacing,) * 3, orientation="SPL")
        small = scale.encode(resample(truth.data, truth.grid, grid, fill=scale.low)[0])
        wanted = scale.encode(truth.data)
        home = [resample(small, grid, truth.grid, order=order, fill=-1.0)[0] for order in (1, 3)]
        values = [psnr(image / 2, wanted / 2, body, data_range=1.0) for image in home]
        lines.append(f"| {row.name} | {values[0]:.2f} | {values[1]:.2f} |")
    write_text(asked.out / "grid.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
