"""A simulated brain: the anatomy of one person, drawn at random; `scanbridge.data.scanner` makes images of it.

The anatomy starts from the ICBM 152 average brain (Fonov et al., NeuroImage 54, 313, 2011), which is blurry, and gives
back what averaging took away. The white matter is deblurred and its edge moved by a random field; the cortex is a
ribbon around it, as in life; a sulcus lies where two ribbons meet. A smooth deformation and a widening of the
ventricles make every person another one.

Arrays are (I, J, K) = (right, anterior, superior) and lengths are in mm. Everything is defined in mm, so that one seed
gives one anatomy on every grid; random values come from the generator passed in and nowhere else.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scanbridge.data import nifti
from scanbridge.errors import UserError

Array = NDArray[np.float32]
Values = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

FIELD_OF_VIEW = 192.0  # mm, edge to edge, on every axis
CENTRE = np.array([0.0, -17.0, 6.0])  # of the field of view, in mm of the template; where the brain's own middle is
_BOX = (148.0, 180.0, 160.0)  # mm; what is computed, the rest is air: no brain here is larger


# --- random fields ----------------------------------------------------------------------------------------------------


def positions(n: int, length: float) -> NDArray[np.float64]:
    """Give the centres (mm from the middle) of `n` voxels that fill `length`."""
    return (np.arange(n) + 0.5) * length / n - length / 2


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], box: tuple[float, ...], knot: float) -> Array:
    """Draw a random field of zero mean and unit sd: cubic B-splines with independent weights on knots `knot` mm apart.

    `box` is the extent (mm) that `shape` voxels fill. The draws depend on `knot` alone up to 192 mm: another `shape` or
    `box` is another sample of the same field, around the same middle.
    """
    n_knots = [int(np.ceil(max(length, FIELD_OF_VIEW) / knot)) + 4 for length in box]
    weights = rng.standard_normal(n_knots).astype(np.float32)
    for axis in range(3):
        at = positions(shape[axis], box[axis]) / knot
        r = np.abs(at[:, None] - (np.arange(n_knots[axis]) - (n_knots[axis] - 1) / 2))
        basis = np.where(r < 1, 2 / 3 - r**2 + r**3 / 2, np.clip(2 - r, 0, None) ** 3 / 6).astype(np.float32)
        weights = np.moveaxis(np.tensordot(basis, weights, axes=(1, axis)), 0, axis)
    return np.asarray(
        weights / 0.4794**1.5, np.float32
    )  # 0.4794 = the mean over positions of the sum of squared splines


# --- the average brain ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """The ICBM 152 average brain at 1 mm, cut to the brain and sharpened; voxel (0, 0, 0) lies at `origin` (mm).

    `white` is a level set in units of probability, the white matter's edge at 0; so is `fluid` for CSF.
    `ventricle_gradient` (3, I, J, K), 1/mm, points into the ventricles.
    """

    origin: NDArray[np.float64]
    white: Array
    fluid: Array
    inside: Array
    ventricle_gradient: Array


def _template_folder() -> Path:
    """Where nilearn keeps its own data; found without importing it, which would take seconds."""
    spec = importlib.util.find_spec("nilearn")
    folders = [Path(place) / "datasets" / "data" for place in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UserError(
        "the average brain that `simulate brain` starts from is not installed",
        "the package nilearn, which carries it",
        "pip install 'scanbridge[demo]'",
    )


def _sharpen(image: Array) -> Array:
    """Undo part of the blur of averaging 152 people at the two scales where gyri live."""
    fine, coarse = (ndimage.gaussian_filter(image, sigma) for sigma in (2.5, 6.0))
    return np.asarray(image + 1.5 * (image - fine) + 1.0 * (image - coarse), np.float32)


def _ellipsoid(at: Array, centre: tuple[float, ...], half: tuple[float, ...]) -> Array:
    """Give 1 inside, 0 outside, with an edge of a sixth of the half axes or so; on both sides. `at` (3, ...) in mm."""
    x = np.abs(at[0])
    r2 = sum(((p - c) / h) ** 2 for p, c, h in zip((x, at[1], at[2]), centre, half, strict=True))
    return np.asarray(np.clip((1.0 - r2) * 3.0 + 0.5, 0, 1), np.float32)


@lru_cache(maxsize=1)
def template() -> Template:
    """Read and sharpen the average brain (once a process, about three seconds).

    Raises
    ------
    UserError
        Where nilearn, which carries it, is not installed.
    """

    def load(name: str) -> tuple[Array, NDArray[np.float64]]:
        volume = nifti.read(_template_folder() / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
        return np.asarray(volume.data / 255, np.float32), volume.affine

    (t1, affine), (grey, _), (white, _) = load("t1"), load("gm"), load("wm")
    brain = t1 > 0
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - 4), s.stop + 4) for s in box)
    t1, grey, white, brain = t1[box], grey[box], white[box], brain[box]
    origin = affine[:3, :3] @ np.array([s.start for s in box]) + affine[:3, 3]

    inside = brain.astype(np.float32)
    # CSF is where grey and white matter are improbable, or where T1w is much darker than its surroundings.
    around = ndimage.gaussian_filter(t1, 8.0) / np.maximum(ndimage.gaussian_filter(inside, 8.0), 0.05)
    darker = (around - t1) * (255 / 60) * inside
    darker += 1.5 * (darker - ndimage.gaussian_filter(darker, 2.5))
    fluid = np.maximum(darker - 0.95, (1 - grey - white) * inside - 0.5)

    at = np.stack(np.meshgrid(*(o + np.arange(n) for o, n in zip(origin, t1.shape, strict=True)), indexing="ij"))
    ventricle = (fluid > 0) * _ellipsoid(at.astype(np.float32), (0, -22, 10), (42, 66, 32))
    gradient = np.stack(
        [ndimage.gaussian_filter(ventricle, 5.0, order=order) for order in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    )
    return Template(origin, _sharpen(white) - 0.5, fluid, inside, gradient)


# --- the anatomy of one person ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """Shares of tissue (I, J, K) in [0, 1] on the computed box of the output grid.

    `tissue` holds wm, gm, deep (grey), lesion, csf, dura, vessel; they add up to 1 in every voxel. `gadolinium` is the
    contrast agent's concentration in mM; `severity` scales the T1 of a lesion; `brain` is what a skull-stripping keeps.
    `jacobian_min` is the smallest local volume change of the deformation: positive, so nothing is folded.
    """

    tissue: dict[str, Array]
    gadolinium: Array
    severity: Array
    brain: Mask
    spacing: float
    jacobian_min: float


def _grids(size: int) -> tuple[tuple[int, int, int], tuple[float, ...], int]:
    """Give shape and extent (mm) of the computed box, and how many fine voxels (about 1 mm) an output voxel is wide."""
    spacing = FIELD_OF_VIEW / size
    counts = tuple(min(size, size - 2 * int((FIELD_OF_VIEW - length) / spacing / 2)) for length in _BOX)
    return (counts[0], counts[1], counts[2]), tuple(n * spacing for n in counts), min(3, max(1, round(spacing)))


def _sample(image: Array, at: Array, origin: NDArray[np.float64], fill: float) -> Array:
    where = at - origin.astype(np.float32)[:, None, None, None]
    return np.asarray(ndimage.map_coordinates(image, where, order=1, cval=fill, output=np.float32), np.float32)


def jacobian(mapped: Array, spacing: float) -> Array:
    """Give the Jacobian's determinant of a map, which is its values (3, I, J, K) in mm on a grid of `spacing` mm."""
    rows = np.stack([np.stack(np.gradient(component, spacing)) for component in mapped])
    return np.asarray(np.linalg.det(np.moveaxis(rows, (0, 1), (-2, -1))), np.float32)


