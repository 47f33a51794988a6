"""How the methods on windows of slices translate whole volumes: one noise field, every window once a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import get_args

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from torch import Tensor

from scanbridge.bridge.noise import NoiseSource
from scanbridge.bridge.sample import Langevin
from scanbridge.bridge.volume import Lift, Overlap, Windows
from scanbridge.methods.base import Draws, Effort, Fitted, Request
from scanbridge.methods.regressing import regression_denoiser
from scanbridge.methods.window_bridge import WindowBridge, window_denoiser
from scanbridge.methods.windows import Axis, WindowWalk

Denoise = Callable[[Tensor, Tensor, float], Tensor]
"""``(state, seen, t) -> x_0`` for windows (B, C, d, H, W): what the network sees is the source, or more."""

AXES = get_args(Axis)
BACKGROUND = -1.0


@dataclass(frozen=True)
class WindowTranslator:
    """Walks whole volumes, from the source or, where a regression came first, about its estimate.

    Parameters
    ----------
    config, fitted
        The bridge, and its networks.
    tokens
        ``(source, style) -> (n, c)``, attended to by every window; style as a request has it.
    corrector
        Makes the corrector for the source end as the walk sees it; None for none, and a single call has none.
    moves
        Calls of the corrector at every time but the first.
    coprediction
        Average overlapping windows at every call; else every window walks by itself and gives its centre slice.
    """

    config: WindowBridge
    fitted: Fitted
    tokens: Callable[[Tensor, str | Tensor | None], Tensor | None] = lambda source, style: None  # noqa: ARG005
    corrector: Callable[[Tensor], Langevin] | None = None
    moves: int = 0
    coprediction: bool = True

    def draw(self, source: Tensor, request: Request) -> Draws:
        """Give a volume of one product for each of `request.draws`."""
        config, fitted, tokens = self.config, self.fitted, self.tokens(source, request.style)
        settings, residual = walk_of(config, request), config.regression.use
        settings.refuse_equal(request)
        residual_scale = request.residual_scale or config.bridge.residual_scale
        times = settings.times(config.bridge, residual_scale)
        tally, form_of = _Tally(), partial(_Aligned if self.coprediction else _Separate, settings, config.radius)
        seen, centre, disagreement = source, torch.zeros_like(source[0]), None
        if residual:
            network = tally.windows(regression_denoiser(fitted.networks["regression"], tokens))
            first = form_of(mirrored(network, _of_first(config, request).mirror), source)
            centre, disagreement = first.finish(tally.calls(first.denoise)(first.start, 1.0))
            seen = torch.cat([centre[None], source])
        network = mirrored(tally.windows(window_denoiser(config, fitted.networks["bridge"], tokens)), settings.mirror)
        made, capped = [], 0
        for k in request.draws:
            form = form_of(network, seen, last=float(times[-2]), residual=residual)
            denoise = tally.calls(form.denoise)
            corrector = self._corrector(request, form.start)
            state = settings.take(
                _beyond_source(denoise) if residual else denoise,
                config.bridge,
                form.start,
                partial(form.noise, NoiseSource(request.seed, request.subject, draw=k)),
                residual_scale=residual_scale,
                corrector=corrector,
                on_call=request.on_call,
            )
            volume, at_last = form.finish(state)
            made.append(centre + volume)
            disagreement = disagreement if residual else at_last  # the bridge's windows know less of where it errs
            capped += 0 if corrector is None else corrector.capped
        volumes = torch.stack(made)
        uncertainty = volumes.std(dim=0) if len(made) > 1 else disagreement
        if uncertainty is None:
            raise ValueError("no call was made")
        facts = {
            "walk": settings.model_dump(),
            "quality": request.quality,
            "times": times.tolist(),
            "windows": math.ceil(tally.n_windows / len(made)),  # one regression serves all draws
        }
        if self.corrector is not None:
            facts["corrector_capped"] = capped
        return Draws(volumes, uncertainty, math.ceil(tally.n_calls / len(made)), facts)

    def effort(self, request: Request) -> Effort:
        """Give what a volume of the request's product costs."""
        config, settings = self.config, walk_of(self.config, request)
        times = settings.times(config.bridge, request.residual_scale or config.bridge.residual_scale)
        nodes, n, moves = len(times) - 1, images(settings.mirror), 0 if request.product == "one-call" else self.moves
        known = config.regression.use and float(times[0]) == 1
        calls = nodes - known + (nodes - 1) * moves
        at_last = 1 + moves if nodes > 1 else calls
        passes = n * ((calls - at_last) / settings.stride + at_last)
        if config.regression.use:
            of_first = images(_of_first(config, request).mirror)
            calls, passes, n = calls + 1, passes + of_first, n if calls else of_first
        return Effort(settings.calls, nodes, calls, passes, n, settings.windows)

    def _corrector(self, request: Request, source: Tensor) -> Langevin | None:
        return None if self.corrector is None or request.product == "one-call" else self.corrector(source)


