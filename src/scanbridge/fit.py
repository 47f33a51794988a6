"""One training loop for all methods and stages.

The state of a training is what its checkpoint holds: weights, their moving average, the optimiser, and two counters.
All randomness is a function of (seed, number of the image), so a run that was killed and resumed, or trained on other
numbers of processes, sees the same images, times and noise.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
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
from scanbridge.nets.memory import channels_last
from scanbridge.runs.checkpoint import Generations, flatten, save_tensors
from scanbridge.runs.config import Train
from scanbridge.runs.log import Log

MOST_ROLLBACKS = 3


@dataclass(frozen=True)
class Progress:
    """What a training tells as it goes."""

    stage: str
    images: int
    of: int
    loss: float
    rate: float


@dataclass
class State:
    """Everything that a resumed training needs, and nothing else."""

    networks: dict[str, Any]  # modules, wrapped by Fabric
    optimizer: Any
    average: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    updates: int = 0
    rollbacks: int = 0

    def weights(self) -> dict[str, Tensor]:
        """Give all parameters and buffers by ``network.name``."""
        return {f"{n}.{k}": v for n, net in self.networks.items() for k, v in _plain(net).state_dict().items()}

    def save(self, generations: Generations) -> None:
        """Write a checkpoint."""
        tensors, plain = flatten("optimizer", {str(k): v for k, v in self.optimizer.state_dict()["state"].items()})
        tensors |= {f"weights.{k}": v for k, v in self.weights().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        counters = {"images": self.images, "updates": self.updates, "rollbacks": self.rollbacks}
        generations.save(tensors, {**counters, "optimizer": plain})

    def load(self, generations: Generations) -> bool:
        """Read the newest whole checkpoint; False where there is none."""
        found = generations.load()
        if found is None:
            return False
        tensors, facts = found
        own = self.weights()
        for name, value in own.items():
            value.copy_(tensors[f"weights.{name}"])
        self.average = {name: tensors[f"average.{name}"].to(own[name].device) for name in own}
        moments: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                moments.setdefault(int(index), {})[name] = value
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**state, "state": moments})
        self.images, self.updates = int(facts["images"]), int(facts["updates"])
        self.rollbacks = max(self.rollbacks, int(facts["rollbacks"]))
        return True


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
    on_progress: Callable[[Progress], None] = lambda progress: None,  # noqa: ARG005
    stop: Callable[[], bool] = lambda: False,
    picture: Callable[[Fitted, int], None] = lambda fitted, images: None,  # noqa: ARG005
) -> bool:
    """Train one stage in `folder`, from its newest checkpoint if there is one; False if `stop` asked to leave.

    `before` holds the earlier stages, frozen; `statistics` is what the stage itself has fitted.

    Raises
    ------
    UserError
        If the loss is not finite three times over.
    """
    items = items_of(stage, settings, cases, targets)
    generations = Generations(folder)
    state = fresh_state(stage, settings, fabric)
    own = Fitted(state.networks, {name: value.to(fabric.device) for name, value in statistics.items()})
    fitted = before | own
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
            if _passed(since, state.images, settings.log_every):
                log.write(state.images, loss=loss, rate=rate, lr=state.optimizer.param_groups[0]["lr"], **parts)
            on_progress(Progress(stage.name, state.images, settings.images, loss, rate))
            leaving = _any(fabric, stop())
            if leaving or _passed(since, state.images, settings.checkpoint_every):
                log.flush()
                if fabric.is_global_zero:
                    state.save(generations)
            if _passed(since, state.images, settings.picture_every) and fabric.is_global_zero:
                with averaged(state):
                    picture(fitted, state.images)
            if leaving and state.images < settings.images:
                return False
    if fabric.is_global_zero:
        tensors = {**state.average, **{f"statistics.{k}": v for k, v in statistics.items()}}
        rows, columns = items.size
        about = {**facts, "about": stage.about, "images": state.images, "rows": rows, "columns": columns}
        save_tensors(folder / "weights.safetensors", tensors, about)
    fabric.barrier()
    return True


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


def fresh_state(stage: Stage, settings: Train, fabric: Fabric) -> State:
    """Build a stage's networks and optimiser from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("init", settings.seed, stage.name) % 2**32)
        networks = {name: channels_last(net) for name, net in stage.build().items()}
    networks = {name: fabric.setup_module(net) for name, net in networks.items()}
    parameters = [p for net in networks.values() for p in net.parameters()]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
    )
    state = State(networks, fabric.setup_optimizers(optimizer))
    state.average = {name: value.detach().clone() for name, value in state.weights().items()}
    return state


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
            loss, told = stage.loss(fitted, batch, ItemNoise(seeds, fabric.device))
            loss = loss * (len(chunk) / len(share))
            fabric.backward(loss)
        total += loss.detach()
        parts = {name: parts.get(name, 0.0) + value * len(chunk) / len(share) for name, value in told.items()}
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


def _plain(network: nn.Module) -> nn.Module:
    """Give the network inside the wrappers of Fabric and DDP."""
    inner = getattr(network, "module", network)
    return inner if inner is network else _plain(inner)


@contextmanager
def averaged(state: State) -> Iterator[None]:
    """Put the moving average in place of the weights for a while."""
    own = state.weights()
    kept = {name: value.clone() for name, value in own.items()}
    for name, value in own.items():
        value.copy_(state.average[name])
    try:
        with torch.no_grad():
            yield
    finally:
        for name, value in own.items():
            value.copy_(kept[name])


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
) -> str:
    """Run one update's worth of work without updating and say what the training will need.

    `before` holds the earlier stages and this one's statistics.
    """
    items = items_of(stage, settings, cases, targets)
    networks = {name: channels_last(net) for name, net in stage.build().items()}
    n_parameters = sum(p.numel() for net in networks.values() for p in net.parameters())
    fitted = before | Fitted({n: net.to(fabric.device) for n, net in networks.items()})
    numbers = list(range(settings.batch_size // fabric.world_size // settings.accumulate or 1))
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        batch = to_batch(items.batch(numbers), fabric.device, progress=1.0)
        with fabric.autocast():
            loss, _ = stage.loss(fitted, batch, ItemNoise([stable_seed("probe", n) for n in numbers], fabric.device))
        loss.backward()  # type: ignore[no-untyped-call]
        seconds.append(time.monotonic() - start)
    left = settings.images * min(seconds) / len(numbers) / fabric.world_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    memory = peak + 16 * n_parameters / 2**30
    return (
        f"{stage.name}: {n_parameters / 1e6:.2f} M parameters, {len(items):,} windows of {len(cases)} scans, "
        f"{settings.images:,} images; about {left / 60:.0f} min and {memory:.1f} GiB on {fabric.device}"
    )