def deformation(
    rng: np.random.Generator,
    brain: Template,
    shape: tuple[int, int, int],
    box: tuple[float, ...],
    age: float,
    male: bool,
) -> tuple[Array, float]:
    """Draw where in the template (mm) each voxel of a person lies: (3, I, J, K), and the smallest Jacobian.

    Size, proportions and pose; displacements of 3.2, 1.2 and 0.6 mm rms an axis on knots of 40, 20 and 10 mm;
    ventricles that widen with age. Where the draw would fold, it is made gentler until it does not.
    """
    stretch = (0.86 + 0.03 * male + 0.02 * rng.standard_normal()) * np.exp(0.02 * rng.standard_normal(3))
    tilt = np.cross(np.eye(3), 0.03 * rng.standard_normal(3))
    x = np.stack(np.meshgrid(*map(positions, shape, box), indexing="ij")).astype(np.float32)
    straight = np.tensordot((np.eye(3) + tilt) / stretch[:, None], x, axes=1) + CENTRE[:, None, None, None]
    bend = np.zeros_like(x)
    for amplitude, knot in ((3.2, 40.0), (1.2, 20.0), (0.6, 10.0)):
        bend += amplitude * np.stack([smooth_field(rng, shape, box, knot) for _ in range(3)])
    widening = np.clip(0.5 * (age - 35) + 9 * rng.standard_normal(), -8, 32)  # mm^2; a few mm at the ventricle's wall
    while True:
        bent = (straight + bend).astype(np.float32)
        pull = np.stack([_sample(g, bent, brain.origin, 0.0) for g in brain.ventricle_gradient])
        mapped = bent + np.float32(widening) * pull
        smallest = float(jacobian(mapped, box[0] / shape[0]).min())
        if smallest > 0.1:
            return mapped, smallest
        bend, widening = 0.85 * bend, 0.85 * widening


