"""What a translation will cost, said before it starts: network calls from the method, time from one batch of slices."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scanbridge.data.box import box_of
from scanbridge.data.nifti import read
from scanbridge.errors import UserError
from scanbridge.methods.base import Effort, Foreseeable, Product, Request
from scanbridge.model import Model
from scanbridge.nets.memory import peak_memory
from scanbridge.options import Options
from scanbridge.translation import Prepared, chosen_target, prepare_source

LONG = 2.0
"""Seconds; a batch that takes less is timed a second time, since the first call of a network is slower."""
VOLUMES = 12
"""Volumes that a walk holds at once: source, state, estimates, overlaps."""
MOMENTS = 4
"""And those of the draws, as volumes of single precision: their mean and squares, however many draws there are."""


def forecast(model: Model, waiting: Sequence[Path], options: Options) -> list[str]:
    """Say what translating the `waiting` scans will take; nothing where that cannot be known.

    A batch of slices of the first scan is run, and the others are taken to be as large.
    """
    translator = model.translator
    if not waiting or not isinstance(translator, Foreseeable):
        return []
    products: list[tuple[Product, int]] = [(options.product, 1), ("draw", options.samples)]
    try:
        requests = [(_request(model, options, product), n) for product, n in products if n]
        costs = [(translator.effort(request), n) for request, n in requests]
        started = time.perf_counter()
        prepared = prepare_source(model, read(waiting[0]), options.foreground)
        around = 3 * (time.perf_counter() - started)  # reading, to the grid, and two volumes home again
        seconds = around + _seconds_of_a_pass(model, prepared, requests[0][0], costs[0][0]) * sum(
            c.passes * n for c, n in costs
        )
    except UserError:
        return []  # the translation itself will say it, with the scan's name
    calls, images = costs[0][0].calls, costs[0][0].images
    each = f"{calls} network call{'s' * (calls > 1)} each" + f" on {images} mirror images" * (images > 1)
    if len(costs) > 1:
        each += f", and {costs[1][0].calls} for " + (f"each of {costs[1][1]} draws" if costs[1][1] > 1 else "the draw")
    memory = _memory(model.device, prepared, options.samples)
    lines = [f"{len(waiting)} scans, {each}: about {duration(len(waiting) * seconds)}{memory}"]
    return lines + [
        f"{cost.asked} network calls were asked for and {cost.nodes} are made: the others fall on the same times"
        for cost, _ in costs
        if cost.nodes != cost.asked
    ]


def duration(seconds: float) -> str:
    """Give a length of time in two digits.

    >>> duration(7.6), duration(95), duration(9000)
    ('8 s', '2 min', '2.5 h')
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _request(model: Model, options: Options, product: Product) -> Request:
    target = chosen_target(model, options.target)
    request = options.request(target, "", product, lambda call, calls: None)  # noqa: ARG005
    return replace(request, residual_scale=model.residual_scale)


def _seconds_of_a_pass(model: Model, prepared: Prepared, request: Request, effort: Effort) -> float:
    """Time one batch of slices in the middle of a scan, and multiply: all windows of the scan once."""
    if not prepared.foreground.any():
        raise UserError("the source has no foreground", "a scan with something in it")
    inside = box_of(prepared.foreground)[0]
    n_slices: int = inside.stop - inside.start
    n = min(n_slices, effort.batch)
    slab = slice((inside.start + inside.stop - n) // 2, (inside.start + inside.stop - n) // 2 + n)
    body = np.broadcast_to(prepared.foreground.any(axis=0), (n, *prepared.foreground.shape[1:]))
    first = Request(target=request.target, subject="", product="one-call")

    def once() -> float:
        started = time.perf_counter()
        model.draw(prepared.source[slab], body, first).volumes.cpu()
        return time.perf_counter() - started

    seconds = once()
    return (seconds if seconds > LONG else once()) * n_slices / n


def _memory(device: torch.device, prepared: Prepared, samples: int) -> str:
    """Say how much memory a scan needs: what a batch of windows took, and the volumes of the walk."""
    held = 4 * (VOLUMES + MOMENTS * (samples > 0)) * math.prod(prepared.source.shape)
    whose = "its memory" if device.type == "cuda" else "memory"
    return f", {(peak_memory(device) + held) / 1e9:.1f} GB of {whose}"
