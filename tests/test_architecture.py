"""Holds the house against its plan (docs/explanation/architecture.md): who imports whom, how large a room may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "scanbridge"

FOUNDATION = {"errors", "files", "strict"}
ENGINE = {*FOUNDATION, "bridge", "data", "methods", "runs"}
CHOICES = {"options", "signals", "head", "calibration"}
VERBS = {
    *("check", "simulate", "info", "truth", "display", "judge", "evaluate", "evaluation_page"),
    *("calibrate", "residuals", "ablate", "ablation_page", "trials", "downstream", "branches"),
}

# unit: the units of ours that it may import, itself aside
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "strict": set(),
    "files": {"errors"},
    "bridge": {"errors"},
    "nets": {"errors"},
    "metrics": {"errors"},
    "data": FOUNDATION,
    "runs": FOUNDATION,
    "methods": {"errors", "strict", "bridge", "nets"},
    "plan": ENGINE,
    "stages": {*ENGINE, "nets.memory"},
    "state": {*ENGINE, "nets.memory"},
    "fit": {*ENGINE, "nets.memory", "state"},
    "model": {*ENGINE, "nets.precision", "stages"},
    "ceiling": {*ENGINE, "model", "metrics.image"},
    "likeness": {*FOUNDATION, "data", "metrics.likeness"},
    "train": {*ENGINE, "nets.precision", "plan", "fit", "stages", "model", "ceiling", "likeness", "metrics.floors"},
    "options": {"methods", "files", "errors"},
    "signals": {"methods"},
    "head": {*ENGINE, "nets.unet", "nets.memory"},
    "calibration": {*ENGINE, "model", "options", "signals", "head", "metrics.conformal"},
    "translation": {*ENGINE, *CHOICES, "model", "likeness", "metrics.draws"},
    "forecast": {*ENGINE, *CHOICES, "nets.memory", "model", "translation"},
    "translate": {*ENGINE, *CHOICES, "model", "translation", "forecast"},
    "api": {"data", "model", "options", "translation"},
    "report": {"errors", "metrics"},  # tables and arrays in, a page out
    "terminal": {"files"},
    "cli_options": {"errors"},
    "cli_branches": {"cli_options", "terminal", "branches"},
    "cli": {*VERBS, "terminal", "plan", "train", "translate", "translation", "options", "errors", "files", "methods"}
    | {"cli_options", "cli_branches"},
}
ALLOWED |= {
    verb: ENGINE
    | VERBS
    | CHOICES
    | {"nets", "plan", "fit", "model", "ceiling", "likeness", "train", "translate", "translation", "metrics", "report"}
    for verb in VERBS
}

# of the packages of others, all that the inner rooms need
LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "strict": {"pydantic"},
    "bridge": {"torch"},
    "nets": {"torch", "pydantic"},
    "metrics": {"numpy", "scipy", "skimage", "pandas", "statsmodels"},
}

SHARED_BY_METHODS = {
    f"scanbridge.methods{name}"
    for name in (
        *("", ".base", ".walks", ".windows", ".regressing", ".window_bridge", ".volumes"),
        *(".autoencoding", ".latent", ".selection", ".pairing", ".consistency"),
    )
}
LONGEST_FILE = 400
LARGEST_CORE = 1000
UNSAFE = ("pickle", "shelve", "marshal", "dill", "joblib")
HEAVY = ("torch", "numpy", "nibabel", "pandas", "matplotlib", "lightning_fabric", "skimage", "scipy", "nilearn")


def module_name(path: Path) -> str:
    """Give ``scanbridge.data.grid`` for its file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    """Give every module of the package, parsed."""
    return {module_name(p): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}