def _regions(at: Array) -> dict[str, Array]:
    """Soft masks (template mm) of the places where grey matter is not a ribbon."""
    return {
        "nuclei": _ellipsoid(at, (0, -6, 5), (37, 36, 25)),
        "hippocampus": _ellipsoid(at, (25, -18, -17), (13, 25, 12)),
        "cerebellum": _ellipsoid(at, (0, -60, -40), (58, 40, 33)),
        "stem": _ellipsoid(at, (0, -27, -38), (17, 16, 42)),
    }


def _fold(
    rng: np.random.Generator, brain: Template, at: Array, box: tuple[float, ...], age: float
) -> tuple[dict[str, Array], Array]:
    """Shares of wm, gm, deep and csf on the fine grid whose template positions (mm) are `at`, and a share of brain."""
    shape = (at.shape[1], at.shape[2], at.shape[3])
    spacing = box[0] / shape[0]
    region = _regions(at)
    thick = np.max(list(region.values()), axis=0)
    ribbon = 1 - thick
    angle = np.arctan2(at[2] + 32, at[1] + 50)
    folia = region["cerebellum"] * np.sin(26 * angle + 0.9 * smooth_field(rng, shape, box, 12.0))

    white = _sample(brain.white, at, brain.origin, -1.0)
    white += ribbon * (0.22 * smooth_field(rng, shape, box, 9.0) + 0.12 * smooth_field(rng, shape, box, 4.5))
    white += (
        0.35 * region["stem"] + 0.2 * region["cerebellum"] - 0.4 * folia
    )  # the stem's tracts are mixed with nuclei, yet white to the scanner
    fluid = _sample(brain.fluid, at, brain.origin, 0.5)
    fluid += 0.10 * smooth_field(rng, shape, box, 6.0) + 0.003 * (age - 45)
    fluid += 0.45 * (folia - 0.5 * region["cerebellum"])

    # Edges are half a millimetre wide in the ribbon; nuclei and brain stem keep the template's own gradual mixture.
    wm = np.clip(white * (4.0 - 2.8 * thick) + 0.5, 0, 1)
    csf = np.clip(fluid * 4.0 + 0.5, 0, 1)
    depth = np.asarray(ndimage.distance_transform_edt(wm < 0.5, sampling=spacing), np.float32) - spacing / 2
    cortex = 4.2 - 0.010 * (age - 45) + 0.5 * smooth_field(rng, shape, box, 15.0) + 30 * thick
    ridge = depth - ndimage.gaussian_filter(depth, 2.0 / spacing)  # up to 1.6 mm where two banks meet
    sulcus = np.clip((ridge - 1.0 + 0.004 * (age - 45)) * 2.5, 0, 1) * np.clip(depth - 1.2, 0, 1) * ribbon
    csf = np.maximum(csf, sulcus)
    tissue = np.clip((cortex - depth) / spacing + 0.5, 0, 1) * (1 - csf) * _sample(brain.inside, at, brain.origin, 0.0)
    gm = tissue * (1 - wm)
    # Nuclei differ from cortex in T1 and T2; the insula, lateral of the putamen, does not.
    deep = gm * np.maximum(region["nuclei"] * (np.abs(at[0]) < 33), region["stem"])
    parts = {"wm": tissue * wm, "gm": gm - deep, "deep": deep, "csf": 1 - tissue}
    return parts, tissue


