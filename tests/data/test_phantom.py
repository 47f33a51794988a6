"""Laws of the simulated brain: an anatomy that is possible, and contrasts that are those of MRI."""

import numpy as np
import pytest
from scipy import ndimage

from scanbridge.data import phantom, scanner

pytest.importorskip("nilearn", reason="the average brain comes with the extra 'demo'")

SIZE = 64


def person(seed=0, subject=0, field=3.0, age=40.0, noise=True):
    """Anatomy, noiseless signals and images of one person."""
    anatomy = phantom.draw_anatomy(np.random.default_rng([seed, subject, 1]), size=SIZE, age=age, male=False)
    rng = np.random.default_rng([seed, subject, 2])
    tissues = scanner.tissue_parameters(rng, anatomy, field=field, age=age)
    signals = scanner.noiseless(anatomy, tissues, field)
    return anatomy, signals, scanner.acquire(rng, anatomy, signals) if noise else {}


@pytest.fixture(scope="module")
def scanned():
    return person()


def mean(images, anatomy, contrast, tissue, least=0.9):
    where = (anatomy.tissue[tissue] > least) & ndimage.binary_erosion(anatomy.brain, iterations=2)
    assert where.sum() > 20, tissue
    return float(images[contrast][where].mean())


def test_a_field_has_unit_spread_and_does_not_depend_on_the_grid():
    box = (192.0, 192.0, 192.0)
    coarse, fine = (
        phantom.smooth_field(np.random.default_rng(1), (n, n, n), box, 12.0).astype(np.float64) for n in (32, 96)
    )
    assert abs(coarse.std() - 1) < 0.1
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-4)  # the same points in mm


@pytest.mark.parametrize("age", [20, 70])
def test_no_deformation_folds(age):
    brain = phantom.template()
    for seed in range(3):
        mapped, smallest = phantom.deformation(
            np.random.default_rng(seed), brain, (50, 60, 54), (150.0, 180.0, 162.0), age, male=True
        )
        assert smallest > 0.1
        assert phantom.jacobian(mapped, 3.0).min() == pytest.approx(smallest)


def test_the_jacobian_of_a_stretch_is_its_volume():
    x = np.stack(np.meshgrid(*(np.arange(6.0),) * 3, indexing="ij")) * 2.0
    assert phantom.jacobian(x * np.array([1.0, 2.0, 0.5])[:, None, None, None] + 7, 2.0) == pytest.approx(1.0)
    assert phantom.jacobian(x[[1, 0, 2]], 2.0) == pytest.approx(-1.0)  # a mirror folds


def test_shares_of_tissue_add_up_to_one(scanned):
    anatomy, _, _ = scanned
    total = sum(anatomy.tissue.values())
    np.testing.assert_allclose(total, 1.0, atol=1e-4)
    assert all(share.min() > -1e-5 for share in anatomy.tissue.values())


def test_a_brain_has_the_volumes_of_a_brain(scanned):
    anatomy, _, _ = scanned
    litres = {k: float(v[anatomy.brain].sum()) * anatomy.spacing**3 * 1e-6 for k, v in anatomy.tissue.items()}
    assert 0.9 < anatomy.brain.sum() * anatomy.spacing**3 * 1e-6 < 1.7
    assert 0.3 < litres["wm"] < 0.7
    assert 0.4 < litres["gm"] + litres["deep"] < 0.8
    assert litres["lesion"] < 0.06


def test_another_grid_shows_the_same_anatomy():
    def wm(size):
        anatomy = phantom.draw_anatomy(np.random.default_rng(5), size=size, age=40, male=True)
        return scanner._whole(anatomy.tissue["wm"] + anatomy.tissue["lesion"], size)

    fine, coarse = phantom._shrink(wm(96), 3), wm(32)
    assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.95


def test_people_differ(scanned):
    other, _, _ = person(subject=1, noise=False)
    assert np.abs(other.tissue["wm"] - scanned[0].tissue["wm"]).mean() > 0.02


