"""Plants small faults in the core, one at a time, and demands that its laws find every one of them.

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
    """`old` becomes `new` in bridge/`file`; tests/bridge/test_`law`.py must fail."""

    name: str
    file: str
    old: str
    new: str
    law: str


FAULTS = [
    Fault("bridge: factor 2 lost in the variance", "process", "sqrt(2 * s * t", "sqrt(s * t", "process"),
    Fault("bridge: kappa inverted without the square", "process", "2 * s * kappa**2)", "2 * s * kappa)", "process"),
    Fault("bridge: s and t swapped in the carry", "process", "lambda s_, t: s_ / t", "lambda s_, t: t / s_", "process"),
    Fault("bridge: published steps end at 1", "process", "0.001, 0.999, 1000", "0.001, 1.0, 1000", "process"),
    Fault("shift: square root dropped in the noise", "process", "k * torch.sqrt(t)", "k * t", "process"),
    Fault("shift: root of the schedule not squared", "process", "exponent) ** 2", "exponent)", "process"),
    Fault("ddpm: carry without the variances", "process", "* (c_s / c_t) ** 2", "* (c_s / c_t)", "process"),
    Fault("posterior: variance keeps c_t", "process", "c_s**2 - (g * c_t) ** 2", "c_s**2 - g * c_t**2", "process"),
    Fault("posterior: weight of the source dropped", "process", "b_s - g * b_t", "b_s", "process"),
    Fault("chain: share of noise squared", "process", "torch.sqrt(torch.clamp(1 -", "(torch.clamp(1 -", "process"),
    Fault("diffuse: source ignored", "process", "a * target + b * source +", "a * target +", "process"),
    Fault("grid: released spacing off by one", "process", "k * top / (calls - 2)", "k * top / (calls - 1)", "sample"),
    Fault("head: sign of the shift", "parametrize", '"shift": lambda a, b, c: (-torch', '"shift": lambda a, b, c: (torch',
          "parametrize"),
    Fault("head: noise solved without the source", "parametrize", "-b / a),", "0 * b),", "parametrize"),
    Fault("head: velocity without its sign", "parametrize", "(-c, 0 * b, a)", "(c, 0 * b, a)", "parametrize"),
    Fault("walk: eta not in the mean", "sample", "math.sqrt(1 - q**2) *", "1.0 *", "sample"),
    Fault("walk: eta ignored", "sample", "q = eta *", "q = 1.0 *", "sample"),
    Fault("walk: fresh noise squared", "sample", "u + q * fresh()", "u + q**2 * fresh()", "sample"),
    Fault("walk: noise of a step used twice", "sample", "noise(call + 1)", "noise(call)", "sample"),
    Fault("walk: sign of the estimate", "sample", "(u - kappa_t * estimate)", "(u + kappa_t * estimate)", "sample"),
    Fault("walk: kappa at s and t swapped", "sample", "kappa_s, kappa_t = ", "kappa_t, kappa_s = ", "sample"),
    Fault("walk: temperature ignored", "sample", "u + temperature * noise(0)", "u + noise(0)", "sample"),
    Fault("walk: start forgets u of the source", "sample", "(1 - b) / c * source, source + c * u", "0, source + c * u",
          "sample"),
    Fault("walk: corrector at the old time", "sample", "corrector(x, s, denoise)", "corrector(x, t, denoise)", "sample"),
    Fault("walk: u not renewed by the corrector", "sample", "u = _coordinate(process, s, x, source)", "pass", "sample"),
    Fault("walk: history one node late", "sample", "history = (kappa, estimate)", "history = history or (kappa, estimate)",
          "orders"),
    Fault("order 2: slope forgets its step", "sample", "- root) / sd**2 - w *", "- root) / sd**2 + w *", "orders"),
    Fault("order 2: no limit at the target", "sample", "(1 / sd - w) * slope", "0 * slope", "orders"),
    Fault("order 2: half its weight", "sample", "(after - kappa)) * slope", "(after - kappa)) * slope / 2", "orders"),
    Fault("grid: theta to pi", "sample", "torch.tan(share * math.pi / 2)", "torch.tan(share * math.pi / 3)", "sample"),
    Fault("grid: theta without the residual scale", "sample", "math.pi / 2) / residual_scale", "math.pi / 2) / 0.25",
          "sample"),
    Fault("grid: equal nodes kept", "sample", "torch.unique_consecutive(times), torch", "times, torch", "sample"),
    Fault("snap: equal steps kept", "sample", "steps[torch.unique_consecutive(nearest)]", "steps[nearest]", "sample"),
    Fault("score: divided by c", "sample", "b * source) / c**2", "b * source) / c", "sample"),
    Fault("corrector: norm of the volume", "sample", "dim=(0, 2, 3)", "dim=(0, 1, 2, 3)", "ista"),
    Fault("corrector: sign of the move", "sample", "longest) * direction", "longest) * -direction", "ista"),
    Fault("corrector: code norm as printed", "sample", 'if self.norm == "code"', 'if self.norm != "code"', "ista"),
    Fault("corrector: one correction only", "sample", "range(self.corrections)", "range(min(self.corrections, 1))", "ista"),
    Fault("corrector: cap ignored", "sample", "torch.minimum(step, longest)", "step", "sample"),
    Fault("corrector: no floor", "sample", "floor = 1e-3 *", "floor = 0.0 *", "sample"),
    Fault("windows: one slice late", "volume", "else index - self.radius", "else index - self.radius + 1", "volume"),
    Fault("windows: ends wrap around", "volume", "slices.clamp(0, self.n_slices - 1)", "slices % self.n_slices", "volume"),
    Fault("windows: last slice of a window lost", "volume", "min(first + 2 * self.radius + 1,", "min(first + 2 * self.radius,",
          "volume"),
    Fault("tiles: overlap ignored", "volume", "math.ceil(tile * self.overlap)", "0", "volume"),
    Fault("tiles: last tile missing", "volume", "n_tiles = 1 + math.ceil(", "n_tiles = max(1, math.ceil(", "volume"),
    Fault("mean: weights ignored", "volume", "delta * (weight / self._weight[where])",
          "delta / (self._weight[where] / weight).round()", "volume"),
    Fault("spread: of the old mean", "volume", "delta * (value - self._mean[where])", "delta * delta", "volume"),
    Fault("lift: last batch cut short", "volume", "min(first + self._batch_size, len", "min(first + self._batch_size - 1, len",
          "volume"),
    Fault("lift: source of another window", "volume", "self._cover.cut(self._source, index)",
          "self._cover.cut(self._source, index[::-1])", "volume"),
    Fault("noise: draw ignored", "noise", "self.subject, self.draw,", "self.subject,", "noise"),
    Fault("noise: step ignored", "noise", "self.stage, step)", "self.stage)", "noise"),
    Fault("noise: parts run together", "noise", r'"\x1f".join', '"".join', "noise"),
]  # fmt: skip


def findings(fault: Fault) -> tuple[bool, str]:
    """Give whether the laws find `fault`, and the first that does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "scanbridge"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / "bridge" / f"{fault.file}.py"
        text = target.read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            return False, f"the text to change occurs {text.count(fault.old)} times"
        target.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        law = ROOT / "tests" / "bridge" / f"test_{fault.law}.py"
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
            sys.stdout.write(f"{'found   ' if found else 'SURVIVED'}  {fault.name:45s}  {by[:100]}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - alive} of {len(chosen)} found in {time.monotonic() - started:.0f} s\n")
    return 1 if alive or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
