"""What the stages of a run have made: their weights, opened, or taken over from another run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.files import atomic, read_json, sha256, write_json
from scanbridge.methods.base import Fitted, Stage
from scanbridge.nets.memory import channels_last
from scanbridge.runs.checkpoint import load_tensors

WEIGHTS = "weights.safetensors"
LEARNED_FROM = "learned_from"
"""Among the facts of weights that were taken over: SHA-256 of the images that they were trained on."""


def open_stage(stage: Stage, run: Path, device: torch.device) -> tuple[Fitted, dict[str, Any]]:
    """Load what a finished stage of a run made, frozen, and its facts.

    Raises
    ------
    UserError
        If it is not finished, or its weights are of another network or another configuration.
    """
    file = run / "stages" / stage.name / WEIGHTS
    if not file.is_file():
        raise UserError(f"{run}: stage '{stage.name}' has no weights yet", "a finished training", "train it")
    tensors, facts = load_tensors(file)
    if facts.get("config_sha256") != sha256(run / "config.toml"):
        raise UserError(
            f"{run / 'config.toml'} is not the configuration that {file} was trained with",
            "the file as training wrote it",
            "restore it; a walk is changed with --calls, --order and --grid",
        )
    made = Fitted(statistics={name: value.to(device) for name, value in _under("statistics", tensors).items()})
    for name, network in stage.build().items():
        own = _under(name, tensors)
        _refuse_misfit(network, own, file)
        network.load_state_dict(own)
        made.networks[name] = channels_last(network.to(device)).eval().requires_grad_(False)
    return made, facts


def borrowed(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Give the facts of the weights that stages take from other runs, by stage.

    Raises
    ------
    UserError
        If there are none, they are of another network, or they build on an earlier stage that is not this run's.
    """
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        if stage.weights is None:
            continue
        file = stage.weights / WEIGHTS
        tensors, facts = load_tensors(file)
        found[stage.name] = facts
        _refuse_another(stage, facts, file)
        with torch.device("meta"):
            networks = stage.build()
        for name, network in networks.items():
            _refuse_misfit(network, _under(name, tensors), file)
        for earlier, digest in facts.get("before", {}).items():
            if found.get(earlier, {}).get("sha256") != digest:
                raise UserError(
                    f"{file} was trained on another '{earlier}'",
                    f"the '{earlier}' of the same run",
                    f"give {earlier}.weights too, or train '{stage.name}'",
                )
    return found


def learned_from(stage: Stage) -> set[str]:
    """Give the SHA-256 of all images that weights of another run were trained on, there or before they came there."""
    folder = stage.weights or Path()
    path, remedy = folder.parent.parent / "cohort.json", "give the stage's folder inside its run: who trained it counts"
    cohort, facts = read_json(path, remedy), load_tensors(folder / WEIGHTS)[1]
    try:
        people = set(cohort["split"]["train"])
        entries = [entry for entry in cohort["content"].values() if entry["subject"] in people]
        return {digest for entry in entries for digest in entry["images"].values()} | set(facts.get(LEARNED_FROM, ()))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} lacks what training wrote ({error!r})", "the file as it was written") from None


def take_over(stage: Stage, run: Path, facts: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Copy weights of another run into this one; `facts` is what `borrowed` read, `own` what names this run."""
    if stage.weights is None:
        raise ValueError(f"stage '{stage.name}' has weights of its own")
    folder = run / "stages" / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / WEIGHTS) as beside:
        shutil.copyfile(stage.weights / WEIGHTS, beside)
    origin = {"from": str(stage.weights), LEARNED_FROM: sorted(learned_from(stage))}
    write_json((folder / WEIGHTS).with_suffix(".json"), {**facts, **own, **origin})


def _refuse_another(stage: Stage, facts: Mapping[str, Any], file: Path) -> None:
    """Hold what the weights say they are against what the stage says; shapes alone do not show a stride."""
    theirs = facts.get("about")
    if facts.get("stage") != stage.name or not isinstance(theirs, dict):
        raise UserError(f"{file} is stage '{facts.get('stage')}'", f"'{stage.name}'", "check the path")
    for key in {**stage.about, **theirs}:
        if theirs.get(key) != stage.about.get(key):
            raise UserError(
                f"{file}: {key} = {theirs.get(key)}",
                f"{stage.about.get(key)}, as this configuration says",
                f"set {key} so, or leave {stage.name}.weights out",
            )


def _refuse_misfit(network: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Say in one line which weights do not fit a network."""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if wrong:
        name, more = wrong[0], len(wrong) - 1
        raise UserError(
            f"{file}: '{name}' is {given.get(name, 'missing')}, which config.toml does not fit (and {more} more)",
            f"{own.get(name, 'no such weight')}",
            "the weights that this configuration trained",
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors named ``prefix.rest`` by their rest."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
