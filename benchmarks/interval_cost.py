"""What does an interval cost? CPU time to translate a scan with it and without, writing included and excluded.

python benchmarks/interval_cost.py --runs RUN [RUN ...] --scans SCAN.nii.gz [SCAN ...] --out benchmarks/results
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from kept import about, write
from scanbridge.calibration import Calibration
from scanbridge.data.nifti import read
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.translate import translate_file
from scanbridge.translation import translate_volume


def main() -> None:
    """Measure and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", nargs="+", type=Path, required=True, help="calibrated runs")
    options.add_argument("--scans", nargs="+", type=Path, required=True)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, required=True)
    asked = options.parse_args()
    lines = [measured(run, scan, asked) for run in asked.runs for scan in asked.scans]
    frame = pd.DataFrame(lines)
    text = [
        "# What an interval costs",
        "",
        f"CPU seconds, median of {asked.repeats}, without and with the interval in turn; 'file' is reading and writing "
        "too.",
        "",
        "| run, signal | scan | voxels | volume: without | with | ratio | file: without | with | ratio | MB | with |",
        "| --- " * 11 + "|",
    ]
    for line in lines:
        cells = [f"{line['run']}, {line['signal']}", line["scan"], f"{line['voxels']:,}"]
        for kind in ("volume", "file"):
            without, own = line[f"{kind}_without"], line[f"{kind}_with"]
            cells += [f"{without:.2f}", f"{own:.2f}", f"{own / without:.2f}"]
        cells += [f"{line[f'megabytes_{way}']:.1f}" for way in ("without", "with")]
        text.append("| " + " | ".join(cells) + " |")
    write(asked, "interval_cost", "\n".join(text), frame, {**about(asked), "rows": lines})


def measured(run: Path, scan: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Give the times of one scan with one run."""
    model, volume = Model.open(run, device=asked.device), read(scan)
    calibration = Calibration.of_run(run)
    line: dict[str, Any] = {"run": run.name, "signal": calibration.signal if calibration else "", "scan": scan.name}
    line["voxels"] = volume.data.size
    ways = {"without": Options(interval=False), "with": Options(interval=True)}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        seconds: dict[str, list[float]] = {}
        for _, (way, asking) in itertools.product(range(asked.repeats + 1), ways.items()):
            seconds.setdefault(f"volume_{way}", []).append(cpu(translate_volume, model, volume, asking))
            seconds.setdefault(f"file_{way}", []).append(cpu(filed, model, scan, out / way, asking))
        for way in ways:
            line[f"megabytes_{way}"] = sum(path.stat().st_size for path in (out / way).glob("*.nii.gz")) / 1e6
    return line | {name: statistics.median(each[1:]) for name, each in seconds.items()}


def filed(model: Model, scan: Path, out: Path, options: Options) -> None:
    """Read, translate and write, what is there notwithstanding."""
    for old in out.glob("*.json"):
        old.unlink()
    translate_file(model, scan, out, options)


def cpu(call: Callable[..., object], *given: object) -> float:
    """Give the CPU seconds of a call."""
    start = time.process_time()
    call(*given)
    return time.process_time() - start


if __name__ == "__main__":
    main()
