"""Laws of the codebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanbridge.errors import UserError
from scanbridge.nets.quantise import Codebook, perplexity


def codebook(n_codes: int = 16, channels: int = 3, spread: float = 1.0, **settings: object) -> Codebook:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        book = Codebook(n_codes, channels, **settings)
        with torch.no_grad():
            book.weight.copy_(spread * torch.randn(n_codes, channels))
        return book


def latent(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(5, 4), (2, 5, 4)])
def test_every_position_takes_the_nearest_code(size: tuple[int, ...]) -> None:
    book, z = codebook(), latent(2, 3, *size)
    found = book(z)
    assert found.codes.shape == (2, *size)
    for b, *position in torch.ones(2, *size).nonzero().tolist():
        vector = z[(b, slice(None), *position)]
        distances = [float((vector - code).square().sum()) for code in book.weight.detach()]
        assert found.codes[(b, *position)] == distances.index(min(distances))
        assert torch.equal(found.latent[(b, slice(None), *position)], book.weight[distances.index(min(distances))])


def test_quantising_twice_changes_nothing() -> None:
    book, z = codebook(512, 4, spread=1e-3), 1 + latent(2, 4, 32, 32) / 1000  # close codes, far from the origin
    with torch.no_grad():
        book.weight += 1
    once = book.snap(z)
    assert torch.equal(book.snap(once), once)
    assert torch.equal(book(z).latent, once)
    assert not torch.equal(once, z)


def test_a_position_does_not_depend_on_what_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    book, z = codebook(64), latent(4, 3, 9, 7)
    whole = book.nearest(z)
    assert torch.equal(torch.cat([book.nearest(item) for item in z.split(1)]), whole)
    monkeypatch.setattr("scanbridge.nets.quantise._PAIRS", 5 * 64)
    assert torch.equal(book.nearest(z), whole)


def test_memory_layout_changes_nothing() -> None:
    book, z = codebook(), latent(2, 3, 6, 5)
    last = book(z.contiguous(memory_format=torch.channels_last))
    assert torch.equal(last.latent, book(z).latent)
    assert last.latent.is_contiguous(memory_format=torch.channels_last)


def test_the_latent_gets_the_gradient_of_its_code() -> None:
    book, z, g = codebook(), latent(2, 3, 4, 4).requires_grad_(), latent(2, 3, 4, 4, seed=3)
    (book(z).latent * g).sum().backward()
    assert torch.equal(z.grad, g)
    assert book.weight.grad is None


def test_each_term_moves_its_own_end() -> None:
    """Codebook: 2 (e - z) / n on the codes alone. Commitment: 2 (z - e) / n on the latent alone."""
    book, z = codebook(), latent(2, 3, 4, 4).requires_grad_()
    found = book(z)
    difference = (z - found.latent).detach()
    assert found.codebook.item() == pytest.approx(difference.square().mean().item())
    assert found.commitment.item() == pytest.approx(difference.square().mean().item())
    towards_codes, none = torch.autograd.grad(found.commitment, [z, book.weight], retain_graph=True, allow_unused=True)
    torch.testing.assert_close(towards_codes, 2 * difference / z.numel())
    assert none is None
    none, towards_latents = torch.autograd.grad(found.codebook, [z, book.weight], allow_unused=True)
    assert none is None
    by_hand = torch.zeros_like(book.weight)
    by_hand.index_add_(0, found.codes.flatten(), -2 * difference.movedim(1, -1).reshape(-1, 3) / z.numel())
    torch.testing.assert_close(towards_latents, by_hand)


def test_moving_averages_leave_nothing_to_a_gradient() -> None:
    book = codebook(moving_average=True)
    assert list(book.parameters()) == []
    assert book(latent(1, 3, 4, 4)).codebook == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_are_measured_in_float32(dtype: torch.dtype) -> None:
    book = codebook(2, 1)
    with torch.no_grad():
        book.weight.copy_(torch.tensor([[100.0], [100.1]]))  # one number in bfloat16
    z = torch.full((1, 1, 1, 2), 100.1).to(dtype)
    z[..., 1] = 101
    found = book(z)
    assert found.codes.flatten().tolist() == [int(float(z[0, 0, 0, 0]) > 100.05), 1]
    assert found.latent.dtype == dtype
    assert found.commitment.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(z.float()).codes, book(z.float().contiguous()).codes)
        assert book.nearest(torch.full((1, 1, 1, 1), 100.1)).item() == 1


def test_looking_changes_nothing() -> None:
    book = codebook()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.train()(latent(2, 3, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_moving_averages_are_decayed_sums_over_decayed_counts() -> None:
    """With sums that start at the codes and counts that start at 1."""
    book = codebook(moving_average=True, patience=0)
    sums, counts = book.weight.double().clone(), torch.ones(16).double()
    for step in range(20):
        z = latent(2, 3, 4, 4, seed=step)
        codes = book.nearest(z)
        hits = torch.bincount(codes.flatten(), minlength=16)
        totals = torch.zeros(16, 3).double().index_add_(0, codes.flatten(), z.movedim(1, -1).reshape(-1, 3).double())
        sums, counts = 0.99 * sums + 0.01 * totals, 0.99 * counts + 0.01 * hits
        book.update(z, codes, generator())
        torch.testing.assert_close(book.count.double(), counts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(book.weight.double(), sums / counts[:, None], rtol=1e-5, atol=1e-6)


def test_moving_averages_keep_most_codes_in_use() -> None:
    """The start at which MONAI 1.6.1's quantiser falls to one code: 512 codes, 1,024 normal vectors a step."""
    book = codebook(512, 4, moving_average=True, patience=0)
    for step in range(50):
        z = latent(1, 4, 32, 32, seed=step)
        book.update(z, book.nearest(z), generator(step))
    used = len(book.nearest(latent(1, 4, 32, 32, seed=99)).unique())
    assert used >= 0.75 * 512
    assert book.weight.abs().max() < 10


