"""What does the cache save? CPU time to serve one training window, from the cache and from the NIfTI file.

python benchmarks/cache.py --cohort COHORT.csv --source flair --target t1w --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from machine import machine
from scanbridge.data.cache import prepare
from scanbridge.data.cohort import read_cohort
from scanbridge.data.items import Items
from scanbridge.files import write_json, write_text
from scanbridge.runs.config import Augment


def main() -> None:
    """Measure and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--source", default="flair")
    options.add_argument("--target", default="t1w")
    options.add_argument("--repeats", type=int, default=200)
    options.add_argument("--out", type=Path, required=True)
    asked = options.parse_args()
    cohort = read_cohort(asked.cohort)
    row = cohort.rows[0]
    with tempfile.TemporaryDirectory() as folder:
        case = prepare(
            cohort,
            row,
            source=asked.source,
            targets=[asked.target],
            spacing=(2.0, 2.0, 2.0),
            orientation="SPL",
            on=asked.source,
            folder=Path(folder),
        )
        items = Items([case], radius=1, size=[], targets=[asked.target], augment=Augment(), seed=0)
        depth = case.source.shape[0]
        rng = np.random.default_rng(0)
        files = [row.images[asked.source], row.images[asked.target]]
        rows = {
            "window of 3 slices, source and target, from the cache": cpu(
                lambda: cut([case.source, case.targets[asked.target]], int(rng.integers(1, depth - 1))), asked.repeats
            ),
            "the same as a training item: cut, augmented, as tensors": cpu(
                lambda: items.batch([int(rng.integers(len(items)))]), asked.repeats
            ),
            "the same window from the two NIfTI files": cpu(
                lambda: cut([np.asarray(nib.load(f).dataobj) for f in files], 60), max(3, asked.repeats // 40)
            ),
        }
    facts = {"machine": machine(), "cohort": f"{asked.cohort.parent.name}", "milliseconds_cpu_median": rows}
    lines = ["# Serving a window", "", f"{facts['cohort']}; machine: {json.dumps(facts['machine'])}", ""]
    lines += ["| what | CPU ms, median |", "| --- | --- |", *(f"| {name} | {ms:.3f} |" for name, ms in rows.items())]
    write_json(asked.out / "cache.json", facts)
    write_text(asked.out / "cache.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def cut(volumes, z: int) -> list[np.ndarray]:
    """Give three slices of each volume as float32."""
    return [np.asarray(v[z - 1 : z + 2], dtype=np.float32) for v in volumes]


def cpu(call, repeats: int) -> float:
    """Give the median CPU milliseconds of a call."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return 1e3 * statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
