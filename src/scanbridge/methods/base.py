"""The contract between a method and everything around it.

A method is a module with ``Config`` (a strict table), ``stages(config, targets) -> tuple[Stage, ...]``,
``translator(config, fitted) -> Translator`` and ``ABLATIONS``. It never opens a file, never sees an affine and
never picks a device; images are in [-1, 1] on the model grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError, nearest
from scanbridge.methods import METHODS

Product = Literal["estimate", "draw", "one-call"]
Quality = Literal["draft", "normal", "paper"]
Statistics = dict[str, Tensor]


@dataclass(frozen=True)
class Item:
    """What one training item is: a window of 2 `radius` + 1 neighbouring slices."""

    radius: int = 0

    @property
    def width(self) -> int:
        """Number of slices."""
        return 2 * self.radius + 1


@dataclass(frozen=True)
class Batch:
    """Training items; all images (B, 1, d, H, W) in [-1, 1].

    Parameters
    ----------
    source
        The source image.
    targets
        Target images by name.
    valid
        1 where a target is known, by name: inside its field of view, on slices that exist.
    case
        Index (B,) of each item's case among the training cases, for per-case statistics; -1 of a val subject.
    progress
        Share of the stage's training that is done, in [0, 1].
    """

    source: Tensor
    targets: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    case: Tensor
    progress: float = 0.0


@dataclass(frozen=True)
class TrainingCase:
    """One training scan as `Stage.fit` sees it: whose it is, and images (D, H, W) in [-1, 1], CPU."""

    source: Tensor
    targets: Mapping[str, Tensor]
    foreground: Tensor
    subject: str = ""


@dataclass
class Fitted:
    """What training made: networks, and statistics of the training split that have no gradient."""

    networks: dict[str, nn.Module] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)

    def __or__(self, later: Fitted) -> Fitted:
        """Give what two stages made together."""
        return Fitted({**self.networks, **later.networks}, {**self.statistics, **later.statistics})


@dataclass(frozen=True)
class Stage:
    """One training: its networks, its items, its loss.

    Parameters
    ----------
    name
        Folder under ``stages/``.
    item
        What an item of data is.
    build
        Gives fresh networks by name.
    loss
        ``(fitted, batch, noise) -> (loss, numbers to log)``; `fitted` holds the earlier stages too, frozen.
    fit
        ``(cases, earlier stages) -> statistics`` over the training cases, before training, kept with the weights.
    images, learning_rate
        Of this training, where they are not the run's own.
    about
        JSON values that say what the networks are, kept with the weights: weights of another run must say the same.
    weights
        Folder of this stage in another run: its weights are taken, and nothing is trained.
    judged
        Whether its loss on val subjects tells which weights are best; an adversarial loss does not.
    """

    name: str
    item: Item
    build: Callable[[], dict[str, nn.Module]]
    loss: Callable[[Fitted, Batch, ItemNoise], tuple[Tensor, dict[str, float]]]
    fit: Callable[[Sequence[TrainingCase], Fitted], Statistics] = lambda cases, before: {}  # noqa: ARG005  (most have none)
    images: int | None = None
    learning_rate: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    judged: bool = True


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What may be asked of a walk; None leaves a choice to the run's own default.

    `quality` names a walk: draft is one call, normal the run's own, paper the published one; the others win over it.
    """

    quality: Quality | None = None
    calls: int | None = None
    order: Literal[1, 2] | None = None
    grid: str | None = None
    eta: float | None = None
    temperature: float | None = None

    @property
    def walk(self) -> dict[str, Any]:
        """What is named beside the quality, by its key in the walk's table."""
        named = {name: getattr(self, name) for name in ("calls", "order", "grid", "eta", "temperature")}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Request(Asked):
    """What a method is asked for: a product, and what a user wants of its walk.

    `style` is a named choice, a reference volume (1, D, H, W) in [-1, 1], or a style key (3, n_bins).
    Draws are independent by their number: of `samples` of them all are made, or number `draw` (0-based) alone.
    """

    target: str
    subject: str
    product: Product = "estimate"
    samples: int = 1
    draw: int | None = None
    seed: int = 0
    residual_scale: float | None = None
    style: str | Tensor | None = None
    on_call: Callable[[int, int], None] | None = None

    @property
    def draws(self) -> range:
        """The numbers of the draws to make."""
        return range(self.samples) if self.draw is None else range(self.draw, self.draw + 1)


@dataclass(frozen=True)
class Draws:
    """What a translator gives: volumes (K, D, H, W) in [-1, 1], a raw uncertainty (D, H, W), and how it was made.

    `uncertainty` is a standard deviation in the same scale, a ranking and not a promise; `signals` are more rankings
    (D, H, W) by name, 0 or more and high = unsure, where a method has its own.
    """

    volumes: Tensor
    uncertainty: Tensor
    calls: int
    facts: dict[str, Any] = field(default_factory=dict)
    signals: dict[str, Tensor] = field(default_factory=dict)


class Translator(Protocol):
    """Draws target volumes for a source volume (1, D, H, W) in [-1, 1]."""

    def draw(self, source: Tensor, request: Request) -> Draws:
        """Give a volume of one product for each of `request.draws`."""


@dataclass(frozen=True)
class Effort:
    """What one volume of one product costs.

    Parameters
    ----------
    asked, nodes
        Network calls that were asked of the walk, and those that its grid has: nodes that fall together are merged.
    calls
        Network calls made: those of the grid and those of the corrector.
    passes
        Work in volumes whose every window is run once: less than `calls` where windows are thinned, more where a call
        is averaged over mirror images.
    images
        Mirror images that a call is averaged over, the scan itself among them.
    batch
        Slices that the network takes in one go, which a pass is timed with.
    """

    asked: int = 1
    nodes: int = 1
    calls: int = 1
    passes: float = 1.0
    images: int = 1
    batch: int = 1


@runtime_checkable
class Foreseeable(Protocol):
    """A translator that can say beforehand what it will do; one that cannot is translated with all the same."""

    def effort(self, request: Request) -> Effort:
        """Give what one volume of the request's product costs."""


def load_method(name: str) -> ModuleType:
    """Import a method by name.

    Raises
    ------
    UserError
        If there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"method = '{name}'", "a method that exists", nearest(name, METHODS))
    return import_module(METHODS[name])


def lengths(stages: Sequence[Stage], images: int) -> dict[str, int]:
    """Give the images that each stage sees, of a run whose own number is `images`; weights that are given have none."""
    return {stage.name: stage.images or images for stage in stages if stage.weights is None}


def in_words(lengths: Mapping[str, int]) -> str:
    """Say how long the stages are trained.

    >>> in_words({"bridge": 12000}), in_words({"regression": 12000, "bridge": 6000})
    ('12,000 images', '12,000 (regression) + 6,000 (bridge) images')
    """
    each = [f"{n:,} ({name})" if len(lengths) > 1 else f"{n:,}" for name, n in lengths.items()]
    return f"{' + '.join(each) or '0'} images"
