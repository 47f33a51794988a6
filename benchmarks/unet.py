"""Measure what the U-Net's layout and precision save, and which small shape gives the most for its seconds.

Two tables, both measured interleaved in one process: every repeat runs every contender once, so that whatever else the
machine does hits all alike. On one thread (the default) the clock is the CPU seconds of the process, which a busy
machine hardly changes; on more it is wall seconds, which mean something on a quiet machine alone.

1. *Layout*: ours (channels-last, fused attention, the precision that `precision_of` chooses here) and the same in
   float32, against that of the released code (contiguous, float32, explicit attention matrix), with the same weights.
2. *Shapes*: seconds, parameters and multiply-adds of small networks on windows of three slices.

    python benchmarks/unet.py                     # small networks
    python benchmarks/unet.py --published         # and the published one, 254 M parameters, about 8 GB
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scanbridge.nets.precision import computing_in, precision_of
from scanbridge.nets.unet import UNet, UNetConfig

RESULTS = Path(__file__).parent / "results"
PRECISION = precision_of("auto", torch.device("cpu"))
WINDOW = {"in_channels": 6, "out_channels": 3}  # three slices of the state beside three of the source
LIGHT = {"skips": "level", "resample": "pointwise"}
RECOMMENDED = {"channels": 16, "multipliers": (1, 2, 4, 8), "middle": "self", "groups": 2, **LIGHT}
SHAPES: dict[str, dict[str, Any]] = {
    "16 (1,2,4,8) x1, light, self": RECOMMENDED,
    "16 (1,2,4,8) x1, light, self, 4 groups": RECOMMENDED | {"groups": 4},
    "16 (1,2,4,8) x1, light, transformer + tokens": RECOMMENDED | {"middle": "transformer", "token_channels": 128},
    "16 (1,2,4,8) x(1,2,2,2), light": RECOMMENDED | {"blocks": (1, 2, 2, 2), "middle": "none"},
    "16 (1,2,4,8,8) x1, light": RECOMMENDED | {"multipliers": (1, 2, 4, 8, 8), "middle": "none"},
    "32 (1,2,3,4) x1, light": {"channels": 32, "multipliers": (1, 2, 3, 4), **LIGHT},
    "16 (1,2,4,8) x1": {"channels": 16, "multipliers": (1, 2, 4, 8)},
    "24 (1,2,4) x1": {"channels": 24},
    "24 (1,2,3,4) x1": {"channels": 24, "multipliers": (1, 2, 3, 4)},
    "32 (1,2,4) x1": {"channels": 32},
    "32 (1,2,4) x2": {"channels": 32, "blocks": 2},
    "32 (1,2,3,4) x1": {"channels": 32, "multipliers": (1, 2, 3, 4)},
    "32 (1,2,3,4) x2": {"channels": 32, "multipliers": (1, 2, 3, 4), "blocks": 2},
}
LAYOUTS = ("16 (1,2,4,8) x1, light, self", "16 (1,2,4,8) x1, light, transformer + tokens", "32 (1,2,4) x1")
PUBLISHED = {
    "channels": 128,
    "multipliers": (1, 4, 8),
    "blocks": 2,
    "resample": "resblock",
    "groups": 32,
    "head_channels": 64,
    "middle": "transformer",
    "token_channels": 128,
}
Row = dict[str, Any]


def build(shape: dict[str, Any]) -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(**WINDOW, **shape, zero_output=False)).to(memory_format=torch.channels_last)


def inputs(net: UNet, batch: int, rows: int, columns: int, seed: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 6, rows, columns, generator=generator).contiguous(memory_format=torch.channels_last)
    width = net.config.token_channels
    tokens = torch.randn(batch, 3, width, generator=generator) if width else None
    return {"x": x, "t": torch.linspace(0, 999, batch), "tokens": tokens}


def explicit_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]), dim=-1)
    return weights @ value


@contextlib.contextmanager
def explicit() -> Iterator[None]:
    fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, explicit_attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def contenders(
    shape: dict[str, Any], batch: int, rows: int, columns: int, seed: int
) -> dict[str, Callable[[], Tensor]]:
    """Ours, ours in float32, and the released layout: same weights, same input."""
    ours = build(shape)
    theirs = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    given = inputs(ours, batch, rows, columns, seed)

    def default() -> Tensor:
        with computing_in(PRECISION, torch.device("cpu")):
            return ours(**given)

    def released() -> Tensor:
        with explicit():
            return theirs(**given | {"x": given["x"].contiguous()})

    return {"ours": default, "ours, float32": lambda: ours(**given), "released": released}


def forward(call: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            call()

    return run


def backward(call: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: call().square().mean().backward()


def interleaved(calls: dict[str, Callable[[], None]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Give the seconds of every call, `repeats` times in turn."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(warmup + repeats):
        for name, call in calls.items():
            start = clock()
            call()
            if repeat >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def compare_layouts(name: str, shape: dict[str, Any], size: tuple[int, int, int], seed: int, repeats: int) -> list[Row]:
    calls = contenders(shape, *size, seed)
    with torch.no_grad():
        given = {key: call() for key, call in calls.items()}
    rows = []
    for kind, of in (("forward", forward), ("forward + backward", backward)):
        seconds = interleaved({key: of(call) for key, call in calls.items()}, repeats)
        row: Row = {
            "network": name,
            "batch x rows x columns": " x ".join(map(str, size)),
            "pass": kind,
            "released, s": statistics.median(seconds["released"]),
        }
        for key in ("ours", "ours, float32"):
            ratios = [b / a for a, b in zip(seconds[key], seconds["released"], strict=True)]
            difference = (given[key] - given["released"]).abs().max() / given["released"].abs().max()
            row |= {
                f"{key}: ratio": statistics.median(ratios),
                f"{key}: lowest": min(ratios),
                f"{key}: highest": max(ratios),
                f"{key}: largest difference": float(difference),
            }
        print(row, flush=True)
        rows.append(row)
    return rows


def compare_shapes(size: tuple[int, int, int], seed: int, repeats: int) -> list[Row]:
    nets = {name: build(shape) for name, shape in SHAPES.items()}
    calls = {name: (lambda net=net: net(**inputs(net, *size, seed))) for name, net in nets.items()}
    passes = {
        kind: interleaved({name: of(call) for name, call in calls.items()}, repeats)
        for kind, of in (("forward", forward), ("forward + backward", backward))
    }
    rows = []
    for name, net in nets.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            calls[name]()
        row: Row = {
            "shape": name,
            "parameters, M": sum(p.numel() for p in net.parameters()) / 1e6,
            "multiply-adds an item, G": counter.get_total_flops() / 2e9 / size[0],
        }
        for kind, seconds in passes.items():
            row[f"{kind}, s"] = statistics.median(seconds[name])
            row[f"{kind}, fastest, s"] = min(seconds[name])
        print(row, flush=True)
        rows.append(row)
    return rows


def machine() -> Row:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "amx": "amx_tile" in text,
        "avx512": "avx512f" in text,
        "avx512_bf16": "avx512_bf16" in text,
        "precision": PRECISION,
        "threads": torch.get_num_threads(),
        "load at the start": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def table(rows: list[Row]) -> str:
    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(cell(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unet.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    facts = "\n".join(f"- {key}: {value}" for key, value in result["machine"].items())
    published = any(row["network"] == "published" for row in result["layout"])
    missing = "" if published else " The published network was not measured (`--published`)."
    text = f"""# The U-Net's layout and shape, measured

