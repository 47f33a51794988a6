"""Small cohorts, runs and calls of the command line, made by our own phantom in a moment."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanbridge.cli import main
from scanbridge.data.nifti import read, write
from scanbridge.data.toys import toy_pair

CONFIGS = Path(__file__).parents[1] / "configs"
SHAPE = (24, 32, 32)
RAS = np.array([[2.0, 0, 0, -31], [0, 2, 0, -31], [0, 0, 2, -23], [0, 0, 0, 1]])
TINY = (
    "network.channels=8",
    "network.multipliers=[1,2]",
    "network.head_channels=8",
    "network.groups=4",
    "train.images=24",
    "train.batch_size=4",
    "train.warmup=0",
    "train.checkpoint_every=8",
    "train.log_every=4",
    "train.picture_every=1000",
    'split.test=["p4"]',
)
TOML = """
[images.flair]
kind = "mr"
[images.t1w]
kind = "mr"
[masks.lesion]
on = "t1w"
[split]
column = "fold"
"""


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line left: exit status and both streams."""

    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """The one line that it said on stderr; bars and news of work before it are no errors."""
        lines = [line for line in self.err.splitlines() if line.startswith("scanbridge:")]
        assert len(lines) == 1, self.err
        return lines[0]


def scanbridge(*arguments: object) -> Outcome:
    """Run the command line in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    kept, argv = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}, sys.argv
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["scanbridge", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    finally:
        sys.argv = argv
        for number, handler in kept.items():
            signal.signal(number, handler)
    return Outcome(code, out.getvalue(), err.getvalue())


def done(outcome: Outcome) -> Outcome:
    """Hold a call to success."""
    assert outcome.code == 0, outcome.err
    return outcome


def training(
    cohort: Path, run: Path, *settings: str, config: str | Path = "ct2mri-small.toml", tiny: Sequence[str] = TINY
) -> list[object]:
    """Give the arguments of a small training."""
    own = ("bridge.images=24",) if Path(config).stem in ("bbdm-small", "ct2mri-small") else ()
    sets = [word for setting in (*tiny, *own, *settings) for word in ("--set", setting)]
    return ["train", CONFIGS / config, "--cohort", cohort, "--run", run, "--device", "cpu", *sets]


def brain(seed: int, shape: tuple[int, int, int] = SHAPE) -> dict[str, np.ndarray]:
    """Draw a pair of MR images and a lesion, (I, J, K) on the grid `RAS`, zero outside the head."""
    rng = np.random.default_rng(seed)
    source, target, head = (np.moveaxis(a, 0, 2) for a in toy_pair(rng, shape))
    lesion = np.zeros(head.shape, np.float32)
    middle = tuple(n // 2 for n in head.shape)
    lesion[tuple(slice(m - 3, m + 3) for m in middle)] = 1
    return {"flair": 300 * source, "t1w": (80 + 40 * seed) * target, "lesion": lesion * head}


def write_cohort(
    folder: Path,
    people: Mapping[str, Mapping[str, np.ndarray]],
    *,
    affines: Mapping[str, np.ndarray] | None = None,
    toml: str = TOML,
) -> Path:
    """Write people's images and the table; give the table's path."""
    lines = []
    for index, (name, images) in enumerate(people.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for column, data in images.items():
            write(folder / name / f"{name}_{column}.nii.gz", data, (affines or {}).get(column, RAS))
        lines.append(",".join([name, *(f"{name}/{name}_{column}.nii.gz" for column in images), str(index)]))
    header = ",".join(["subject", *next(iter(people.values())), "fold"])
    (folder / "cohort.csv").write_text("\n".join([header, *lines]) + "\n")
    (folder / "cohort.toml").write_text(toml)
    return folder / "cohort.csv"


def brains(folder: Path, n: int = 4) -> Path:
    """Write the cohort that most tests use: p1 .. p4, FLAIR to T1w with a lesion."""
    return write_cohort(folder, {f"p{i}": brain(i) for i in range(1, n + 1)})


def copied(folder: Path, to: Path) -> Path:
    """Copy a run or a cohort, so that a test may spoil it."""
    return Path(shutil.copytree(folder, to))


def changed(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write a volume again with other values."""
    volume = read(path)
    write(path, change(volume.data), volume.affine)


def metrics(out: Path, run: str) -> pd.DataFrame:
    """Give the values of a run by region and metric."""
    frame = pd.read_csv(out / "metrics.csv")
    return frame[frame["run"] == run].set_index(["region", "metric"]).sort_index()


def contents(folder: Path) -> dict[str, bytes]:
    """Give every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass(frozen=True)
class Strike:
    """A signal that a process sends itself when it calls a function of a module for the n-th time."""

    module: str
    function: str
    n: int
    signal: signal.Signals = signal.SIGKILL


@dataclass(frozen=True)
class Child:
    """A call of the command line in a process of its own, forked where everything is loaded already."""

    process: multiprocessing.process.BaseProcess
    log: Path

    def wait(self, seconds: float = 300) -> Outcome:
        """Wait for its end; a signal that ended it is a negative status."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "still running"
        text = self.log.read_text()
        return Outcome(self.process.exitcode, text, text)


def child(
    arguments: Sequence[object],
    log: Path,
    *,
    strike: Strike | None = None,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start the command line beside this process; `strike` sends it a signal at one precise moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_fabric", "torch.utils.tensorboard", "scanbridge.train", "rich.progress"])
    words = [str(argument) for argument in arguments]
    process = context.Process(target=_called, args=(words, str(log), strike, dict(environment or {})))
    process.start()
    return Child(process, log)


def _called(arguments: list[str], log: str, strike: Strike | None, environment: dict[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started us beside itself has it ignored
    if strike is not None:
        _arm(strike)
    sys.argv = ["scanbridge", *arguments]
    main()


def _arm(strike: Strike) -> None:
    module = importlib.import_module(strike.module)
    function, count = getattr(module, strike.function), itertools.count(1)

    def struck(*arguments: Any, **keywords: Any) -> Any:
        if next(count) == strike.n:
            os.kill(os.getpid(), strike.signal)
        return function(*arguments, **keywords)

    setattr(module, strike.function, struck)
