"""The verb ``features``: how alike the maps of the two branches are, on the way down and up, scale by scale.

Source: Lv et al., "RLBCD" (fig. 2, which shows maps of one image and compares them by eye).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor

from scanbridge.branches.features_page import Key, Planes, Scan, features_page, place_name
from scanbridge.branches.opened import about, choose, name_of, open_branches, weights_of
from scanbridge.data.box import box_of, take, widened
from scanbridge.data.cohort import Cohort, Row
from scanbridge.data.intensity import amplified, gain_to
from scanbridge.data.nifti import read
from scanbridge.errors import UserError
from scanbridge.files import atomic, make_folder, write_json, write_text
from scanbridge.methods.base import Request
from scanbridge.methods.rlbcd import Pair
from scanbridge.metrics.statistics import summarise
from scanbridge.model import BACKGROUND, Model
from scanbridge.nets.dual import Features, feature_similarity
from scanbridge.nets.precision import computing_in
from scanbridge.nets.strides import pad
from scanbridge.nets.unet import Way
from scanbridge.translation import prepare_source
from scanbridge.truth import load_truth

MOST_POSITIONS = 30_000
"""Of a patient and a scale; where there are more, they are thinned evenly."""
MOST_PICTURED = 4


def compare_features(
    run: Path,
    cohort: Path,
    out: Path,
    *,
    split: str = "test",
    time: float = 0.5,
    device: str = "auto",
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
) -> Path:
    """Compare the branches' maps of every scan of a split; write ``metrics.csv``, ``summary.json`` and the page.

    Parameters
    ----------
    run
        An RLBCD run with both branches.
    cohort, split
        The table, and test, val or calibration as the run chose it, or external.
    out
        Folder for the tables and ``report.html``.
    time
        Where on the bridges the networks are asked, in (0, 1]: 0 is the target, 1 the source. The states lie between
        the true ends, as in training.

    Raises
    ------
    UserError
        For a run, a split or a time that cannot be had, before anything is computed.
    """
    if not 0 < time <= 1:
        raise UserError(f"--time {time:g}", "a time of the bridge in (0, 1]; 1 is the source", "for example --time 0.5")
    model, pair = open_branches(run, device)
    table, rows = choose(model, cohort, split)
    scans = []
    for index, row in enumerate(rows):
        on_progress(index, len(rows), row.name)
        scans.append(_scan(table, row, model, pair, time, pictured=index < MOST_PICTURED))
    on_progress(len(rows), len(rows), "")
    frame = _frame(scans, name_of(model), model.common.task.targets[0])
    summary = summarise(frame)
    make_folder(out)
    with atomic(out / "metrics.csv") as beside:
        frame.to_csv(beside, index=False)
    write_json(out / "summary.json", summary)
    names = (model.common.task.source, model.common.task.targets[0])
    head = [*about(model, rows, cohort, split), ("Time", f"t = {time:g}; 0 is the target, 1 the source")]
    kinds = {name: spec.kind for name, spec in model.specs.items()}
    write_text(
        out / "report.html", features_page(scans, frame, summary, names, kinds, head, pair.config, weights_of(model))
    )
    return out / "report.html"


def _frame(scans: list[Scan], run: str, target: str) -> pd.DataFrame:
    rows = [
        {"run": run, "subject": each.subject, "target": target, "region": place_name(way, scale), "metric": metric}
        | {"unit": "1", "value": value}
        for each in scans
        for (metric, way, scale), value in each.similarity.items()
    ]
    return pd.DataFrame(rows)


def _scan(table: Cohort, row: Row, model: Model, pair: Pair, time: float, *, pictured: bool) -> Scan:
    """Run both branches over one scan, and compare their maps where there is foreground."""
    source, target, body, spacing = _on_model_grid(table, row, model)
    factor = pair.scale.factor
    gathered = Gathered(_inside(body, factor, pair.config.network.unet(1, 1).stride))
    middle = int(body.sum(dim=(1, 2)).argmax())
    request = Request(model.common.task.targets[0], row.name)
    shown = {}
    with torch.inference_mode(), computing_in(model.precision, model.device):
        first = 0
        for maps in pair.features(source.to(model.device), target.to(model.device), time, request):
            n = len(next(iter(maps.values())))
            if pictured and first <= middle < first + n:
                shown = {key: each[middle - first].float().mean(dim=0).cpu().numpy() for key, each in maps.items()}
            gathered.add(maps, first)
            first += n
    return Scan(
        row=row.name,
        subject=row.subject,
        similarity=gathered.similarity(),
        planes=Planes(
            source[0, middle].numpy(),
            target[0, middle].numpy(),
            shown,
            {scale: held[middle].numpy() for scale, held in gathered.inside.items()},
            spacing,
        )
        if pictured
        else None,
    )


def _on_model_grid(table: Cohort, row: Row, model: Model) -> tuple[Tensor, Tensor, Tensor, tuple[float, float]]:
    """Give source and target (1, D, H, W) in [-1, 1] and the foreground (D, H, W), cut as a translation is."""
    name = model.common.task.source
    prepared = prepare_source(model, read(row.images[name]), table.foreground_file(row, name))
    truth = load_truth(table, row, model, "model")
    source, target, body = prepared.source, truth.encoded, truth.regions["foreground"]
    if model.source_median is not None:
        source = amplified(source, gain_to(model.source_median, source, prepared.foreground))
    box = box_of(prepared.foreground)
    spans = (box[0], *(widened(span, size) for span, size in zip(box[1:], model.item_size, strict=True)))
    cut = [torch.from_numpy(take(each, spans, BACKGROUND))[None] for each in (source, target)]
    rows, columns = prepared.grid.spacing[1:]
    return cut[0], cut[1], torch.from_numpy(take(body, spans, 0.0)), (rows, columns)


def _inside(body: Tensor, factor: tuple[int, int], stride: int) -> Callable[[int], Tensor]:
    """Give which positions (D, h, w) of a map, at a downsample factor of the network, are half foreground at least."""
    share = F.avg_pool2d(pad(body[:, None].float(), factor), factor)
    share = pad(share, (stride, stride))
    return lambda scale: F.avg_pool2d(share, scale)[:, 0] >= 0.5


class Gathered:
    """Maps at the positions that hold foreground, thinned evenly.

    Parameters
    ----------
    inside
        Gives those positions (D, h, w) at a downsample factor.
    """

    def __init__(self, inside: Callable[[int], Tensor]) -> None:
        self._find, self.inside, self._taken = inside, dict[int, Tensor](), dict[int, Tensor]()
        self._kept: dict[Key, list[Tensor]] = {}

    def add(self, maps: Features, first: int) -> None:
        """Take in the maps (n, C, h, w) of the slices from `first` on."""
        for (branch, way, scale), each in maps.items():
            held = self._held(scale)[first : first + len(each)]
            self._kept.setdefault((branch, way, scale), []).append(
                each.movedim(1, -1)[held.to(each.device)].float().cpu()
            )

    def similarity(self) -> dict[tuple[str, Way, int], float]:
        """Compare the branches over all positions at once, as Kornblith et al. do over examples."""
        whole: Features = {key: torch.cat(parts).T[None] for key, parts in self._kept.items()}
        shuffled = dict(_shuffled(whole))
        found = {"cka": feature_similarity(whole, "cka"), "cosine": feature_similarity(whole, "cosine")}
        found["cka_shuffled"] = feature_similarity(shuffled, "cka")
        return {(name, *place): float(value) for name, each in found.items() for place, value in each.items()}

    def _held(self, scale: int) -> Tensor:
        if scale not in self.inside:
            self.inside[scale] = held = self._find(scale)
            every = max(1, -(-int(held.sum()) // MOST_POSITIONS))
            self._taken[scale] = held & (held.flatten().cumsum(0) % every == 0).reshape(held.shape)
        return self._taken[scale]


def _shuffled(maps: Features) -> Iterator[tuple[Key, Tensor]]:
    """Give the maps with the positions of the enhanced branch in another order."""
    generator = torch.Generator().manual_seed(0)
    for (branch, way, scale), each in maps.items():
        order = torch.randperm(each.shape[2], generator=generator)
        yield (branch, way, scale), each[:, :, order] if branch == "enhanced" else each
