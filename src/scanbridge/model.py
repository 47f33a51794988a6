"""A trained run, opened: its method, its weights, and its draws on the model grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter
from torch.nn.functional import pad

from scanbridge.data.box import Box, box_of, take, widened
from scanbridge.data.cohort import Cohort, ImageSpec
from scanbridge.data.intensity import Scale, amplified, gain_to
from scanbridge.errors import UserError, nearest
from scanbridge.files import read_json
from scanbridge.methods.base import Draws, Fitted, Request, Translator, in_words, lengths, load_method
from scanbridge.nets.precision import Precision, computing_in, precision_of
from scanbridge.runs.config import Common, read_tree, split_tree, validate
from scanbridge.stages import LEARNED_FROM, open_stage

BACKGROUND = -1.0
LARGEST_ITEM = 4096
_SPEC = TypeAdapter(ImageSpec)


@dataclass
class Model:
    """What translates: a method's translator with the scales and facts of its training.

    Parameters
    ----------
    common, config
        The run's tables.
    translator
        The method's translator with the trained networks.
    fitted
        The networks and statistics behind it.
    cohort
        The run's ``cohort.json``.
    specs
        What each image is, as the training cohort declared it.
    scales
        Mean scale of the training images by name; a written MR volume uses it.
    residual_scale
        sd of the walk's grid, see the protocol.
    source_median
        Median of the training sources, which a source is brought to before it is translated; None for none.
    item_size
        Rows and columns of a training item: the network sees no less in a translation.
    run
        The run folder; None for a model that is still in training.
    weights
        SHA-256 of the weights by stage.
    borrowed_from
        SHA-256 of the images that weights taken over from other runs were trained on.
    device, precision
        Where the networks compute, and in what.
    """

    common: Common
    config: BaseModel
    translator: Translator
    fitted: Fitted
    cohort: dict[str, Any]
    specs: dict[str, ImageSpec]
    scales: dict[str, Scale]
    residual_scale: float | None = None
    source_median: float | None = None
    item_size: tuple[int, int] = (0, 0)
    run: Path | None = None
    weights: dict[str, str] = field(default_factory=dict)
    borrowed_from: frozenset[str] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "32-true"

    @classmethod
    def open(
        cls,
        run: Path,
        *,
        device: str = "auto",
        settings: Sequence[str] = (),
    ) -> Model:
        """Open a run folder; nothing in it is executed.

        Parameters
        ----------
        run
            The folder.
        device
            auto, or a device as torch names it.
        settings
            ``a.b=c`` changes of the method's tables that its weights allow, for ablations: a walk, a corrector.

        Raises
        ------
        UserError
            If it is no run folder, is not finished, or its weights do not fit its configuration.
        """
        place = device_of(device)
        path = run / "config.toml"
        if not path.is_file():
            raise UserError(f"{run} is not a run folder", "a folder made by 'scanbridge train'", "check the path")
        shared, own = split_tree(read_tree(path, settings))
        common = validate(Common, shared, str(path))
        method = load_method(common.method)
        config = validate(method.Config, own, str(path))
        fitted, weights, theirs, item_size = Fitted(), {}, set[str](), (0, 0)
        for stage in method.stages(config, common.task.targets):
            made, facts = open_stage(stage, run, place)
            fitted, item_size = fitted | made, _item_size(facts, run / "stages" / stage.name)
            weights[stage.name] = str(facts["sha256"])
            theirs |= set(map(str, facts.get(LEARNED_FROM, ())))
        cohort, specs, scales, median = _known(run / "cohort.json")
        return cls(
            common=common,
            config=config,
            translator=method.translator(config, fitted),
            fitted=fitted,
            cohort=cohort,
            specs=specs,
            scales=scales,
            residual_scale=_residual_scale(run / "residual_scale.json"),
            source_median=median,
            item_size=item_size,
            run=run,
            weights=weights,
            borrowed_from=frozenset(theirs),
            device=place,
            precision=precision_of("32-true" if common.train.precision == "32-true" else "auto", place),
        )

    @property
    def trained_for(self) -> str:
        """How long its stages were trained, in words."""
        stages = load_method(self.common.method).stages(self.config, self.common.task.targets)
        return in_words(lengths(stages, self.common.train.images))

    @property
    def has_styles(self) -> bool:
        """Whether a translation may be told a style."""
        return bool(getattr(getattr(self.config, "style", None), "use", False))

    @property
    def trained_on(self) -> set[str]:
        """Content hashes of all images that the run was trained on, its borrowed weights included."""
        return self._content(trained=True) | self.borrowed_from

    @property
    def set_apart(self) -> set[str]:
        """Content hashes of all images of its cohort that the run was not trained on."""
        return self._content(trained=False)

    def _content(self, *, trained: bool) -> set[str]:
        subjects = set(self.cohort["split"]["train"])
        entries = [e for e in self.cohort["content"].values() if (e["subject"] in subjects) is trained]
        return {digest for entry in entries for digest in entry["images"].values()}

    def draw(self, source: NDArray[np.float32], foreground: NDArray[np.bool_], request: Request) -> Draws:
        """Draw target volumes (K, D, H, W) for a source (D, H, W) in [-1, 1]; outside the foreground's box is -1.

        The network sees what lies about the box too, as far as in training: norms and borders depend on it.
        """
        if not foreground.any():
            raise UserError("the source has no foreground", "a scan with something in it", "look at it with 'check'")
        if self.source_median is not None:
            source = amplified(source, gain_to(self.source_median, source, foreground))
        seen, box, (rows, columns) = self._seen(source, foreground)
        if request.residual_scale is None:
            request = replace(request, residual_scale=self.residual_scale)
        with torch.inference_mode(), computing_in(self.precision, self.device):
            draws = self.translator.draw(seen, request)
        edges = [(b.start, n - b.stop) for b, n in zip(box, source.shape, strict=True)]
        around = [length for edge in reversed(edges) for length in edge]
        return replace(
            draws,
            volumes=pad(draws.volumes[..., rows, columns].clamp(-1, 1), around, value=BACKGROUND),
            uncertainty=pad(draws.uncertainty[..., rows, columns], around),
            signals={name: pad(each[..., rows, columns], around) for name, each in draws.signals.items()},
        )

    def refuse_table(self, table: Cohort, name: str) -> None:
        """Refuse a cohort whose source or target is not the image that the run, called `name`, was trained on.

        Raises
        ------
        UserError
            For an image that is not there, or of another kind, window or ceiling: prediction and truth would be on two
            scales.
        """
        source, target = self.common.task.source, self.common.task.targets[0]
        for column in (source, target):
            if column not in table.images:
                raise UserError(
                    f"{name} translates {source} to {target}; {table.path} has no image '{column}'",
                    "a table with both",
                    nearest(column, table.images),
                )
            if table.images[column] != self.specs[column]:
                raise UserError(
                    f"{table.path.with_suffix('.toml')}: images.{column} is not what {name} was trained on",
                    f"kind = '{self.specs[column].kind}', with the same window or ceiling",
                    "correct the TOML",
                )

    def reconstruct(self, image: NDArray[np.float32], foreground: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """Give what a latent run's autoencoder makes of an image (D, H, W) by itself, cut as a translation is.

        It is the ceiling of every translation; None where a run has no autoencoder.
        """
        run = getattr(self.translator, "reconstruct", None)
        if run is None:
            return None
        seen, box, (rows, columns) = self._seen(image, foreground)
        with torch.inference_mode(), computing_in(self.precision, self.device):
            made = run(seen)[0].clamp(-1, 1).float().cpu().numpy()
        whole = np.full_like(image, BACKGROUND)
        whole[box] = made[:, rows, columns]
        return whole

    def _seen(self, image: NDArray[np.float32], foreground: NDArray[np.bool_]) -> tuple[torch.Tensor, Box, list[slice]]:
        """Give what networks see of an image (1, d, h, w), the foreground's box, and its rows and columns in that."""
        box = box_of(foreground)
        around = [widened(span, size) for span, size in zip(box[1:], self.item_size, strict=True)]
        inner = [slice(b.start - a.start, b.stop - a.start) for b, a in zip(box[1:], around, strict=True)]
        return torch.from_numpy(take(image, (box[0], *around), BACKGROUND))[None].to(self.device), box, inner