def _vessels(rng: np.random.Generator, shape: tuple[int, int, int], box: tuple[float, ...]) -> Array:
    """Thin branching lines: where two random fields are zero together."""
    near = smooth_field(rng, shape, box, 9.0) ** 2 + smooth_field(rng, shape, box, 9.0) ** 2
    return np.asarray(np.exp(-near / (2 * 0.085**2)), np.float32)


def _ovoid(
    shape: tuple[int, ...], centre: tuple[Any, ...], axis: Values, *, reach: float, stretch: float, spacing: float
) -> tuple[tuple[slice, ...], Values]:
    """Give a box around a voxel and, in it, the distance (mm) from that voxel, along `axis` divided by `stretch`."""
    n = int(np.ceil(reach / spacing)) + 1
    cut = tuple(slice(max(0, int(c) - n), min(int(c) + n + 1, end)) for c, end in zip(centre, shape, strict=True))
    steps = [np.arange(s.start, s.stop) - int(c) for s, c in zip(cut, centre, strict=True)]
    offset = np.stack(np.meshgrid(*steps, indexing="ij")) * spacing
    along = np.tensordot(axis / max(float(np.linalg.norm(axis)), 1e-6), offset, axes=1)
    r2 = (offset**2).sum(0) - along**2 * (1 - 1 / stretch**2)
    return cut, np.asarray(np.sqrt(np.maximum(r2, 0)), np.float64)


def _lesions(
    rng: np.random.Generator, wm: Values, ventricle: Values, spacing: float, age: float
) -> tuple[Array, Array, Array]:
    """Draw white-matter lesions as in multiple sclerosis: share in [0, 1], T1 severity, gadolinium in mM.

    Ovoids of 1.5 to 5.5 mm radius, most of them at the ventricles with the long axis away from them (Dawson's fingers),
    the others in deep and juxtacortical white matter. Their number grows with age. One in six enhances, whole or rim.
    `ventricle` is the distance to it in mm.
    """
    n_lesions = int(rng.poisson(np.clip(6 + 0.5 * (age - 20), 4, 40) * np.exp(0.5 * rng.standard_normal())))
    weight = np.where(wm > 0.8, np.exp(-ventricle / 5.0) + 0.03, 0.0).ravel().astype(np.float64)
    total = np.cumsum(weight)
    share, severity, gadolinium = np.zeros_like(wm), np.ones_like(wm), np.zeros_like(wm)
    away = np.array(np.gradient(ndimage.gaussian_filter(ventricle, 2.0)))
    for _ in range(max(1, n_lesions)):
        place, size, length, black, active, ring = rng.random(6)
        centre = np.unravel_index(int(np.searchsorted(total, place * total[-1])), wm.shape)
        radius = 1.5 + 4.0 * size**2.5
        axis = away[:, centre[0], centre[1], centre[2]]
        cut, r = _ovoid(wm.shape, centre, axis, reach=2.5 * radius, stretch=1 + 1.2 * length, spacing=spacing)
        r = r + 0.3 * rng.standard_normal(r.shape)
        inner = np.clip((radius - r) / max(spacing, 1.0) + 0.5, 0, 1).astype(np.float32)
        share[cut] = np.maximum(share[cut], inner * np.clip(wm[cut] * 2 - 0.6, 0, 1))
        severity[cut] = np.where(inner > 0.3, 0.8 + 0.6 * black, severity[cut])
        if active < 1 / 6:
            rim = np.clip(1 - np.abs(r - radius + 1.5) / 2.0, 0, 1) if ring < 0.4 else inner
            gadolinium[cut] = np.maximum(gadolinium[cut], 0.35 * rim)
    return share, severity, gadolinium