Command: `{result["command"]}` (seed {result["seed"]}). Seconds are {result["clock"]}, medians of interleaved repeats.

{facts}

## Layout and precision, same weights

Ours is channels-last with fused attention, in the precision that is chosen here; released is contiguous float32 with an
explicit attention matrix. Ratio: released over ours, above 1 is faster; goal 1.5. On one thread torch runs 1x1
convolutions by its own kernel, not by oneDNN, in both layouts.{missing}

{table(result["layout"])}

## Shapes: windows of three slices, {result["size"]}

Light: one skip connection a level, 1x1 convolutions before the upsampling.

{table(result["shapes"])}
"""
    (folder / "unet.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true", help="also the published network (254 M parameters)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine()
    size = (args.batch, 112, 96)
    layout = []
    for name in LAYOUTS:
        layout += compare_layouts(name, SHAPES[name], size, args.seed, args.repeats)
    if args.published:
        layout += compare_layouts("published", PUBLISHED, (1, 160, 160), args.seed, max(2, args.repeats // 4))
    shapes = compare_shapes(size, args.seed, args.repeats)
    given = {"repeats": args.repeats, "batch": args.batch, "threads": args.threads, "seed": args.seed}
    flags = [f"--{key} {value}" for key, value in given.items()] + ["--published"] * args.published
    command = " ".join(["python", "benchmarks/unet.py", *flags])
    clock = "CPU seconds of one thread" if args.threads == 1 else "wall seconds"
    result = {
        "command": command,
        "seed": args.seed,
        "machine": about,
        "clock": clock,
        "size": " x ".join(map(str, size)),
    }
    write(result | {"layout": layout, "shapes": shapes}, args.out)


if __name__ == "__main__":
    main()
