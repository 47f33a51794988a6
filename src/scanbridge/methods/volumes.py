"""How the methods on windows of slices translate whole volumes: one noise field, every window once a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import get_args

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor

from scanbridge.bridge.noise import NoiseSource
from scanbridge.bridge.sample import Corrector
from scanbridge.bridge.volume import Lift, Overlap, Windows
from scanbridge.errors import UserError
from scanbridge.methods.base import Draws, Effort, Fitted, Request
from scanbridge.methods.windows import Axis, WindowBridge, WindowWalk, bridge_denoiser

Denoise = Callable[[Tensor, Tensor, float], Tensor]
"""``(state, source, t) -> x_0`` for windows (B, 1, d, H, W)."""

AXES = get_args(Axis)
BACKGROUND = -1.0


def draw_volumes(
    config: WindowBridge,
    fitted: Fitted,
    source: Tensor,
    request: Request,
    *,
    tokens: Tensor | None = None,
    corrector: Callable[[Tensor], Corrector | None] | None = None,
    coprediction: bool = True,
) -> Draws:
    """Walk whole volumes.

    Parameters
    ----------
    config, fitted
        The bridge, and its networks.
    source
        y, (1, D, H, W).
    request
        What the user asks for.
    tokens
        (n, c), attended to by every window.
    corrector
        Makes the corrector for the source as the walk sees it.
    coprediction
        Average overlapping windows at every call; else every window walks by itself and gives its centre slice.
    """
    settings = walk_of(config, request)
    settings.refuse_equal(request)
    residual_scale = request.residual_scale or config.bridge.residual_scale
    times = settings.times(config.bridge, residual_scale)
    tally = _Tally(_denoiser(config, fitted, tokens))
    denoise, made = mirrored(tally.windows, settings.mirror), []
    for k in request.draws:
        form = (_Aligned if coprediction else _Separate)(denoise, settings, config.radius, source, float(times[-2]))
        state = settings.take(
            tally.calls(form.denoise),
            config.bridge,
            form.source,
            partial(form.noise, NoiseSource(request.seed, request.subject, draw=k)),
            residual_scale=residual_scale,
            corrector=None if corrector is None else corrector(form.source),
            on_call=request.on_call,
        )
        volume, disagreement = form.finish(state)
        made.append(volume)
    volumes = torch.stack(made)
    facts = {
        "walk": settings.model_dump(),
        "quality": request.quality,
        "times": times.tolist(),
        "windows": tally.n_windows // len(made),
    }
    return Draws(
        volumes,
        volumes.std(dim=0) if len(made) > 1 else disagreement,
        tally.n_calls // len(made),
        facts,
    )


def walk_of(config: WindowBridge, request: Request) -> WindowWalk:
    """Give the walk of the product that is asked for."""
    return (config.draw if request.product == "draw" else config.estimate).asked(request)


def effort_of(config: WindowBridge, request: Request, *, moves: int = 0) -> Effort:
    """Give what a volume of `draw_volumes` costs; `moves` is the corrector's calls at every time but the first."""
    settings = walk_of(config, request)
    nodes = len(settings.times(config.bridge, request.residual_scale or config.bridge.residual_scale)) - 1
    calls = 1 + (nodes - 1) * (1 + moves)
    at_last = 1 + moves if nodes > 1 else 1
    passes = (calls - at_last) / settings.stride + at_last
    n = images(settings.mirror)
    return Effort(settings.calls, nodes, calls, n * passes, n, settings.windows)


def mirrored(denoise: Denoise, axes: Sequence[Axis]) -> Denoise:
    """Average a denoiser of windows over the mirror images of what it sees, so that it commutes with mirroring."""
    if not axes:
        return denoise
    dims = sorted({AXES.index(axis) + 2 for axis in axes})
    flips = [flip for n in range(len(dims) + 1) for flip in combinations(dims, n)]

    def mean(state: Tensor, source: Tensor, t: float) -> Tensor:
        each = (denoise(state.flip(flip), source.flip(flip), t).flip(flip) for flip in flips)
        return torch.stack(list(each)).mean(dim=0)

    return mean