def test_codes_converge_to_the_means_of_clusters() -> None:
    book = codebook(4, 1, moving_average=True, patience=0)
    with torch.no_grad():
        book.weight.copy_(torch.tensor([[-2.0], [-0.5], [0.5], [2.0]]))
    centres = torch.tensor([-3.0, -1, 1, 3])
    for step in range(600):
        z = (centres.repeat(16) + 0.1 * latent(64, seed=step)).view(1, 1, 8, 8)
        book.update(z, book.nearest(z), generator())
    torch.testing.assert_close(book.weight.flatten(), centres, atol=0.02, rtol=0)


@pytest.mark.parametrize("moving_average", [False, True])
def test_dead_codes_restart_where_latents_are(moving_average: bool) -> None:
    book, z = codebook(64, 3, moving_average=moving_average, patience=3), latent(2, 3, 8, 8)
    book.idle.zero_()
    with torch.no_grad():
        book.weight[10:] = 1e6  # nobody will hit these
    for _ in range(2):
        book.update(z, book.nearest(z), generator())
        assert (book.weight[10:] == 1e6).all()
    book.update(z, book.nearest(z), generator())
    vectors = {tuple(v) for v in z.movedim(1, -1).reshape(-1, 3).tolist()}
    restarted = [tuple(v) for v in book.weight[10:].tolist()]
    assert set(restarted) <= vectors
    assert len(set(restarted)) == 54  # no vector twice
    assert len(book.nearest(z).unique()) > 54


def test_a_code_that_is_hit_does_not_restart() -> None:
    book, z = codebook(patience=1), latent(1, 3, 6, 6)
    before, hit = book.weight.detach().clone(), torch.bincount(book.nearest(z).flatten(), minlength=16) > 0
    book.update(z, book.nearest(z), generator())
    assert torch.equal((book.weight == before).all(dim=1), hit)
    assert 0 < hit.sum() < 16


def test_a_new_codebook_starts_from_the_first_batch() -> None:
    book, z = Codebook(64, 3), 5 + latent(4, 3, 8, 8)  # far from all codes, which are within 1 / 64 of 0
    assert len(book.nearest(z).unique()) < 10
    book.update(z, book.nearest(z), generator())
    assert len(book.nearest(z).unique()) > 50


