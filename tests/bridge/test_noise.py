"""Laws of the noise: it depends on (seed, subject, draw, stage, step) and on nothing else."""

from __future__ import annotations

import pytest
import torch

from scanbridge.bridge.noise import ItemNoise, NoiseSource, generator, stable_seed

HERE = NoiseSource(seed=7, subject="ab12", draw=0, stage="bridge")
SHAPE = (1, 3, 4, 5)
GOLDEN_SEED = 885247324376958955
GOLDEN = [0.3081217, 0.6406336, 0.9705409, -0.6388282]
GOLDEN_VOLUME = [-0.7834985, 0.6372169, 0.4385485, -0.3846208]  # torch draws sixteen values and more in another order


def test_the_noise_of_a_step_never_changes_silently() -> None:
    assert stable_seed("noise", 7, "ab12", 0, "bridge", 0) == GOLDEN_SEED
    torch.testing.assert_close(HERE(0, (4,)), torch.tensor(GOLDEN), atol=1e-6, rtol=0)
    volume = HERE(0, (1, 4, 4, 4)).flatten()[:4]
    torch.testing.assert_close(volume, torch.tensor(GOLDEN_VOLUME), atol=1e-6, rtol=0)


def test_the_same_parts_give_the_same_bytes() -> None:
    again = NoiseSource(seed=7, subject="ab12", draw=0, stage="bridge")
    assert HERE(3, SHAPE).numpy().tobytes() == again(3, SHAPE).numpy().tobytes()


@pytest.mark.parametrize(
    "other",
    [
        NoiseSource(8, "ab12"),
        NoiseSource(7, "ab13"),
        NoiseSource(7, "ab12", draw=1),
        NoiseSource(7, "ab12", stage="low"),
    ],
    ids=["seed", "subject", "draw", "stage"],
)
def test_any_other_part_gives_other_noise(other: NoiseSource) -> None:
    assert not torch.equal(other(0, SHAPE), HERE(0, SHAPE))


def test_every_step_has_noise_of_its_own() -> None:
    assert not torch.equal(HERE(0, SHAPE), HERE(1, SHAPE))


def test_noise_does_not_depend_on_what_was_drawn_before() -> None:
    right = HERE(2, SHAPE)
    noise = NoiseSource(seed=7, subject="ab12")
    for step, shape in [(5, (9,)), (2, (3, 3)), (0, (1, 2, 2, 2))]:
        noise(step, shape)
    assert torch.equal(noise(2, SHAPE), right)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    right = HERE(0, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(HERE(0, SHAPE), right)


def test_noise_is_standard_normal_float32() -> None:
    noise = HERE(0, (100_000,))
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 0.015
    assert abs(float(noise.std()) - 1) < 0.01


def test_parts_do_not_run_into_each_other() -> None:
    assert stable_seed("a", "bc") != stable_seed("ab", "c")
    assert stable_seed(1, 23) != stable_seed(12, 3)


def test_a_seed_is_one_that_torch_accepts() -> None:
    assert all(0 <= stable_seed(i) < 2**63 for i in range(200))
    assert generator("x").initial_seed() == stable_seed("x")


def test_what_an_item_draws_does_not_depend_on_its_batch() -> None:
    seeds = [stable_seed("item", i) for i in range(4)]
    whole, alone = ItemNoise(seeds), ItemNoise(seeds[2:3])
    assert torch.equal(whole.uniform()[2:3], alone.uniform())
    assert torch.equal(whole.normal((2, 3))[2:3], alone.normal((2, 3)))
    assert not torch.equal(whole.normal((2, 3))[0], whole.normal((2, 3))[0])