@cache
def lines() -> dict[str, int]:
    """Give the number of lines of every module."""
    return {module_name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py")}


def imports(tree: ast.AST) -> Iterator[str]:
    """Give the dotted names that a tree imports; ``from a import b`` is a.b where that is a module, else a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import, line {node.lineno}"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


def top_level(tree: ast.Module) -> ast.Module:
    """Give a module without the bodies of its functions and of ``if TYPE_CHECKING``."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return ast.copy_location(ast.Pass(), node)

        def visit_If(self, node: ast.If) -> ast.AST:
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return ast.copy_location(ast.Pass(), node) if guarded else node

    return Prune().visit(ast.parse(ast.unparse(tree)))


def inside(name: str) -> str:
    """Give a module's path inside the package: ``data.grid`` for ``scanbridge.data.grid``, "" for the package."""
    return name.removeprefix("scanbridge").removeprefix(".")


def unit(name: str) -> str:
    """Give the part of the house that a module belongs to: ``data`` for ``scanbridge.data.grid``."""
    return inside(name).partition(".")[0]


def may(importer: str, imported: str) -> bool:
    """Say whether the plan lets one module import another; everyone may ask the package for its version."""
    own, other = unit(importer), unit(imported)
    return own in ("", other) or other == "" or not {other, inside(imported)}.isdisjoint(ALLOWED[own])


def ours(tree: ast.AST) -> set[str]:
    return {name for name in imports(tree) if name.partition(".")[0] == "scanbridge"}


def test_every_module_has_a_place_in_the_plan():
    assert [name for name in modules() if unit(name) not in ALLOWED and inside(name)] == []


def test_imports_run_in_the_directions_of_the_plan():
    broken = [f"{m} -> {i}" for m, tree in modules().items() for i in sorted(ours(tree)) if not may(m, i)]
    assert broken == []


def test_the_inner_rooms_need_few_libraries():
    def foreign(tree: ast.AST) -> set[str]:
        return {name.partition(".")[0] for name in imports(tree)} - sys.stdlib_module_names - {"scanbridge"}

    broken = [
        f"{name} -> {library}"
        for name, tree in modules().items()
        if unit(name) in LIBRARIES
        for library in sorted(foreign(tree) - LIBRARIES[unit(name)])
    ]
    assert broken == []


def test_no_method_imports_another():
    methods = {name for name in modules() if unit(name) == "methods"} - SHARED_BY_METHODS
    broken = [f"{m} -> {i}" for m in sorted(methods) for i in sorted(ours(modules()[m]) & methods)]
    assert broken == []


def test_imports_have_no_cycle():
    graph = {name: ours(top_level(tree)) - {"scanbridge", name} for name, tree in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
        cycle = []
    except CycleError as error:
        cycle = error.args[1]
    assert cycle == []


def test_the_command_line_imports_verbs_inside_functions_alone():
    parts = {"scanbridge.cli", "scanbridge.cli_options", "scanbridge.cli_branches"}
    light = {"scanbridge", "scanbridge.errors", "scanbridge.terminal", *parts}
    assert {name: heavy for name in parts if (heavy := ours(top_level(modules()[name])) - light)} == {}


def test_the_core_fits_into_one_head():
    assert sum(n for name, n in lines().items() if unit(name) == "bridge") < LARGEST_CORE


def test_every_file_is_one_room():
    assert {name: n for name, n in lines().items() if n > LONGEST_FILE} == {}


def test_no_code_is_run_from_data():
    """No pickle, no eval or exec, no torch.load, no shell: a run folder from a stranger can be opened."""
    broken = []
    for name, tree in modules().items():
        broken += [
            f"{name}: import {i}" for i in imports(tree) if i.partition(".")[0] in ("pickle", "shelve", "marshal")
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            shell = any(k.arg == "shell" and getattr(k.value, "value", True) for k in node.keywords)
            pickled = any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords)
            if called in ("eval", "exec", "compile", "__import__", "torch.load", "os.system") or shell or pickled:
                broken.append(f"{name}, line {node.lineno}: {ast.unparse(node)}")
    assert broken == []


def _loaded_by(code: str) -> set[str]:
    """Give the heavy packages that a fresh interpreter has loaded after `code`."""
    told = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1])) & set(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import scanbridge",
        "from scanbridge.cli import app; app(['--help'], standalone_mode=False)",
        "from scanbridge.cli import app; app(['train', '--help'], standalone_mode=False)",
        "from scanbridge.methods import METHODS",
    ],
)
def test_asking_for_help_loads_nothing_heavy(code):
    assert _loaded_by(code) == set()


def test_these_laws_can_fail(monkeypatch):
    planted = {
        "scanbridge.data.grid": ast.parse("import scanbridge.methods.base"),
        "scanbridge.methods.bbdm": ast.parse("from scanbridge.methods.ct2mri import Config"),
        "scanbridge.metrics.image": ast.parse("from scanbridge.report.page import render"),
    }
    whole = {**modules(), **planted}
    monkeypatch.setattr(sys.modules[__name__], "modules", lambda: whole)
    for law in (test_imports_run_in_the_directions_of_the_plan, test_no_method_imports_another):
        with pytest.raises(AssertionError):
            law()
