"""Tensors and facts of a run on disk: safetensors + JSON with a hash, two generations, no pickle."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scanbridge.errors import UserError
from scanbridge.files import atomic, read_json, sha256, write_json


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `tensors` to ``path`` and `facts` with their hash to the JSON of the same stem; the JSON makes it count."""
    with atomic(path) as beside:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, beside)
        digest = sha256(beside)
    write_json(path.with_suffix(".json"), {**facts, "sha256": digest})


def load_tensors(
    path: Path, remedy: str = "restore it from a copy, or train again"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises
    ------
    UserError
        If a file is missing or damaged, or the two do not belong together.
    """
    facts = read_json(path.with_suffix(".json"), remedy)
    if not isinstance(facts, dict) or not path.is_file():
        raise UserError(f"{path}: no such file", "weights in safetensors", remedy)
    if sha256(path) != facts.get("sha256"):
        what = f"{path}: its bytes do not match {path.with_suffix('.json').name}"
        raise UserError(what, "the file that the run wrote", remedy)
    try:
        return load_file(path), facts
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not readable ({error})", "a safetensors file", remedy) from None


class Generations:
    """The state of a training in two generations, so that a kill while writing loses nothing."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / "state-0.safetensors", folder / "state-1.safetensors"]
        self._good: Path | None = None  # the one last read or written, which a save must not touch

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write over the generation that was not read or written last; `facts` must hold the number of ``images``."""
        path = self._paths[self._paths[0] == self._good]
        save_tensors(path, tensors, facts)
        self._good = path

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the newest generation that is whole, or None where there is none."""
        for path in sorted(self._paths, key=self._images, reverse=True):
            try:
                found = load_tensors(path)
            except UserError:
                continue
            self._good = path
            return found
        return None

    @property
    def images(self) -> int:
        """Images that the newest generation has seen, by what stands beside it; 0 where there is none."""
        return max(0, *map(self._images, self._paths))

    def _images(self, path: Path) -> int:
        try:
            return int(read_json(path.with_suffix(".json"))["images"]) if path.is_file() else -1
        except (UserError, KeyError, TypeError, ValueError):
            return -1


def flatten(prefix: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part a nested state dictionary (of an optimiser, say) into tensors by dotted name and plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in state.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            inner_tensors, inner_plain = flatten(name, value)
            tensors |= inner_tensors
            plain |= inner_plain
        else:
            plain[name] = value
    return tensors, plain


def environment() -> dict[str, Any]:
    """Versions and machine, for ``environment.json``."""
    names = ("scanbridge", "torch", "numpy", "scipy", "nibabel", "scikit-image", "lightning-fabric", "safetensors")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in names},
    }
