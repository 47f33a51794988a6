"""One network taught one task on one fold, by one short loop that is the same for all inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scanbridge.data.box import take
from scanbridge.downstream.plan import Kind, Settings
from scanbridge.downstream.volumes import BACKGROUND, Sample
from scanbridge.errors import UserError

ARMS = ("source", "synthetic", "real")
"""What the network sees beside the source: nothing, what the run made of it, or the scan that was really acquired."""
BATCH = {2: 16, 3: 4}
LEARNING_RATE: dict[Kind, float] = {"classify": 1e-3, "segment": 5e-3}
CLIP = 1.0
SHIFT = 16
"""An item is moved by at most this part of each axis."""
_WIDTHS_CLASSIFY, _WIDTHS_SEGMENT = (16, 32, 64, 128), (16, 32, 64, 128)
_CHANNEL = {"synthetic": 1, "real": 2}

Array = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Learned:
    """A network that has learned a task.

    Parameters
    ----------
    network
        From (B, 2, [D,] H, W) to logits: (B, C), or (B, 1, [D,] H, W).
    mean, spread
        (2, 1, 1, 1): what inputs are standardised by, of the foregrounds of the subjects it was taught on.
    losses
        (images, loss) as it went.
    """

    arm: str
    network: nn.Module
    mean: Array
    spread: Array
    losses: tuple[tuple[int, float], ...]


def need_monai() -> None:
    """Say how to install MONAI where it is missing.

    Raises
    ------
    UserError
        Where it cannot be imported.
    """
    try:
        import monai  # noqa: F401, PLC0415  (an extra, and slow to load)
    except ImportError:
        raise UserError(
            "'downstream' uses the networks of MONAI, which is not installed",
            "the extra 'monai'",
            "pip install 'scanbridge[monai]'",
        ) from None


def network_of(kind: Kind, dims: int, n_classes: int, seed: int) -> nn.Module:
    """Build MONAI's ResNet-10 at a quarter of its width (classify), or its U-Net (segment).

    Both take two channels, whatever they are given: all inputs are learned by one architecture from the same weights.
    The ResNet's norm is over groups, so that a prediction does not depend on its batch. The U-Net has no residual
    units: their last norm holds the logits near 0, and a mask of a hundredth of the voxels is out of reach.
    """
    from monai.networks.nets.resnet import ResNet  # noqa: PLC0415  (an extra)
    from monai.networks.nets.unet import UNet  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "segment":
            return UNet(dims, 2, 1, channels=_WIDTHS_SEGMENT, strides=(2, 2, 2))
        return ResNet(
            "basic",
            [1, 1, 1, 1],
            list(_WIDTHS_CLASSIFY),
            spatial_dims=dims,
            n_input_channels=2,
            conv1_t_size=3,
            conv1_t_stride=1,
            num_classes=n_classes,
            norm=("group", {"num_groups": 4}),
        )


def learn(
    samples: Sequence[Sample],
    arm: str,
    settings: Settings,
    fold: int,
    n_classes: int,
    device: torch.device,
    told: Callable[[float], None] = lambda share: None,  # noqa: ARG005
) -> Learned:
    """Teach a network one task.

    Initial weights, order of items and their shifts depend on the seed and the fold alone: the same in all arms.

    Parameters
    ----------
    samples
        Who it is taught on.
    arm
        One of `ARMS`.
    fold
        Of the cross-validation.
    told
        Called with the share that is done.

    Raises
    ------
    UserError
        If the loss is no number.
    """
    seed = int(np.random.SeedSequence((settings.seed, fold)).generate_state(1)[0])
    network = network_of(settings.kind, settings.dims, n_classes, seed).to(device).train()
    mean, spread = _standard(samples, arm)
    criterion = _loss(settings.kind, samples, n_classes, device)
    batch = BATCH[settings.dims]
    steps = -(-settings.images // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE[settings.kind])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    items = _items(samples, settings, np.random.default_rng(seed))
    losses: list[float] = []
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        for step in range(steps):
            inputs, truths = zip(*(next(items) for _ in range(batch)), strict=True)
            seen = np.stack([(channels(each, arm) - _fit(mean, each)) / _fit(spread, each) for each in inputs])
            loss = criterion(network(torch.from_numpy(seen).to(device)), torch.from_numpy(np.stack(truths)).to(device))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            told((step + 1) / steps)
    if not np.isfinite(losses).all():
        raise UserError(
            f"the loss of '{arm}' in fold {fold} is no number", "a training that converges", "look at the images"
        )
    every = max(1, steps // 50)
    points = [(batch * (i + every), float(np.mean(losses[i : i + every]))) for i in range(0, steps, every)]
    return Learned(arm, network.eval(), mean, spread, tuple(points))


def channels(images: Array, arm: str) -> Array:
    """Give the two channels of an arm from (3, ...): the source, and what stands beside it; for `source` nothing, 0."""
    beside = images[_CHANNEL[arm]] if arm in _CHANNEL else np.zeros_like(images[0])
    return np.stack([images[0], beside])


def predict(learned: Learned, sample: Sample, settings: Settings, device: torch.device) -> NDArray[np.float64]:
    """Give the probability of every class (C,), in 2D the mean over slices; or that of the mask (D, H, W)."""
    seen = (channels(sample.images, learned.arm) - learned.mean) / learned.spread
    batches: Iterator[Array] = iter([seen[None]])
    if settings.dims == 2:
        slices = (
            np.flatnonzero(sample.foreground.any(axis=(1, 2)))
            if settings.kind == "classify"
            else np.arange(seen.shape[1])
        )
        stack = np.moveaxis(seen[:, slices], 1, 0)
        batches = (stack[at : at + BATCH[2]] for at in range(0, len(stack), BATCH[2]))
    with torch.inference_mode():
        logits = [learned.network(torch.from_numpy(np.ascontiguousarray(each)).to(device)) for each in batches]
    together = torch.cat(logits).double().cpu()
    if settings.kind == "classify":
        return np.asarray(together.softmax(dim=1).mean(dim=0).numpy())
    return np.asarray(together.sigmoid().numpy().reshape(sample.foreground.shape))


def _standard(samples: Sequence[Sample], arm: str) -> tuple[Array, Array]:
    """Give mean and standard deviation of each channel over the foregrounds; 0 and 1 for one that is constant."""
    held = np.concatenate([channels(sample.images, arm)[:, sample.foreground] for sample in samples], axis=1)
    spread = held.std(axis=1, dtype=np.float64)
    shape = (2, 1, 1, 1)
    mean = held.mean(axis=1, dtype=np.float64)
    return mean.astype(np.float32).reshape(shape), np.where(spread > 0, spread, 1.0).astype(np.float32).reshape(shape)


def _fit(values: Array, images: Array) -> Array:
    """Give (2, 1, 1, 1) the number of axes that an item has."""
    return values.reshape(2, *[1] * (images.ndim - 1))


def _loss(kind: Kind, samples: Sequence[Sample], n_classes: int, device: torch.device) -> Loss:
    """Give cross-entropy with every class weighing the same, or Dice and cross-entropy of the mask."""
    if kind == "segment":
        from monai.losses.dice import DiceCELoss  # noqa: PLC0415  (an extra)

        segmenting: Loss = DiceCELoss(sigmoid=True, batch=True)  # over the batch: a mask may be empty
        return segmenting
    counts = np.bincount([int(np.asarray(sample.truth)) for sample in samples], minlength=n_classes)
    weights = torch.tensor(len(samples) / np.maximum(counts, 1) / n_classes, dtype=torch.float32, device=device)
    return lambda logits, truth: cross_entropy(logits, truth, weight=weights)


def _items(
    samples: Sequence[Sample], settings: Settings, rng: np.random.Generator
) -> Iterator[tuple[Array, NDArray[Any]]]:
    """Give items without end: every sample once, in a new order, then again.

    In 2D an item is a slice of the foreground; a segmenter gets every second one from the slices that hold the mask.
    """
    while True:
        for index in rng.permutation(len(samples)):
            sample = samples[index]
            truth = np.asarray(sample.truth)
            spans = _spans(sample, settings, rng)
            images = np.stack([take(image, spans, BACKGROUND) for image in sample.images])
            marked = (take(truth, spans, 0.0) > 0) if truth.ndim else truth
            if settings.dims == 2:
                images, marked = images[:, 0], marked[0] if truth.ndim else marked
            yield images, marked[None].astype(np.float32) if truth.ndim else truth.astype(np.int64)


def _spans(sample: Sample, settings: Settings, rng: np.random.Generator) -> list[slice]:
    """Draw the part of a sample that an item shows: all of it, moved a little; in 2D one slice of it."""
    shape = sample.foreground.shape
    moves = [int(rng.integers(-(n // SHIFT), n // SHIFT + 1)) for n in shape]
    spans = [slice(move, move + n) for move, n in zip(moves, shape, strict=True)]
    if settings.dims == 2:
        marked = np.asarray(sample.truth)
        of_mask = rng.random() < 0.5
        wanted = marked if marked.ndim and of_mask and marked.any() else sample.foreground
        at = int(rng.choice(np.flatnonzero(wanted.any(axis=(1, 2)))))
        spans[0] = slice(at, at + 1)
    return spans
