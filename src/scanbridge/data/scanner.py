"""What an MR scanner sees of a simulated anatomy: tissue parameters, signal equations, coil, gadolinium and noise.

Tissue parameters (ms; proton density as water content relative to CSF), rounded from:

- T1: Wright et al., MAGMA 21, 121 (2008) and Rooney et al., MRM 57, 308 (2007).
- T2: Wansapura et al., JMRI 9, 531 (1999) at 3 T; Stanisz et al., MRM 54, 507 (2005) and Whittall et al., MRM 37, 34
  (1997) at 1.5 T.
- T2*: Peters et al., MRI 25, 748 (2007).
- Proton density: Whittall et al. (1997); Neeb et al., NeuroImage 31, 1156 (2006).
- Lesions of multiple sclerosis: long T1 and T2 of a wide range, after Stevenson et al., J Neurol Sci 178, 81 (2000).
- Relaxivity of gadolinium chelates: about 4.5 (R1) and 5.2 (R2) per second and mM in plasma, after Rohrer et al.,
  Invest Radiol 40, 715 (2005).

Scatter, ageing and unevenness are ours: a few per cent, chosen so that histograms, detail and the floor of FLAIR to T1w
come near those of real scans (`benchmarks/simulated_and_real.py`).

Dura, blood and bone at the rim of a stripped brain are dark in all sequences but one, T1w after gadolinium: short T2,
few protons, or flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scanbridge.data.phantom import CENTRE, FIELD_OF_VIEW, Anatomy, Array, Values, draw_anatomy, smooth_field

#                 T1     T2    T2*   PD         3 T
_TISSUES = {
    3.0: {
        "wm": (838.0, 80.0, 53.0, 0.70),
        "gm": (1500.0, 110.0, 66.0, 0.83),
        "deep": (1220.0, 86.0, 48.0, 0.80),
        "lesion": (1450.0, 140.0, 80.0, 0.83),
        "csf": (4300.0, 1800.0, 500.0, 1.00),
        "dura": (900.0, 30.0, 15.0, 0.18),
        "vessel": (1700.0, 60.0, 25.0, 0.30),
    },
    1.5: {
        "wm": (650.0, 76.0, 66.0, 0.70),
        "gm": (1150.0, 102.0, 84.0, 0.83),
        "deep": (960.0, 84.0, 62.0, 0.80),
        "lesion": (1150.0, 140.0, 90.0, 0.83),
        "csf": (4200.0, 2000.0, 700.0, 1.00),
        "dura": (750.0, 35.0, 20.0, 0.18),
        "vessel": (1450.0, 90.0, 40.0, 0.30),
    },
}
_SCATTER = {"wm": 0.02, "gm": 0.02, "deep": 0.03, "lesion": 0.05, "csf": 0.02, "dura": 0.10, "vessel": 0.10}
_AGEING = {"wm": 0.0010, "gm": -0.0005, "deep": -0.0015, "lesion": 0.0}  # relative change of T1 and T2 a year from 45
_UNEVEN = {"wm": 0.03, "gm": 0.06, "csf": 0.0}  # relative sd of T1 within a person: myelination, tracts, layers
_BLUR = {"flair": (0.6, 0.9), "t1w": (0.8, 1.1), "t2w": (0.7, 1.0)}  # mm, sd of the point spread: echo trains, filters
_NOISE = {"flair": 0.022, "t1w": 0.012, "t2w": 0.020, "t1w_gd": 0.014}  # sd over white matter, times 1 to 1.6
_GADOLINIUM = {"dura": 0.30, "vessel": 2.00, "gm": 0.03, "deep": 0.03, "wm": 0.015}  # mM, some minutes after injection
_BRIGHTEST = {"t1w": 300.0, "t2w": 350.0, "flair": 90.0}  # arbitrary units, as in a real cohort: white matter or so


@dataclass(frozen=True)
class Relaxation:
    """Parameters of one tissue, each a number or an array (I, J, K): T1, T2, T2* in ms, proton density in [0, 1]."""

    t1: Values
    t2: Values
    t2_star: Values
    density: Values


def mprage(
    tissue: Relaxation, *, tr: float, ti: float, te: float, flip: float, echo_spacing: float, n_echoes: int
) -> Values:
    """Magnetisation-prepared gradient echo in its steady state; times in ms, `flip` in degrees. T1-weighted.

    Inversion, recovery, a train of `n_echoes` spoiled echoes whose middle (the centre of k-space) is `ti` after the
    inversion, recovery until `tr`.

    Source: Deichmann et al., NeuroImage 12, 112 (2000).
    """
    alpha = np.deg2rad(flip)
    train = n_echoes * echo_spacing
    rate = 1 / tissue.t1 - np.log(np.cos(alpha)) / echo_spacing  # recovery under the pulses, 1 / T1*
    driven = (1 / tissue.t1) / rate  # where the train drives the magnetisation to, M0*
    before, half, after = (
        np.exp(-(ti - train / 2) / tissue.t1),
        np.exp(-train / 2 * rate),
        np.exp(-(tr - ti - train / 2) / tissue.t1),
    )
    full = half**2
    end = (1 - after + after * (driven * (1 - full) + full * (1 - before))) / (1 + after * full * before)
    start = 1 - before * (1 + end)
    centre = driven * (1 - half) + start * half
    return np.asarray(tissue.density * np.sin(alpha) * np.abs(centre) * np.exp(-te / tissue.t2_star))


def spin_echo(tissue: Relaxation, *, tr: float, te: float) -> Values:
    """Spin echo, PD (1 - exp(-TR / T1)) exp(-TE / T2); times in ms. T2-weighted at long `tr` and `te`."""
    return np.asarray(tissue.density * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2))


def inversion_recovery(tissue: Relaxation, *, tr: float, ti: float, te: float) -> Values:
    """Give the magnitude of an inversion-recovery spin echo; times in ms. FLAIR where `ti` nulls CSF.

    PD |1 - 2 exp(-TI / T1) + exp(-TR / T1)| exp(-TE / T2).

    Source: Hajnal et al., J Comput Assist Tomogr 16, 841 (1992).
    """
    recovered = np.abs(1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1))
    return np.asarray(tissue.density * recovered * np.exp(-te / tissue.t2))


def null_time(t1: float, tr: float) -> float:
    """Inversion time (ms) that nulls a tissue of `t1` ms at repetition time `tr`: T1 ln(2 / (1 + exp(-TR / T1)))."""
    return float(t1 * np.log(2 / (1 + np.exp(-tr / t1))))


def tissue_parameters(rng: np.random.Generator, anatomy: Anatomy, *, field: float, age: float) -> dict[str, Relaxation]:
    """Draw this person's tissues: literature values, scatter between people, ageing, and a slow change in space."""
    shape = anatomy.brain.shape
    box = tuple(n * anatomy.spacing for n in shape)
    slow, fast, slow_t2 = (smooth_field(rng, (shape[0], shape[1], shape[2]), box, knot) for knot in (14.0, 5.0, 14.0))
    out = {}
    for name, (t1, t2, t2_star, density) in _TISSUES[field].items():
        person = 1 + _SCATTER[name] * rng.standard_normal(3)
        aged = 1 + _AGEING.get(name, 0.0) * (age - 45)
        uneven = _UNEVEN.get(name, 0.05)
        local, local_t2 = 1 + uneven * (slow + 0.4 * fast), 1 + 0.7 * uneven * slow_t2
        severity = anatomy.severity if name == "lesion" else 1.0
        out[name] = Relaxation(
            np.asarray(t1 * person[0] * aged * local * severity, np.float32),
            np.asarray(t2 * person[1] * aged * local_t2, np.float32),
            np.asarray(t2_star * person[2] * local_t2, np.float32),
            np.asarray(density, np.float32),
        )
    return out