def walk_of(config: WindowBridge, request: Request) -> WindowWalk:
    """Give the walk of the product that is asked for."""
    return (config.draw if request.product == "draw" else config.estimate).asked(request)


def _of_first(config: WindowBridge, request: Request) -> WindowWalk:
    """Give the walk whose mirror images the regression is averaged over: draws lie about the run's own estimate."""
    return config.estimate if request.product == "draw" else walk_of(config, request)


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


def _beyond_source(denoise: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Give the denoiser of a residual, which is 0 at the source end: there the regression has been called."""
    return lambda state, t: torch.zeros_like(state) if t == 1 else denoise(state, t)


class _Aligned:
    """Co-prediction: the state is a volume, padded by N slices where its ends are live.

    `start` is the source end of the walk: what is seen, or 0 for a residual.
    """

    def __init__(
        self,
        settings: WindowWalk,
        radius: int,
        denoise: Denoise,
        seen: Tensor,
        *,
        last: float = 1.0,
        residual: bool = False,
    ) -> None:
        self._pad = radius if settings.ends == "live" else 0
        seen = F.pad(seen, (0, 0, 0, 0, self._pad, self._pad), value=BACKGROUND)
        self.start = torch.zeros_like(seen[:1]) if residual else seen
        cover, thin = (Windows(seen.shape[1], radius, settings.ends, n) for n in (1, settings.stride))
        self.denoise = Lift(denoise, seen, cover, settings.windows, cycle=thin.cycle, last=last)

    def noise(self, noise: NoiseSource, step: int) -> Tensor:
        """Give the volume's noise for a step."""
        return noise(step, self.start.shape, self.start.device)

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the volume (D, H, W) and the disagreement of the windows at the last call; None where none was made."""
        real, spread = slice(self._pad, state.shape[1] - self._pad), self.denoise.disagreement
        return state[0, real], None if spread is None else spread[0, real]


class _Separate:
    """No co-prediction: the state is the stack of all windows, each walking by itself; `start` as in `_Aligned`."""

    def __init__(
        self,
        settings: WindowWalk,
        radius: int,
        denoise: Denoise,
        seen: Tensor,
        *,
        last: float = 1.0,  # noqa: ARG002  (no stride, no cycle)
        residual: bool = False,
    ) -> None:
        self._like, self._radius = seen[:1], radius
        self._cover = Windows(seen.shape[1], radius)
        self._batch, self._denoise = settings.windows, denoise
        self._seen = self._pieces(seen)
        self.start = torch.zeros_like(self._seen[:, :1]) if residual else self._seen

    def _pieces(self, volume: Tensor) -> Tensor:
        return self._cover.cut(volume, range(len(self._cover)))

    def noise(self, noise: NoiseSource, step: int) -> Tensor:
        """Give the volume's noise for a step, cut into windows."""
        return self._pieces(noise(step, self._like.shape, self._like.device))

    def denoise(self, state: Tensor, t: float) -> Tensor:
        """Give the estimates of all windows."""
        batches = zip(torch.split(state, self._batch), torch.split(self._seen, self._batch), strict=True)
        return torch.cat([self._denoise(x, y, t) for x, y in batches])

    def finish(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the volume (D, H, W) of centre slices, and the disagreement of the windows that hold a slice."""
        overlap = Overlap(self._cover, self._like)
        for index, piece in enumerate(state):
            overlap.add(index, piece)
        return state[:, 0, self._radius], overlap.spread[0]


class _Tally:
    """Counts windows, and calls of volumes: a corrector's too, which no node of the walk shows."""

    def __init__(self) -> None:
        self.n_windows = self.n_calls = 0

    def windows(self, denoise: Denoise) -> Denoise:
        """Give a denoiser of windows that counts them."""

        def counted(state: Tensor, seen: Tensor, t: float) -> Tensor:
            self.n_windows += len(state)
            return denoise(state, seen, t)

        return counted

    def calls(self, denoise: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
        """Give a denoiser of volumes whose calls count."""

        def counted(state: Tensor, t: float) -> Tensor:
            self.n_calls += 1
            return denoise(state, t)

        return counted
