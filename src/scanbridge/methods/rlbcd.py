"""RLBCD: two Brownian bridges in one latent space, walked in step: one to the residual, one to the target.

Both start at the source's latent. The residual branch guides the enhanced one at three scales (hybrid-granularity
fusion), and a score says how well the pair they end at agrees with the source (latent consistency score, LCS).

Source: Lv et al., "RLBCD: residual-guided latent Brownian-bridge co-diffusion for anatomical-to-metabolic image
synthesis" (eq. 1 to 11). No code was released. How each formula is read, and where we deviate:
docs/explanation/rlbcd.md. The row "w/o RDB" is BBDM in the same latents.
Axes: B batch, D slices, c channels of a latent, (h, w) its size; a pair is stacked on the channels, residual first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods.autoencoding import FirstStage, Role, autoencoder_stage, residual_image
from scanbridge.methods.base import (
    Batch,
    Draws,
    Effort,
    Fitted,
    Item,
    Request,
    Stage,
    Statistics,
    TrainingCase,
    Translator,
)
from scanbridge.methods.consistency import Consistency, consistency_stage, fusion_of
from scanbridge.methods.latent import LatentItems, Latents, by_slices, fit_latents, reconstruct
from scanbridge.methods.pairing import Ending, maps_between, paired_noise, walked_noise
from scanbridge.methods.selection import End, Selection, kept, together
from scanbridge.methods.walks import Bridge, Walk, bridge_denoiser, draw_times, embedded_time, rehearse
from scanbridge.methods.windows import Network, masked_loss, one_target
from scanbridge.nets.dual import Branch, DualConfig, Features
from scanbridge.nets.pair import PairNet
from scanbridge.strict import Strict

TRUSTED = 0.5
"""Times below which an estimate of x_0 is one, and not yet a mean over what it might be: there the LCS is trained."""

TRANSLATION = ("selection",)
"""Keys that training never reads, see `scanbridge.trials`."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "RLBCD": {},
    "w/o SAM": {"guidance.align": "sum"},
    "w/o CMA": {"guidance.attend": "sum"},
    "w/o HGF": {"guidance.align": "sum", "guidance.attend": "sum"},
    "w/o LCS": {"consistency.weight": 0.0},
    "w/o RDB": {"branches": "enhanced"},
    "w/o EDB": {"branches": "residual"},
}


class Guidance(Strict):
    """How the residual branch guides the enhanced one (eq. 7 to 10)."""

    align: Literal["gate", "spatial", "sum", "none"] = Field(default="gate", description="of the encoders' maps (SAM)")
    attend: Literal["attention", "literal", "sum", "none"] = Field(
        default="attention", description="of the decoders' maps (CMA)"
    )
    scales: list[PositiveInt] = Field(default=[1, 2, 4], description="levels that are joined, by downsample factor")
    detach: bool = Field(default=False, description="keep the enhanced branch's loss from training the residual branch")
    max_tokens: int = Field(default=1024, gt=0, description="positions beyond which keys and values are averaged")
    eval_tokens: int = Field(default=512, gt=0, description="the same in translation, if that is less")


class PairWalk(Walk):
    """A walk of both branches; the published one is BBDM's own chain of 200 steps."""

    noise_across: float = Field(
        default=0.0, ge=0, le=32, description="sd in slices of the filter that makes the noise of neighbours alike"
    )

    @property
    def _published(self) -> dict[str, Any]:
        chain = {"walk": "marginals", "grid": "published", "start": "source", "eta": 1.0, "calls": 200}
        return {**chain, "order": 1, "variance": "none", "temperature": 1.0, "noise_across": 0.0}


class Config(Strict):
    """RLBCD."""

    residual: Literal["image", "latent"] = Field(
        default="image", description="the latent of (target - source) / 2, or the difference of the latents"
    )
    branches: Literal["both", "enhanced", "residual"] = "both"
    noise: Literal["independent", "shared"] = Field(default="independent", description="of the two branches")
    condition: Literal["concat", "none"] = Field(
        default="concat", description="whether the networks see the source's latent beside the state; the paper: no"
    )
    autoencoder: FirstStage = FirstStage()
    consistency: Consistency = Consistency()
    network: Network = Network()
    guidance: Guidance = Guidance()
    bridge: Bridge = Bridge(predict="difference", residual_scale=0.8)
    selection: Selection = Selection()
    estimate: PairWalk = PairWalk(walk="mean_path", calls=4, grid="linear", start="source")
    draw: PairWalk = PairWalk()

    @property
    def order(self) -> tuple[Branch, ...]:
        """The branches in the order of the stacked channels."""
        return ("residual", "enhanced") if self.branches == "both" else (self.branches,)

    @property
    def roles(self) -> tuple[Role, ...]:
        """What the branches lead to."""
        ends: dict[Branch, Role] = {"residual": "residual", "enhanced": "target"}
        return tuple(ends[branch] for branch in self.order)


