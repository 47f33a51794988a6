"""Laws of training: a run killed anywhere and resumed is the one never killed; what does not fit is refused."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from scanbridge.data.nifti import read, write
from scanbridge.methods import regression, window_bridge
from scanbridge.methods.base import Item, Stage
from scanbridge.plan import plan_run
from scanbridge.runs.log import read_log
from scanbridge.train import train_run
from small import CONFIGS, TINY, Outcome, Strike, brain, changed, child, copied, done, scanbridge, write_cohort
from small import training as usual

FIT, CHECKPOINT = "scanbridge.fit", "scanbridge.runs.checkpoint"
LONG = (
    "train.images=80",
    "bridge.images=80",
    "train.checkpoint_every=16",
)  # 62 windows: the second epoch begins in the 16th of 20 updates
POINTS = {
    "before the first checkpoint": Strike(CHECKPOINT, "save_file", 1),
    "before the first update": Strike(FIT, "_update", 1),
    "between two checkpoints": Strike(FIT, "_update", 7),
    "just after a checkpoint": Strike(FIT, "_update", 9),
    "in the second epoch": Strike(FIT, "_update", 18),
    "with a checkpoint written and not yet named": Strike(CHECKPOINT, "sha256", 3),
    "between the tensors of a checkpoint and their facts": Strike(CHECKPOINT, "write_json", 4),
    "between the last weights and their facts": Strike(CHECKPOINT, "write_json", 7),
    "with the floors missing": Strike("scanbridge.train", "fit_floors", 1),
}


def training(cohort: Path, run: Path, *settings: str) -> list[object]:
    """Give the arguments of a training of one stage, whose every update is counted."""
    return usual(cohort, run, "regression.use=false", "bridge.at_source=0.5", *settings)


def weights(run: Path, stage: str = "bridge") -> bytes:
    return (run / "stages" / stage / "weights.safetensors").read_bytes()


def logged(run: Path) -> list[tuple[int, float]]:
    return [(line["images"], line["loss"]) for line in read_log(run / "stages" / "bridge" / "log.jsonl")]


def newest(run: Path) -> Path:
    folder = run / "stages" / "bridge"
    return max(folder.glob("state-*.json"), key=lambda path: json.loads(path.read_text())["images"])


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory) -> Path:
    """A training that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done(child(training(cohort, run, *LONG), run.parent / "log").wait())
    return run


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_was_killed_ends_with_the_same_bits(cohort, whole, tmp_path, point):
    arguments = training(cohort, tmp_path / "run", *LONG)
    assert child(arguments, tmp_path / "log", strike=POINTS[point]).wait().code == -signal.SIGKILL
    assert not (tmp_path / "run" / "done").exists()
    done(scanbridge(*arguments))
    assert weights(tmp_path / "run") == weights(whole)
    assert logged(tmp_path / "run") == logged(whole)
    assert (tmp_path / "run" / "floors.json").read_bytes() == (whole / "floors.json").read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_leave_saves_first(cohort, whole, tmp_path, number, status):
    arguments = training(cohort, tmp_path / "run", *LONG)
    left = child(arguments, tmp_path / "log", strike=Strike(FIT, "_update", 6, number)).wait()
    assert left.code == status
    assert "the same command goes on" in left.err
    assert "Traceback" not in left.err
    assert json.loads(newest(tmp_path / "run").read_text())["images"] == 24
    assert "24 of them done" in done(scanbridge(*arguments)).err
    assert weights(tmp_path / "run") == weights(whole)


