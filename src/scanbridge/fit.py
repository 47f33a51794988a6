"""One training loop for all methods and stages.

The state of a training is what its checkpoint holds: weights, their moving average, the optimiser, and two counters.
All randomness is a function of (seed, number of the image), so a run that was killed and resumed, or trained on other
numbers of processes, sees the same images, times and noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise, stable_seed
from scanbridge.data.cache import Case
from scanbridge.data.items import ItemArrays, Items
from scanbridge.errors import UserError
from scanbridge.methods.base import Batch, Fitted, Stage
from scanbridge.nets.memory import channels_last, peak_memory
from scanbridge.runs.checkpoint import Generations, save_tensors
from scanbridge.runs.config import Augment, Train
from scanbridge.runs.log import Log
from scanbridge.state import Best, State, averaged, fresh_state

MOST_ROLLBACKS = 3
MOST_VAL_ITEMS = 256
"""Windows of the val subjects that the loss of a checkpoint is taken over."""


@dataclass(frozen=True)
class Progress:
    """What a training tells as it goes."""

    stage: str
    images: int
    of: int
    loss: float
    rate: float


def train_stage(
    stage: Stage,
    settings: Train,
    cases: Sequence[Case],
    targets: Sequence[str],
    folder: Path,
    fabric: Fabric,
    *,
    before: Fitted,
    statistics: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    val: Sequence[Case] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,  # noqa: ARG005
    stop: Callable[[], bool] = lambda: False,
    picture: Callable[[Fitted, int], None] = lambda fitted, images: None,  # noqa: ARG005
) -> bool:
    """Train one stage in `folder`, from its newest checkpoint if there is one; False if `stop` asked to leave.

    `before` holds the earlier stages, frozen; `statistics` is what the stage itself has fitted. With `val`, the weights
    kept are those of the checkpoint whose loss on these cases is lowest, not those of the end.

    Raises
    ------
    UserError
        If the loss is not finite after `MOST_ROLLBACKS` returns to the last good state.
    """
    items = items_of(stage, settings, cases, targets)
    val_items = items_of(stage, _unchanged(settings, items.size), val, targets) if val and stage.judged else None
    generations = Generations(folder)
    state = fresh_state(stage, settings, fabric)
    fitted = before | _on(fabric.device, state.networks, statistics)
    resumed = state.load(generations)
    if not resumed and fabric.is_global_zero:
        state.save(generations)
    with closing(Log(folder, state.images, enabled=fabric.is_global_zero)) as log:
        started, first = time.monotonic(), state.images
        while state.images < settings.images:
            since = state.images
            loss, parts = _update(stage, settings, items, state, fitted, fabric)
            if not math.isfinite(loss):
                _roll_back(state, generations, folder)
                continue
            rate = (state.images - first) / (time.monotonic() - started)
            rests = _passed(since, state.images, settings.checkpoint_every)
            if val_items is not None and (rests or state.images >= settings.images):
                parts["val_loss"] = _validate(stage, settings, val_items, state, fitted, fabric.device)
            if _passed(since, state.images, settings.log_every) or "val_loss" in parts:
                log.write(state.images, loss=loss, rate=rate, lr=state.optimizer.param_groups[0]["lr"], **parts)
            on_progress(Progress(stage.name, state.images, settings.images, loss, rate))
            leaving = _any(fabric, stop())
            if leaving or rests:
                log.flush()
                if fabric.is_global_zero:
                    state.save(generations)
            if _passed(since, state.images, settings.picture_every) and fabric.is_global_zero:
                with averaged(state):
                    picture(fitted, state.images)
            if leaving and state.images < settings.images:
                return False
    if fabric.is_global_zero:
        kept = state.average if state.best is None else state.best.weights
        tensors = {**kept, **{f"statistics.{k}": v for k, v in statistics.items()}}
        rows, columns = items.size
        about = {**facts, "about": stage.about, "images": state.images, "rows": rows, "columns": columns}
        if state.best is not None:
            about |= {"kept_after": state.best.images, "val_loss": state.best.loss}
        save_tensors(folder / "weights.safetensors", tensors, about)
    fabric.barrier()
    return True


def _unchanged(settings: Train, size: Sequence[int]) -> Train:
    """Give settings by which items are cut as those of training are, and not changed at random."""
    still = Augment(flip=[], shift=0.0, turned=0.0)
    return settings.model_copy(update={"augment": still, "size": list(size)})


def _validate(stage: Stage, settings: Train, items: Items, state: State, fitted: Fitted, device: torch.device) -> float:
    """Give the loss of the averaged weights on the val subjects, and note the weights if it is the lowest.

    Windows, times and noise are the same every time, so that two losses differ by the weights alone.
    """
    total, n = 0.0, min(len(items), MOST_VAL_ITEMS)
    networks = state.networks.values()
    with averaged(state):
        for network in networks:
            network.eval()
        for first in range(0, n, settings.batch_size):
            numbers = range(first, min(first + settings.batch_size, n))
            batch = to_batch(items.batch(numbers), device, state.images / settings.images)
            seeds = [stable_seed("val", settings.seed, stage.name, number) for number in numbers]
            nobody = torch.full_like(batch.case, -1)
            loss, _ = stage.loss(fitted, replace(batch, case=nobody), ItemNoise(seeds, device))
            total += float(loss) * len(numbers)
        for network in networks:
            network.train()
    mean = total / n
    if mean < (math.inf if state.best is None else state.best.loss):  # which NaN never is
        state.best = Best({name: value.clone() for name, value in state.average.items()}, mean, state.images)
    return mean


def _on(device: torch.device, networks: Mapping[str, Any], statistics: Mapping[str, Tensor]) -> Fitted:
    """Give what a stage itself has made so far, on the device that it trains on."""
    return Fitted(
        {name: network.to(device) for name, network in networks.items()},
        {name: value.to(device) for name, value in statistics.items()},
    )


def items_of(stage: Stage, settings: Train, cases: Sequence[Case], targets: Sequence[str]) -> Items:
    """Give the items that a stage trains on."""
    return Items(
        cases,
        radius=stage.item.radius,
        size=settings.size,
        targets=targets,
        augment=settings.augment,
        seed=settings.seed,
    )


def _update(
    stage: Stage, settings: Train, items: Items, state: State, fitted: Fitted, fabric: Fabric
) -> tuple[float, dict[str, float]]:
    """Make one update of `batch_size` images over all processes.

    Give its mean loss, NaN where none was made, and the mean over this process's share of what the stage logs.
    """
    numbers = range(state.images, state.images + settings.batch_size)
    share = list(numbers[fabric.global_rank :: fabric.world_size])
    size = -(-len(share) // settings.accumulate)
    chunks = [share[i : i + size] for i in range(0, len(share), size)]
    total, parts = torch.zeros((), device=fabric.device), dict[str, float]()
    for index, chunk in enumerate(chunks):
        progress = state.images / settings.images
        batch = to_batch(items.batch(chunk, state.rollbacks), fabric.device, progress)
        seeds = [stable_seed("train", settings.seed, stage.name, state.rollbacks, n) for n in chunk]
        with ExitStack() as accumulating:
            for network in state.networks.values():
                accumulating.enter_context(fabric.no_backward_sync(network, enabled=index < len(chunks) - 1))
            torch.manual_seed(seeds[0] % 2**32)  # of dropout: what a network draws itself depends on the image, too
            loss, logged = stage.loss(fitted, batch, ItemNoise(seeds, fabric.device))
            loss = loss * (len(chunk) / len(share))
            fabric.backward(loss)
        total += loss.detach()
        for name, value in logged.items():
            parts[name] = parts.get(name, 0.0) + value * len(chunk) / len(share)
    reduced = fabric.all_reduce(total, reduce_op="mean")
    mean = float(reduced) if isinstance(reduced, Tensor) else math.nan
    if math.isfinite(mean) and not _step(settings, state):
        mean = math.nan
    state.optimizer.zero_grad(set_to_none=True)
    state.images += len(numbers)
    return mean, parts


def _step(settings: Train, state: State) -> bool:
    """Move the weights and their average; False, and nothing is moved, where the gradient is not finite."""
    parameters = [p for net in state.networks.values() for p in net.parameters()]
    if not nn.utils.clip_grad_norm_(parameters, settings.clip).isfinite():
        return False
    rate = learning_rate(settings, state.images)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.updates += 1
    decay = min(settings.ema, (1 + state.updates) / (10 + state.updates))
    for name, value in state.weights().items():
        if value.is_floating_point():
            state.average[name].lerp_(value.detach(), 1 - decay)
        else:
            state.average[name].copy_(value)
    return True


def learning_rate(settings: Train, images: int) -> float:
    """Give the learning rate after `images`: a linear warm-up, then constant or a cosine to zero."""
    warm = min(1.0, (images + settings.batch_size) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "constant":
        return settings.learning_rate * warm
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, images / settings.images)))


def _roll_back(state: State, generations: Generations, folder: Path) -> None:
    """Return to the last good state; another salt draws other augmentations, times and noise from there on."""
    state.rollbacks += 1
    if state.rollbacks > MOST_ROLLBACKS:
        raise UserError(
            f"{folder}: the loss was not finite {state.rollbacks} times",
            "a training that converges",
            f"lower train.learning_rate; the last good state ({state.images} images) is kept",
        )
    state.load(generations)


def _passed(before: int, now: int, every: int) -> bool:
    return before // every < now // every


def _any(fabric: Fabric, flag: bool) -> bool:
    """Say whether any process holds a flag, so that all leave after the same update."""
    if fabric.world_size == 1:
        return flag
    total = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(isinstance(total, Tensor) and total > 0)


def to_batch(arrays: ItemArrays, device: torch.device, progress: float = 0.0) -> Batch:
    """Give items as the batch that a method sees, on `device`."""
    return Batch(
        source=arrays.source.to(device),
        targets={name: value.to(device) for name, value in arrays.targets.items()},
        valid={name: value.to(device) for name, value in arrays.valid.items()},
        case=arrays.case.to(device),
        progress=progress,
    )


def forecast(
    stage: Stage,
    settings: Train,
    cases: Sequence[Case],
    targets: Sequence[str],
    fabric: Fabric,
    before: Fitted,
    statistics: Mapping[str, Tensor],
    done: int,
) -> str:
    """Run one update's worth of work without updating and say what the training will need.

    `before` holds the earlier stages; `statistics` is what this one has fitted; `done` images are behind it already.
    """
    items = items_of(stage, settings, cases, targets)
    networks = {name: channels_last(net) for name, net in stage.build().items()}
    n_parameters = sum(p.numel() for net in networks.values() for p in net.parameters())
    fitted = before | _on(fabric.device, networks, statistics)
    numbers = list(range(settings.batch_size // fabric.world_size // settings.accumulate or 1))
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        batch = to_batch(items.batch(numbers), fabric.device, progress=1.0)
        with fabric.autocast():
            loss, _ = stage.loss(fitted, batch, ItemNoise([stable_seed("probe", n) for n in numbers], fabric.device))
        loss.backward()  # type: ignore[no-untyped-call]
        float(loss.detach())  # waits for a device that computes by itself
        seconds.append(time.monotonic() - start)
    left = (settings.images - done) * min(seconds) / len(numbers) / fabric.world_size
    behind = f", {done:,} of them done" if done else ""
    memory = (peak_memory(fabric.device) + 16 * n_parameters) / 2**30
    return (
        f"{stage.name}: {n_parameters / 1e6:.2f} M parameters, {len(items):,} windows of {len(cases)} scans, "
        f"{settings.images:,} images{behind}; about {left / 60:.0f} min and {memory:.1f} GiB on {fabric.device}"
    )