@pytest.mark.parametrize("field", [1.5, 3.0])
def test_contrasts_are_those_of_the_sequences(scanned, field):
    anatomy, _, _ = scanned
    tissues = scanner.tissue_parameters(np.random.default_rng(3), anatomy, field=field, age=40)
    images = scanner.acquire(np.random.default_rng(4), anatomy, scanner.noiseless(anatomy, tissues, field))
    at = {(c, t): mean(images, anatomy, c, t, 0.8) for c in images for t in ("wm", "gm", "deep", "csf")}
    assert at["t1w", "wm"] > 1.2 * at["t1w", "gm"] > 1.8 * at["t1w", "csf"]
    assert at["t1w", "wm"] > at["t1w", "deep"] > at["t1w", "gm"]
    assert at["t2w", "csf"] > 1.6 * at["t2w", "gm"] > 1.9 * at["t2w", "wm"]
    assert at["flair", "gm"] > at["flair", "wm"] > 3 * at["flair", "csf"]


def test_lesions_are_bright_on_flair_and_dark_on_t1w(scanned):
    anatomy, _, images = scanned
    for contrast, sign in (("flair", 1), ("t2w", 1), ("t1w", -1)):
        wm, lesion = mean(images, anatomy, contrast, "wm"), mean(images, anatomy, contrast, "lesion", 0.6)
        assert sign * (lesion - wm) > 0.1 * wm, contrast


def test_lesions_grow_in_number_with_age():
    wm = np.ones((40, 40, 40), np.float32)
    distance = np.full(wm.shape, 5.0, np.float32)

    def load(age):
        return np.mean([phantom._lesions(np.random.default_rng(s), wm, distance, 2.0, age)[0].sum() for s in range(12)])

    assert load(70) > 1.3 * load(20)


def test_gadolinium_only_brightens(scanned):
    anatomy, signals, images = scanned
    gain = (signals["t1w_gd"] - signals["t1w"])[anatomy.brain]
    assert gain.min() > -1e-6
    assert gain.max() > 0.5 * signals["t1w"].max()
    # The same coil and position: where nothing takes up the agent, the images differ by noise alone.
    csf = (anatomy.tissue["csf"] > 0.95) & ndimage.binary_erosion(anatomy.brain, iterations=2)
    noise = 0.05 * np.median(images["t1w"][anatomy.tissue["wm"] > 0.9])
    assert abs(np.median((images["t1w_gd"] - images["t1w"])[csf])) < noise


def test_outside_the_brain_is_exactly_zero(scanned):
    anatomy, _, images = scanned
    assert all((image[~anatomy.brain] == 0).all() and (image >= 0).all() for image in images.values())


def test_gradient_echo_reaches_its_driven_steady_state():
    # After a very long train the inversion is forgotten: Ernst's steady state, sin a (1 - E1) / (1 - cos a E1).
    one = scanner.Relaxation(np.float64(800.0), np.float64(80.0), np.float64(1e9), np.float64(1.0))
    signal = scanner.mprage(one, tr=2e6, ti=5e5, te=0.0, flip=9.0, echo_spacing=7.0, n_echoes=100_000)
    e1, alpha = np.exp(-7 / 800), np.deg2rad(9.0)
    assert signal == pytest.approx(np.sin(alpha) * (1 - e1) / (1 - np.cos(alpha) * e1), rel=0.01)


def test_without_pulses_gradient_echo_is_an_inversion_recovery():
    one = scanner.Relaxation(np.float64(900.0), np.float64(80.0), np.float64(1e9), np.float64(1.0))
    tiny = scanner.mprage(one, tr=3000, ti=700, te=0.0, flip=0.01, echo_spacing=5.0, n_echoes=10) / np.sin(
        np.deg2rad(0.01)
    )
    assert tiny == pytest.approx(abs(1 - 2 * np.exp(-700 / 900) / (1 + np.exp(-3000 / 900))), rel=1e-4)


def test_flair_nulls_fluid():
    fluid = scanner.Relaxation(np.float64(4300.0), np.float64(2000.0), np.float64(500.0), np.float64(1.0))
    ti = scanner.null_time(4300.0, 8000.0)
    assert scanner.inversion_recovery(fluid, tr=8000.0, ti=ti, te=130.0) == pytest.approx(0, abs=1e-12)


def test_a_missing_average_brain_is_told(monkeypatch):
    monkeypatch.setattr(phantom.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(phantom.UserError, match=r"pip install 'scanbridge\[demo\]'"):
        phantom._template_folder()
