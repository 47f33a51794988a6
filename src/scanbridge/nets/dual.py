"""Two U-Nets walked in step: a residual branch guides an enhanced branch at three scales (hybrid-granularity fusion).

The guidance runs one way, so the residual branch is an ordinary U-Net and the enhanced branch is one whose maps are
changed where a level ends: on the way down by semantic alignment, on the way up by complementary attention.

Source: Lv et al., "RLBCD: residual-guided latent Brownian-bridge co-diffusion for anatomical-to-metabolic image
synthesis" (eq. 7 to 10). No code was released; what the paper leaves open is said where it is decided.
Axes: B batch, C channels, N positions of a map, M of them as keys; ``*S`` is (H, W) or (D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (the name that the field knows)
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from scanbridge.errors import UserError
from scanbridge.nets.blocks import CONV, as_map, positions
from scanbridge.nets.layout import Counts
from scanbridge.nets.unet import UNet, UNetConfig, Way

Branch = Literal["residual", "enhanced"]
Features = dict[tuple[Branch, Way, int], Tensor]
"""Maps (B, C, *S) by branch, way and downsample factor."""

FIRST_GATE = 2.0  # logit: the gate starts at 0.88, so that an untrained residual branch does not drown the enhanced one


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class DualConfig:
    """The shape of a `DualUNet`.

    The rows of the paper's ablation (table 2) are: *w/o SAM* ``align = "sum"``; *w/o CMA* ``attend = "sum"``; *w/o HGF*
    both; *w/o LCS* the same network, trained without the consistency term. *w/o RDB* is the enhanced branch alone and
    *w/o EDB* the residual branch alone: one `UNet` of the configuration `branch`, and no `DualUNet`.

    Parameters
    ----------
    branch
        The shape of both branches.
    scales
        Levels whose ends are fused, by downsample factor, on both ways; the paper fuses three.
    align
        How the encoders' maps meet: ``"gate"`` (eq. 7, 8, one gate a channel), ``"spatial"`` (one a channel and
        position: eq. 7 with P taken as the identity), ``"sum"`` (the paper's "direct combination"), ``"none"``.
    attend
        How the decoders' maps meet: ``"attention"`` (F_d + W_o A V, which starts as F_d), ``"literal"`` (A V as eq. 10
        prints it: the enhanced decoder's own map is heard through its queries alone), ``"sum"``, ``"none"``.
    detach
        Keep the enhanced branch's loss from training the residual branch.
    max_tokens
        Maps of more positions than this have their keys and values averaged to at most half as many.
    eval_tokens
        The same where the network is not in training, if that is less; None for `max_tokens`.

    Raises
    ------
    UserError
        For numbers that do not fit together.
    """

    branch: UNetConfig
    scales: Counts = (1, 2, 4)
    align: Literal["gate", "spatial", "sum", "none"] = "gate"
    attend: Literal["attention", "literal", "sum", "none"] = "attention"
    detach: bool = False
    max_tokens: PositiveInt = 8192
    eval_tokens: PositiveInt | None = None

    def __post_init__(self) -> None:
        absent = [scale for scale in self.scales if scale not in self._reached]
        if absent:
            raise UserError(f"scales has {absent}", f"downsample factors that the network reaches: {self._reached}")
        odd = [width for width in self.widths.values() if width % self.branch.head_channels]
        if self.attend == "attention" and odd:
            expected = f"a divisor of the widths with attention, {odd}"
            raise UserError(f"head_channels is {self.branch.head_channels}", expected)

    @property
    def _reached(self) -> list[int]:
        return [2**level for level in range(len(self.branch.widths))]

    @property
    def tokens_in_eval(self) -> int:
        """Positions beyond which keys are averaged outside of training."""
        return min(self.max_tokens, self.eval_tokens or self.max_tokens)

    @property
    def widths(self) -> dict[int, int]:
        """Channels of every fused level."""
        return {scale: self.branch.widths[self._reached.index(scale)] for scale in self.scales}

    def pooled(self, size: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Give (positions, keys) of every scale at which an input of `size` *S has fewer keys than positions.

        In translation, not in training. There the attention is an approximation of eq. 10, which a method should say.
        """
        if self.attend not in ("attention", "literal"):
            return {}
        padded = [-(-n // self.branch.stride) * self.branch.stride for n in size]
        maps = {scale: [n // scale for n in padded] for scale in self.scales}
        factors = {scale: _factor(each, self.tokens_in_eval) for scale, each in maps.items()}
        return {s: (math.prod(maps[s]), _count(maps[s], factor)) for s, factor in factors.items() if factor > 1}


class SemanticAlignment(nn.Module):
    """Mix two encoder maps (B, C, *S) by a gate: F_eo = F_e g + F_re (1 - g) (eq. 7, 8).

    C_1, C_2 and C_3 of eq. 7 have nothing nonlinear between them, so C_3 C_1 and C_3 C_2 are one 1x1 convolution each;
    the pooling P commutes with them, so the gate is computed from pooled vectors.

    Parameters
    ----------
    width
        C.
    dims
        2 or 3.
    spatial
        Leave the pooling out: one gate a position.
    """

    def __init__(self, width: int, *, dims: int = 2, spatial: bool = False) -> None:
        super().__init__()
        self.spatial = spatial
        self.residual = CONV[dims](width, width, 1, bias=False)
        self.enhanced = CONV[dims](width, width, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        if self.enhanced.bias is not None:
            nn.init.constant_(self.enhanced.bias, FIRST_GATE)

    def gate(self, enhanced: Tensor, residual: Tensor) -> Tensor:
        """Give the share of the enhanced map: (B, C, 1, 1) or (B, C, 1, 1, 1); (B, C, *S) if `spatial`."""
        if not self.spatial:
            axes = tuple(range(2, enhanced.ndim))
            enhanced, residual = enhanced.mean(axes, keepdim=True), residual.mean(axes, keepdim=True)
        return torch.sigmoid(self.residual(residual) + self.enhanced(enhanced))  # eq. 7

    def forward(self, enhanced: Tensor, residual: Tensor) -> Tensor:
        """Give the mixture."""
        gate = self.gate(enhanced, residual).to(enhanced.dtype)
        return torch.lerp(residual, enhanced, gate)  # eq. 8; exact at both ends


class ComplementaryAttention(nn.Module):
    """Add to a decoder map (B, C, *S) what it asks of another: F_do = F_d + W_o A V, W_o = 0 at the start (eq. 9, 10).

    Both maps are normalised before the projections, in heads; d of eq. 10 is the width of a head. The paper prints no
    way around, no W_o and no norm: `literal` does without, in one head.

    Parameters
    ----------
    width
        C.
    head_channels
        Width of a head.
    groups
        Of the two norms.
    max_tokens
        Maps of more positions have their keys and values averaged to at most half as many.
    eval_tokens
        The same where the module is not in training; None for `max_tokens`.
    literal
        Give A V.
    """

    def __init__(
        self,
        width: int,
        head_channels: int,
        groups: int,
        *,
        max_tokens: int,
        eval_tokens: int | None = None,
        literal: bool = False,
    ) -> None:
        super().__init__()
        self.heads = 1 if literal else width // head_channels
        self.max_tokens, self.eval_tokens = max_tokens, eval_tokens or max_tokens
        self.norm_enhanced = nn.Identity() if literal else nn.GroupNorm(groups, width)
        self.norm_residual = nn.Identity() if literal else nn.GroupNorm(groups, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = None if literal else nn.Linear(width, width)
        for parameter in () if self.out is None else self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, enhanced: Tensor, residual: Tensor) -> Tensor:
        """Give the new map."""
        asking = positions(self.norm_enhanced(enhanced))
        most = self.max_tokens if self.training else self.eval_tokens
        asked = positions(_fewer(self.norm_residual(residual), most))
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(asking), self.key(asked), self.value(asked))  # eq. 9
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # eq. 10
        mixed = mixed.transpose(1, 2).flatten(2)
        return as_map(mixed, enhanced) if self.out is None else enhanced + as_map(self.out(mixed), enhanced)


class Sum(nn.Module):
    """The paper's "direct combination" of two maps."""

    def forward(self, enhanced: Tensor, residual: Tensor) -> Tensor:
        """Give the sum."""
        return enhanced + residual


class DualUNet(nn.Module):
    """Two branches on one clock: (B, in_channels, *S) twice -> (B, out_channels, *S) twice.

    `residual` and `enhanced` are whole `UNet` objects, which can be called alone; `align` and `attend` hold what joins
    them, by downsample factor. With the gates at 1 and W_o = 0 the enhanced branch is that U-Net, to the bit.

    Parameters
    ----------
    config
        The shape.
    """

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.config = config
        self.enhanced, self.residual = UNet(config.branch), UNet(config.branch)  # from one seed, w/o RDB starts alike
        self.align = nn.ModuleDict(_aligners(config))
        self.attend = nn.ModuleDict(_attenders(config))

    def forward(
        self,
        residual: Tensor,
        enhanced: Tensor,
        t: Tensor | None = None,
        tokens: Tensor | None = None,
        vector: Tensor | None = None,
        *,
        keep: Features | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Give the outputs of the residual and of the enhanced branch.

        Parameters
        ----------
        residual, enhanced
            The branches' inputs (B, in_channels, *S): their states, and whatever else is told voxel by voxel.
        t, tokens, vector
            As a `UNet` takes them; both branches are told the same.
        keep
            Filled with the last map of every level, of both branches and ways, before the two are joined there. Maps of
            the enhanced branch have heard the residual branch at earlier scales, unless nothing joins them.
        """
        heard: dict[tuple[Way, int], Tensor] = {}

        def tell(way: Way, scale: int, x: Tensor) -> Tensor:
            heard[way, scale] = x.detach() if self.config.detach else x
            if keep is not None:
                keep["residual", way, scale] = x
            return x

        def listen(way: Way, scale: int, x: Tensor) -> Tensor:
            if keep is not None:
                keep["enhanced", way, scale] = x
            joins = self.align if way == "encoder" else self.attend
            if str(scale) not in joins:
                return x
            joined: Tensor = joins[str(scale)](x, heard[way, scale])
            return joined

        return (
            self.residual(residual, t, tokens, vector, visit=tell),
            self.enhanced(enhanced, t, tokens, vector, visit=listen),
        )


def feature_similarity(features: Features, kind: Literal["cosine", "cka"] = "cka") -> dict[tuple[Way, int], Tensor]:
    """Give the similarity (B,) of the branches' maps by way and downsample factor, in float64 (the paper's fig. 2).

    Parameters
    ----------
    features
        What `DualUNet.forward` keeps.
    kind
        ``"cka"``: linear centred kernel alignment over the positions, in [0, 1]; blind to a rotation of the channels,
        so it compares networks that were trained apart. ``"cosine"``: of the channels at each position, averaged, in
        [-1, 1]; it means something where the channels correspond.

    Source: Kornblith et al., "Similarity of neural network representations revisited" (2019), for the alignment.
    """
    measure = _cka if kind == "cka" else _cosine
    return {
        (way, scale): measure(positions(x).double(), positions(features["enhanced", way, scale]).double())
        for (branch, way, scale), x in features.items()
        if branch == "residual"
    }


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(first, second, dim=2).mean(dim=1)


def _cka(first: Tensor, second: Tensor) -> Tensor:
    """||X^T Y||^2 / (||X^T X|| ||Y^T Y||) of centred positions (B, N, C); 0 where a map is constant."""
    x, y = first - first.mean(dim=1, keepdim=True), second - second.mean(dim=1, keepdim=True)
    shared = (x.mT @ y).square().sum(dim=(1, 2))
    own, other = (torch.linalg.matrix_norm(each.mT @ each) for each in (x, y))
    alignment: Tensor = shared / (own * other).clamp(min=torch.finfo(x.dtype).tiny)
    return alignment


def _aligners(config: DualConfig) -> dict[str, nn.Module]:
    if config.align == "none":
        return {}
    spatial, dims = config.align == "spatial", config.branch.dims
    return {
        str(scale): Sum() if config.align == "sum" else SemanticAlignment(width, dims=dims, spatial=spatial)
        for scale, width in config.widths.items()
    }


def _attenders(config: DualConfig) -> dict[str, nn.Module]:
    if config.attend == "none":
        return {}
    head, groups, literal = config.branch.head_channels, config.branch.groups, config.attend == "literal"
    tokens = {"max_tokens": config.max_tokens, "eval_tokens": config.tokens_in_eval}
    return {
        str(scale): Sum()
        if config.attend == "sum"
        else ComplementaryAttention(width, head, groups, **tokens, literal=literal)
        for scale, width in config.widths.items()
    }


def _fewer(x: Tensor, max_tokens: int) -> Tensor:
    """Average a map (B, C, *S) to fewer positions, where it has more than `max_tokens`."""
    factor = _factor(x.shape[2:], max_tokens)
    if factor == 1:
        return x
    box = [min(factor, n) for n in x.shape[2:]]
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    fewer: Tensor = pool(x, box, ceil_mode=True)
    return fewer


def _factor(size: Sequence[int], max_tokens: int) -> int:
    """Give the least factor that shrinks a map of `size` to half of `max_tokens`; 1 where it has no more of them."""
    factor = 1
    while math.prod(size) > max_tokens and _count(size, factor) > max(1, max_tokens // 2):
        factor += 1
    return factor


def _count(size: Sequence[int], factor: int) -> int:
    """Give the number of positions of a map of `size` after averaging boxes of `factor` in every axis."""
    return math.prod(-(-n // factor) for n in size)
