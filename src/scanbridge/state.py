"""What a training's checkpoint holds: weights, their moving average, the best of them, the optimiser, counters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scanbridge.bridge.noise import stable_seed
from scanbridge.methods.base import Stage
from scanbridge.nets.memory import channels_last
from scanbridge.runs.checkpoint import Generations, flatten
from scanbridge.runs.config import Train


@dataclass(frozen=True)
class Best:
    """The averaged weights with the lowest loss on the val subjects so far, and after how many images that was."""

    weights: dict[str, Tensor]
    loss: float
    images: int


@dataclass
class State:
    """Everything that a resumed training needs, and nothing else."""

    networks: dict[str, Any]  # modules, wrapped by Fabric
    optimizer: Any
    average: dict[str, Tensor] = field(default_factory=dict)
    best: Best | None = None
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
        counters: dict[str, Any] = {"images": self.images, "updates": self.updates, "rollbacks": self.rollbacks}
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.weights.items()}
            counters |= {"best": {"loss": self.best.loss, "images": self.best.images}}
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
        if "best" in facts:
            best = {name: tensors[f"best.{name}"].to(own[name].device) for name in own}
            self.best = Best(best, float(facts["best"]["loss"]), int(facts["best"]["images"]))
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


@contextmanager
def averaged(state: State) -> Iterator[None]:
    """Put the moving average in place of the weights for a while, without gradients."""
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


def _plain(network: nn.Module) -> nn.Module:
    """Give the network inside the wrappers of Fabric and DDP."""
    inner = getattr(network, "module", network)
    return inner if inner is network else _plain(inner)
