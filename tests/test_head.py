"""Laws of the learned signal: it finds where errors are large, judges nobody whom it has seen, and fits its run."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from scanbridge import load
from scanbridge.data.nifti import read
from scanbridge.errors import UserError
from scanbridge.head import FILE, LEAST, MOST, Head, Lesson, cross_fit, fit_head
from scanbridge.methods.base import Draws
from scanbridge.model import Model
from scanbridge.signals import Drawn, signals_of
from small import Outcome, Strike, brain, child, contents, copied, done, scanbridge, training, write_cohort

DEVICE = ("--device", "cpu")
SPLIT = ('split.val=["p2","p3"]', 'split.calibration=["p5","p6","p7","p8"]')
CPU = torch.device("cpu")


def lesson(seed: int, shape: tuple[int, int, int] = (10, 16, 16)) -> tuple[Lesson, torch.Tensor]:
    """Simulate a scan whose expected |error| is known: it grows with the source, and the signal knows nothing."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, 1, 3, 4, 4), generator=random)
    source = torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0, 0].tanh()
    expected = 0.1 * torch.exp(1.2 * source)
    error = -expected * torch.rand(shape, generator=random).clamp_min(1e-6).log()
    doubt = torch.rand(shape, generator=random) / 50
    seen = {"source": source, "estimate": 0.5 * source, "windows": doubt}
    counts = torch.ones(shape, dtype=torch.bool)
    counts[:, :4] = False
    return Lesson(seen, error, counts), expected


def weights(head: Head) -> list[torch.Tensor]:
    return [*head.network.state_dict().values(), head.mean, head.deviation]


def same(one: Head, other: Head) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.fixture(scope="module")
def people() -> dict[str, list[Lesson]]:
    """Three patients. Not to be changed."""
    return {f"p{seed}": [lesson(seed)[0]] for seed in range(3)}


@pytest.fixture(scope="module")
def fitted(people) -> Head:
    """The head of all three."""
    return fit_head([each for (each,) in people.values()])


def test_it_finds_where_errors_are_large_and_how_large(fitted):
    new, expected = lesson(9)
    found = fitted(new.seen)
    held = new.counts
    assert stats.spearmanr(found[held], expected[held]).statistic > 0.8
    assert stats.spearmanr(new.seen["windows"][held], expected[held]).statistic < 0.1
    assert float(found[held].mean()) == pytest.approx(float(expected[held].mean()), rel=0.2)


def test_voxels_that_do_not_count_have_no_part(people, fitted):
    spoilt = []
    for (each,) in people.values():
        error = each.error.clone()
        error[~each.counts] = 1.9
        spoilt.append(Lesson(each.seen, error, each.counts))
    assert same(fit_head(spoilt), fitted)


def test_the_seed_alone_decides(people, fitted):
    lessons = [each for (each,) in people.values()]
    torch.rand(3)
    assert same(fit_head(lessons), fitted)
    assert not same(fit_head(lessons, seed=1), fitted)


def test_nobody_is_judged_by_a_head_that_has_seen_them(people, fitted):
    judges, of_all = cross_fit(people)
    assert same(of_all, fitted)
    (own,) = people["p1"]
    spoilt = {**people, "p1": [Lesson(own.seen, own.error.flip(0) + 0.3, own.counts)]}
    again, of_all_spoilt = cross_fit(spoilt)
    assert same(judges["p1"], again["p1"])
    assert not same(judges["p0"], again["p0"])
    assert not same(of_all, of_all_spoilt)


@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 1, 9), (30, 3, 3)])
def test_any_size_gives_numbers_in_range(fitted, shape):
    seen = {name: 3 * torch.randn(shape) for name in ("source", "estimate")} | {"windows": torch.zeros(shape)}
    found = fitted(seen)
    assert found.shape == shape
    assert float(found.min()) >= 0.999 * LEAST
    assert float(found.max()) <= 1.001 * MOST


