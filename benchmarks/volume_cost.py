"""What does a volume cost? CPU seconds and peak memory of the estimate and of one draw, run beside run.

    python benchmarks/volume_cost.py RUN [RUN ...] --cohort COHORT.csv --cache CACHE --out OUT [--repeats 5]

Of the first test person, on the model grid. Every measurement is a process of its own, which opens the run, makes one
volume to warm up, and one more; the runs take turns. What is left out is alike for all: files, and resampling.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kept import about, write
from scanbridge.methods.base import Product, Request
from scanbridge.model import Model
from scanbridge.plan import plan_run, prepare_rows

PRODUCTS: tuple[Product, ...] = ("estimate", "draw")


def main() -> None:
    """Measure and write the table, or measure once for it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", type=Path)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--cache", type=Path, required=True)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--out", type=Path)
    options.add_argument("--once", choices=PRODUCTS, help="measure this product of one run, and print it as JSON")
    asked = options.parse_args()
    if asked.once:
        print(json.dumps(once(asked.runs[0], asked.cohort, asked.cache, asked.once)))
        return
    if asked.out is None:
        options.error("--out is missing")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _, run, product in itertools.product(range(asked.repeats), asked.runs, PRODUCTS):
        where = ["--cohort", str(asked.cohort), "--cache", str(asked.cache)]
        command = [sys.executable, __file__, str(run), *where, "--once", product]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (this very script)
        if done.returncode:
            print(f"{run.name}, {product}: left out, {done.stderr.strip().splitlines()[-1]}")
            continue
        found.setdefault((run.name, product), []).append(json.loads(done.stdout))
        print(f"{run.name}, {product}: {found[run.name, product][-1]}", flush=True)
    lines = [
        {
            **{"run": run, "product": product, "calls": each[0]["calls"]},
            "seconds": statistics.median(one["seconds"] for one in each),
            "gib": statistics.median(one["gib"] for one in each),
        }
        for (run, product), each in found.items()
    ]
    write(asked, "volume_cost", page(lines, asked), pd.DataFrame(lines), {**about(asked), "rows": lines})


def once(run: Path, cohort: Path, cache: Path, product: Product) -> dict[str, Any]:
    """Give CPU seconds, peak memory in GiB, and the calls of one volume."""
    plan, model = plan_run(run / "config.toml", cohort), Model.open(run, device="cpu")
    case = prepare_rows(plan, plan.rows("test")[:1], cache)[0]
    source, seen = np.asarray(case.source, np.float32), np.asarray(case.foreground)
    request = Request(target=plan.common.task.targets[0], subject=case.name, product=product)
    model.draw(source, seen, request)
    start = time.process_time()
    made = model.draw(source, seen, request)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "gib": peak, "calls": made.calls}


def page(lines: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """Give the table; ratios are to the first run's estimate."""
    first = lines[0]["seconds"]
    text = [
        "# What a volume costs",
        "",
        f"First test person of {asked.cohort.parent.name}; medians of {asked.repeats} processes, CPU seconds of walk "
        "and decoding. Peak memory is the whole process's.",
        "",
        "| run | product | calls | CPU seconds | of the first row | peak GiB |",
        "| --- " * 6 + "|",
    ]
    for line in lines:
        cells = [line["run"], line["product"], f"{line['calls']}", f"{line['seconds']:.1f}"]
        text.append("| " + " | ".join([*cells, f"{line['seconds'] / first:.2f}", f"{line['gib']:.2f}"]) + " |")
    return "\n".join(text)


if __name__ == "__main__":
    main()
