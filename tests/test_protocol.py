"""The first laws of all, through the whole command line: what a number means (docs/explanation/protocol.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, resample
from scanbridge.data.nifti import read, write
from small import RAS, brain, done, metrics, scanbridge, training, write_cohort

PET_AFFINE = np.array([[-3.0, 0, 0, 34], [0, 3, 0, -40], [0, 0, 2.5, -20], [0, 0, 0, 1]])
PET_SHAPE = (26, 24, 22)
PET_TOML = """
[images.ct]
kind = "ct"
[images.pet]
kind = "pet"
[masks.tumour]
on = "pet"
"""
MR_TOML = """
[images.flair]
kind = "mr"
[images.t1w]
kind = "mr"
[masks.lesion]
on = "t1w"
"""
SHAPE = (20, 22, 22)  # slices, rows, columns of the head itself; a margin of six voxels is put around it
MARGIN = 6
OFF = 0.1  # share of the range by which a prediction is off
PERFECT = {
    "psnr": math.inf,
    "psnr_native": math.inf,
    "ssim": 1.0,
    "sharpness": 1.0,
}  # every other metric is an error: 0


@dataclass(frozen=True)
class Task:
    """A translation with its cohort: names of images and mask, and the padding value and grid of each."""

    source: str
    target: str
    mask: str
    toml: str
    affines: dict[str, np.ndarray]
    background: dict[str, float]
    data_range: float
    unit: str


MR = Task(
    "flair", "t1w", "lesion", MR_TOML, {"flair": RAS, "t1w": RAS, "lesion": RAS}, {"flair": 0, "t1w": 0}, 1.0, "1"
)
PET = Task(
    "ct",
    "pet",
    "tumour",
    PET_TOML,
    {"ct": RAS, "pet": PET_AFFINE, "tumour": PET_AFFINE},
    {"ct": -1000, "pet": 0},
    15.0,
    "SUV",
)


def one_scale(target: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Bring an MR target to 100 .. 300 in the head with flat ends, so that all people have the very same scale."""
    low, high = np.percentile(target[head].astype(np.float64), [1, 99])
    return np.where(head, 100 + 200 * ((target.astype(np.float64) - low) / (high - low)).clip(0, 1), 0)


def mr_person(seed: int) -> dict[str, np.ndarray]:
    images = {name: np.pad(image, MARGIN) for name, image in brain(seed, SHAPE).items()}
    noise = np.random.default_rng(seed).uniform(5, 11, images["flair"].shape)  # air of a scanner is dark, and is not 0
    images["flair"] = np.where(images["flair"] > 0, images["flair"], noise).astype(np.float32)
    return {**images, "t1w": one_scale(images["t1w"], foreground(images["flair"], "mr")).astype(np.float32)}


def pet_person(seed: int) -> dict[str, np.ndarray]:
    images = {name: np.pad(image, MARGIN) for name, image in brain(seed, SHAPE).items()}
    head, structure = images["flair"] > 0, images["flair"] / 300
    ct = np.where(head, 400 * structure - 100, -1000).astype(np.float32)
    uptake = np.where(head, 8 * gaussian_filter(images["t1w"] / (80 + 40 * seed), 1), 0).astype(np.float32)
    fine, coarse = Grid(ct.shape, RAS), Grid(PET_SHAPE, PET_AFFINE)
    pet, marked = (resample(image, fine, coarse, order=1)[0] for image in (uptake, images["lesion"]))
    return {"ct": ct, "pet": pet.clip(0, 12), "tumour": (marked > 0.5).astype(np.float32)}


PEOPLE = {"mr": (MR, mr_person), "pet": (PET, pet_person)}


@dataclass(frozen=True)
class Bench:
    """A trained run and its cohort."""

    task: Task
    cohort: Path
    run: Path

    def translated(self, source: Path, out: Path) -> Path:
        """Translate one scan; give the path of the result."""
        done(scanbridge("translate", self.run, source, "--out", out, "--device", "cpu"))
        return out / f"{source.name.removesuffix('.nii.gz')}_{self.task.target}.nii.gz"

    def evaluated(self, cohort: Path, out: Path, translations: Path, split: str) -> Path:
        """Judge what lies in a folder of translations."""
        words = ["--cohort", cohort, "--out", out, "--translations", translations, "--split", split, "--device", "cpu"]
        done(scanbridge("evaluate", self.run, *words))
        return out


