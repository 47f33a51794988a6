"""The documentation holds: its snippets run, its commands exist, its links lead somewhere, its patches apply."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scanbridge.cli import app
from scanbridge.data.cohort import read_cohort

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERBS = {c.callback.__name__: c.callback for c in app.registered_commands if c.callback}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def snippets(page: str, language: str) -> list[str]:
    """Give the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


@cache
def options_of(verb: str) -> set[str]:
    """Give the options of a verb, as its help says them."""
    told = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
    return set(re.findall(r"(?<!\S)--[\w-]+", told.output))


def commands(page: str) -> list[str]:
    """Give the calls of scanbridge in the shell blocks of a page, continued lines joined."""
    joined = "\n".join(snippets(page, "sh")).replace("\\\n", " ")
    return [found[1] for found in re.finditer(r"\bscanbridge(?:\.cli)? ((?!<)[^\n#&]+)", joined)]


@every_page
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8"))
    images = {"docs/images/demo.png"}  # made by `make demo` and added with the first release
    broken = [t for t in targets if "://" not in t and t not in images and not (page.parent / t).exists()]
    assert broken == []


@every_page
def test_commands_and_their_options_exist(page):
    for command in commands(page.read_text(encoding="utf-8")):
        verb, *words = command.split()
        if verb.startswith("--"):
            assert verb in ("--version", "--help")
            continue
        assert verb in VERBS, command
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - options_of(verb)
        assert not unknown, command


def test_the_makefile_calls_verbs_and_options_that_exist():
    calls = re.findall(r"\$\(SCANBRIDGE\) (\w+) ?(.*)", text_of("Makefile").replace("\\\n", " "))
    assert {"simulate", "train", "compare", "translate", "evaluate", "check"} <= {verb for verb, _ in calls}
    for verb, rest in calls:
        assert set(re.findall(r"(?<!\S)--[\w-]+", rest)) <= options_of(verb), verb


def test_every_verb_stands_in_the_readme_and_in_the_reference():
    assert set(re.findall(r"^\| `scanbridge (\w+)", text_of("README.md"), flags=re.MULTILINE)) == set(VERBS)
    assert set(re.findall(r"^```\{command\} (\w+)", text_of("docs/reference/cli.md"), flags=re.MULTILINE)) == set(VERBS)


@every_page
def test_python_snippets_are_python(page):
    for code in snippets(page.read_text(encoding="utf-8"), "python"):
        assert ast.parse(code).body


def test_the_walk_of_the_mathematics_runs():
    (code,) = snippets(text_of("docs/explanation/bridges.md"), "python")
    names: dict[str, object] = {}
    exec(compile(code, "bridges.md", "exec"), names)  # noqa: S102  (our own page)
    assert (names["result"] == 0.5).all()


def test_folds_are_pooled_as_the_page_says(tmp_path, monkeypatch):
    header, line = "run,subject,target,region,metric,unit,value\n", "fold-{0},p{0},t1w,foreground,psnr,dB,{1}\n"
    for fold, value in enumerate([20.0, 22.0]):
        folder = tmp_path / "evaluation" / f"fold-{fold}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(header + line.format(fold, value), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (code,) = snippets(text_of("docs/howto/folds.md"), "python")
    names: dict[str, object] = {}
    exec(compile(code, "folds.md", "exec"), names)  # noqa: S102  (our own page)
    (row,) = names["summary"]
    assert (row["run"], row["n"], row["mean"]) == ("ct2mri", 2, 21.0)


@pytest.mark.parametrize("name", ["README.md", "docs/howto/own-data.md"])
def test_the_cohort_of_the_page_is_read(name, tmp_path):
    page = text_of(name)
    table = next(block for block in snippets(page, "text") if block.startswith("subject,"))
    (tmp_path / "cohort.csv").write_text(table, encoding="utf-8")
    (tmp_path / "cohort.toml").write_text(snippets(page, "toml")[0], encoding="utf-8")
    for cell in re.findall(r"[^,\s]+\.nii\.gz", table):
        (tmp_path / cell).parent.mkdir(exist_ok=True)
        (tmp_path / cell).touch()
    cohort = read_cohort(tmp_path / "cohort.csv")
    assert len(cohort.rows) == 2
    assert {row.group for row in cohort.rows} == {"0", "1"}
    assert not cohort.guessed


def test_every_dependency_is_pinned_and_nothing_else_than_a_version_stands_there():
    lines = [line for line in text_of("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    extras = (entry for extra in ("demo", "dev", "docs") for entry in project["optional-dependencies"][extra])
    declared = {re.match(r"[\w.-]+", entry)[0].lower() for entry in [*project["dependencies"], *extras]}
    assert declared - pinned == set()


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """Give a copy of the source with the three patches of CONTRIBUTING applied."""
    copy = tmp_path_factory.mktemp("patched")
    for folder in ("src", "configs", "tests/bridge", "tests/metrics"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    patches = re.findall(
        r"<!-- patch: \w+ -->\n\n```diff\n(.*?)^```", text_of("CONTRIBUTING.md"), re.MULTILINE | re.DOTALL
    )
    assert len(patches) == 3
    for patch in patches:
        assert len(patch.splitlines()) < 100
        alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
        told = subprocess.run(
            ["git", "apply", "-"], input=patch, cwd=copy, env=alone, text=True, capture_output=True, check=False
        )
        assert told.returncode == 0, told.stderr
    return copy


USE_THE_METHOD = """
from pathlib import Path
import torch
from scanbridge.bridge.noise import ItemNoise
from scanbridge.methods.base import Batch, Fitted, Request, load_method
from scanbridge.runs.config import Common, read_tree, split_tree, validate

small = ["network.channels=8", "network.head_channels=8"]
shared, own = split_tree(read_tree(Path("configs/residual-small.toml"), small))
method = load_method(validate(Common, shared, "preset").method)
config = validate(method.Config, own, "preset")
(stage,) = method.stages(config, ["post1"])
fitted = Fitted(stage.build())
window = torch.zeros(2, 1, 3, 16, 16)
batch = Batch(window, {"post1": window + 1}, {"post1": torch.ones_like(window)}, torch.zeros(2, dtype=torch.long))
loss, _ = stage.loss(fitted, batch, ItemNoise([0, 1]))
assert loss.item() == 1.0, loss  # its outputs start at zero, so it starts as the source itself
with torch.inference_mode():
    draws = method.translator(config, fitted).draw(torch.rand(1, 5, 16, 16), Request("post1", "somebody"))
assert draws.volumes.shape == (1, 5, 16, 16) and draws.uncertainty.shape == (5, 16, 16)
"""


def _run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )


def test_the_method_of_contributing_trains_and_translates(patched):
    done = _run(patched, "-c", USE_THE_METHOD)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_process_and_the_metric_of_contributing_keep_the_laws(patched):
    laws = ("tests/bridge/test_process.py", "tests/metrics/test_image.py")
    done = _run(patched, "-m", "pytest", "-q", "-p", "no:cacheprovider", *laws, "-k", "growing or perfect or missing")
    assert done.returncode == 0, done.stdout + done.stderr
