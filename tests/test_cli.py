"""Laws of the command line: help for every verb, results on stdout, news on stderr, a status that can be trusted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib

import pytest

import scanbridge as package
from scanbridge import cli, info
from scanbridge.errors import UserError
from small import contents, done, scanbridge, training

VERBS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


def test_the_version_is_that_of_the_package():
    assert done(scanbridge("--version")).out.strip() == package.__version__


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_every_option_has_help(verb):
    said = done(scanbridge(verb, "--help")).out
    assert said.startswith("Usage: ")
    assert f"scanbridge {verb} " in said
    command = next(c for c in cli.app.registered_commands if (c.name or c.callback.__name__) == verb)
    assert command.callback.__doc__


@pytest.mark.parametrize(
    "arguments",
    [
        ["translat"],
        ["translate"],
        ["translate", "--nothing"],
        ["train", "x", "--run", "y"],
        ["translate", "run", "scan", "--out", "out", "--seed", "-1"],
    ],
)
def test_what_is_no_command_is_refused_with_status_2(arguments):
    outcome = scanbridge(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


def test_a_dry_run_shows_the_configuration_and_touches_nothing(cohort, tmp_path):
    before = contents(cohort.parent)
    said = done(scanbridge(*training(cohort, tmp_path / "run"), "--dry-run"))
    resolved = tomllib.loads(said.out)
    assert resolved["train"]["images"] == 24
    assert resolved["train"]["augment"]["flip"] == ["columns"]
    assert "# ct2mri: flair -> t1w; subjects: 3 train, 1 test" in said.out
    assert not (tmp_path / "run").exists()
    assert contents(cohort.parent) == before


def test_info_says_what_a_run_is(run):
    said = done(scanbridge("info", run)).out
    for words in (
        "ct2mri: translates flair into t1w",
        "state: trained",
        "train: 3 people (p1, p2, p3)",
        "2 x 2 x 2 mm",
    ):
        assert words in said
    assert "not calibrated" in said


def test_results_go_to_stdout_and_news_to_stderr(run, cohort, tmp_path):
    words = ["translate", run, cohort.parent / "p4" / "p4_flair.nii.gz", "--out", tmp_path, "--device", "cpu"]
    outcome = done(scanbridge(*words))
    assert outcome.out == f"1 translated, 0 were there already: {tmp_path}\n"
    assert "1 scans, flair -> t1w on cpu" in outcome.err
    assert done(scanbridge(*words)).out == f"0 translated, 1 were there already: {tmp_path}\n"


def test_a_quality_that_does_not_exist_is_refused_with_the_nearest_name(run, cohort, tmp_path):
    words = ["translate", run, cohort.parent / "p4" / "p4_flair.nii.gz", "--out", tmp_path / "out"]
    outcome = scanbridge(*words, "--quality", "papers")
    assert outcome.code == 2
    assert outcome.fault.endswith("expected draft, normal or paper; did you mean 'paper'?")
    assert not (tmp_path / "out").exists()


def test_a_fault_of_the_user_is_one_line(monkeypatch):
    def fails(run):
        raise UserError("one\nthing", "another", "mend\n  it")

    monkeypatch.setattr(info, "describe", fails)
    outcome = scanbridge("info", "x")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", "scanbridge: one thing; expected another; mend it\n")


def test_a_fault_of_ours_says_so_and_shows_where(monkeypatch):
    def fails(run):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(info, "describe", fails)
    with pytest.raises(ZeroDivisionError, match="oops"):
        scanbridge("info", "x")


def test_a_process_with_a_fault_of_ours_exits_with_1():
    broken = "from scanbridge import cli, info; info.describe = lambda run: 1 / 0; cli.main()"
    ended = subprocess.run([sys.executable, "-c", broken, "info", "x"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("scanbridge: this is a fault of ours")
    assert "ZeroDivisionError" in ended.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_verb_that_is_stopped_says_so_in_one_line(monkeypatch, number, status):
    monkeypatch.setattr(info, "describe", lambda _: os.kill(os.getpid(), number))
    outcome = scanbridge("info", "x")
    assert outcome.code == status
    assert outcome.fault == "scanbridge: stopped; what was finished is kept"
