"""RLBCD: two Brownian bridges in one latent space, walked in step: one to the residual, one to the target.

Both start at the source's latent. The residual branch guides the enhanced one at three scales (hybrid-granularity
fusion), and a score says how well the pair they end at agrees with the source (latent consistency score, LCS).

Source: Lv et al., "RLBCD: residual-guided latent Brownian-bridge co-diffusion for anatomical-to-metabolic image
synthesis" (eq. 1 to 11). No code was released. How each formula is read, and where we deviate:
docs/explanation/rlbcd.md. The row "w/o RDB" is BBDM in the same latents.
Axes: B batch, D slices, c channels of a latent, (h, w) its size; a pair is stacked on the channels, residual first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from scanbridge.bridge.noise import ItemNoise, NoiseSource
from scanbridge.bridge.parametrize import decode, encode
from scanbridge.errors import UserError
from scanbridge.methods.autoencoding import FirstStage, Role, autoencoder_stage
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
from scanbridge.methods.latent import LatentItems, Latents, by_slices, fit_latents, reconstruct
from scanbridge.methods.selection import End, Selection, kept, together
from scanbridge.methods.walks import Bridge, Walk, draw_times, embedded_time
from scanbridge.methods.windows import Network, bridge_denoiser, masked_loss, one_target
from scanbridge.nets.dual import DualConfig, DualUNet
from scanbridge.nets.fusion import Fusion, FusionConfig, FusionNet, consistency_map, linear
from scanbridge.nets.unet import UNet
from scanbridge.strict import Strict

TRUSTED = 0.5
"""Times below which an estimate of x_0 is one, and not yet a mean over what it might be: there the LCS is trained."""

Branch = Literal["residual", "enhanced"]

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


class Consistency(Strict):
    """The network that fuses target and residual to the source, and the score that it gives (eq. 11)."""

    fusion: Literal["net", "linear"] = Field(
        default="net", description="learned, or target - residual: exact for the latent residual"
    )
    weight: float = Field(default=0.1, ge=0, description="lambda, of the score in the bridges' loss")
    channels: int = Field(default=32, gt=0)
    convolutions: int = Field(default=4, ge=2)
    images: PositiveInt | None = Field(default=None, description="slices that it is trained on, or train.images")
    learning_rate: float | None = Field(default=None, gt=0)
    weights: str | None = Field(default=None, description="folder of this stage in another run, instead of training")


class PairWalk(Walk):
    """A walk of both branches; the published one is BBDM's own chain of 200 steps."""

    @property
    def _published(self) -> dict[str, Any]:
        chain = {"walk": "marginals", "grid": "published", "start": "source", "eta": 1.0, "calls": 200}
        return {**chain, "order": 1, "variance": "none", "temperature": 1.0, "stride": 1}


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
    )


