"""One whole volume through ISTA: the published way against ours, with the same weights, and what `translate` does.

    python benchmarks/ista.py RUN PRESET --cohort COHORT.csv --out benchmarks/results [--calls 50 --corrections 1]

published   window by window as released: contiguous float32, explicit attention matrix, the reverse step on every
            window, averaged by counts, every call of the published walk
ours        the same walk through `walk(Lift(...), corrector=Langevin(...))`: equal to rounding
default     what `translate` does: the estimate of PRESET, a run that puts a regression first

RUN is a bridge from the source (regression.use = false), of the same split.

Says seconds as ratios within this process, peak memory, the share of time outside the network, and the difference
against the truth in dB.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from machine import machine
from scanbridge.bridge.sample import time_grid, walk
from scanbridge.bridge.volume import Lift, Windows
from scanbridge.data.box import box_of, take, widened
from scanbridge.data.intensity import amplified, gain_to
from scanbridge.files import write_json, write_text
from scanbridge.methods.base import Request
from scanbridge.methods.ct2mri import langevin, style_tokens
from scanbridge.methods.walks import bridge_denoiser
from scanbridge.methods.window_bridge import predictor
from scanbridge.metrics.image import psnr
from scanbridge.model import Model
from scanbridge.plan import plan_run, prepare_rows
from unet import explicit


class Timed:
    """A network with a clock."""

    def __init__(self, network: torch.nn.Module, layout: torch.memory_format) -> None:
        self.network = network.to(memory_format=layout)
        self.seconds = 0.0
        self.windows = 0

    def __call__(self, images: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        """Run the network."""
        start = time.perf_counter()
        out = self.network(images, t, tokens)
        self.seconds += time.perf_counter() - start
        self.windows += len(images)
        return out


def main() -> None:
    """Measure one volume."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("preset", type=Path)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--cache", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--calls", type=int, default=50)
    options.add_argument("--corrections", type=int, default=1)
    asked = options.parse_args()
    settings = [f"correction.corrections={asked.corrections}", "correction.cap=inf"]
    plan = plan_run(asked.run / "config.toml", asked.cohort, settings)
    case = prepare_rows(plan, plan.rows("test"), asked.cache or asked.run / "cache")[0]
    model = Model.open(asked.run)
    target = model.common.task.targets[0]
    box = box_of(case.foreground)
    source, inside = np.asarray(case.source, np.float32), np.asarray(case.foreground)
    if model.source_median is not None:  # what the default sees, all three ways see
        source = amplified(source, gain_to(model.source_median, source, inside))
    around = (box[0], *(widened(span, size) for span, size in zip(box[1:], model.item_size, strict=True)))
    y = torch.from_numpy(take(source, around, -1.0))[None]
    truth = (take(np.asarray(case.targets[target], np.float32), around, -1.0) + 1) / 2
    body = take(inside, around, 0) > 0
    network, statistics = model.fitted.networks["bridge"], model.fitted.statistics
    tokens = style_tokens(plan.config, statistics, y, None)

    rows = []
    made = {}
    for name, layout in (("published", torch.contiguous_format), ("ours", torch.channels_last)):
        timed = Timed(network, layout)

        def denoise(state: Tensor, source: Tensor, t: float, timed=timed) -> Tensor:
            told = None if tokens is None else tokens.expand(len(state), -1, -1)
            return bridge_denoiser(plan.config.bridge, predictor(plan.config.bridge, timed, told))(state, source, t)

        start = time.perf_counter()
        with torch.inference_mode():
            if name == "published":
                with explicit():
                    made[name] = published(denoise, plan.config, y, asked.calls)
            else:
                made[name] = ours(denoise, plan.config, y, asked.calls)
        seconds = time.perf_counter() - start
        rows.append(row(name, made[name], truth, body, seconds, timed))
    preset = Model.open(asked.preset)
    start = time.perf_counter()
    draws = preset.draw(np.asarray(case.source, np.float32), case.foreground, Request(target=target, subject=case.name))
    made["default"] = torch.from_numpy(take(draws.volumes[0].numpy(), around, -1.0))
    rows.append(row("default", made["default"], truth, body, time.perf_counter() - start, None))
    report(asked, rows, float((made["ours"] - made["published"]).abs().max()), case.name, y.shape)