def _shrink(image: Array, factor: int) -> Array:
    """Average `factor`^3 voxels: what one voxel of the scan sees of them."""
    i, j, k = (n // factor for n in image.shape)
    blocks = image.reshape(i, factor, j, factor, k, factor)
    return np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32), np.float32)


def draw_anatomy(rng: np.random.Generator, *, size: int, age: float, male: bool) -> Anatomy:
    """Draw a person of `age` years: tissues on a grid of `size` voxels over 192 mm.

    About 3 s and 0.7 GB at any size from 64 to 192, since the anatomy is drawn at about 1 mm and averaged into voxels.
    """
    brain = template()
    shape, box, factor = _grids(size)
    spacing = FIELD_OF_VIEW / size
    mapped, smallest = deformation(rng, brain, shape, box, age, male)
    fine = (shape[0] * factor, shape[1] * factor, shape[2] * factor)
    at = np.stack([ndimage.zoom(m, factor, order=1, mode="nearest", grid_mode=True) for m in mapped])
    parts, solid = _fold(rng, brain, at, box, age)
    vessel = _vessels(rng, fine, box) * np.where(solid < 0.5, 0.9, 0.25)
    tissue = {name: _shrink(part * (1 - vessel), factor) for name, part in parts.items()}
    tissue["vessel"], solid = _shrink(vessel, factor), _shrink(solid, factor)

    kept = ndimage.gaussian_filter(solid, 3.0 / spacing) > 0.25  # sulci are closed, a thin rim stays
    kept = np.asarray(ndimage.binary_fill_holes(kept | (solid > 0.5)), np.bool_)
    rim = np.clip(1.7 - np.asarray(ndimage.distance_transform_edt(kept, sampling=spacing)) / 2.0, 0, 1) * (solid < 0.4)
    dura = (rim * np.clip(0.9 + 0.4 * smooth_field(rng, shape, box, 15.0), 0, 1) * tissue["csf"]).astype(np.float32)
    sinus = dura * np.exp(-((mapped[0] / 4) ** 2)) * np.clip(-1 - mapped[1] / 20, 0, 1)  # behind, along the midline
    tissue["dura"], tissue["csf"], tissue["vessel"] = dura - sinus, tissue["csf"] - dura, tissue["vessel"] + sinus

    central = _ellipsoid(mapped, (0, -22, 10), (42, 66, 32)) * tissue["csf"] * (solid < 0.5)
    distance = np.asarray(ndimage.distance_transform_edt(central < 0.4, sampling=spacing), np.float32)
    solid_wm = tissue["wm"] / np.maximum(1 - tissue["vessel"], 0.1)
    lesion, severity, gadolinium = _lesions(rng, solid_wm, distance, spacing, age)
    tissue["lesion"], tissue["wm"] = lesion * tissue["wm"], (1 - lesion) * tissue["wm"]
    return Anatomy(tissue, gadolinium, severity, kept, spacing, smallest)