def test_slices_are_seen_alike_however_many_there_are(fitted, monkeypatch):
    seen = lesson(5)[0].seen
    whole = fitted(seen)
    monkeypatch.setattr("scanbridge.head.PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(fitted(seen), whole, rtol=1e-4, atol=1e-6)


def test_what_was_saved_gives_the_same_map_and_fits_nothing_else(fitted, tmp_path):
    procedure = {"weights": {"bridge": "aa"}, "walk": {"calls": 4}, "grid": {"spacing": [2.0]}}
    digest = fitted.save(tmp_path, {"procedure": procedure})
    seen = lesson(7)[0].seen
    torch.testing.assert_close(Head.open(tmp_path, procedure, CPU, sha256=digest)(seen), fitted(seen), rtol=0, atol=0)
    for part in procedure:
        with pytest.raises(UserError, match=f"fitted on other {part}"):
            Head.open(tmp_path, {**procedure, part: {}}, CPU, sha256=digest)
    with pytest.raises(UserError, match="is not the head"):
        Head.open(tmp_path, procedure, CPU, sha256="00")
    (tmp_path / FILE).write_bytes(b"spoilt")
    with pytest.raises(UserError, match="do not match"):
        Head.open(tmp_path, procedure, CPU, sha256=digest)
    with pytest.raises(UserError, match="no such file"):
        Head.open(tmp_path / "elsewhere", procedure, CPU, sha256=digest)
    with pytest.raises(ValueError, match="fitted on"):
        fitted({name: volume for name, volume in seen.items() if name != "windows"})


def test_it_sees_a_methods_own_signals_but_neither_draws_nor_itself():
    volume = torch.rand(1, 3, 4, 5)
    estimate = Draws(volume, volume[0], 1, signals={"branches": volume[0] / 2})
    drawn = Drawn(estimate, spread=volume[0], source=volume[0], head=lambda seen: seen["branches"].float())
    assert set(drawn.seen) == {"source", "estimate", "branches"}
    assert set(signals_of(drawn)) == {"spread", "head", "branches"}
    assert "windows" in signals_of(Drawn(Draws(volume, volume[0], 1)))  # where a method has no map of its own
    assert "head" not in signals_of(Drawn(estimate))


def calibrate(run: Path, cohort: Path, *options: object) -> Outcome:
    """Calibrate with a head that is hardly fitted: what it is worth is judged above, on scans whose law is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scanbridge.head.VISITS", 1)
        return scanbridge(*calibration(run, cohort, *options))


def calibration(run: Path, cohort: Path, *options: object) -> list[object]:
    return ["calibrate", run, "--cohort", cohort, "--patients", 0.8, *DEVICE, *options]


def held(run: Path) -> dict[str, Any]:
    return json.loads((run / "calibration.json").read_text())


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    """p1 trains, p2 and p3 are val, p4 is the test, p5 to p8 calibrate. Not to be changed."""
    return write_cohort(tmp_path_factory.mktemp("eight"), {f"p{i}": brain(i) for i in range(1, 9)})


@pytest.fixture(scope="module")
def apart(eight, tmp_path_factory) -> Path:
    """A regression with all parts: it has no walk, no draws and one call. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "apart"
    done(scanbridge(*training(eight, folder, *SPLIT, config="regression-small.toml")))
    return folder


@pytest.fixture(scope="module")
def headed(apart, eight, tmp_path_factory) -> Path:
    """The same, calibrated with its head. Not to be changed."""
    folder = copied(apart, tmp_path_factory.mktemp("runs") / "headed")
    done(calibrate(folder, eight, "--signal", "head"))
    return folder


def flair(cohort: Path, person: str) -> Path:
    return cohort.parent / person / f"{person}_flair.nii.gz"


def volumes(run: Path, scan: Path, out: Path) -> dict[str, np.ndarray]:
    """Translate; give what was written by its ending."""
    done(scanbridge("translate", run, scan, "--out", out, *DEVICE))
    base = scan.name.removesuffix(".nii.gz") + "_t1w"
    return {path.name.removeprefix(base): read(path).data for path in out.glob(f"{base}*.nii.gz")}


def test_a_run_without_draws_or_walk_has_intervals_by_its_head(headed, apart, eight, tmp_path, monkeypatch):
    found = held(headed)
    about = json.loads((headed / "calibration/head/weights.json").read_text())
    assert (found["signal"], found["head"]) == ("head", about["sha256"])
    assert about["procedure"]["weights"] == found["procedure"]["weights"]
    assert set(about["fitted"]) == {"p2", "p3"}
    calls: list[str] = []
    draw = Model.draw
    monkeypatch.setattr(Model, "draw", lambda self, *given: (calls.append(given[2].product), draw(self, *given))[1])
    made = volumes(headed, flair(eight, "p4"), tmp_path / "with")
    assert calls.count("estimate") == 1
    bare = volumes(apart, flair(eight, "p4"), tmp_path / "without")
    np.testing.assert_array_equal(made[".nii.gz"], bare[".nii.gz"])
    wide, doubt = made["_high.nii.gz"] - made["_low.nii.gz"], made["_uncertainty.nii.gz"]
    assert (
        np.diff(wide.ravel()[np.argsort(doubt, axis=None)]) > -3e-4 * held(headed)["procedure"]["scale"]["high"]
    ).all()
    assert not np.array_equal(doubt, bare["_uncertainty.nii.gz"])
    assert set(load(headed, device="cpu").translate(flair(eight, "p4")).signals) == {"head"}
    assert set(load(apart, device="cpu").translate(flair(eight, "p4")).signals) == {"windows"}


def test_its_own_patients_keep_the_promise_by_the_files_alone(headed, eight, tmp_path):
    """The map that translate makes is the one that was calibrated: the worst of four misses just what is allowed."""
    misses = []
    scale = held(headed)["procedure"]["scale"]
    for person in held(headed)["content"]:
        made = volumes(headed, flair(eight, person), tmp_path)
        source, target = (read(eight.parent / person / f"{person}_{image}.nii.gz").data for image in ("flair", "t1w"))
        body = source > 0.01 * np.percentile(source[source > 0], 99.9)
        first, last = np.percentile(target[body], [0.5, 99.5])
        truth = scale["low"] + (scale["high"] - scale["low"]) * ((target - first) / (last - first)).clip(0, 1)
        misses.append(((truth < made["_low.nii.gz"]) | (truth > made["_high.nii.gz"]))[body].mean())
    assert max(misses) == pytest.approx(0.1, abs=0.01)


def test_the_val_subjects_choose_among_all_signals(headed, apart, eight, tmp_path):
    run = copied(apart, tmp_path / "run")
    said = done(calibrate(run, eight))
    choice = held(run)["choice"]
    assert set(choice) == {"windows", "head", "constant"}
    assert held(run)["signal"] == min(set(choice) - {"constant"}, key=lambda name: choice[name])
    assert choice["head"] == held(headed)["choice"]["head"]
    assert "mean width on the val subjects" in said.err
    assert f"constant {choice['constant']:.4g}" in said.err


def test_killed_while_fitting_it_goes_on_to_the_same_bytes(apart, headed, eight, tmp_path):
    run = copied(apart, tmp_path / "run")
    strike = Strike("scanbridge.head", "fit_head", 1)
    words = calibration(run, eight, "--signal", "head")
    assert child(words, tmp_path / "log", strike=strike).wait().code == -signal.SIGKILL
    assert not (run / "calibration.json").exists()
    done(calibrate(run, eight, "--signal", "head"))
    assert contents(run / "calibration") == contents(headed / "calibration")
    assert (run / "calibration.json").read_bytes() == (headed / "calibration.json").read_bytes()


def without(eight: Path, folder: Path, *people: str) -> Path:
    """Copy the cohort, some rows left out."""
    cohort = copied(eight.parent, folder) / eight.name
    kept = [line for line in cohort.read_text().splitlines() if line.partition(",")[0] not in people]
    cohort.write_text("\n".join(kept) + "\n")
    return cohort


@pytest.mark.parametrize(("left_out", "n"), [(("p3",), "1 val subject "), (("p2", "p3"), "0 val subjects ")])
def test_with_too_few_val_subjects_none_is_fitted(apart, eight, tmp_path, left_out: Sequence[str], n: str):
    cohort, run = without(eight, tmp_path / "cohort", *left_out), copied(apart, tmp_path / "run")
    before = contents(run)
    refused = calibrate(run, cohort, "--signal", "head")
    assert refused.code == 2
    assert n in refused.fault
    assert "two at least" in refused.fault
    assert contents(run) == before
    said = done(calibrate(run, cohort))
    assert ("'head' is left out" in said.err) == (len(left_out) == 1)
    assert held(run)["signal"] == "windows"
    assert held(run)["head"] is None
    assert not (run / "calibration/head").exists()


def spoil_weights(run: Path) -> None:
    (run / "calibration/head" / FILE).write_bytes(b"spoilt")


def of_other_weights(run: Path) -> None:
    path = run / "calibration/head/weights.json"
    about = json.loads(path.read_text())
    about["procedure"]["weights"] = {"regression": "00"}
    path.write_text(json.dumps(about))


def another(run: Path) -> None:
    seen = {name: torch.rand(4, 8, 8) for name in ("source", "estimate", "windows")}
    fit_head([Lesson(seen, torch.rand(4, 8, 8), torch.ones(4, 8, 8) > 0)]).save(run / "calibration/head", {})


def lost(run: Path) -> None:
    (run / "calibration/head" / FILE).unlink()


FAULTS = {
    "damaged": (spoil_weights, "do not match"),
    "other weights": (of_other_weights, "fitted on other weights"),
    "another head": (another, "not the head that the run was calibrated with"),
    "lost": (lost, "no such file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_head_of_something_else_is_refused_in_one_line(headed, eight, tmp_path, monkeypatch, name):
    plant, says = FAULTS[name]
    run = copied(headed, tmp_path / "run")
    plant(run)
    products: list[str] = []
    draw = Model.draw
    monkeypatch.setattr(Model, "draw", lambda self, *given: (products.append(given[2].product), draw(self, *given))[1])
    refused = scanbridge("translate", run, flair(eight, "p4"), "--out", tmp_path / "out", *DEVICE)
    assert refused.code == 2
    assert says in refused.fault
    assert "weights.safetensors" in refused.fault
    assert "calibrate the run again" in refused.fault
    assert "estimate" not in products  # nothing was walked in vain
    assert not list((tmp_path / "out").glob("*.nii.gz"))
