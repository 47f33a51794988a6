"""Plants small faults in the core and in what methods share, one at a time: the laws must find every one of them.

``python tests/mutate.py`` prints a table and exits with 1 if a fault survives; ``python tests/mutate.py eta`` tries the
faults whose name holds "eta". Each fault lives in a temporary copy of the package, first on the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "scanbridge"


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in `folder`/`file`.py; tests/`folder`/test_`law`.py must fail."""

    name: str
    file: str
    old: str
    new: str
    law: str
    folder: str = "bridge"


OF_WALKS = ("walks", "methods")
OF_LAWS = ("laws", "methods")
OF_REGRESSING = ("regressing", "methods")
FAULTS = [
    Fault("bridge: factor 2 lost in the variance", "process", "sqrt(2 * s * t", "sqrt(s * t", "process"),
    Fault("bridge: s and t swapped in the carry", "process", "lambda s_, t: s_ / t", "lambda s_, t: t / s_", "process"),
    Fault("bridge: published steps end at 1", "process", "0.001, 0.999, 1000", "0.001, 1.0, 1000", "process"),
    Fault("shift: square root dropped in the noise", "process", "k * torch.sqrt(t)", "k * t", "process"),
    Fault("ddpm: carry without the square", "process", "* (c_s / c_t) ** 2", "* (c_s / c_t)", "process"),
    Fault("posterior: square of c_t only", "process", "c_s**2 - (g * c_t) ** 2", "c_s**2 - g * c_t**2", "process"),
    Fault("posterior: weight of the source ignored", "process", "b_s - g * b_t", "b_s", "process"),
    Fault("chain: square root dropped", "process", "torch.sqrt(torch.clamp(1 -", "(torch.clamp(1 -", "process"),
    Fault("grid: released spacing off by one", "process", "top / (calls - 2)", "top / (calls - 1)", "time_grid"),
    Fault("grid: scale ignored", "sample", "math.pi / 2) / residual_scale", "math.pi / 2) / 0.25", "time_grid"),
    Fault("grid: equal nodes kept", "sample", "torch.unique_consecutive(times), torch", "times, torch", "time_grid"),
    Fault("snap: equal steps kept", "sample", "torch.unique_consecutive(nearest)", "nearest", "time_grid"),
    Fault("head: noise solved without the source", "parametrize", "1 / a, -b / a", "1 / a, 0 * b", "parametrize"),
    Fault("head: sign of the velocity", "parametrize", "((-cos, none", "((cos, none", "parametrize"),
    Fault("head: velocity without its scale", "parametrize", "sd * sin / size", "sin / size", "parametrize"),
    Fault("walk: eta not in the mean", "sample", "kept = math.sqrt(1 - q**2)", "kept = 1.0", "sample"),
    Fault("walk: eta ignored", "sample", "q = eta *", "q = 1.0 *", "sample"),
    Fault("walk: noise of a step used twice", "sample", "spread * noise(call + 1)", "spread * noise(call)", "sample"),
    Fault("walk: sign of the estimate", "sample", "s))) - kept * kappa", "s))) + kept * kappa", "sample"),
    Fault("walk: kappa at t, not at s", "sample", "kappa(as_time(s))) - kept", "kappa(as_time(t))) - kept", "sample"),
    Fault("walk: temperature ignored", "sample", "u + temperature * noise(0)", "u + noise(0)", "sample"),
    Fault("walk: source start forgets its u", "sample", "u + (1 - b) / c * source,", "u,", "sample"),
    Fault("mean_path: DDIM in its place", "sample", "float(law.state) * x", "float(law.state) ** 0.5 * x", "sample"),
    Fault(
        "order 2: history stays the first", "sample", "history = (kappa,", "history = history or (kappa,", "corrector"
    ),
    Fault(
        "order 2: history is extrapolated", "sample", "history = (kappa, estimate)", "history = (kappa, mean)", "orders"
    ),
    Fault("order 2: sign of w", "sample", "(rise - w) * slope", "(rise + w) * slope", "orders"),
    Fault("variance: not the square of the gain", "sample", "gain**2 * lost", "gain * lost", "orders"),
    Fault("variance: none at the last step", "sample", "mean + math.sqrt(lost) * noise(call + 1)", "mean", "orders"),
    Fault("variance: last noise used twice", "sample", "(lost) * noise(call + 1)", "(lost) * noise(call)", "orders"),
    Fault("variance: where nothing is lost", "sample", "residual_scale), 0.0", "residual_scale), lost", "orders"),
    Fault("variance: kappa without its square", "sample", "* residual_scale) ** 2)", "* residual_scale))", "orders"),
    Fault("variance: allowed for a mean", "sample", "and variance is not None", "and variance is Ellipsis", "sample"),
    Fault("order 2: no limit at the target", "sample", "(1 / sd - w) * slope", "0 * slope", "corrector"),
    Fault("score: divided by c", "sample", "b * source) / c**2", "b * source) / c", "corrector"),
    Fault("corrector: at the old time", "sample", "corrector(x, s, denoise)", "corrector(x, t, denoise)", "corrector"),
    Fault("corrector: state not renewed", "sample", "x, reused = corrector", "_, reused = corrector", "corrector"),
    Fault("corrector: u not renewed", "sample", "u = _coordinate(process, s, x, source)", "pass", "corrector"),
    Fault("corrector: cap ignored", "sample", "torch.minimum(step, longest)", "step", "corrector"),
    Fault("corrector: no floor", "sample", "floor = 1e-3 *", "floor = 0.0 *", "corrector"),
    Fault("corrector: reuse ignored", "sample", "estimate if self.reuse else None", "None", "corrector"),
    Fault("corrector: norm of the volume", "sample", "dim=(-4, -2, -1)", "dim=(-4, -3, -2, -1)", "ista"),
    Fault("corrector: one step for all windows", "sample", "dim=(-4, -2, -1)", "dim=(0, -2, -1)", "corrector"),
    Fault("foreground: dim tissue is air", "foreground", "classes=3)[0]", "classes=3)[1]", "foreground", "data"),
    Fault("foreground: clean air is empty", "foreground", "0.001 * top", "0.01 * top", "foreground", "data"),
    Fault("map: of the bridge's windows", "volumes", "disagreement if residual else at_last", "at_last", *OF_LAWS),
    Fault("rehearsal: left out", "window_bridge", "    rehearse(config", "    (lambda *a, **k: None)(config", *OF_LAWS),
    Fault("corrector: norms swapped", "sample", 'if self.norm == "code"', 'if self.norm != "code"', "ista"),
    Fault(
        "windows: one slice late", "volume", "self.centres[index] - self", "self.centres[index] + 1 - self", "volume"
    ),
    Fault(
        "windows: ends wrap around", "volume", "slices.clamp(0, self.n_slices - 1)", "slices % self.n_slices", "volume"
    ),
    Fault("windows: last one short", "volume", "self.n_slices - 1 - first)", "self.n_slices - 2 - first)", "volume"),
    Fault("windows: beyond the ends", "volume", "min(max(i, first), self.n_slices - 1 - first)", "i", "volume"),
    Fault(
        "windows: ends left out by a stride",
        "volume",
        "range(-self.radius, self.n_slices + self.radius)",
        "range(self.n_slices)",
        "volume",
    ),
    Fault("windows: offset ignored", "volume", "first - self.offset)", "first)", "volume"),
    Fault("windows: any stride taken", "volume", "<= self.stride <= width", "<= self.stride", "volume"),
    Fault("lift: offset does not cycle", "volume", "self._calls % len(thin)", "0", "volume"),
    Fault("lift: offset by windows", "volume", "self._calls += 1", "self._calls += len(cover)", "volume"),
    Fault("lift: last call thinned too", "volume", "if t > self._last", "if t >= self._last", "volume"),
    Fault("tiles: overlap ignored", "volume", "math.ceil(tile * self.overlap)", "0", "volume"),
    Fault("tiles: last one missing", "volume", "n_tiles = 1 + math.ceil(", "n_tiles = 1 + math.floor(", "volume"),
    Fault("mean: weights ignored", "volume", "self._weight[where] += weight", "self._weight[where] += 1", "volume"),
    Fault("spread: of the old mean alone", "volume", "delta * (value - self._mean[where])", "delta * delta", "volume"),
    Fault(
        "lift: pieces lost between batches",
        "volume",
        "+ self._batch_size, len",
        "+ self._batch_size - 1, len",
        "volume",
    ),
    Fault("lift: source of another piece", "volume", "(self._source, index)", "(self._source, index[::-1])", "volume"),
    Fault("noise: draw ignored", "noise", "self.draw, self.stage", "0, self.stage", "noise"),
    Fault(
        "pairing: another width across slices", "pairing", "-away.square() / 2", "-away.square()", "rlbcd", "methods"
    ),
    Fault("pairing: noise across slices too loud", "pairing", "square().sum().sqrt()", "sum()", "rlbcd", "methods"),
    Fault("noise: stage ignored", "noise", "self.stage, step)", '"bridge", step)', "noise"),
    Fault("walks: theta without its scale", "walks", "torch.atan(settings.residual_scale * ", "torch.atan(", *OF_WALKS),
    Fault("walks: training times without it", "walks", "/ 2) / settings.residual_scale", "/ 2)", *OF_WALKS),
    Fault("walks: state shown at another variance", "walks", "torch.hypot(c, self.residual_scale * a)", "c", *OF_WALKS),
    Fault("walks: all items at the source end", "walks", "(u - share).clamp(min=0)", "(0 * u)", *OF_WALKS),
    Fault(
        "volumes: mirror image not turned back",
        "volumes",
        "source.flip(flip), t).flip(flip)",
        "source.flip(flip), t)",
        *OF_WALKS,
    ),
    Fault("volumes: state not mirrored", "volumes", "denoise(state.flip(flip)", "denoise(state", *OF_WALKS),
    Fault(
        "volumes: another axis mirrored", "volumes", "AXES.index(axis) + 2", "(AXES.index(axis) + 1) % 3 + 2", *OF_WALKS
    ),
    Fault("volumes: mirror images cost nothing", "volumes", "passes = n * (", "passes = (", *OF_WALKS),
    Fault("volumes: nor those of the regression", "volumes", "passes + of_first,", "passes + 1,", *OF_WALKS),
    Fault("volumes: the residual alone", "volumes", "centre + volume", "volume", *OF_LAWS),
    Fault(
        "volumes: a residual at the source end", "volumes", "if t == 1 else denoise", "if t > 1 else denoise", *OF_LAWS
    ),
    Fault(
        "volumes: draws about another estimate",
        "volumes",
        'product == "draw" else walk_of',
        "seed else walk_of",
        *OF_LAWS,
    ),
    Fault("window_bridge: the whole target for its residual", "window_bridge", "label - estimate", "label", *OF_LAWS),
    Fault("folds: a regression learns its own people", "regressing", "fold != number", "fold >= 0", *OF_REGRESSING),
    Fault(
        "folds: misses of people who were seen",
        "regressing",
        "number: fold_name(n",
        "number: fold_name(1 - n",
        *OF_REGRESSING,
    ),
    Fault(
        "folds: items in another order",
        "regressing",
        "[*parts.values()]).argsort()",
        "[*parts.values()])",
        *OF_REGRESSING,
    ),
    Fault("folds: a val subject has a fold", "regressing", "batch.case < 0, -1", "batch.case < 0, 0", *OF_REGRESSING),
    Fault(
        "ct2mri: the own key for the average",
        "ct2mri",
        "blind[:, None, None], average_key(every), every[batch.case]",
        "blind[:, None, None], every[batch.case], average_key(every)",
        "ct2mri",
        "methods",
    ),
]


def findings(fault: Fault) -> tuple[bool, str]:
    """Give whether the laws find `fault`, and the first that does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "scanbridge"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / fault.folder / f"{fault.file}.py"
        text = target.read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            return False, f"the text to change occurs {text.count(fault.old)} times"
        target.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        law = ROOT / "tests" / fault.folder / f"test_{fault.law}.py"
        command = [sys.executable, "-m", "pytest", str(law), "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    by = failed[0].split("::")[-1].split(" - ")[0] if failed else f"exit status {done.returncode}"
    return done.returncode == 1 and failed != [] and failed[0].startswith("FAILED"), by


def main(arguments: list[str]) -> int:
    """Try all faults whose name holds the first argument, and give the exit status."""
    chosen = [fault for fault in FAULTS if not arguments or arguments[0] in fault.name]
    started = time.monotonic()
    alive = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for fault, (found, by) in zip(chosen, pool.map(findings, chosen), strict=True):
            alive += not found
            sys.stdout.write(f"{'found   ' if found else 'SURVIVED'}  {fault.name:40s}  {by[:100]}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - alive} of {len(chosen)} found in {time.monotonic() - started:.0f} s\n")
    return 1 if alive or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
