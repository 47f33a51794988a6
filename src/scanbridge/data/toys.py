"""Pairs of heads of soft blobs: for tests, in milliseconds, and for known laws, so that the best possible is known.

Arrays are (D, H, W); random values come from the generator passed in and nowhere else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scanbridge.data.phantom import Array, Mask, positions, smooth_field

TOY_SD = 0.05  # of the residual of `toy_known` where it is even, in units of the target, which lies in about [0, 1]


def toy_pair(
    rng: np.random.Generator, shape: tuple[int, int, int] = (24, 32, 32), *, noise: float = 0.02
) -> tuple[Array, Array, Mask]:
    """Draw a head of soft blobs: source, target and foreground (D, H, W), exactly 0 outside; values in about [0, 1].

    The target is a curve of the source's structure, dark where the source is bright, plus a second structure that the
    source shows faintly, plus noise; milliseconds, for tests.
    """
    box = tuple(float(n) for n in shape)
    x = np.stack(np.meshgrid(*(positions(n, 2.0) for n in shape), indexing="ij"))
    head = ((x / np.array([0.85, 0.9, 0.75])[:, None, None, None]) ** 2).sum(0) + 0.1 * smooth_field(
        rng, shape, box, 8.0
    ) < 1
    first, second = (1 / (1 + np.exp(-4 * smooth_field(rng, shape, box, 5.0))) for _ in range(2))
    source = 0.2 + 0.6 * first + 0.1 * second
    target = 0.9 - 0.5 * first**2 - 0.3 * second
    dirty = [np.where(head, v + noise * rng.standard_normal(shape), 0).astype(np.float32) for v in (source, target)]
    return dirty[0], dirty[1], np.asarray(head, np.bool_)


def toy_known(
    rng: np.random.Generator, shape: tuple[int, int, int], *, texture: float = 0.0, uneven: bool = False
) -> dict[str, Array]:
    """Draw a pair with a known law: `target` = `best` + `sd` * a Gaussian field, `best` and `sd` functions of `source`.

    The source is noiseless, and `best` uses its value and that of its surroundings: E[target | source] is not reached
    by a curve of intensity alone, but by a network that sees a few voxels around. All are 0 outside the head.

    Parameters
    ----------
    texture
        Sd in voxels of the Gaussian that white noise is filtered with; 0 leaves it white.
    uneven
        Whether `sd` grows with the source's value, `TOY_SD` (0.5 + source), or is `TOY_SD` everywhere in the head.
    """
    source, _, head = toy_pair(rng, shape, noise=0.0)
    around = ndimage.gaussian_filter(source, 1.5)
    best = np.where(head, 0.9 - 0.9 * source**2 + 1.5 * (source - around), 0).astype(np.float32)
    sd = np.where(head, TOY_SD * (0.5 + source if uneven else 1.0), 0).astype(np.float32)
    target = np.where(head, best + sd * _unit_field(rng, shape, texture), 0).astype(np.float32)
    return {"source": source, "target": target, "best": best, "sd": sd}


def _unit_field(rng: np.random.Generator, shape: tuple[int, int, int], width: float) -> NDArray[np.float64]:
    """Draw white noise filtered by a Gaussian of `width` voxels, of unit sd by its law: periodic, so it has no ends."""
    white = rng.standard_normal(shape)
    if not width:
        return white
    point = np.zeros(shape)
    point[0, 0, 0] = 1.0
    kernel = ndimage.gaussian_filter(point, width, mode="wrap")
    return np.asarray(ndimage.gaussian_filter(white, width, mode="wrap") / np.sqrt(np.square(kernel).sum()))
