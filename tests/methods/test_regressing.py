"""Regressions of folds: who learns from whom, and whose misses a bridge is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods.test_laws import FOLDS, SHAPE, TARGET, batch, made, part, volume
from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods.base import Fitted, TrainingCase
from scanbridge.methods.regressing import deal, fold_name, training_estimate

FOLD = [0, 1, 0]
"""Of the three people of `made`, dealt to two folds; the items of `batch` are of people 0, 2 and 1."""


@pytest.fixture(params=["bbdm", "ct2mri"])
def method(request):
    return made(request.param + FOLDS)


def test_people_are_dealt_to_folds_evenly_and_their_scans_stay_together():
    people = ["a", "b", "b", "c", "d", "e", "a"]
    fold = deal(people, 3).tolist()
    assert {person: fold[people.index(person)] for person in people} == dict(zip(people, fold, strict=True))
    assert sorted(fold[people.index(person)] for person in set(people)) == [0, 0, 1, 1, 2]


def test_one_person_alone_is_refused_before_anything_is_trained(method):
    stage = method.stages[0]
    alone = [TrainingCase(volume(i)[0], {TARGET: volume(i)[0]}, volume(i)[0] > 0, "p0") for i in range(2)]
    with pytest.raises(UserError, match="folds = 2 with 1 person"):
        stage.fit(alone, Fitted())


@pytest.mark.parametrize("settings", [{"use": True, "folds": 1}, {"use": False, "folds": 2}])
def test_folds_that_leave_nobody_out_are_refused(settings):
    with pytest.raises(UserError, match="two and more"):
        made("bbdm", regression=settings, bridge={"at_source": 0.0})


def test_a_regression_learns_nothing_from_its_own_fold(method):
    folds, items = method.stages[0], batch()
    for i, case in enumerate(items.case.tolist()):
        for network in method.fitted.networks.values():
            network.requires_grad_(True).zero_grad()
        folds.loss(method.fitted, part(items, i), ItemNoise([7]))[0].backward()
        for number in range(2):
            assert taught(method.fitted.networks[fold_name(number)]) is (FOLD[case] != number)


def taught(network: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_the_loss_of_the_folds_is_the_mean_of_its_items(method):
    folds, whole = method.stages[0], batch()
    together, _ = folds.loss(method.fitted, whole, ItemNoise([7, 8, 9]))
    alone = [folds.loss(method.fitted, part(whole, i), ItemNoise([7 + i]))[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=0)


def test_a_bridge_is_shown_what_misses_a_person_who_was_not_seen():
    bridge, items = made("bbdm" + FOLDS), batch()
    own = {fold_name(n): (lambda source, tokens, n=n: torch.full_like(source, float(n))) for n in range(2)}  # noqa: ARG005
    fitted = replace(bridge.fitted, networks={**bridge.fitted.networks, **own})
    made_of = training_estimate(bridge.config.regression, fitted, items, None)
    assert made_of[:, 0, 0, 0, 0].tolist() == [float(FOLD[case]) for case in items.case.tolist()]


def test_a_val_subject_is_estimated_by_the_regression_that_has_seen_all_others():
    bridge, items = made("bbdm" + FOLDS), batch()
    nobody = replace(items, case=torch.tensor([-1, 2, -1]))
    shown = training_estimate(bridge.config.regression, bridge.fitted, nobody, None)
    for i, name in enumerate(["regression", "fold-0", "regression"]):
        alone = bridge.fitted.networks[name](items.source[i : i + 1], tokens=None)
        torch.testing.assert_close(shown[i : i + 1], alone, rtol=0, atol=1e-5)


def test_with_tokens_every_item_keeps_its_own():
    bridge, items = made("ct2mri" + FOLDS), replace(batch(), case=torch.tensor([1, 0, 2]))
    told = torch.arange(3.0)[:, None, None].expand(3, 3, 128)
    own = {fold_name(n): (lambda source, tokens: 0 * source + tokens[:, :1, :1, None, None]) for n in range(2)}
    fitted = replace(bridge.fitted, networks={**bridge.fitted.networks, **own})
    assert training_estimate(bridge.config.regression, fitted, items, told)[:, 0, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_translation_is_about_the_regression_that_has_seen_everybody(method):
    for number in range(2):
        for parameter in method.fitted.networks[fold_name(number)].parameters():
            torch.nn.init.constant_(parameter, float("nan"))
    assert method.draw(volume(3, SHAPE)).volumes.isfinite().all()