class PairNet(nn.Module):
    """The network of the branches on stacked channels: states (B, n c, h, w) and sources alike -> (B, n c, h, w)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n, self.told = len(config.order), config.condition == "concat"
        dual = _dual(config)
        self.net: DualUNet | UNet = DualUNet(dual) if self.n == 2 else UNet(dual.branch)

    def forward(self, state: Tensor, source: Tensor, t: Tensor) -> Tensor:
        """Give the outputs; `t` (B,) as the embedding takes it."""
        states, sources = state.chunk(self.n, dim=1), source.chunk(self.n, dim=1)
        seen = [torch.cat(each, dim=1) for each in zip(states, sources, strict=True)] if self.told else list(states)
        if isinstance(self.net, DualUNet):
            return torch.cat(self.net(seen[0], seen[1], t), dim=1)
        out: Tensor = self.net(seen[0], t)
        return out


def stages(config: Config, targets: Sequence[str]) -> tuple[Stage, ...]:
    """Give the stages: autoencoder, consistency network where one is learned, bridges.

    The scales of the latents are fitted by the stage after the autoencoder.
    """
    target = one_target("rlbcd", targets)
    _refuse_impossible(config)

    def fit(cases: Sequence[TrainingCase], before: Fitted) -> Statistics:
        return fit_latents(cases, before, target, config.residual)

    first = autoencoder_stage(config.autoencoder, target, config.residual)
    first = replace(first, about={**first.about, "residual": config.residual})
    later = [_bridges_stage(config, target)]
    if config.branches == "both" and config.consistency.fusion == "net":
        later.insert(0, _consistency_stage(config, target, first.about))
    return first, replace(later[0], fit=fit), *later[1:]


def _refuse_impossible(config: Config) -> None:
    if config.consistency.fusion == "linear" and config.residual == "image":
        raise UserError(
            "consistency.fusion = 'linear' with residual = 'image'",
            "residual = 'latent', for which target - residual is the source",
            "set one of the two",
        )
    for name, walk in (("estimate", config.estimate), ("draw", config.draw)):
        if walk.stride > 1 or walk.ends != "copy":
            raise UserError(
                f"{name}.stride = {walk.stride}, {name}.ends = '{walk.ends}' for slices that do not overlap",
                "stride = 1 and ends = 'copy'",
                "leave them out: a latent method has no windows",
            )
    if config.consistency.weights is not None and config.autoencoder.weights is None:
        raise UserError(
            "consistency.weights without autoencoder.weights",
            "both from one run: the network knows the latents of its own autoencoder",
            "give both, or train both",
        )


def _consistency_stage(config: Config, target: str, autoencoder: Mapping[str, Any]) -> Stage:
    """Give the stage that trains H_E on clean latents: (target, residual) -> source (section 3.5)."""
    own = config.consistency
    shape = FusionConfig(
        latent_channels=config.autoencoder.latent_channels, channels=own.channels, convolutions=own.convolutions
    )

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG001
        item = LatentItems.of(Latents.of(fitted, config.residual), batch, target)
        fused = fitted.networks["fusion"](item.latents["target"], item.latents["residual"])
        return masked_loss(fused, item.latents["source"], item.known, "l2"), {}

    return Stage(
        "consistency",
        Item(radius=0),
        lambda: {"fusion": FusionNet(shape)},
        loss,
        images=own.images,
        learning_rate=own.learning_rate,
        about={**autoencoder, "consistency.channels": own.channels, "consistency.convolutions": own.convolutions},
        weights=None if own.weights is None else Path(own.weights),
    )


def fusion_of(config: Config, fitted: Fitted, scale: Latents) -> Fusion:
    """Give H_E, ``(target, residual) -> source`` on normalised latents; frozen, and open to gradients of its inputs."""
    if config.consistency.fusion == "net":
        learned: Fusion = fitted.networks["fusion"]
        return learned
    return lambda target, residual: scale.normalise(
        "source", linear(scale.denormalise("target", target), scale.denormalise("residual", residual))
    )


def _bridges_stage(config: Config, target: str) -> Stage:
    """Give the stage that trains the bridges (eq. 3, 6 with weight 1, and eq. 11)."""
    bridge, process = config.bridge, config.bridge.process()

    def loss(fitted: Fitted, batch: Batch, noise: ItemNoise) -> tuple[Tensor, dict[str, float]]:
        scale = Latents.of(fitted, config.residual)
        item = LatentItems.of(scale, batch, target)
        ends = torch.cat([item.latents[role] for role in config.roles], dim=1)
        source = item.latents["source"]
        sources = torch.cat([source] * len(config.order), dim=1)
        t, eps = draw_times(bridge, noise), _noise(config, noise, source.shape[1:])
        state = process.diffuse(ends, sources, eps, t)
        label = encode(bridge.predict, process, t, ends, sources, eps)
        output = fitted.networks["bridges"](state, sources, embedded_time(bridge, t))
        parts = zip(output.chunk(len(config.order), 1), label.chunk(len(config.order), 1), strict=True)
        terms: dict[str, Tensor] = {
            branch: masked_loss(made, wanted, item.known, bridge.loss)
            for branch, (made, wanted) in zip(config.order, parts, strict=True)
        }
        total = torch.stack([*terms.values()]).sum()
        near = t < TRUSTED
        if config.branches == "both" and config.consistency.weight > 0 and bool(near.any()):
            pair = decode(bridge.predict, process, t[near], output[near], state[near], sources[near])
            r, y = pair.chunk(2, dim=1)
            error = masked_loss(fusion_of(config, fitted, scale)(y, r), source[near], item.known[near], "l2")
            terms["consistency"] = error * near.sum() / len(near)  # of all items: those near the source count as 0
            total = total + config.consistency.weight * terms["consistency"]
        return total, {name: float(term.detach()) for name, term in terms.items()}

    return Stage("bridges", Item(radius=0), lambda: {"bridges": PairNet(config)}, loss)


def _noise(config: Config, noise: ItemNoise, shape: Sequence[int]) -> Tensor:
    """Draw the noise of the stacked channels, the enhanced branch's first: alone it is BBDM to the bit."""
    first = noise.normal(shape)
    if config.branches != "both":
        return first
    return torch.cat([first if config.noise == "shared" else noise.normal(shape), first], dim=1)


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
        return Effort(settings.calls, nodes, n * nodes, n * nodes, settings.windows)

    def _selects(self, request: Request) -> bool:
        """Say whether the product is chosen from several draws."""
        return request.product == "estimate" and self.config.selection.draws > 1 and request.quality != "draft"

    def _walk(self, request: Request) -> Walk:
        draws = request.product == "draw" or self._selects(request)
        return (self.config.draw if draws else self.config.estimate).asked(request)

    def _walked(self, source: Tensor, settings: Walk, request: Request, number: int, calls: tuple[int, int]) -> End:
        """Walk one draw, and decode it; `calls` are those made before, and of all."""
        config, scale, n = self.config, self._scale, settings.windows
        x = by_slices(lambda part: scale.encode({"source": part})["source"], source, slices=n)
        sources = torch.cat([x] * len(config.order))
        network = bridge_denoiser(config.bridge, self.fitted.networks["bridges"])

        def denoise(state: Tensor, t: float) -> Tensor:
            return by_slices(lambda part, y: network(part, y, t), state, sources, slices=n)

        def noise(step: int) -> Tensor:
            names = ["enhanced"] * 2 if config.noise == "shared" and len(config.order) == 2 else config.order
            drawn = (NoiseSource(request.seed, request.subject, draw=number, stage=name) for name in names)
            return torch.cat([each(step, x.shape, x.device) for each in drawn])

        def told(call: int, of: int) -> None:  # noqa: ARG001
            if request.on_call is not None:
                request.on_call(calls[0] + call, calls[1])

        sd = config.bridge.residual_scale
        pair = settings.take(denoise, config.bridge, sources, noise, residual_scale=sd, on_call=told)
        return self._ended(source, x, dict(zip(config.roles, pair.chunk(len(config.order)), strict=True)), n)

    def _ended(self, source: Tensor, x: Tensor, ends: dict[Role, Tensor], n: int) -> End:
        """Decode what the branches end at, and score it."""
        scale, size, volumes = self._scale, source.shape[2:], list[Tensor]()
        if "target" in ends:
            volumes += by_slices(lambda y: scale.decode("target", y, size), ends["target"], slices=n)
        if "residual" in ends:
            volumes += by_slices(self._by_residual, source, x, ends["residual"], slices=n)
        if len(volumes) == 1:
            return End(volumes[0], {}, None)

        def scored(y: Tensor, r: Tensor, wanted: Tensor) -> Tensor:
            return consistency_map(self._fusion(y, r), wanted)

        score = by_slices(scored, ends["target"], ends["residual"], x, slices=n)
        doubt = by_slices(lambda part: scale.spread(part, size), (-score).clamp(min=0).sqrt(), slices=n)[0]
        signals = {"branches": (volumes[0] - volumes[1]).abs() / 2, "consistency": doubt}
        return End(volumes[0], signals, float(score.mean()))

    def _by_residual(self, source: Tensor, x: Tensor, residual: Tensor) -> Tensor:
        """Give the target (n, 1, H, W) that the residual branch says: source + 2 Dec(r), or Dec(x + r), clipped."""
        scale, size = self._scale, source.shape[2:]
        if self.config.residual == "image":
            return (source + 2 * scale.decode("residual", residual, size)).clamp(-1, 1)
        latent = scale.denormalise("source", x) + scale.denormalise("residual", residual)
        return scale.draw(latent, size).clamp(-1, 1)

    @cached_property
    def _scale(self) -> Latents:
        return Latents.of(self.fitted, self.config.residual)

    @cached_property
    def _fusion(self) -> Fusion:
        return fusion_of(self.config, self.fitted, self._scale)

    def _pooled(self, source: Tensor) -> dict[str, Any]:
        """Say at which scales attention has fewer keys than positions."""
        size = self._scale.autoencoder.config.latent_size(source.shape[2:])
        pooled = _dual(self.config).pooled(size) if self.config.branches == "both" else {}
        return {"attention_pooled": {str(scale): list(n) for scale, n in pooled.items()}} if pooled else {}
