"""Autoencoders for slices and volumes: with a codebook (VQGAN), with a Gaussian bottleneck (KL), or plain.

The latent of a diffusion is what `encode` gives: continuous, before the codebook or the draw. The codebook snaps once,
on decoding. Norms are over groups of channels, so that no image sees another one of its batch; they see the whole
image, so encode windows or tiles of one size.

Source: Esser et al., "Taming transformers for high-resolution image synthesis" (2021); Rombach et al., "High-resolution
image synthesis with latent diffusion models" (2022), for the layout and the KL form. Deviations: the two 1x1
convolutions around the codebook are left out, since each stands next to another linear map; strides per axis.
Axes: B batch, C channels, c channels of the latent; ``*S`` is (H, W) or (D, H, W), ``*s`` its size over the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scanbridge.nets.levels import AutoencoderConfig, decoder, encoder
from scanbridge.nets.precision import wide
from scanbridge.nets.quantise import Codebook
from scanbridge.nets.strides import crop, pad

__all__ = ["Autoencoder", "AutoencoderConfig", "Reconstruction", "kl_per_element"]


class Reconstruction(NamedTuple):
    """What an autoencoder makes of an image, and what its loss needs beside the image.

    Parameters
    ----------
    image
        (B, out_channels, *S).
    latent
        (B, c, *s), as `Autoencoder.encode` gives it, with its gradient.
    terms
        By name: ``codebook`` and ``commitment`` (means over the elements of the latent), or ``kl`` (nats per element).
    codes
        Indices (B, *s) of the codes; None without a codebook.
    """

    image: Tensor
    latent: Tensor
    terms: dict[str, Tensor]
    codes: Tensor | None = None

    def penalty(self, *, codebook: float = 1.0, commitment: float = 0.25, kl: float = 1e-4) -> Tensor:
        """Give the sum of the terms, weighted by name (`kl` per element of the latent, not summed over the image)."""
        weights = {"codebook": codebook, "commitment": commitment, "kl": kl}
        return sum((weights[name] * term for name, term in self.terms.items()), self.image.new_zeros(()))


class Autoencoder(nn.Module):
    """Images (B, C, *S) to latents (B, c, *s) and back, for any size S.

    Parameters
    ----------
    config
        The shape.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = encoder(config), decoder(config)
        self.codebook: Codebook | None = None
        if config.kind == "vq":
            self.codebook = Codebook(
                config.codes,
                config.latent_channels,
                moving_average=config.moving_average,
                patience=config.patience,
            )

    @property
    def last(self) -> Tensor:
        """The weight of the decoder's last convolution, where the gradients of two losses are compared."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, Tensor)  # noqa: S101  (for the type)
        return weight

    def encode(self, x: Tensor) -> Tensor:
        """Give the continuous latent (B, c, *s) of `x` (B, C, *S): before the codebook, or the mean."""
        return self._moments(x)[0]

    def decode(self, latent: Tensor, *, snap: bool = True, size: Sequence[int] | None = None) -> Tensor:
        """Give the image of a latent (B, c, *s).

        Parameters
        ----------
        latent
            As `encode` gives it, or a diffusion.
        snap
            Take the nearest codes first, where there is a codebook. No gradient passes them.
        size
            ``*S`` of the image: what `encode` padded is cut off. The latent's size times the factor where not given.
        """
        if snap and self.codebook is not None:
            latent = self.codebook.snap(latent)
        x = self._run(self.decoder, latent)
        return x if size is None else crop(x, size)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Give the reconstruction of `x` (B, C, *S), as training needs it.

        Parameters
        ----------
        x
            Images.
        noise
            Standard normal (B, c, *s), for the draw of ``"kl"``; its mean is decoded where there is none.
        """
        latent, log_variance = self._moments(x)
        decoded, terms, codes = latent, {}, None
        if self.codebook is not None:
            decoded, codes, terms["codebook"], terms["commitment"] = self.codebook(latent)
        if log_variance is not None:
            terms["kl"] = kl_per_element(latent, log_variance).mean()
            if noise is not None:
                decoded = latent + torch.exp(0.5 * log_variance) * noise
        return Reconstruction(self.decode(decoded, snap=False, size=x.shape[2:]), latent, terms, codes)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the latent, and its log variance where there is one."""
        h = self._run(self.encoder, pad(x, self.config.factor))
        if self.config.kind != "kl":
            return h, None
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def _run(self, levels: nn.Sequential, x: Tensor) -> Tensor:
        recompute = self.config.checkpoint and torch.is_grad_enabled()
        for level in levels:
            x = checkpoint(level, x, use_reentrant=False) if recompute else level(x)
        return x


def kl_per_element(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Give the divergence of N(mean, variance) from N(0, 1) in nats, element by element, in float32 at least."""
    mean, log_variance = wide(mean), wide(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