def images(axes: Sequence[Axis]) -> int:
    """Give the number of mirror images that a call is averaged over."""
    return 1 << len(set(axes))


def _denoiser(config: WindowBridge, fitted: Fitted, tokens: Tensor | None) -> Denoise:
    """Give the denoiser of windows, all of which attend to the same tokens."""
    unet = fitted.networks["unet"]

    def network(state: Tensor, source: Tensor, t: Tensor) -> Tensor:
        attended = None if tokens is None else tokens.to(source).expand(len(source), -1, -1)
        output: Tensor = unet(state, source, t, attended)
        return output

    return bridge_denoiser(config.bridge, network)


class _Aligned:
    """Co-prediction: the state is a volume, padded by N slices where its ends are live."""

    def __init__(self, denoise: Denoise, settings: WindowWalk, radius: int, source: Tensor, last: float) -> None:
        self._pad = radius if settings.ends == "live" else 0
        self.source = F.pad(source, (0, 0, 0, 0, self._pad, self._pad), value=BACKGROUND)
        cover, thin = (Windows(self.source.shape[1], radius, settings.ends, n) for n in (1, settings.stride))
        self.denoise = Lift(denoise, self.source, cover, settings.windows, cycle=thin.cycle, last=last)

    def noise(self, noise: NoiseSource, step: int) -> Tensor:
        """Give the volume's noise for a step."""
        return noise(step, self.source.shape, self.source.device)

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Give the volume (D, H, W) and the disagreement of the windows at the last call."""
        if self.denoise.disagreement is None:
            raise ValueError("no call was made")
        real = slice(self._pad, state.shape[1] - self._pad)
        return state[0, real], self.denoise.disagreement[0, real]


class _Separate:
    """No co-prediction: the state is the stack of all windows, each walking by itself."""

    def __init__(self, denoise: Denoise, settings: WindowWalk, radius: int, source: Tensor, last: float) -> None:  # noqa: ARG002
        if settings.stride > 1:
            what = f"stride = {settings.stride} for windows that walk by themselves"
            raise UserError(what, "stride = 1", "set it so, or coprediction = true")
        self._like, self._radius = source, radius
        self._cover = Windows(source.shape[1], radius)
        self._batch, self._denoise = settings.windows, denoise
        self.source = self._pieces(source)

    def _pieces(self, volume: Tensor) -> Tensor:
        return self._cover.cut(volume, range(len(self._cover)))

    def noise(self, noise: NoiseSource, step: int) -> Tensor:
        """Give the volume's noise for a step, cut into windows."""
        return self._pieces(noise(step, self._like.shape, self._like.device))

    def denoise(self, state: Tensor, t: float) -> Tensor:
        """Give the estimates of all windows."""
        batches = zip(torch.split(state, self._batch), torch.split(self.source, self._batch), strict=True)
        return torch.cat([self._denoise(x, y, t) for x, y in batches])

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Give the volume (D, H, W) of centre slices, and the disagreement of the windows that hold a slice."""
        overlap = Overlap(self._cover, self._like)
        for index, piece in enumerate(state):
            overlap.add(index, piece)
        return state[:, 0, self._radius], overlap.spread[0]


class _Tally:
    """Counts windows, and calls of volumes: a corrector's too, which no node of the walk shows."""

    def __init__(self, denoise: Denoise) -> None:
        self._denoise = denoise
        self.n_windows = self.n_calls = 0

    def windows(self, state: Tensor, source: Tensor, t: float) -> Tensor:
        """Denoise windows."""
        self.n_windows += len(state)
        return self._denoise(state, source, t)

    def calls(self, denoise: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
        """Give a denoiser of volumes whose calls count."""

        def counted(state: Tensor, t: float) -> Tensor:
            self.n_calls += 1
            return denoise(state, t)

        return counted