def signals(config: Config) -> tuple[str, ...]:
    """Name the method's own maps of where it is unsure: how far the branches disagree, and the score's map."""
    return ("branches", "consistency") if config.branches == "both" else ()


def _dual(config: Config) -> DualConfig:
    """Give the shape of the two branches and of what joins them."""
    latent, own = config.autoencoder.latent_channels, config.guidance
    return DualConfig(
        branch=config.network.unet(latent * (2 if config.condition == "concat" else 1), latent),
        scales=tuple(own.scales),
        align=own.align,
        attend=own.attend,
        detach=own.detach,
        max_tokens=own.max_tokens,
        eval_tokens=own.eval_tokens,
    )


def stages(config: Config, targets: Sequence[str]) -> tuple[Stage, ...]:
    """Give the stages: autoencoder, consistency network where one is learned, bridges.

    The scales of the latents are fitted by the stage after the autoencoder.
    """
    target = one_target("rlbcd", targets)
    _refuse_impossible(config)
    rehearse({"estimate": config.estimate, "draw": config.draw}, config.bridge)

    def fit(cases: Sequence[TrainingCase], before: Fitted) -> Statistics:
        return fit_latents(cases, before, target, config.residual)

    first = autoencoder_stage(config.autoencoder, target, config.residual)
    first = replace(first, about={**first.about, "residual": config.residual})
    later = [_bridges_stage(config, target)]
    if config.branches == "both" and config.consistency.fusion == "net":
        channels = config.autoencoder.latent_channels
        later.insert(0, consistency_stage(config.consistency, target, config.residual, channels, first.about))
    return first, replace(later[0], fit=fit), *later[1:]


def _refuse_impossible(config: Config) -> None:
    if config.consistency.fusion == "linear" and config.residual == "image":
        raise UserError(
            "consistency.fusion = 'linear' with residual = 'image'",
            "residual = 'latent', for which target - residual is the source",
            "set one of the two",
        )
    if config.consistency.weights is not None and config.autoencoder.weights is None:
        raise UserError(
            "consistency.weights without autoencoder.weights",
            "both from one run: the network knows the latents of its own autoencoder",
            "give both, or train both",
        )


def _bridges_stage(config: Config, target: str) -> Stage:
    """Give the stage that trains the bridges (eq. 3, 6 with weight 1, and eq. 11)."""
    bridge = config.bridge

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        scale = Latents.of(fitted, config.residual)
        item = LatentItems.of(scale, batch, target)
        ends = torch.cat([item.latents[role] for role in config.roles], dim=1)
        source = item.latents["source"]
        sources = torch.cat([source] * len(config.order), dim=1)
        t = draw_times(bridge, noise)
        eps = paired_noise(noise, len(config.order), source.shape[1:], shared=config.noise == "shared")
        state = bridge.process().diffuse(ends, sources, eps, t)
        label = bridge.label(t, ends, sources, eps)
        output = fitted.networks["bridges"](state, sources, embedded_time(bridge, t))
        parts = zip(output.chunk(len(config.order), 1), label.chunk(len(config.order), 1), strict=True)
        terms: dict[str, Tensor] = {
            branch: masked_loss(made, wanted, item.known, bridge.loss)
            for branch, (made, wanted) in zip(config.order, parts, strict=True)
        }
        total = torch.stack([*terms.values()]).sum()
        near = t < TRUSTED
        if config.branches == "both" and config.consistency.weight > 0 and bool(near.any()):
            pair = bridge.estimate(t[near], output[near], state[near], sources[near])
            r, y = pair.chunk(2, dim=1)
            error = masked_loss(
                fusion_of(config.consistency, fitted, scale)(y, r), source[near], item.known[near], "l2"
            )
            terms["consistency"] = error * near.sum() / len(near)  # of all items: those near the source count as 0
            total = total + config.consistency.weight * terms["consistency"]
        return total, {name: float(term.detach()) for name, term in terms.items()}

    return Stage(
        "bridges",
        Item(radius=0),
        lambda: {"bridges": PairNet(_dual(config), len(config.order), told=config.condition == "concat")},
        loss,
        images=bridge.images,
        learning_rate=bridge.learning_rate,
    )


def translator(config: Config, fitted: Fitted) -> Translator:
    """Give the translator."""
    return Pair(config, fitted)