@pytest.fixture(scope="module", params=PEOPLE)
def bench(request, tmp_path_factory) -> Bench:
    task, person = PEOPLE[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    people = {f"p{i}": person(i) for i in range(1, 5)}
    cohort = write_cohort(folder / "cohort", people, affines=task.affines, toml=task.toml)
    names = (f'task.source="{task.source}"', f'task.targets=["{task.target}"]', "train.images=4")
    done(scanbridge(*training(cohort, folder / "run", *names)))
    return Bench(task, cohort, folder / "run")


def path_of(cohort: Path, person: str, column: str) -> Path:
    return cohort.parent / person / f"{person}_{column}.nii.gz"


def test_a_perfect_prediction_is_perfect_in_every_metric_and_region(bench, tmp_path):
    made = bench.translated(path_of(bench.cohort, "p4", bench.task.source), tmp_path / "translations")
    truth = read(path_of(bench.cohort, "p4", bench.task.target))
    write(made, truth.data, truth.affine)
    out = bench.evaluated(bench.cohort, tmp_path / "out", made.parent, "test")
    found = metrics(out, "run")
    mask = bench.task.mask
    assert set(found.index.unique("region")) == {"volume", "foreground", mask, f"not_{mask}"}
    per_region = found.groupby("region").size()
    assert (per_region.drop("foreground") == per_region["volume"]).all()
    assert found["value"].notna().all()
    for (region, metric), value in found["value"].items():
        ideal = PERFECT.get(metric, PERFECT.get(metric.partition("_")[0], 0.0))
        assert value == pytest.approx(ideal, abs=1e-6), (region, metric)
    assert found.loc[("foreground", "mae"), "unit"] == bench.task.unit


def test_what_the_source_did_not_see_does_not_count(bench, tmp_path):
    made = bench.translated(path_of(bench.cohort, "p4", bench.task.source), tmp_path / "translations")
    source, truth = (read(path_of(bench.cohort, "p4", name)) for name in (bench.task.source, bench.task.target))
    inside = resample(source.data, source.grid, truth.grid)[1]
    assert inside.all() == (bench.task is MR)
    write(made, np.where(inside, truth.data, truth.data + 3), truth.affine)
    out = bench.evaluated(bench.cohort, tmp_path / "out", made.parent, "test")
    assert (metrics(out, "run").xs("mae", level="metric")["value"] == 0).all()
    subjects = pd.read_csv(out / "subjects.csv").set_index("run")
    assert subjects.loc["run", "outside_share"] == pytest.approx(1 - inside.mean())


def variants(
    task: Task, images: dict[str, np.ndarray]
) -> dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Give people made of one person: images and affines of each."""
    widths = {  # asymmetric, on all sides, and another for each grid
        task.source: [(3, 8), (5, 1), (2, 7)],
        task.target: [(1, 4), (6, 2), (3, 5)],
    }
    widths[task.mask] = widths[task.target]
    padded = {n: np.pad(v, widths[n], constant_values=task.background.get(n, 0)) for n, v in images.items()}
    moved = {n: task.affines[n] @ shifted(widths[n]) for n in images}
    louder = {**images, task.target: images[task.target] * (3.0 if task.unit == "1" else 1.1)}
    return {
        "plain": (images, task.affines),
        "padded": (padded, moved),
        "louder": (louder, task.affines),
        "off": (images, task.affines),
    }


def shifted(widths: list[tuple[int, int]]) -> np.ndarray:
    """The affine from indices of a padded volume to those of the volume."""
    move = np.eye(4)
    move[:3, 3] = [-before for before, _ in widths]
    return move


def constant_error(task: Task, truth: np.ndarray) -> np.ndarray:
    """Give the truth moved by `OFF` of the range everywhere, away from the ends of the scale."""
    low, width = (100.0, 200.0) if task.unit == "1" else (0.0, task.data_range)
    x = ((truth.astype(np.float64) - low) / width).clip(0, 1)
    return (low + width * np.where(x < 0.5, x + OFF, x - OFF)).astype(np.float32)


@pytest.fixture(scope="module")
def judged(bench, tmp_path_factory) -> dict[str, pd.DataFrame]:
    """Metrics of one imperfect prediction under all variants of the same person."""
    task, folder = bench.task, tmp_path_factory.mktemp("variants")
    person = PEOPLE["mr" if task is MR else "pet"][1](4)
    rng = np.random.default_rng(0)
    prediction = (
        person[task.target] * 0.9 + rng.normal(0, 5 / 200 * task.data_range, person[task.target].shape)
    ).astype(np.float32)
    people = variants(task, person)
    for name, (images, affines) in people.items():
        cohort = write_cohort(folder, {name: images}, affines=affines, toml=task.toml)
        made = bench.translated(path_of(cohort, name, task.source), folder / "translations")
        given = {
            "padded": np.pad(prediction, [(1, 4), (6, 2), (3, 5)]),
            "off": constant_error(task, person[task.target]),
        }
        write(made, given.get(name, prediction), affines[task.target])
    rows = [f"{n}," + ",".join(f"{n}/{n}_{c}.nii.gz" for c in person) for n in people]
    cohort.write_text("\n".join([",".join(["subject", *person]), *rows]) + "\n")
    out = bench.evaluated(cohort, folder / "out", folder / "translations", "external")
    frame = metrics(out, "run")
    return {name: frame[frame["subject"] == name] for name in people}


def test_padding_with_background_changes_no_number_of_the_foreground_or_a_mask(bench, judged):
    plain, padded = (judged[name].drop("volume")["value"] for name in ("plain", "padded"))
    assert len(plain) > 30
    assert np.isfinite(plain).all()
    pd.testing.assert_series_equal(plain, padded, rtol=1e-6)


def test_the_gain_of_a_target_matters_where_it_has_a_unit_and_only_there(bench, judged):
    plain, louder = (
        judged[name]["value"].drop("psnr_native", level="metric", errors="ignore") for name in ("plain", "louder")
    )
    if bench.task.unit == "1":
        pd.testing.assert_series_equal(plain, louder, rtol=1e-4, atol=1e-6)
    else:
        assert abs(plain["foreground", "psnr"] - louder["foreground", "psnr"]) > 0.5


def test_a_constant_error_costs_exactly_what_it_should(bench, judged):
    off = judged["off"]["value"]
    for region in off.index.unique("region"):
        assert off[region, "psnr"] == pytest.approx(-20 * math.log10(OFF), abs=1e-4)
        assert off[region, "mae"] == pytest.approx(OFF * bench.task.data_range, rel=1e-5)
        assert off[region, "nrmse"] == pytest.approx(OFF, rel=1e-5)