def published(denoise, config, source: Tensor, calls: int) -> Tensor:
    """Walk as released: lists of windows, the reverse step on each, averages of the states."""
    process, radius = config.bridge.process(), config.radius
    margin = torch.full_like(source[:, :radius], -1.0)
    y = torch.cat([margin, source, margin], dim=1)
    cover = Windows(y.shape[1], radius, "live")
    everything = range(len(cover))
    count = torch.zeros(y.shape[1])
    for i in everything:
        count[i : i + 2 * radius + 1] += 1

    def windows(volume: Tensor) -> Tensor:
        return torch.stack([volume[:, i : i + 2 * radius + 1] for i in everything])

    def average(pieces: Tensor) -> Tensor:
        total = torch.zeros_like(y)
        for i in everything:
            total[:, i : i + 2 * radius + 1] += pieces[i]
        return total / count[:, None, None]

    def estimate(state: Tensor, t: float) -> Tensor:
        batches = zip(windows(state).split(64), windows(y).split(64), strict=True)
        return torch.cat([denoise(x.contiguous(), z.contiguous(), t) for x, z in batches])

    correct, x = langevin(config, y), y
    for t, s in pairwise(time_grid(process, calls, grid="published").tolist()):
        x_0 = estimate(x, t)
        if s == 0:
            return average(x_0)[0, radius:-radius]
        rho = s / t
        x = average(rho * windows(x) + (1 - rho) * x_0)
        if config.correction.corrections:
            x, _ = correct(x, s, lambda state, t: average(estimate(state, t)))
    raise AssertionError


def ours(denoise, config, source: Tensor, calls: int) -> Tensor:
    """Walk through the core."""
    process, radius = config.bridge.process(), config.radius
    margin = torch.full_like(source[:, :radius], -1.0)
    y = torch.cat([margin, source, margin], dim=1)
    lifted = Lift(denoise, y, Windows(y.shape[1], radius, "live"), config.estimate.windows)
    out = walk(
        lifted,
        process,
        y,
        time_grid(process, calls, grid="published"),
        lambda step: torch.zeros_like(y),  # noqa: ARG005  (this walk draws none)
        path="mean",
        start="source",
        corrector=langevin(config, y) if config.correction.corrections else None,
    )
    return out[0, radius:-radius]


def row(name: str, made: Tensor, truth, body, seconds: float, timed: Timed | None) -> dict[str, object]:
    """Give one line of the table."""
    return {
        "way": name,
        "seconds": seconds,
        "windows": timed.windows if timed else None,
        "outside_network": 1 - timed.seconds / seconds if timed else None,
        "psnr": psnr((made.numpy().clip(-1, 1) + 1) / 2, truth, body, data_range=1.0),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def report(asked, rows, difference: float, subject: str, shape) -> None:
    """Print and write the table."""
    facts = {
        "machine": machine(),
        "subject": subject,
        "volume": list(shape[1:]),
        "calls": asked.calls,
        "corrections": asked.corrections,
        "largest_difference_ours_published": difference,
        "rows": rows,
    }
    lines = [
        "# ISTA, one volume",
        "",
        f"{subject}, {shape[1]} slices of {shape[2]} x {shape[3]}; {asked.calls} steps with {asked.corrections} "
        f"correction(s); ours and published differ by at most {difference:.1e} on [-1, 1].",
        "",
        f"machine: {json.dumps(facts['machine'])}",
        "",
        "| way | seconds | times faster | windows through the net | outside the net | PSNR dB | peak GiB so far |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        share = "-" if r["outside_network"] is None else f"{100 * r['outside_network']:.1f} %"
        lines.append(
            f"| {r['way']} | {r['seconds']:.1f} | {rows[0]['seconds'] / r['seconds']:.2f} | {r['windows'] or '-'} | "
            f"{share} | {r['psnr']:.3f} | {r['peak_gib']:.2f} |"
        )
    write_json(asked.out / "ista.json", facts)
    write_text(asked.out / "ista.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