@dataclass(frozen=True)
class Pair:
    """Walks both branches through whole volumes, slice by slice in one state, and decodes once."""

    config: Config
    fitted: Fitted

    def reconstruct(self, image: Tensor) -> Tensor:
        """Give what the autoencoder makes of an image (1, D, H, W) by itself: the ceiling of every translation."""
        return reconstruct(self.fitted, image, slices=self.config.estimate.windows)

    def draw(self, source: Tensor, request: Request) -> Draws:
        """Give a volume of one product for each of `request.draws`, or what is kept of several (`Selection`)."""
        config, selection = self.config, self.config.selection
        selects = self._selects(request)
        settings = self._walk(request)
        numbers = range(selection.draws) if selects else request.draws
        settings.refuse_equal(replace(request, samples=max(request.samples, len(numbers))))
        if not numbers:
            raise UserError(f"{request.samples} samples", "one at least", "ask for more, or leave --samples out")
        n_calls = len(settings.times(config.bridge, config.bridge.residual_scale)) - 1
        ends = []
        for index, number in enumerate(numbers):
            done, of = (index * n_calls, len(numbers) * n_calls) if selects else (0, n_calls)
            ends.append(self._walked(source, settings, request, number, (done, of)))
        facts: dict[str, Any] = {
            "walk": settings.model_dump(),
            "quality": request.quality,
            "times": settings.times(config.bridge, config.bridge.residual_scale).tolist(),
            "windows": source.shape[1] * n_calls * (len(numbers) if selects else 1),
            **self._pooled(source),
        }
        scores = [end.score for end in ends if end.score is not None]
        if scores:
            facts["consistency"] = scores
        if selects:
            ends, which = kept(ends, selection.keep)
            facts |= {"selection": selection.model_dump(), "kept": which}
        return together(ends, n_calls * (len(numbers) if selects else 1), facts)

    def effort(self, request: Request) -> Effort:
        """Give what one volume of the request's product costs."""
        settings, n = self._walk(request), self.config.selection.draws if self._selects(request) else 1
        nodes = len(settings.times(self.config.bridge, self.config.bridge.residual_scale)) - 1
        return Effort(settings.calls, nodes, n * nodes, n * nodes, batch=settings.windows)

    def _selects(self, request: Request) -> bool:
        """Say whether the product is chosen from several draws."""
        return request.product == "estimate" and self.config.selection.draws > 1 and request.quality != "draft"

    def _walk(self, request: Request) -> PairWalk:
        draws = request.product == "draw" or self._selects(request)
        return (self.config.draw if draws else self.config.estimate).asked(request)

    def _walked(self, source: Tensor, settings: PairWalk, request: Request, number: int, calls: tuple[int, int]) -> End:
        """Walk one draw, and decode it; `calls` are those made before, and of all."""
        config, scale, n = self.config, self.scale, settings.windows
        x = by_slices(lambda part: scale.encode({"source": part})["source"], source, slices=n)
        sources = torch.cat([x] * len(config.order))
        network = self.fitted.networks["bridges"]
        part = bridge_denoiser(config.bridge, lambda u, y, t: network(u, y, embedded_time(config.bridge, t)))

        def denoise(state: Tensor, t: float) -> Tensor:
            return by_slices(lambda u, y: part(u, y, t), state, sources, slices=n)

        def noise(step: int) -> Tensor:
            shared = config.noise == "shared"
            return walked_noise(request, number, step, x, config.order, shared=shared, across=settings.noise_across)

        def told(call: int, of: int) -> None:  # noqa: ARG001
            if request.on_call is not None:
                request.on_call(calls[0] + call, calls[1])

        sd = config.bridge.residual_scale
        pair = settings.take(denoise, config.bridge, sources, noise, residual_scale=sd, on_call=told)
        return self._ended(source, x, dict(zip(config.roles, pair.chunk(len(config.order)), strict=True)), slices=n)

    def features(self, source: Tensor, target: Tensor, t: float, request: Request) -> Iterator[Features]:
        """Give the maps of both branches at time `t` of the bridges between the true ends, slices in turn (fig. 2).

        Parameters
        ----------
        source, target
            (1, D, H, W) in [-1, 1]; the bridges are where training shows them to the network.
        t
            In (0, 1].
        request
            Whose seed and subject the noise comes from.
        """
        config, scale, n = self.config, self.scale, self.config.estimate.windows

        def latents(a: Tensor, b: Tensor) -> Tensor:
            images: dict[Role, Tensor] = {"source": a, "target": b}
            if config.residual == "image":
                images["residual"] = residual_image(a, b)
            found = scale.encode(images)
            return torch.cat([found[role] for role in ("source", *config.roles)], dim=1)

        x, *ends = by_slices(latents, source, target, slices=n).chunk(1 + len(config.order))
        eps = walked_noise(request, 0, 0, x, config.order, shared=config.noise == "shared")
        network, sources = self.fitted.networks["bridges"], torch.cat([x] * len(ends))
        return maps_between(config.bridge, network, torch.cat(ends), sources, eps, t, slices=n)

    @cached_property
    def scale(self) -> Latents:
        """From images to latents and back."""
        return Latents.of(self.fitted, self.config.residual)

    @cached_property
    def _ended(self) -> Ending:
        both = self.config.branches == "both"
        fusion = fusion_of(self.config.consistency, self.fitted, self.scale) if both else None
        return Ending(self.scale, fusion)

    def _pooled(self, source: Tensor) -> dict[str, Any]:
        """Say at which scales attention has fewer keys than positions."""
        size = self.scale.autoencoder.config.latent_size(source.shape[2:])
        pooled = _dual(self.config).pooled(size) if self.config.branches == "both" else {}
        return {"attention_pooled": {str(scale): list(n) for scale, n in pooled.items()}} if pooled else {}