def test_more_dead_codes_than_positions_wait_for_the_next_batch() -> None:
    book, z = Codebook(64, 3), 5 + latent(1, 3, 2, 2)
    book.update(z, book.nearest(z), generator())
    assert int((book.weight > 1).all(dim=1).sum()) == 4
    assert torch.isfinite(book.weight).all()


def test_restarts_depend_on_state_and_generator_alone() -> None:
    first, second, other = Codebook(64, 3), Codebook(64, 3), Codebook(64, 3)
    for book in (second, other):
        book.load_state_dict(first.state_dict())
    z = latent(4, 3, 8, 8)
    for book, seed in ((first, 2), (second, 2), (other, 3)):
        with torch.random.fork_rng():
            torch.manual_seed(seed + id(book) % 100)
            book.update(z, book.nearest(z), generator(seed))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.weight, other.weight)


def test_a_training_resumes_from_what_is_saved() -> None:
    def train(book: Codebook, steps: range) -> None:
        for step in steps:
            z = latent(1, 3, 4, 4, seed=step)
            book.update(z, book.nearest(z), generator(step))

    whole, part = (codebook(64, moving_average=True, patience=2) for _ in range(2))
    train(whole, range(9))
    train(part, range(5))
    resumed = Codebook(64, 3, moving_average=True, patience=2)
    resumed.load_state_dict(part.state_dict())
    train(resumed, range(5, 9))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_perplexity_lies_between_one_and_all() -> None:
    assert perplexity(torch.full((37,), 5)).item() == pytest.approx(37, rel=1e-5)
    assert perplexity(torch.eye(37)[3]).item() == pytest.approx(1)
    assert perplexity(torch.tensor([1.0, 3, 0])).item() == pytest.approx(4 / 3**0.75)
    for seed in range(5):
        assert 1 < perplexity(torch.rand(37, generator=generator(seed)) ** 4) < 37


def test_usage_is_that_of_the_last_updates() -> None:
    book = codebook(8, 1, patience=0)
    assert book.usage().share == 0
    with torch.no_grad():
        book.weight.copy_(torch.arange(8.0)[:, None])
    two = torch.tensor([2.0, 5]).repeat(50).view(1, 1, 10, 10)
    for _ in range(1500):
        book.update(two, book.nearest(two), generator())
    assert book.usage().share == 2 / 8
    assert book.usage().perplexity == pytest.approx(2, abs=1e-3)


def test_a_restarted_code_counts_as_used_when_it_is_hit() -> None:
    book, z = Codebook(64, 3, patience=50), latent(1, 3, 8, 8)
    book.update(z, book.nearest(z), generator())
    before = book.usage().share
    book.update(z, book.nearest(z), generator())
    assert before < 0.5 < book.usage().share


def test_codes_that_are_no_numbers_are_found() -> None:
    book = codebook()
    book.check()
    with torch.no_grad():
        book.weight[3, 1] = torch.nan
        book.weight[5, 0] = torch.inf
    with pytest.raises(UserError, match="2 of 16 codes of the codebook are not finite"):
        book.check()
    assert book(latent(1, 3, 4, 4)).commitment.isnan()


_TWO = """
import sys

import torch
import torch.distributed as dist
from scanbridge.nets.quantise import Codebook

z = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
torch.manual_seed(0)
alone, together = (Codebook(32, 3, moving_average=True, patience=p) for p in (0, 0))
restarting = Codebook(32, 3)
together.load_state_dict(alone.state_dict())
alone.update(z, alone.nearest(z), torch.Generator())
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
part = z[2 * rank : 2 * rank + 2]
for book in (together, restarting):
    book.update(part, book.nearest(part), torch.Generator().manual_seed(rank))
first = restarting.weight.detach().clone()
dist.broadcast(first, src=0)
dist.destroy_process_group()
torch.testing.assert_close(together.weight, alone.weight)
torch.testing.assert_close(together.count, alone.count)
assert torch.equal(restarting.weight, first)
"""


@pytest.mark.slow
def test_processes_end_with_the_codes_of_one(tmp_path: Path) -> None:
    launch = [sys.executable, "-c", _TWO]
    both = [subprocess.Popen([*launch, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE) for rank in (0, 1)]
    said = [process.communicate(timeout=120)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