def test_a_run_of_two_stages_that_was_killed_in_the_second_ends_with_the_same_bits(cohort, run, tmp_path):
    arguments = usual(cohort, tmp_path / "run")
    in_the_second = Strike(FIT, "_update", 24 // 4 + 3)
    assert child(arguments, tmp_path / "log", strike=in_the_second).wait().code == -signal.SIGKILL
    first = tmp_path / "run" / "stages" / "regression" / "weights.safetensors"
    trained = first.stat().st_mtime_ns
    done(scanbridge(*arguments))
    assert first.stat().st_mtime_ns == trained
    for stage in ("regression", "bridge"):
        assert weights(tmp_path / "run", stage) == weights(run, stage)


def test_the_regression_before_a_bridge_is_that_of_a_regression_run_to_the_bit(cohort, tmp_path):
    bridge, alone = tmp_path / "bridge", tmp_path / "alone"
    done(scanbridge(*usual(cohort, bridge, config="bbdm-small.toml")))
    done(scanbridge(*usual(cohort, alone, config="regression-small.toml")))
    assert weights(bridge, "regression") == weights(alone, "regression")
    taken = f'regression.weights="{alone}/stages/regression"'
    done(scanbridge(*usual(cohort, tmp_path / "taken", taken, config="bbdm-small.toml")))
    assert weights(tmp_path / "taken") == weights(bridge)
    other = scanbridge(*usual(cohort, tmp_path / "no", taken, "radius=2", config="bbdm-small.toml"))
    assert other.code == 2
    assert "radius = 1" in other.fault
    assert not (tmp_path / "no" / "config.toml").exists()


def test_a_scan_that_stands_in_two_parts_of_the_split_is_refused(cohort, tmp_path):
    cohort = copied(cohort.parent, tmp_path / "cohort") / cohort.name
    shutil.copy(cohort.parent / "p1" / "p1_flair.nii.gz", cohort.parent / "p4" / "p4_flair.nii.gz")
    refused = scanbridge(*usual(cohort, tmp_path / "run"))
    assert refused.code == 2
    assert "p4_flair.nii.gz (p4, test) is an image of p1 too, who is in 'train'" in refused.fault
    assert not (tmp_path / "run" / "config.toml").exists()


def test_folds_change_the_bridge_alone_and_end_with_the_same_bits_after_a_kill(cohort, tmp_path):
    plain, folded = tmp_path / "plain", tmp_path / "folded"
    folds = ("regression.folds=2", "regression.fold_images=16")
    done(scanbridge(*usual(cohort, plain, config="bbdm-small.toml")))
    arguments = usual(cohort, folded, *folds, config="bbdm-small.toml")
    in_the_folds = Strike(FIT, "_update", 3)
    assert child(arguments, tmp_path / "log", strike=in_the_folds).wait().code == -signal.SIGKILL
    done(scanbridge(*arguments))
    assert weights(folded, "regression") == weights(plain, "regression")
    assert weights(folded) != weights(plain)
    tensors = load_file(folded / "stages" / "folds" / "weights.safetensors")
    assert tensors["statistics.fold"].tolist() == [0, 1, 0]
    assert {name.split(".")[0] for name in tensors} == {"fold-0", "fold-1", "statistics"}
    whole = usual(cohort, tmp_path / "whole", *folds, config="bbdm-small.toml")
    done(scanbridge(*whole))
    for stage in ("folds", "bridge"):
        assert weights(tmp_path / "whole", stage) == weights(folded, stage)


def test_what_a_network_draws_by_itself_is_the_same_after_a_kill(cohort, tmp_path):
    words = {
        name: usual(cohort, tmp_path / name, "network.dropout=0.3", config="regression-small.toml") for name in "ab"
    }
    done(scanbridge(*words["a"]))
    assert child(words["b"], tmp_path / "log", strike=Strike(FIT, "_update", 5)).wait().code == -signal.SIGKILL
    done(scanbridge(*words["b"]))
    assert weights(tmp_path / "a", "regression") == weights(tmp_path / "b", "regression")


def test_what_one_part_of_a_batch_logs_stays_in_the_mean(cohort, tmp_path, monkeypatch):
    stages, calls = regression.stages, itertools.count()

    def every_other(config, targets):
        (stage,) = stages(config, targets)
        return (replace(stage, loss=lambda *given: (stage.loss(*given)[0], {} if next(calls) % 2 else {"first": 1.0})),)

    monkeypatch.setattr(regression, "stages", every_other)
    often = ("train.accumulate=2", "train.log_every=4")
    done(scanbridge(*usual(cohort, tmp_path / "run", *often, config="regression-small.toml")))
    lines = read_log(tmp_path / "run" / "stages" / "regression" / "log.jsonl")
    assert {line["first"] for line in lines} == {0.5}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU of CUDA here")
@pytest.mark.parametrize("preset", ["ct2mri-small.toml", "bbdm-small.toml", "regression-small.toml"])
def test_a_training_and_its_translations_run_on_a_gpu(cohort, tmp_path, preset):
    folds = () if preset.startswith("regression") else ("regression.folds=2", "regression.fold_images=16")
    words = usual(cohort, tmp_path / "run", "train.picture_every=8", *folds, config=preset)
    words[words.index("cpu")] = "cuda"
    assert "GiB on cuda" in done(scanbridge(*words)).err
    assert list((tmp_path / "run").rglob("pictures/*.png"))
    scan = cohort.parent / "p4" / "p4_flair.nii.gz"
    done(scanbridge("translate", tmp_path / "run", scan, "--out", tmp_path / "out", "--device", "cuda"))
    made = read(tmp_path / "out" / "p4_flair_t1w.nii.gz").data
    assert made.shape == read(scan).data.shape
    assert made.std() > 0


CHOSEN = ('train.keep="best"', 'split.val=["p3"]', 'train.schedule="constant"', "train.learning_rate=0.02")


def test_the_weights_that_are_best_on_val_are_those_of_a_training_that_ended_there(cohort, tmp_path):
    def words(name: str, *settings: str) -> list[object]:
        return usual(cohort, tmp_path / name, *CHOSEN, *settings, config="regression-small.toml")

    said = done(scanbridge(*words("best"))).err
    facts = json.loads((tmp_path / "best" / "stages" / "regression" / "weights.json").read_text())
    log = read_log(tmp_path / "best" / "stages" / "regression" / "log.jsonl")
    losses = {line["images"]: line["val_loss"] for line in log if "val_loss" in line}
    assert [*losses] == [8, 16, 24]
    assert facts["kept_after"] == min(losses, key=losses.__getitem__) < 24
    assert facts["val_loss"] == min(losses.values())
    assert f"the weights after {facts['kept_after']} images are kept" in said
    done(scanbridge(*words("ended", 'train.keep="last"', f"train.images={facts['kept_after']}")))
    assert weights(tmp_path / "ended", "regression") == weights(tmp_path / "best", "regression")
    killed = words("killed")
    child(killed, tmp_path / "log", strike=Strike(FIT, "_update", 5)).wait()
    done(scanbridge(*killed))
    assert weights(tmp_path / "killed", "regression") == weights(tmp_path / "best", "regression")


def test_a_share_at_the_source_after_a_regression_is_refused(cohort, tmp_path):
    outcome = scanbridge(*usual(cohort, tmp_path / "run", "bridge.at_source=0.5"))
    assert outcome.code == 2
    assert "bridge.at_source = 0.5 with regression.use" in outcome.fault
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(cohort, whole, tmp_path):
    arguments = training(cohort, tmp_path / "run", *LONG)
    child(arguments, tmp_path / "log", strike=POINTS["in the second epoch"]).wait()
    state = newest(tmp_path / "run").with_suffix(".safetensors")
    spoilt = bytearray(state.read_bytes())
    spoilt[-1] ^= 1
    state.write_bytes(spoilt)
    done(scanbridge(*arguments))
    assert weights(tmp_path / "run") == weights(whole)


def test_a_damaged_checkpoint_is_written_over_before_the_good_one(cohort, whole, tmp_path):
    arguments = training(cohort, tmp_path / "run", *LONG)
    child(arguments, tmp_path / "log", strike=POINTS["in the second epoch"]).wait()
    newest(tmp_path / "run").with_suffix(".safetensors").write_bytes(b"")
    # the state of 48 images goes on to 64; there a kill falls between the tensors and their facts
    child(arguments, tmp_path / "log", strike=Strike(CHECKPOINT, "write_json", 1)).wait()
    # from 48 images it takes 8 updates, from nothing it would take 20
    assert child(arguments, tmp_path / "log", strike=Strike(FIT, "_update", 9)).wait().code == 0
    assert weights(tmp_path / "run") == weights(whole)


def test_running_a_finished_training_again_does_nothing(cohort, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "lock" and path.is_file()}
    done(scanbridge(*training(cohort, whole, *LONG)))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_second_process_on_a_run_folder_is_refused_at_once(cohort, whole, tmp_path):
    arguments = training(cohort, tmp_path / "run", *LONG)
    first = child(arguments, tmp_path / "log", strike=Strike(FIT, "_update", 3, signal.SIGSTOP))
    state = Path(f"/proc/{first.process.pid}/stat")
    while state.read_text().split()[2] != "T":
        assert first.process.is_alive()
        first.process.join(0.1)
    second = scanbridge(*arguments)
    assert second.code == 2
    assert f"pid {first.process.pid}" in second.fault
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait().code == 0
    assert weights(tmp_path / "run") == weights(whole)


def test_another_configuration_is_refused_and_the_difference_named(cohort, run):
    outcome = scanbridge(*usual(cohort, run, "train.learning_rate=0.5"))
    assert outcome.code == 2
    assert "learning_rate = 0.001" in outcome.fault
    assert "learning_rate = 0.5" in outcome.fault


def test_another_cohort_is_refused_and_the_difference_named(cohort, run, tmp_path):
    other = copied(cohort.parent, tmp_path / "other") / cohort.name
    changed(other.parent / "p2" / "p2_t1w.nii.gz", lambda data: 2 * data)
    outcome = scanbridge(*usual(other, copied(run, tmp_path / "run")))
    assert outcome.code == 2
    assert "cohort.json" in outcome.fault
    assert "p2" in outcome.fault
    assert "t1w" in outcome.fault


def planted(monkeypatch, bad) -> None:
    """Make the loss of some calls NaN; the first two calls are the forecast's."""
    count, honest = itertools.count(-1), window_bridge.masked_loss

    def loss(*arguments):
        value = honest(*arguments)
        return value * math.nan if bad(next(count)) else value

    monkeypatch.setattr(window_bridge, "masked_loss", loss)


def test_one_loss_that_is_not_finite_costs_the_way_back_to_the_last_checkpoint(cohort, tmp_path, monkeypatch):
    planted(monkeypatch, lambda update: update == 4)  # 24 images in 6 updates, checkpoints at 8, 16, 24
    done(scanbridge(*training(cohort, tmp_path / "run")))
    assert all(v.isfinite().all() for v in load_file(tmp_path / "run/stages/bridge/weights.safetensors").values())
    facts = json.loads(newest(tmp_path / "run").read_text())
    assert (facts["images"], facts["updates"], facts["rollbacks"]) == (24, 6, 1)
    assert [images for images, _ in logged(tmp_path / "run")] == [4, 8, 12, 12, 16, 20, 24]


def test_a_training_that_does_not_converge_stops_and_keeps_the_last_good_state(cohort, tmp_path, monkeypatch):
    planted(monkeypatch, lambda update: update >= 4)
    outcome = scanbridge(*training(cohort, tmp_path / "run"))
    assert outcome.code == 2
    assert "not finite" in outcome.fault
    assert "train.learning_rate" in outcome.fault
    assert json.loads(newest(tmp_path / "run").read_text())["images"] == 8
    assert not list((tmp_path / "run").rglob("weights.*"))


def test_an_update_of_a_gradient_that_is_not_finite_is_not_made(cohort, tmp_path, monkeypatch):
    count, honest = itertools.count(-1), window_bridge.masked_loss

    def steep(output, *others):
        value = honest(output, *others)
        return value + (0 * output).sum().sqrt() if next(count) == 4 else value  # worth 0, of slope 0 * infinity

    monkeypatch.setattr(window_bridge, "masked_loss", steep)
    done(scanbridge(*training(cohort, tmp_path / "run", "train.checkpoint_every=4")))
    facts = json.loads(newest(tmp_path / "run").read_text())
    assert (facts["images"], facts["updates"], facts["rollbacks"]) == (24, 6, 1)
    assert all(v.isfinite().all() for v in load_file(newest(tmp_path / "run").with_suffix(".safetensors")).values())


def test_weights_that_blew_up_are_not_kept(cohort, tmp_path):
    outcome = scanbridge(*training(cohort, tmp_path / "run", "train.learning_rate=1e30"))
    assert outcome.code == 2
    assert "not finite" in outcome.fault
    good = load_file(newest(tmp_path / "run").with_suffix(".safetensors"))
    assert max(float(v.abs().max()) for k, v in good.items() if k.startswith("weights.")) < 1e6


def test_two_processes_train_the_weights_of_one(cohort, tmp_path):
    settings = ("train.picture_every=8", "train.weight_decay=0.0", 'train.precision="32-true"')
    done(scanbridge(*training(cohort, tmp_path / "one", *settings)))
    pair(training(cohort, tmp_path / "two", *settings), tmp_path, [0, 0])
    one, two = (load_file(newest(tmp_path / name).with_suffix(".safetensors")) for name in ("one", "two"))
    assert one.keys() == two.keys()
    apart = max(float((one[name] - two[name]).abs().max()) for name in one if name.startswith("weights."))
    assert apart < 1e-2 * 1e-3  # a hundredth of one update of Adam
    assert len(list((tmp_path / "two").rglob("*.png"))) == 3


def test_a_batch_that_the_processes_cannot_share_is_refused(cohort, tmp_path):
    first, _ = pair(training(cohort, tmp_path / "run", "train.batch_size=3"), tmp_path, [2, 2])
    assert "train.batch_size = 3 on 2 processes" in first.err
    assert "Traceback" not in first.err


def test_two_processes_leave_together_when_one_is_asked_to(cohort, tmp_path):
    arguments = training(cohort, tmp_path / "run")
    pair(arguments, tmp_path, [143, 143], [None, Strike(FIT, "_update", 3, signal.SIGTERM)])
    assert json.loads(newest(tmp_path / "run").read_text())["images"] == 12


def pair(arguments, folder: Path, codes: list[int], strikes: Sequence[Strike | None] = (None, None)) -> list[Outcome]:
    """Run two processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        child(
            arguments,
            folder / f"log-{rank}",
            strike=strikes[rank],
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"},
        )
        for rank in range(2)
    ]
    ends = [each.wait() for each in children]
    assert [end.code for end in ends] == codes, "\n".join(end.err for end in ends)
    return ends


def test_a_run_folder_says_what_it_is(cohort, run):
    held = json.loads((run / "cohort.json").read_text())
    assert held["split"] == {"train": ["p1", "p2", "p3"], "val": [], "calibration": [], "test": ["p4"]}
    assert set(held["content"]) == {"p1", "p2", "p3", "p4"}
    assert {"python", "versions", "processors"} <= json.loads((run / "environment.json").read_text()).keys()
    assert (run / "done").is_file()
    assert not [path for path in run.rglob("*") if path.name.endswith((".part", ".pkl", ".pt", ".ckpt"))]


def test_a_volume_of_three_slices_has_a_picture_too(tmp_path):
    thin = {f"p{i}": {name: data[:, :, 11:14] for name, data in brain(i).items()} for i in range(1, 5)}
    done(scanbridge(*usual(write_cohort(tmp_path, thin), tmp_path / "run", "train.picture_every=8")))
    assert list((tmp_path / "run" / "stages" / "bridge" / "pictures").glob("*.png"))


def test_the_residual_scale_is_measured_on_val_subjects(cohort, run, tmp_path):
    assert json.loads((run / "residual_scale.json").read_text())["origin"] == "default, no val subjects"
    done(scanbridge(*usual(cohort, tmp_path / "run", 'split.val=["p3"]')))
    found = json.loads((tmp_path / "run" / "residual_scale.json").read_text())
    assert found["origin"] == "1 val subjects"
    assert 0.05 < found["value"] < 1.5


def test_the_resolved_configuration_of_a_run_is_a_configuration(cohort, run, tmp_path):
    again = scanbridge("train", run / "config.toml", "--cohort", cohort, "--run", tmp_path / "run", "--dry-run")
    shown = [line for line in done(again).out.splitlines() if not line.startswith("# ")]
    assert "\n".join(shown).strip() == (run / "config.toml").read_text().strip()
    assert not (tmp_path / "run").exists()


def test_the_floors_know_the_target_where_it_was_seen_alone(cohort, tmp_path):
    half = copied(cohort.parent, tmp_path / "half") / cohort.name
    for person in ("p1", "p2", "p3"):
        volume = read(half.parent / person / f"{person}_t1w.nii.gz")
        write(volume.path, volume.data[:, :16], volume.affine)
    done(scanbridge(*training(half, tmp_path / "run", "train.images=4")))
    quantiles = json.loads((tmp_path / "run" / "floors.json").read_text())["quantiles"]
    assert quantiles[len(quantiles) // 8] > 0.1  # half of the head was not seen, and is not dark


def test_a_stage_sees_the_earlier_ones_frozen_and_has_its_own_length(cohort, tmp_path):
    plan = plan_run(CONFIGS / "regression-small.toml", cohort, TINY)
    (first,) = regression.stages(plan.config, ["t1w"])
    seen = []

    def fit(cases, before):
        assert before.networks.keys() == {"regression"}
        return {"n_cases": torch.tensor(len(cases))}

    def loss(fitted, batch, noise):
        first_guess = fitted.networks["regression"](batch.source)
        seen.append(
            first_guess.requires_grad or any(p.requires_grad for p in fitted.networks["regression"].parameters())
        )
        value = (fitted.networks["second"](first_guess) - batch.targets["t1w"]).square().mean()
        assert fitted.statistics["n_cases"] == len(plan.rows("train"))
        return value, {}

    second = Stage("second", Item(1), lambda: {"second": torch.nn.Conv3d(1, 1, 1)}, loss, fit, images=8)
    two = SimpleNamespace(stages=lambda *_: (first, second), translator=regression.translator)
    arguments = (replace(plan, method=two), tmp_path / "run")
    assert train_run(*arguments, device="cpu", cache=tmp_path / "cache") == 0
    stages = tmp_path / "run" / "stages"
    images = {
        name: json.loads((stages / name / "weights.json").read_text())["images"] for name in ("regression", "second")
    }
    assert images == {"regression": 24, "second": 8}
    assert seen
    assert not any(seen)
    alone = scanbridge(*usual(cohort, tmp_path / "alone", config="regression-small.toml"))
    assert done(alone).code == 0
    one, other = (
        load_file(folder / "stages" / "regression" / "weights.safetensors")
        for folder in (tmp_path / "run", tmp_path / "alone")
    )
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    spent = len(seen)
    assert train_run(*arguments, device="cpu", cache=tmp_path / "cache") == 0
    assert len(seen) == spent  # what is finished is kept
