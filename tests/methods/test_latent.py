"""Laws of what latent methods share: the scale of latents, volumes slice by slice, and the first stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_laws import TARGET, TINY_LATENT, made, merged, volume
from torch import Tensor

from scanbridge.bridge.noise import ItemNoise
from scanbridge.errors import UserError
from scanbridge.methods.autoencoding import FirstStage, autoencoder_of, autoencoder_stage, residual_image
from scanbridge.methods.base import Batch, Fitted, Stage, TrainingCase
from scanbridge.methods.latent import Latents, by_slices, fit_latents, raw_latents, reconstruct

SHAPE = (4, 16, 24)


def settings(**own: object) -> FirstStage:
    return FirstStage.model_validate(merged(TINY_LATENT["autoencoder"], dict(own)))


def first_stage(residual: str = "image", seed: int = 0, **own: object) -> tuple[Stage, Fitted]:
    stage = autoencoder_stage(settings(**own), TARGET, residual)
    torch.manual_seed(seed)
    return stage, Fitted(stage.build())


def cases(n: int = 3) -> list[TrainingCase]:
    """People whose foreground is everything, so that what is counted is plain."""
    whole = torch.ones(SHAPE, dtype=torch.bool)
    return [TrainingCase(volume(i, SHAPE)[0], {TARGET: volume(10 + i, SHAPE)[0] ** 3}, whole) for i in range(n)]


def items(seed: int = 5, n: int = 3, progress: float = 0.0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    source, target = (torch.rand((n, 1, 1, 16, 24), generator=g) * 2 - 1 for _ in range(2))
    return Batch(source, {TARGET: target}, {TARGET: torch.ones_like(target)}, torch.arange(n), progress)


# ---- scale


@pytest.mark.parametrize("residual", ["image", "latent"])
def test_training_latents_have_mean_0_and_sd_1_by_role_and_channel(residual):
    _, fitted = first_stage(residual)
    fitted.statistics.update(fit_latents(cases(), fitted, TARGET, residual))
    scale = Latents.of(fitted, residual)
    seen: dict[str, list[Tensor]] = {"source": [], "target": [], "residual": []}
    for case in cases():
        images = {"source": case.source[:, None], "target": case.targets[TARGET][:, None]}
        if residual == "image":
            images["residual"] = residual_image(images["source"], images["target"])
        for role, latent in scale.encode(images).items():
            seen[role].append(latent)
    for role, parts in seen.items():
        whole = torch.cat(parts).movedim(1, 0).flatten(1).double()
        torch.testing.assert_close(whole.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-5, msg=role)
        torch.testing.assert_close(whole.std(1, correction=0), torch.ones(3).double(), rtol=1e-5, atol=0, msg=role)


def test_the_scale_is_kept_in_float64_and_undone_exactly():
    _, fitted = first_stage()
    fitted.statistics.update(fit_latents(cases(), fitted, TARGET, "image"))
    assert {each.dtype for each in fitted.statistics.values()} == {torch.float64}
    scale, latent = Latents.of(fitted, "image"), torch.randn(2, 3, 5, 6)
    for role in ("source", "target", "residual"):
        torch.testing.assert_close(scale.denormalise(role, scale.normalise(role, latent)), latent, rtol=0, atol=1e-6)


def test_slices_without_foreground_do_not_count():
    _, fitted = first_stage()
    whole = cases(1)[0]
    inside = whole.foreground.clone()
    inside[:2] = False
    part = TrainingCase(whole.source[2:], {TARGET: whole.targets[TARGET][2:]}, whole.foreground[2:])
    one, other = (
        fit_latents([case], fitted, TARGET, "image")["latent_source"]
        for case in (replace(whole, foreground=inside), part)
    )
    assert torch.equal(one, other)


def test_a_case_without_the_target_counts_as_a_source():
    _, fitted = first_stage()
    full, bare = cases(2)
    found = fit_latents([full, replace(bare, targets={})], fitted, TARGET, "image")
    assert torch.equal(found["latent_target"], fit_latents([full], fitted, TARGET, "image")["latent_target"])
    assert not torch.equal(found["latent_source"], fit_latents([full], fitted, TARGET, "image")["latent_source"])


def test_a_collapsed_latent_is_named_with_its_cause():
    _, fitted = first_stage()
    last = autoencoder_of(fitted).encoder[-1]
    torch.nn.init.zeros_(last.weight[1])
    with pytest.raises(UserError, match=r"sd of channel 1 of the source's latents is 0; .*collapsed"):
        fit_latents(cases(), fitted, TARGET, "image")
    torch.nn.init.constant_(last.bias, torch.nan)
    with pytest.raises(UserError, match=r"channel 0 of the source's latents is nan \(and 2 more\)"):
        fit_latents(cases(), fitted, TARGET, "image")


def test_equal_images_have_no_residual():
    _, fitted = first_stage("latent")
    same = [replace(case, targets={TARGET: case.source}) for case in cases()]
    with pytest.raises(UserError, match=r"residual's latents is 0.*source and target are the same images"):
        fit_latents(same, fitted, TARGET, "latent")


def test_the_latent_residual_is_the_difference_of_the_latents():
    _, fitted = first_stage("latent")
    images = {"source": volume(1, SHAPE)[0][:, None], "target": volume(2, SHAPE)[0][:, None]}
    raw = dict(raw_latents(autoencoder_of(fitted), images, "latent"))
    assert torch.equal(raw["target"] - raw["source"], raw["residual"])


# ---- volumes


@pytest.mark.parametrize("size", [(16, 24), (15, 22), (2, 2)])
def test_a_volume_comes_back_at_its_size_however_many_slices_are_run_at_a_time(size):
    _, fitted = first_stage()
    image = volume(3, (5, *size))
    whole = reconstruct(fitted, image, slices=100)
    assert whole.shape == image.shape
    for n in (1, 2):
        torch.testing.assert_close(reconstruct(fitted, image, slices=n), whole, rtol=0, atol=2e-5)


def test_slices_are_run_by_themselves_and_in_order():
    image = volume(3, (5, 3, 3))
    assert torch.equal(by_slices(lambda part: part * 2, image, slices=2), image * 2)
    with_depth = by_slices(lambda part: part.sum((1, 2, 3), keepdim=True), image, slices=3)
    torch.testing.assert_close(with_depth[0, :, 0, 0], image[0].sum((1, 2)))


def test_the_codebook_snaps_once_and_on_decoding_alone():
    _, fitted = first_stage()
    autoencoder, image = autoencoder_of(fitted), volume(1, (2, 16, 24)).transpose(0, 1)
    latent = autoencoder.encode(image)
    assert not torch.equal(latent, autoencoder.codebook.snap(latent))
    snapped = autoencoder.decode(autoencoder.codebook.snap(latent), snap=False)
    assert torch.equal(reconstruct(fitted, image.transpose(0, 1))[0], snapped[:, 0])


def test_an_image_below_one_position_of_the_latent_is_one_line():
    _, fitted = first_stage(multipliers=[1, 2, 2], strides=[2, 2])
    with pytest.raises(UserError, match=r"slices of 3 x 8 voxels are smaller.*at least 4 x 4"):
        Latents(autoencoder_of(fitted), {}, "none").encode({"source": torch.zeros(1, 1, 3, 8)})


def test_a_position_is_known_where_all_its_voxels_are():
    _, fitted = first_stage()
    valid = torch.ones(1, 1, 4, 6)
    valid[..., 0, 0] = 0
    scale = Latents(autoencoder_of(fitted), {}, "none")
    expected = torch.tensor([[0.0, 1, 1], [1, 1, 1]])
    assert torch.equal(scale.known(valid)[0, 0], expected)
    assert torch.equal(scale.spread(expected[None, None], (4, 6))[0, 0, ::2, ::2], expected)


# ---- the first stage


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_the_first_stage_moves_every_parameter(kind):
    stage, fitted = first_stage(kind=kind)
    loss, told = stage.loss(fitted, items(progress=1.0), ItemNoise([1, 2, 3]))
    loss.backward()
    for name, parameter in fitted.networks["autoencoder"].named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert {"distance", "penalty", "discriminator", "adversarial"} <= told.keys()
    assert ("codes_used" in told) == (kind == "vq")


def test_the_discriminator_is_heard_from_its_start_on():
    stage, fitted = first_stage(discriminator={"start": 0.5})
    heard = ["adversarial" in stage.loss(fitted, items(progress=p), ItemNoise([1, 2, 3]))[1] for p in (0, 0.49, 0.5, 1)]
    assert heard == [False, False, True, True]


def test_a_target_that_is_not_known_is_not_reconstructed():
    stage, fitted = first_stage(patience=0)
    blind = replace(items(), valid={TARGET: torch.zeros(3, 1, 1, 16, 24)})
    spoilt = replace(blind, targets={TARGET: -blind.targets[TARGET]})
    own = autoencoder_of(fitted)
    distances = [float(stage.loss(fitted, each, ItemNoise([1, 2, 3]))[1]["distance"]) for each in (blind, spoilt)]
    source = blind.source[:, :, 0]
    with torch.no_grad():
        expected = (own(source).image - source).abs().mean()
    assert distances[0] == pytest.approx(float(expected), rel=1e-4)
    assert distances[1] == pytest.approx(distances[0], rel=1e-4)


def test_the_loss_follows_its_weights():
    terms = [
        first_stage(codebook_weight=c, commitment_weight=m)[0].loss(
            first_stage(codebook_weight=c, commitment_weight=m)[1], items(), ItemNoise([1, 2, 3])
        )[1]["penalty"]
        for c, m in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0), (0.0, 0.0))
    ]
    assert terms[2] == pytest.approx(2 * terms[0] + 3 * terms[1], rel=1e-5)
    assert terms[3] == 0


def test_the_codebook_learns_who_is_used_once_a_batch():
    stage, fitted = first_stage(patience=0)
    codebook = autoencoder_of(fitted).codebook
    before = codebook.count.clone()
    _, told = stage.loss(fitted, items(), ItemNoise([1, 2, 3]))
    assert not torch.equal(codebook.count, before)
    assert told["codes_used"] == codebook.usage().share


def test_weights_say_what_they_must_share():
    own = settings()
    assert own.about["strides"] == [2]
    assert "images" not in own.about
    assert settings(codebook_weight=3.0, images=7, learning_rate=0.1).about == own.about
    assert settings(latent_channels=2).about != own.about


def test_the_ceiling_is_reached_from_a_translator():
    pair = made("rlbcd")
    translator = pair.module.translator(pair.config, pair.fitted)
    image = volume(4)
    with torch.no_grad():
        assert torch.equal(translator.reconstruct(image), reconstruct(pair.fitted, image))
