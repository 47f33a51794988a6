"""Everything that a user can get wrong is one line that names it, exit status 2, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scanbridge.data.nifti import read, write
from scanbridge.files import sha256
from small import RAS, brain, contents, copied, scanbridge, training

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is asked for")
SCAN = "scan.nii.gz"


class World:
    """A cohort, two runs and a scan that a fault may spoil; `out` is where the command would write."""

    def __init__(self, folder: Path, cohort: Path, run: Path, regression: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.cohort = copied(cohort.parent, folder / "cohort") / cohort.name
        self.run, self.regression = copied(run, folder / "run"), copied(regression, folder / "regression")
        self.scan = folder / SCAN
        write(self.scan, brain(30)["flair"], RAS)

    def train(self, *settings: str, config: str | Path = "ct2mri-small.toml") -> list[object]:
        """The command that would train."""
        return training(self.cohort, self.out, *settings, config=config)

    def translate(self, *options: object) -> list[object]:
        """The command that would translate the scan."""
        return ["translate", self.run, self.scan, "--out", self.out, "--device", "cpu", *options]

    def evaluate(self, *options: object) -> list[object]:
        """The command that would evaluate the run."""
        return ["evaluate", self.run, "--cohort", self.cohort, "--out", self.out, "--device", "cpu", *options]

    def config(self, change: Callable[[str], str]) -> Path:
        """A configuration that was edited."""
        text = (self.run / "config.toml").read_text()
        path = self.folder / "mine.toml"
        path.write_text(change(text))
        assert path.read_text() != text
        return path

    def edited(self, file: str, change: Callable[[str], str]) -> None:
        """Change a text file of the world."""
        path = self.folder / file
        text = path.read_text()
        path.write_text(change(text))
        assert path.read_text() != text

    def resealed(self, file: str, change: Callable[[str], str]) -> None:
        """Change a run's configuration, and let its weights claim that they were trained with it."""
        self.edited(file, change)
        config = self.folder / file
        for about in config.parent.glob("stages/*/weights.json"):
            about.write_text(json.dumps({**json.loads(about.read_text()), "config_sha256": sha256(config)}))

    def damaged(self, file: str, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of a file of the world."""
        path = self.folder / file
        path.write_bytes(change(path.read_bytes()))


@dataclass(frozen=True)
class Fault:
    """What is planted, the command that meets it, and what its one line must say."""

    name: str
    plant: Callable[[World], Sequence[object]]
    says: tuple[str, ...]
    marks: tuple[pytest.MarkDecorator, ...] = ()


def setting(name: str, value: str, *says: str) -> Fault:
    return Fault(f"--set {name}", lambda w: w.train(value), says)


def option(name: str, options: Sequence[object], *says: str, marks: tuple[pytest.MarkDecorator, ...] = ()) -> Fault:
    return Fault(name, lambda w: w.translate(*options), says, marks)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def after(
    plant: Callable[[World], object], command: Callable[[World], Sequence[object]]
) -> Callable[[World], Sequence[object]]:
    def planted(world: World) -> Sequence[object]:
        plant(world)
        return command(world)

    return planted


CONFIGS = [
    Fault(
        "no configuration",
        lambda w: w.train(config=w.folder / "nowhere.toml"),
        ("nowhere.toml", "no such file", "configs/"),
    ),
    Fault("a folder as configuration", lambda w: w.train(config=w.folder), ("cannot be read", "TOML")),
    Fault("no TOML", lambda w: w.train(config=w.config(lambda t: t + "\n[train")), ("mine.toml", "not valid TOML")),
    Fault("no [task]", lambda w: w.train(config=w.config(lambda t: t.replace("[task]", "[bridge.x]"))), ("task",)),
    Fault(
        "no method",
        lambda w: w.train(config=w.config(lambda t: t.replace('method = "ct2mri"', ""))),
        ("method", "ct2mri"),
    ),
    setting("method", 'method="ct2mir"', "method = 'ct2mir'", "did you mean 'ct2mri'?"),
    setting("train.imagse", "train.imagse=8", "'train.imagse'", "did you mean 'images'?", "ct2mri-small.toml"),
    setting("netwrok", "netwrok.channels=8", "'netwrok'", "did you mean 'network'?"),
    setting("bridge.predcit", 'bridge.predcit="noise"', "'bridge.predcit'", "did you mean 'predict'?"),
    setting("estimate.eta of a mean path", "estimate.eta=0.5", "[estimate]", "mean_path", "eta = 0"),
    setting("estimate.order of a mean path", "estimate.order=2", "[estimate]", "mean_path", "order 1"),
    setting("draw.stride", "draw.stride=9", "[draw]", "stride = 9", "1 to 3"),
    Fault(
        "a stride of windows that walk by themselves",
        lambda w: w.train("coprediction=false", "draw.stride=2"),
        ("draw.stride = 2", "coprediction = true"),
    ),
    Fault(
        "order two with a correction that is reused",
        lambda w: w.train("correction.corrections=1", "correction.reuse=true"),
        ("[draw]", "order 2", "reuse"),
    ),
    Fault(
        "noise predicted where the state shows none of the target",
        lambda w: w.train('bridge.predict="noise"', config="ct2mri-small-walk.toml"),
        ("[estimate]", "noise", "t = 1"),
    ),
    setting("train.seed", "train.seed=-1", "train.seed", "-1"),
    setting("train.images as text", 'train.images="many"', "'train.images' is 'many'", "integer"),
    setting("train.images below 0", "train.images=-5", "'train.images' is -5", "greater than 0"),
    setting("train.batch_size", "train.batch_size=0", "'train.batch_size' is 0"),
    setting("train.betas", "train.betas=[0.9, 2.0]", "train.betas"),
    setting("train.size", "train.size=[16]", "train.size"),
    setting("train.size below 0", "train.size=[-16, 16]", "train.size"),
    setting("train.augment.flip", 'train.augment.flip=["left"]', "train.augment.flip", "'columns'"),
    setting("train.precision", 'train.precision="8"', "train.precision", "'32-true'"),
    setting("bridge.predict", 'bridge.predict="nosie"', "bridge.predict", "'noise'"),
    setting("bridge.predict=speed", 'bridge.predict="speed"', "bridge.predict", "'velocity'"),
    setting("estimate.mirror", 'estimate.mirror=["rows"]', "estimate.mirror", "train.augment.flip"),
    setting("estimate.mirror of none", 'estimate.mirror=["left"]', "estimate.mirror", "'columns'"),
    setting("estimate.grid", 'estimate.grid="thta"', "estimate.grid", "'theta'"),
    setting("two targets", 'task.targets=["t1w", "t2w"]', "task.targets", "one target for ct2mri"),
    setting("no target", "task.targets=[]", "task.targets"),
    setting("the source as target", 'task.targets=["flair"]', "flair"),
    setting("task.source", 'task.source="flare"', "'flare'", "did you mean 'flair'?", "cohort.csv"),
    setting("task.targets", 'task.targets=["t1"]', "'t1'", "did you mean 't1w'?"),
    setting("grid.on", 'grid.on="flare"', "'flare'", "did you mean 'flair'?"),
    setting("grid.spacing of two", "grid.spacing=[2.0, 2.0]", "grid.spacing"),
    setting("grid.spacing below 0", "grid.spacing=[2.0, 2.0, -1.0]", "grid.spacing"),
    setting("grid.orientation", 'grid.orientation="SPX"', "grid.orientation"),
    setting("grid.orientation twice", 'grid.orientation="SIL"', "grid.orientation"),
    setting("network.channels", "network.channels=6", "channels", "a multiple of groups"),
    setting("network.head_channels", "network.head_channels=7", "head_channels"),
    setting("network.multipliers", "network.multipliers=[1, 0]", "multipliers"),
    setting("without =", "train.images", "--set train.images", "key=value", "for example"),
    setting("below a value", "train.images.x=3", "train.images.x=3", "'images' is a value"),
    setting("split.test", 'split.test=["p9"]', "'p9'", "did you mean 'p"),
    setting("overlap", 'split.val=["p4"]', "split.test", "split.val", "p4"),
    setting("one fold", "regression.folds=1", "regression.folds = 1", "two and more"),
    Fault(
        "folds of one person",
        lambda w: w.train("regression.folds=2", 'split.test=["p2", "p3", "p4"]'),
        ("regression.folds = 2 with 1 person", "regression.folds = 0"),
    ),
    setting("the best of nobody", 'train.keep="best"', "train.keep = 'best' without val subjects", "split.val"),
    setting("nobody left", 'split.val=["p1", "p2", "p3"]', "train", "cohort.csv"),
]

COHORTS = [
    Fault("no table", lambda w: training(w.folder / "no.csv", w.out), ("no.csv", "cannot be read")),
    Fault("a folder as table", lambda w: training(w.folder, w.out), ("cannot be read",)),
    Fault("an empty table", after(lambda w: w.cohort.write_text(""), World.train), ("cohort.csv", "holds no rows")),
    Fault(
        "no rows",
        after(lambda w: w.edited("cohort/cohort.csv", lambda t: t.splitlines()[0]), World.train),
        ("holds no rows",),
    ),
    Fault(
        "no subject",
        after(lambda w: w.edited("cohort/cohort.csv", lambda t: t.replace("subject", "subjct")), World.train),
        ("cohort.csv", "no column 'subject'", "did you mean 'subjct'?"),
    ),
    Fault(
        "a subject twice",
        after(lambda w: w.edited("cohort/cohort.csv", lambda t: t + t.splitlines()[1]), World.train),
        ("2 rows are 'p1'", "visit"),
    ),
    Fault(
        "a missing scan",
        after(lambda w: (w.cohort.parent / "p2/p2_t1w.nii.gz").unlink(), World.train),
        ("p2_t1w.nii.gz", "1 of 12 files is missing", "relative to the table"),
    ),
    Fault(
        "no pairs",
        after(lambda w: w.edited("cohort/cohort.csv", lambda t: without(t, "t1w")), World.train),
        ("no subject is left to train on", "source and target"),
    ),
    Fault(
        "an unknown kind",
        after(lambda w: w.edited("cohort/cohort.toml", lambda t: t.replace('"mr"', '"mri"', 1)), World.train),
        ("cohort.toml", "images.flair.kind", "did you mean 'mr'?"),
    ),
    Fault(
        "a misspelt key of the TOML",
        after(lambda w: w.edited("cohort/cohort.toml", lambda t: t.replace("kind", "knid", 1)), World.train),
        ("images.flair.knid", "'kind'"),
    ),
    Fault(
        "a column that the table lacks",
        after(
            lambda w: w.edited("cohort/cohort.toml", lambda t: t.replace("[images.t1w]", "[images.t1]")), World.train
        ),
        ("images.t1", "did you mean 't1w'?"),
    ),
    Fault(
        "a truncated scan",
        after(lambda w: w.damaged("cohort/p2/p2_t1w.nii.gz", cut), World.train),
        ("p2_t1w.nii.gz", "truncated"),
    ),
    Fault(
        "a constant target",
        after(lambda w: write(w.cohort.parent / "p2/p2_t1w.nii.gz", np.ones((8, 8, 8)), RAS), World.train),
        ("p2_t1w.nii.gz",),
    ),
    Fault(
        "a source without a head",
        after(lambda w: write(w.cohort.parent / "p2/p2_flair.nii.gz", np.zeros((8, 8, 8)), RAS), World.train),
        ("p2_flair.nii.gz", "foreground is empty"),
    ),
]


def without(table: str, column: str) -> str:
    """Empty a column of a table."""
    header, *lines = table.splitlines()
    at = header.split(",").index(column)
    rows = [line.split(",") for line in lines]
    return "\n".join([header, *(",".join(c if i != at else "" for i, c in enumerate(row)) for row in rows)]) + "\n"


def spoilt(name: str, plant: Callable[[World], object], *says: str) -> Fault:
    return Fault(name, after(plant, World.translate), (SCAN, *says))


def with_nan(world: World) -> None:
    volume = nib.load(world.scan)
    data = volume.get_fdata().copy()
    data[:2, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(data.astype(np.float32), volume.affine), world.scan)


def with_forms_that_disagree(world: World) -> None:
    image = nib.Nifti1Image(brain(30)["flair"], RAS)
    turned = RAS.copy()
    turned[0, 3] += 30
    image.set_sform(RAS, code=1)
    image.set_qform(turned, code=1)
    nib.save(image, world.scan)


SCANS = [
    spoilt("cut short", lambda w: w.damaged(SCAN, cut), "truncated", "copy the file again"),
    spoilt("bits that flipped", lambda w: w.damaged(SCAN, flipped), "damaged"),
    spoilt("NaN", with_nan, "2 of 24576", "NaN"),
    spoilt("text", lambda w: w.scan.write_bytes(gzip.compress(b"not a scan" * 100)), "NIfTI"),
    spoilt("nothing", lambda w: w.scan.write_bytes(b""), "NIfTI"),
    spoilt("a series", lambda w: nib.save(nib.Nifti1Image(np.ones((8, 8, 8, 3)), RAS), w.scan), "one 3D volume"),
    spoilt("two geometries", with_forms_that_disagree, "sform and its qform disagree", "30"),
    spoilt("zeros", lambda w: write(w.scan, np.zeros((16, 16, 16)), RAS), "foreground"),
    spoilt("one value", lambda w: write(w.scan, np.ones((16, 16, 16)), RAS), "foreground is empty"),
    spoilt("one voxel", lambda w: write(w.scan, np.ones((1, 1, 1)), RAS), "foreground is empty"),
    Fault(
        "a wrong ending",
        lambda w: ["translate", w.run, w.cohort, "--out", w.out],
        ("cohort.csv", ".nii.gz", "dcm2niix"),
    ),
    Fault(
        "a folder without scans", lambda w: ["translate", w.run, w.run, "--out", w.out], ("holds no scan", ".nii.gz")
    ),
    Fault("no scan", lambda w: ["translate", w.run, w.folder / "no.nii", "--out", w.out], ("no.nii", "no such file")),
    Fault("the same scan twice", lambda w: ["translate", w.run, w.scan, w.scan, "--out", w.out], (SCAN, "same stem")),
]

BRIDGE = "run/stages/bridge"


def broken(name: str, plant: Callable[[World], object], *says: str) -> Fault:
    return Fault(name, after(plant, World.translate), says)


RUNS = [
    Fault("no run", lambda w: ["info", w.folder / "nothing"], ("nothing is not a run folder", "scanbridge train")),
    broken("a folder that is no run", lambda w: (w.run / "config.toml").unlink(), "is not a run folder"),
    broken(
        "not trained yet", lambda w: (w.folder / BRIDGE / "weights.safetensors").unlink(), "no weights yet", "train"
    ),
    broken(
        "weights cut short", lambda w: w.damaged(f"{BRIDGE}/weights.safetensors", cut), "weights.safetensors", "restore"
    ),
    broken("facts cut short", lambda w: w.damaged(f"{BRIDGE}/weights.json", cut), "weights.json", "JSON"),
    broken("facts lost", lambda w: (w.folder / BRIDGE / "weights.json").unlink(), "weights.json", "no such file"),
    broken("facts of another kind", lambda w: (w.folder / BRIDGE / "weights.json").write_text("[]"), "weights"),
    broken(
        "weights of another network",
        lambda w: w.resealed("run/config.toml", lambda t: t.replace("channels = 8", "channels = 16", 1)),
        "weights.safetensors",
        "config.toml",
    ),
    broken(
        "a configuration that was edited",
        lambda w: w.edited("run/config.toml", lambda t: t.replace("coprediction = true", "coprediction = false")),
        "run/config.toml is not the configuration",
        "weights.safetensors",
        "restore",
    ),
    broken(
        "a network that is none",
        lambda w: w.resealed("run/config.toml", lambda t: t.replace("channels = 8", "channels = 9", 1)),
        "channels",
    ),
    broken(
        "a key that is none",
        lambda w: w.edited("run/config.toml", lambda t: t.replace("batch_size", "batch_szie")),
        "config.toml",
        "'train.batch_szie'",
        "did you mean 'batch_size'?",
    ),
    broken(
        "a table that is none",
        lambda w: w.edited("run/config.toml", lambda t: t + "\n[steyl]\nx = 1\n"),
        "config.toml",
        "'steyl'",
    ),
    broken(
        "a method that is none",
        lambda w: w.edited("run/config.toml", lambda t: t.replace('"ct2mri"', '"ct2mr"')),
        "did you mean 'ct2mri'?",
    ),
    broken("no cohort.json", lambda w: (w.run / "cohort.json").unlink(), "cohort.json", "no such file"),
    broken("a broken cohort.json", lambda w: w.damaged("run/cohort.json", cut), "cohort.json", "JSON"),
    broken("a foreign cohort.json", lambda w: (w.run / "cohort.json").write_text("{}"), "cohort.json"),
    broken(
        "a broken residual scale", lambda w: (w.run / "residual_scale.json").write_text("{}"), "residual_scale.json"
    ),
    Fault(
        "info without cohort.json",
        after(lambda w: (w.run / "cohort.json").unlink(), lambda w: ["info", w.run]),
        ("cohort.json",),
    ),
    Fault(
        "no floors", after(lambda w: (w.run / "floors.json").unlink(), World.evaluate), ("floors.json", "no such file")
    ),
    Fault(
        "floors of another kind", after(lambda w: (w.run / "floors.json").write_text("{}"), World.evaluate), ("floors",)
    ),
]

OPTIONS = [
    option("--shard 0/2", ("--shard", "0/2"), "--shard 0/2", "i/n", "for example"),
    option("--shard 3/2", ("--shard", "3/2"), "--shard 3/2"),
    option("--shard half", ("--shard", "half"), "--shard half"),
    option("--grid", ("--grid", "thta"), "grid", "thta", "theta"),
    option("--order 2 of a mean path", ("--order", "2"), "mean_path", "order 1"),
    option("--eta of a mean path", ("--eta", "0.5"), "mean_path", "eta = 0"),
    option("--target", ("--target", "t1"), "--target t1", "t1w"),
    option("--style", ("--style", "averge"), "averge", "did you mean 'average'?"),
    option("--style own", ("--style", "own"), "--style own", "average, nearest, or a file"),
    Fault(
        "--style of runs without styles",
        lambda w: ["evaluate", w.regression, "--cohort", w.cohort, "--out", w.out, "--style", "average"],
        ("--style average", "no run here"),
    ),
    Fault(
        "--foreground of two scans",
        lambda w: w.translate(
            w.cohort.parent / "p4/p4_flair.nii.gz", "--foreground", w.cohort.parent / "p4/p4_lesion.nii.gz"
        ),
        ("--foreground", "2 scans", "one by one"),
    ),
    option("--style of a lost file", ("--style", "lost.nii.gz"), "lost.nii.gz"),
    option("--device", ("--device", "gpux"), "--device gpux", "auto"),
    option("--device cuda", ("--device", "cuda"), "cuda", marks=(NO_CUDA,)),
    Fault("--device of train", lambda w: [*w.train(), "--device", "gpux"], ("--device gpux", "auto")),
    Fault("--device cuda of train", lambda w: [*w.train(), "--device", "cuda"], ("cuda",), (NO_CUDA,)),
    Fault(
        "draws of a regression",
        lambda w: ["translate", w.regression, w.scan, "--out", w.out, "--samples", 2],
        ("no draws",),
    ),
    Fault(
        "--calls of a regression",
        lambda w: ["translate", w.regression, w.scan, "--out", w.out, "--calls", 9],
        ("calls",),
    ),
    Fault("--split", lambda w: w.evaluate("--split", "tset"), ("--split tset", "did you mean 'test'?")),
    Fault("--on", lambda w: w.evaluate("--on", "modle"), ("--on modle", "model")),
    Fault("simulate", lambda w: ["simulate", "heart", "--out", w.out], ("heart", "'brain'")),
    Fault("--out of translate", after(lambda w: w.out.write_text(""), World.translate), ("out",)),
    Fault("--out of evaluate", after(lambda w: w.out.write_text(""), World.evaluate), ("out",)),
    Fault(
        "--out of simulate",
        after(lambda w: w.out.write_text(""), lambda w: ["simulate", "brain", "--out", w.out]),
        ("is a file",),
    ),
    Fault("--run", after(lambda w: w.out.write_text(""), World.train), ("out",)),
    Fault("--cache", lambda w: [*w.train(), "--cache", w.cohort], ("cache", "cohort.csv")),
]


def external(world: World, rename: Callable[[str], str] = str) -> list[object]:
    """Lay the cohort out anew, under other file names and columns, and evaluate on it."""
    new = world.folder / "new"
    new.mkdir()
    lines = []
    for index, person in enumerate(("p1", "p4")):
        for column in ("flair", "t1w"):
            shutil.copy(world.cohort.parent / person / f"{person}_{column}.nii.gz", new / f"{index}-{column}.nii.gz")
        lines.append(f"somebody{index},{index}-flair.nii.gz,{index}-t1w.nii.gz")
    (new / "table.csv").write_text("\n".join([rename("subject,flair,t1w"), *lines]))
    (new / "table.toml").write_text(rename('[images.flair]\nkind = "mr"\n[images.t1w]\nkind = "mr"\n'))
    return ["evaluate", world.run, "--cohort", new / "table.csv", "--out", world.out, "--split", "external"]


def other_task(world: World) -> list[object]:
    world.resealed(
        "regression/config.toml",
        lambda t: t.replace('"flair"', '"x"').replace('"t1w"', '"flair"').replace('"x"', '"t1w"'),
    )
    return ["compare", world.run, world.regression, "--cohort", world.cohort, "--out", world.out]


EVALUATIONS = [
    Fault("trained on", lambda w: w.evaluate("--split", "external"), ("was trained on", "p1")),
    Fault("trained on under other names", external, ("was trained on", "0-flair.nii.gz", "somebody0")),
    Fault(
        "other columns",
        lambda w: external(w, lambda t: t.replace("t1w", "t1")),
        ("table.csv", "'t1w'", "did you mean 't1'?"),
    ),
    Fault(
        "translations that are not there",
        lambda w: w.evaluate("--translations", w.folder),
        ("p4", "p4_flair_t1w.nii.gz", "is not there"),
    ),
    Fault(
        "volumes of somebody else, without what says how they were made",
        after(
            lambda w: write(w.folder / "p4_flair_t1w.nii.gz", brain(4)["t1w"], RAS),
            lambda w: w.evaluate("--translations", w.folder),
        ),
        ("p4", "p4_flair_t1w.json", "is not there"),
    ),
    Fault(
        "a table that calls the target another kind",
        after(lambda w: w.edited("cohort/cohort.toml", lambda t: t.replace('"mr"', '"other"')), World.evaluate),
        ("cohort.toml", "images.flair", "trained on", "'mr'"),
    ),
    Fault(
        "a target elsewhere",
        after(
            lambda w: write(w.cohort.parent / "p4/p4_t1w.nii.gz", brain(4)["t1w"], RAS + 1000 * np.eye(4, k=3)),
            World.evaluate,
        ),
        ("p4", "no foreground", "scans that overlap"),
    ),
    Fault("an empty split", lambda w: w.evaluate("--split", "val"), ("'val'", "--split external", "split.test")),
    Fault("no cohort", lambda w: ["evaluate", w.run, "--cohort", w.folder / "no.csv", "--out", w.out], ("no.csv",)),
    Fault(
        "no truth",
        after(lambda w: w.damaged("cohort/p4/p4_t1w.nii.gz", cut), World.evaluate),
        ("p4_t1w.nii.gz", "truncated"),
    ),
    Fault(
        "a mask that is none",
        after(lambda w: write(w.cohort.parent / "p4/p4_lesion.nii.gz", brain(4)["t1w"], RAS), World.evaluate),
        ("p4_lesion.nii.gz", "is no mask"),
    ),
    Fault(
        "the same run twice",
        lambda w: ["compare", w.run, w.run, "--cohort", w.cohort, "--out", w.out],
        ("names a run twice",),
    ),
    Fault("two tasks", other_task, ("flair -> t1w", "t1w -> flair", "runs of one task")),
    Fault("no regression run", lambda w: w.evaluate("--regression", w.folder / "no"), ("not a run folder",)),
    Fault(
        "nobody's run",
        lambda w: ["compare", w.run, w.folder / "no", "--cohort", w.cohort, "--out", w.out],
        ("not a run folder",),
    ),
]

FAULTS = [*CONFIGS, *COHORTS, *SCANS, *RUNS, *OPTIONS, *EVALUATIONS]


@pytest.mark.parametrize("fault", [pytest.param(f, id=f.name, marks=f.marks) for f in FAULTS])
def test_a_fault_is_one_line_that_names_it_and_leaves_nothing_behind(fault, cohort, run, regression, tmp_path):
    world = World(tmp_path, cohort, run, regression)
    arguments = fault.plant(world)
    before = contents(tmp_path)
    outcome = scanbridge(*arguments)
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert outcome.err.rstrip("\n").splitlines()[-1] == outcome.fault
    assert "Traceback" not in outcome.err
    for words in fault.says:
        assert words in outcome.fault
    left = {name: data for name, data in contents(tmp_path).items() if name != "out/lock" and "/cache/" not in name}
    assert left == {name: data for name, data in before.items() if "/cache/" not in name}


def test_the_table_is_long_enough():
    assert len(FAULTS) >= 40
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_mended_fault_is_forgotten(cohort, run, regression, tmp_path):
    world = World(tmp_path, cohort, run, regression)
    scan = world.cohort.parent / "p2" / "p2_t1w.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(cut(whole))
    assert scanbridge(*world.train()).code == 2
    scan.write_bytes(whole)
    assert scanbridge(*world.train()).code == 0
    assert json.loads((world.out / "cohort.json").read_text()) == json.loads((run / "cohort.json").read_text())
    assert read(scan).data.any()