def with_gadolinium(tissue: Relaxation, concentration: Array | float, field: float) -> Relaxation:
    """Shorten T1 and T2 by `concentration` (mM) of a chelate: R1 + 4.5 c, R2 + 5.2 c per second."""
    r1 = 1 / tissue.t1 + (4.5 if field == 3.0 else 4.7) * np.asarray(concentration, np.float32) / 1000
    r2 = 5.2 * np.asarray(concentration, np.float32) / 1000
    return Relaxation(1 / r1, 1 / (1 / tissue.t2 + r2), 1 / (1 / tissue.t2_star + r2), tissue.density)


def noiseless(anatomy: Anatomy, tissues: dict[str, Relaxation], field: float) -> dict[str, Array]:
    """Give the four sequences' signals before coil, gain and noise: each tissue's, weighted by its share of a voxel."""
    enhanced = {
        name: with_gadolinium(t, _GADOLINIUM.get(name, 0.0) + anatomy.gadolinium * (name in ("wm", "lesion")), field)
        for name, t in tissues.items()
    }
    # Blood that flows out before it is read is dark; with a T1 this short it recovers in time and counts in full.
    enhanced["vessel"] = replace(enhanced["vessel"], density=np.asarray(0.85, np.float32))
    ti = null_time(float(np.mean(tissues["csf"].t1)), 8000.0)

    def mix(signal: Callable[[Relaxation], Values], of: dict[str, Relaxation]) -> Array:
        return np.asarray(sum(share * signal(of[name]) for name, share in anatomy.tissue.items()), np.float32)

    def t1w(tissue: Relaxation) -> Values:
        return mprage(tissue, tr=2300.0, ti=1000.0, te=3.0, flip=9.0, echo_spacing=7.0, n_echoes=176)

    return {
        "flair": mix(lambda tissue: inversion_recovery(tissue, tr=8000.0, ti=ti, te=130.0), tissues),
        "t1w": mix(t1w, tissues),
        "t2w": mix(lambda tissue: spin_echo(tissue, tr=6000.0, te=90.0), tissues),
        "t1w_gd": mix(t1w, enhanced),
    }


