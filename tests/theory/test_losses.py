"""Witnesses: double loops, another library (lightly), the population loss, and threads playing workers."""

import importlib
import math
import threading
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.theory.losses import clip_to_ball, info_nce, spectral_contrastive
from companion.theory.spectral import embedding, population_loss


def batch(n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.randn(2, n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return z[0], z[1]


def batch_with_gradient(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    z1, z2 = batch(n, k)
    return z1.requires_grad_(), z2.requires_grad_()


def naive_spectral(z1, z2, mu=1.0, diagonal=False):
    n = len(z1)
    attraction = sum(z1[i] @ z2[i] for i in range(n)) / n
    pairs = [(i, j) for i in range(n) for j in range(n) if diagonal or i != j]
    return -2 * attraction + mu * sum((z1[i] @ z2[j]) ** 2 for i, j in pairs) / len(pairs)


def naive_info_nce(z1, z2, temperature):
    views = [*z1, *z2]
    total = 0.0
    for a, u in enumerate(views):
        s = [float(u @ v / (u.norm() * v.norm())) / temperature for v in views]
        rest = sum(math.exp(s[b]) for b in range(len(views)) if b != a)
        total -= math.log(math.exp(s[(a + len(z1)) % len(views)]) / rest)
    return total / len(views)


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.1, 10), st.integers(0, 1000))
def test_spectral_contrastive_is_the_double_sum(n, k, mu, seed):
    z1, z2 = batch(n, k, seed)
    naive = float(naive_spectral(z1, z2, mu))
    for form in ("auto", "gram", "pairs"):
        assert float(spectral_contrastive(z1, z2, mu, form=form)) == pytest.approx(naive, rel=1e-10, abs=1e-10)


def test_the_two_forms_have_one_gradient():
    gradients = []
    for form in ("gram", "pairs"):
        z = batch_with_gradient(7, 3)
        gradients.append(torch.autograd.grad(spectral_contrastive(*z, mu=2.0, form=form), z))
    for gram, pairs in zip(*gradients, strict=True):
        assert torch.allclose(gram, pairs, atol=1e-13)


@pytest.mark.parametrize(("n", "k"), [(64, 4), (8, 64)])
def test_auto_forms_no_matrix_larger_than_the_cheaper_one(n, k):
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and "mm" in str(func):
                sizes.append(out.numel())
            return out

    with Watch():
        spectral_contrastive(*batch(n, k))
    assert max(sizes) == min(n, k) ** 2


def test_unbiased_over_batches_and_biased_with_the_diagonal(graph, generator):
    U = embedding(graph, 2)
    batches, n = 20_000, 8
    pairs = torch.multinomial(graph.adjacency.flatten(), batches * n, replacement=True, generator=generator)
    z1 = U[pairs // graph.n].reshape(batches, n, 2)
    z2 = U[pairs % graph.n].reshape(batches, n, 2)
    losses = torch.vmap(spectral_contrastive)(z1, z2)
    with_diagonal = -2 * (z1 * z2).sum(2).mean(1) + torch.einsum("bik,bjk->bij", z1, z2).square().mean((1, 2))
    truth, error = population_loss(graph, U), float(losses.std() / batches**0.5)
    assert abs(float(losses.mean()) - truth) < 3 * error
    assert abs(float(with_diagonal.mean()) - truth) > 10 * error


def test_invariance_to_a_common_rotation():
    z1, z2 = batch(6, 4)
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    for loss in (spectral_contrastive, lambda a, b: info_nce(a, b, 0.5)):
        assert float(loss(z1 @ Q, z2 @ Q)) == pytest.approx(float(loss(z1, z2)), rel=1e-12)


def test_low_precision_inputs_are_summed_in_single_precision():
    z1, z2 = batch(300, 4)
    low = spectral_contrastive(z1.bfloat16(), z2.bfloat16())
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(spectral_contrastive(z1, z2)), rel=0.02)


class Workers:
    """Collectives over threads that share one autograd graph, as autograd-aware collectives over processes do."""

    def __init__(self, count: int):
        self.slots: list = [None] * count
        self.barrier = threading.Barrier(count)

    def exchange(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        self.slots[rank] = x
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything

    def run(self, work) -> list:
        results: list = [None] * len(self.slots)

        def target(rank: int) -> None:
            results[rank] = work(rank)

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        return results


@pytest.mark.parametrize("loss", ["spectral", "info_nce"])
@pytest.mark.parametrize("cuts", [(6, 6), (3, 4, 5)])
def test_many_workers_see_the_loss_and_gradient_of_one(loss, cuts):
    z1, z2 = batch_with_gradient(sum(cuts), 3)
    workers = Workers(len(cuts))
    shards = list(zip(z1.split(cuts), z2.split(cuts), strict=True))

    def one_worker(rank: int) -> torch.Tensor:
        if loss == "spectral":
            return spectral_contrastive(
                *shards[rank], mu=2.0, sum_over_workers=lambda x: torch.stack(workers.exchange(rank, x)).sum(0)
            )
        return info_nce(*shards[rank], 0.3, gather=lambda x: torch.cat(workers.exchange(rank, x)))

    losses = workers.run(one_worker)
    alone = spectral_contrastive(z1, z2, mu=2.0) if loss == "spectral" else info_nce(z1, z2, 0.3)
    for local in losses:
        assert local.item() == pytest.approx(alone.item(), rel=1e-12)
    shared = torch.autograd.grad(sum(losses) / len(losses), (z1, z2))  # the mean over workers
    for a, b in zip(shared, torch.autograd.grad(alone, (z1, z2)), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@given(st.integers(1, 6), st.integers(2, 5), st.floats(0.1, 2), st.integers(0, 1000))
def test_info_nce_is_the_double_loop(n, k, temperature, seed):
    z1, z2 = batch(n, k, seed)
    loss = float(info_nce(z1, z2, temperature))
    assert loss == pytest.approx(naive_info_nce(z1, z2, temperature), rel=1e-9, abs=1e-12)
    assert loss == pytest.approx(float(info_nce(3 * z1, z2, temperature)), abs=1e-9)


def test_info_nce_is_lightlys():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import only
        NTXentLoss = importlib.import_module("lightly.loss").NTXentLoss
    z, oracle_z = batch_with_gradient(16, 8), batch_with_gradient(16, 8)
    ours, theirs = info_nce(*z, temperature=0.2), NTXentLoss(temperature=0.2)(*oracle_z)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, oracle_z), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_clip_to_ball_keeps_short_rows_and_directions():
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    clipped = clip_to_ball(z, 2.0)
    assert torch.allclose(clipped.norm(dim=1), torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64))
    assert torch.equal(clipped[1:], z[1:])
    clipped.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_contrastive(torch.ones(3, 2), torch.ones(3, 4)), r"one shape, got \(3, 2\) and \(3, 4\)"),
        (lambda: spectral_contrastive(torch.ones(1, 2), torch.ones(1, 2)), "at least two pairs"),
        (lambda: spectral_contrastive(*batch(4, 2), form="fast"), "'auto', 'gram' or 'pairs', got 'fast'"),
        (lambda: spectral_contrastive(*batch(4, 2), form="pairs", sum_over_workers=lambda x: x), "form='gram'"),
        (lambda: info_nce(torch.ones(3), torch.ones(3), 1.0), "info_nce: expected"),
        (lambda: info_nce(*batch(4, 2), temperature=0.0), "temperature must be positive"),
        (lambda: clip_to_ball(torch.ones(1, 2), 0.0), "radius must be positive"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
