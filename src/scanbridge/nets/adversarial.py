"""What an autoencoder is trained on: the distance to its images, and the opinion of a discriminator.

A training has one loss, so that one backward pass serves both networks: `generator_loss` moves the generator alone,
`discriminator_loss` the discriminator alone, and their sum is what both of them descend on. `Adversarial` is that sum.

Source: Esser et al., "Taming transformers for high-resolution image synthesis" (2021), eq. 6 and 7; Lim and Ye,
"Geometric GAN" (2017), for the hinge. Deviations: the discriminator learns from the first step on, since an untrained
one that is switched on spoils a good reconstruction, and the adaptive weight is capped at 100 instead of 10,000.
Axes: B batch, C channels; ``*S`` is (H, W) or (D, H, W), ``*P`` the grid of patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from scanbridge.nets.autoencoder import Autoencoder, Reconstruction
from scanbridge.nets.discriminator import Discriminator
from scanbridge.nets.precision import wide

Perceptual = Callable[[Tensor, Tensor], Tensor]


class Adversarial(nn.Module):
    """An autoencoder and its discriminator in training, as one module.

    One module and one call: the adaptive weight takes gradients before the backward pass, and the discriminator is
    asked about two kinds of images, which wrappers for mixed precision and for several processes allow inside a module
    alone.

    Parameters
    ----------
    autoencoder, discriminator
        The two networks.
    weight
        Of the adversarial term, on top of the adaptive one.
    """

    def __init__(self, autoencoder: Autoencoder, discriminator: Discriminator, *, weight: float = 0.5) -> None:
        super().__init__()
        self.autoencoder, self.discriminator, self.weight = autoencoder, discriminator, weight

    def forward(
        self,
        image: Tensor,
        noise: Tensor | None = None,
        *,
        fool: bool,
        valid: Tensor | None = None,
        perceptual: Perceptual | None = None,
    ) -> tuple[Reconstruction, dict[str, Tensor]]:
        """Give the reconstruction, and the terms of the loss by name, whose sum both networks descend on.

        Parameters
        ----------
        image
            (B, C, *S).
        noise
            As `Autoencoder.forward` takes it.
        fool
            Whether the autoencoder hears the discriminator yet: from a start step on. The discriminator learns before.
        valid, perceptual
            As `reconstruction_loss` takes them; what is not valid is no evidence for the discriminator either.
        """
        made: Reconstruction = self.autoencoder(image, noise)
        known = made.image if valid is None else torch.where(valid > 0, made.image, image)
        distance = reconstruction_loss(made.image, image, valid=valid, perceptual=perceptual)
        terms = {
            "distance": distance,
            "penalty": made.penalty(),
            "discriminator": discriminator_loss(self.discriminator, image, known),
        }
        if fool:
            adversarial = generator_loss(self.discriminator, known)
            factor = self.weight * adaptive_weight(distance, adversarial, self.autoencoder.last)
            terms["adversarial"] = factor * adversarial
        return made, terms


def reconstruction_loss(
    made: Tensor,
    image: Tensor,
    *,
    valid: Tensor | None = None,
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 1.0,
) -> Tensor:
    """Give the mean |made - image|, and a perceptual distance on top where there is one.

    Parameters
    ----------
    made, image
        (B, C, *S).
    valid
        Like `image`: 1 where it is known; the rest counts for nothing, and the perceptual distance sees no error there.
    perceptual
        ``(made, image) -> distances``, of any shape that has a mean: a network whose weights the user has. None is
        built or downloaded here.
    perceptual_weight
        Of that distance.
    """
    if valid is not None:
        made = torch.where(valid > 0, made, image)
    known = image.numel() if valid is None else valid.expand_as(image).sum().clamp(min=1)
    loss = wide(made - image).abs().sum() / known
    return loss if perceptual is None else loss + perceptual_weight * perceptual(made, image).mean()


def discriminator_loss(discriminator: nn.Module, image: Tensor, made: Tensor) -> Tensor:
    """Give the hinge loss of a discriminator on real and made images (B, C, *S): no gradient reaches these."""
    real, fake = discriminator(torch.cat([image, made]).detach()).chunk(2)
    return hinge(real, fake)


def generator_loss(discriminator: nn.Module, made: Tensor) -> Tensor:
    """Give minus the mean logit of made images (B, C, *S): no gradient reaches the discriminator's weights."""
    frozen = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    logits: Tensor = functional_call(discriminator, frozen, (made,))
    return -wide(logits).mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Give the hinge loss of the logits (B, 1, *P) of real and fake images.

    >>> hinge(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])).item()
    0.0
    >>> hinge(torch.tensor([0.0]), torch.tensor([0.0])).item()
    1.0
    """
    return 0.5 * ((1 - wide(real)).relu().mean() + (1 + wide(fake)).relu().mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor, *, cap: float = 100.0) -> Tensor:
    """Give the factor that makes the adversarial gradient at the weight `last` as large as the reconstruction's.

    A number without gradient, from 0 to `cap`, in float32 at least. Costs two passes through what lies between the
    losses and `last`, which should be the weight of the generator's last convolution.
    """
    norms: list[Tensor] = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, last, retain_graph=True)
        norms.append(wide(gradient).norm())
    weight: Tensor = norms[0] / (norms[1] + 1e-4)
    return weight.clamp(max=cap)
