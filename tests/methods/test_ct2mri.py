"""Laws of CT2MRI's own parts: the style key, the choice of a style, co-prediction and the corrector."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_laws import FIRST, TARGET, made, volume

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods.base import Fitted, TrainingCase
from scanbridge.methods.ct2mri import N_BINS, style_key


def test_a_style_key_does_not_know_where_a_voxel_lies():
    image = volume(0)[0]
    shuffled = image.flatten()[torch.randperm(image.numel(), generator=torch.Generator().manual_seed(1))]
    assert torch.equal(style_key(image), style_key(shuffled.reshape(image.shape)))
    assert torch.equal(style_key(image), style_key(image.flip(0)))


def test_a_style_key_is_a_histogram_its_sum_and_its_rise():
    h, total, rise = style_key(volume(0)[0])
    assert h.shape == (N_BINS,)
    assert float(h.sum()) == pytest.approx(10, rel=1e-5)
    torch.testing.assert_close(total, h.cumsum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rise[1:], 10 * (h[1:] - h[:-1]), rtol=1e-4, atol=1e-4)
    assert rise[0] == rise[1]


def test_background_is_no_part_of_a_style():
    image = volume(0)[0]
    padded = torch.nn.functional.pad(image, (3, 4, 5, 6, 7, 8), value=-1.0)
    assert torch.equal(style_key(image), style_key(padded))


def test_an_empty_image_has_a_key_without_a_nan():
    assert torch.equal(style_key(torch.full((2, 3, 4), -1.0)), torch.zeros(3, N_BINS))


def test_a_brighter_image_has_another_key():
    image = volume(0)[0]
    assert not torch.equal(style_key(image), style_key((image + 0.3).clamp(-1, 1)))


@pytest.fixture(scope="module")
def ct2mri():
    return made("ct2mri")


def test_the_average_style_is_the_mean_of_the_training_keys(ct2mri):
    keys = ct2mri.fitted.statistics["style_keys"]
    assert keys.shape == (3, 3, N_BINS)
    named = ct2mri.draw(volume(7), style="average").volumes
    assert torch.equal(named, ct2mri.draw(volume(7), style=keys.double().mean(0).float()).volumes)
    assert torch.equal(named, ct2mri.draw(volume(7)).volumes)


@pytest.mark.parametrize("person", [0, 1, 2])
def test_the_nearest_style_is_that_of_the_training_subject_with_the_same_source(ct2mri, person):
    source = volume(person)  # the source of training case `person`, its voxels in another order
    source = source.flip(1)
    key = ct2mri.fitted.statistics["style_keys"][person]
    assert torch.equal(ct2mri.draw(source, style="nearest").volumes, ct2mri.draw(source, style=key).volumes)


def test_a_reference_volume_is_its_key(ct2mri):
    reference = volume(9, (4, 10, 11))
    made_of = ct2mri.draw(volume(7), style=reference).volumes
    assert torch.equal(made_of, ct2mri.draw(volume(7), style=style_key(reference)).volumes)


def test_another_style_gives_another_volume(ct2mri):
    one, other = (
        ct2mri.draw(volume(7), style=style_key(volume(n)[0] ** power)).volumes for n, power in ((1, 1), (1, 9))
    )
    assert not torch.equal(one, other)


def test_a_style_that_is_none_is_refused(ct2mri):
    with pytest.raises(UserError, match="did you mean 'nearest'"):
        ct2mri.draw(volume(7), style="nearst")
    with pytest.raises(UserError, match="without style keys"):
        made("ct2mri", style={"use": False}).draw(volume(7), style="average")


def test_the_statistics_are_those_of_the_cases(ct2mri):
    cases = [TrainingCase(volume(n)[0], {TARGET: volume(n + 1)[0]}, volume(n)[0] > 0) for n in (20, 30)]
    statistics = ct2mri.stage.fit(cases, Fitted())
    assert torch.equal(statistics["style_keys"][1], style_key(volume(31)[0]))
    assert torch.equal(statistics["source_keys"][0], style_key(volume(20)[0]))
    assert made("ct2mri", style={"use": False}).stage.fit(cases, Fitted()) == {}
    for stage in made(f"ct2mri{FIRST}").stages:  # each its own: a regression may come from a run with other people
        assert torch.equal(stage.fit(cases, Fitted())["style_keys"], statistics["style_keys"])


def test_an_item_that_is_told_the_average_key_does_not_know_whose_it_is():
    for share, equal in ((0.0, False), (1.0, True)):
        method = made("ct2mri", style={"average": share}, bridge={"at_source": 1.0})
        losses = []
        for case in ([0, 1, 2], [2, 0, 1]):
            batch = replace(method.batch(), case=torch.tensor(case))
            losses.append(method.stage.loss(method.fitted, batch, ItemNoise([1, 2, 3]))[0])
        assert torch.equal(*losses) is equal
    nobody = replace(
        method.batch(), case=torch.full((3,), -1)
    )  # val subjects, of a run whose items have their own keys
    own_keys = made("ct2mri", bridge={"at_source": 1.0})
    told = (each.stage.loss(each.fitted, nobody, ItemNoise([1, 2, 3]))[0] for each in (own_keys, method))
    assert torch.equal(*told)
    keys = method.fitted.statistics["style_keys"]
    own = [method.draw(volume(1), style=style).volumes for style in ("average", keys.double().mean(0).float())]
    assert torch.equal(*own)


@pytest.mark.parametrize("product", ["estimate", "draw"])
def test_without_neighbours_coprediction_changes_nothing(product):
    together, apart = (
        made("ct2mri", radius=0, coprediction=on).draw(volume(8), product=product) for on in (True, False)
    )
    torch.testing.assert_close(together.volumes, apart.volumes, rtol=0, atol=2e-5)


def test_with_neighbours_it_does():
    together, apart = (made("ct2mri", coprediction=on).draw(volume(8)) for on in (True, False))
    assert not torch.allclose(together.volumes, apart.volumes, atol=1e-3)


def test_each_correction_costs_a_call_a_new_time():
    plain, corrected = (
        made("ct2mri", correction={"corrections": m}, estimate={"calls": 4}).draw(volume(8)) for m in (0, 2)
    )
    assert plain.calls == 4
    assert corrected.calls == 4 + 3 * 2
    assert corrected.facts["corrector_capped"] >= 0
    assert not torch.equal(plain.volumes, corrected.volumes)


def test_a_corrector_of_no_strength_moves_nothing():
    plain, corrected = (
        made("ct2mri", correction={"corrections": m, "strength": 0.0}, estimate={"calls": 3}).draw(volume(8))
        for m in (0, 1)
    )
    torch.testing.assert_close(plain.volumes, corrected.volumes, rtol=0, atol=1e-5)