def device_of(name: str) -> torch.device:
    """Give the device that a user names: auto is the GPU of CUDA where there is one, else the CPU.

    Raises
    ------
    UserError
        If this machine has no such device.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if not there.get(device.type):
        here = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise UserError(f"--device {name}", f"auto, or what this machine has: {here}", "leave it out for auto")
    return device


def _known(path: Path) -> tuple[dict[str, Any], dict[str, ImageSpec], dict[str, Scale], float | None]:
    """Read what training noted of its cohort: all of it, what each image is, its scale, and the sources' median."""
    cohort = read_json(path)
    try:
        specs = {name: _SPEC.validate_json(json.dumps(value)) for name, value in cohort["images"].items()}
        median = cohort.get("source_median")
        scales = {name: Scale(**value) for name, value in cohort["scales"].items()}
        return cohort, specs, scales, None if median is None else float(median)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} lacks what training wrote ({error!r})", "the file as it was written") from None


def _residual_scale(path: Path) -> float | None:
    if not path.is_file():
        return None
    try:
        return float(read_json(path)["value"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} holds no 'value'", "the file as it was written", "remove it for the default") from None


def _item_size(facts: Mapping[str, Any], stage: Path) -> tuple[int, int]:
    """Read rows and columns of a training item; a size that no scan has would fill the memory."""
    rows, columns = (facts.get(axis) for axis in ("rows", "columns"))
    if isinstance(rows, int) and isinstance(columns, int) and max(rows, columns) <= LARGEST_ITEM:
        return rows, columns
    raise UserError(
        f"{stage / 'weights.json'}: rows = {rows}, columns = {columns}",
        f"the size of a training item, at most {LARGEST_ITEM}",
        "restore the file as it was written",
    )