def acquire(rng: np.random.Generator, anatomy: Anatomy, signals: dict[str, Array]) -> dict[str, Array]:
    """Draw images: gain of the scan, what is left of the coil's bias field, blur, Rician noise; 0 outside the brain.

    FLAIR is the reference; T1w and T2w keep 0.5 mm rms an axis of what registration leaves. T1w before and after
    gadolinium share gain, coil, blur and position: their difference is enhancement and noise.
    """
    shape = (anatomy.brain.shape[0], anatomy.brain.shape[1], anatomy.brain.shape[2])
    box = tuple(n * anatomy.spacing for n in shape)
    images: dict[str, Array] = {}
    session: dict[str, tuple[NDArray[np.float32], float, NDArray[np.float64]]] = {}
    white = anatomy.brain & (anatomy.tissue["wm"] > 0.9)
    for name, signal in signals.items():
        like = name.removesuffix("_gd")
        if like not in session:
            level = _BRIGHTEST[like] * np.exp(0.25 * rng.standard_normal()) / float(np.median(signal[white]))
            coil = np.float32(level) * (1 + 0.025 * smooth_field(rng, shape, box, 60.0))
            rms = 0.0 if like == "flair" else 0.5
            session[like] = coil, rng.uniform(*_BLUR[like]), rms * rng.standard_normal(3)
        coil, blur, moved = session[like]
        through = np.hypot(blur, 1.0) if like == "t2w" else blur  # T2w is acquired in slices of 3 mm or so
        seen = ndimage.gaussian_filter(signal, np.array([blur, blur, through]) / anatomy.spacing)
        seen = ndimage.shift(seen, moved / anatomy.spacing, order=3, mode="nearest") * coil
        sd = _NOISE[name] * (1 + 0.6 * rng.random()) * float(np.median(seen[white]))
        real, imaginary = sd * rng.standard_normal((2, *shape), dtype=np.float32)
        images[name] = np.where(anatomy.brain, np.hypot(seen + real, imaginary), 0).astype(np.float32)
    return images


@dataclass(frozen=True)
class Person:
    """Images and lesion mask on the whole grid (size^3, axes R, A, S), affine (4, 4), age in years and sex, F or M."""

    images: dict[str, Array]
    lesion: Array
    affine: NDArray[np.float64]
    age: int
    sex: str


def covariates(seed: int, subject: int) -> tuple[int, str]:
    """Age in years (20 to 70) and sex of a person; cheap, for the table."""
    rng = np.random.default_rng([seed, subject, 0])
    return int(rng.integers(20, 71)), "F" if rng.random() < 0.65 else "M"


def _whole(image: Array, size: int) -> Array:
    """Put the computed box back into the middle of the field of view."""
    before = [(size - n) // 2 for n in image.shape]
    return np.pad(image, [(b, size - n - b) for b, n in zip(before, image.shape, strict=True)])


def scan_person(seed: int, subject: int, *, size: int) -> Person:
    """Draw person number `subject` of the cohort `seed` and scan them at 3 T, or 1.5 T one time in four.

    Depends on `seed`, `subject` and `size` alone. Another `size` shows the same anatomy; lesions and noise differ.
    """
    age, sex = covariates(seed, subject)
    anatomy = draw_anatomy(np.random.default_rng([seed, subject, 1]), size=size, age=age, male=sex == "M")
    rng = np.random.default_rng([seed, subject, 2])
    field = 3.0 if rng.random() < 0.75 else 1.5
    tissues = tissue_parameters(rng, anatomy, field=field, age=age)
    images = acquire(rng, anatomy, noiseless(anatomy, tissues, field))
    share = anatomy.tissue["lesion"]
    lesion = ((share > 0.5 * (share + anatomy.tissue["wm"] + 1e-6)) & (share > 0.3) & anatomy.brain).astype(np.float32)
    affine = np.diag([anatomy.spacing] * 3 + [1.0])
    affine[:3, 3] = (anatomy.spacing - FIELD_OF_VIEW) / 2 + CENTRE
    return Person({name: _whole(v, size) for name, v in images.items()}, _whole(lesion, size), affine, age, sex)
