"""Witnesses: double loops, another library (lightly), the population loss, and threads playing workers."""

import importlib
import math
import threading
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.theory.losses import (
    attentive_info_nce,
    barlow_twins,
    byol,
    clip_to_ball,
    info_nce,
    spectral_contrastive,
    uniformity,
    vicreg,
)
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


@pytest.mark.parametrize(("n", "k"), [(512, 4), (8, 64)])
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
    for loss in (spectral_contrastive, barlow_twins, vicreg, byol):
        low = loss(z1.bfloat16(), z2.bfloat16())
        assert low.dtype == torch.float32
        assert float(low) == pytest.approx(float(loss(z1, z2)), rel=0.02)


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


SUMMED = {
    "spectral": lambda z1, z2, **add: spectral_contrastive(z1, z2, mu=2.0, **add),
    "barlow": lambda z1, z2, **add: barlow_twins(z1, z2, lam=0.3, **add),
    "barlow, normalized": lambda z1, z2, **add: barlow_twins(z1, z2, lam=0.3, normalize=True, **add),
    "vicreg": lambda z1, z2, **add: vicreg(z1, z2, variance=20.0, covariance=3.0, **add),
}
GATHERED = {
    "info_nce": partial(info_nce, temperature=0.3),
    "attentive": partial(attentive_info_nce, temperature=0.3, weights=torch.arange(1.0, 25.0)),
    "uniformity": partial(uniformity, temperature=0.3),
}


@pytest.mark.parametrize("loss", [*SUMMED, *GATHERED])
@pytest.mark.parametrize("cuts", [(6, 6), (3, 4, 5), (1, 11)])
def test_many_workers_see_the_loss_and_gradient_of_one(loss, cuts):
    z1, z2 = batch_with_gradient(sum(cuts), 3)
    workers = Workers(len(cuts))
    shards = list(zip(z1.split(cuts), z2.split(cuts), strict=True))
    messages = []

    def one_worker(rank: int) -> torch.Tensor:
        if loss in GATHERED:
            return GATHERED[loss](*shards[rank], gather=lambda x: torch.cat(workers.exchange(rank, x)))

        def add(x):
            messages.append(x.numel())
            return torch.stack(workers.exchange(rank, x)).sum(0)

        return SUMMED[loss](*shards[rank], sum_over_workers=add)

    losses = workers.run(one_worker)
    alone = (SUMMED | GATHERED)[loss](z1, z2)
    for local in losses:
        assert local.item() == pytest.approx(alone.item(), rel=1e-12)
    assert len(messages) == (0 if loss in GATHERED else len(cuts))
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


def naive_barlow(z1, z2, lam):
    n, k = z1.shape
    total = 0.0
    for i in range(k):
        for j in range(k):
            c = sum(float(a[i] * b[j] + b[i] * a[j]) for a, b in zip(z1, z2, strict=True)) / (2 * n)
            total += (1 - c) ** 2 if i == j else lam * c**2
    return total


@given(st.integers(1, 7), st.integers(1, 5), st.floats(0.001, 2), st.integers(0, 1000))
def test_barlow_twins_is_the_double_loop(n, k, lam, seed):
    z1, z2 = batch(n, k, seed)
    assert float(barlow_twins(z1, z2, lam)) == pytest.approx(naive_barlow(z1, z2, lam), rel=1e-10)


def test_barlow_twins_is_lightlys_where_the_cross_correlation_is_symmetric():
    """Each pair comes in both orders, so that C is symmetric; the antisymmetric part is quadratic and has no slope."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import only
        oracle = importlib.import_module("lightly.loss").BarlowTwinsLoss(lambda_param=0.3)
    z1, z2 = (3 * z + 1 for z in batch(8, 4))
    results = []
    for loss in (lambda a, b: barlow_twins(a, b, 0.3, normalize=True), oracle):
        views = [torch.cat(order).requires_grad_() for order in ((z1, z2), (z2, z1))]
        value = loss(*views)
        results.append((value.item(), *torch.autograd.grad(value, views)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_normalization_forgets_shift_and_scale_of_each_coordinate():
    z1, z2 = batch(50, 4)
    scale, shift = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5
    changed = barlow_twins(scale * z1 + shift, z2, normalize=True)
    assert float(changed) == pytest.approx(float(barlow_twins(z1, z2, normalize=True)), abs=1e-4)  # up to 1e-5 in Var
    assert abs(float(barlow_twins(scale * z1 + shift, z2)) - float(barlow_twins(z1, z2))) > 0.01


def test_only_equal_weights_make_barlow_twins_blind_to_rotations():
    z1, z2 = batch(6, 4)
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    assert float(barlow_twins(z1 @ Q, z2 @ Q)) == pytest.approx(float(barlow_twins(z1, z2)), rel=1e-12)
    assert abs(float(barlow_twins(z1 @ Q, z2 @ Q, 0.1)) - float(barlow_twins(z1, z2, 0.1))) > 0.01


def test_vicreg_is_lightlys():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import only
        VICRegLoss = importlib.import_module("lightly.loss").VICRegLoss
    weights = {"invariance": 20.0, "variance": 15.0, "covariance": 3.0, "eps": 1e-3}
    for k, scale in ((8, 1.0), (3, 0.1), (1, 0.1)):
        z, oracle_z = ([scale * view for view in batch_with_gradient(16, k)] for _ in range(2))
        ours, theirs = vicreg(*z, **weights), VICRegLoss(20.0, 15.0, 3.0, eps=1e-3)(*oracle_z)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
        for a, b in zip(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, oracle_z), strict=True):
            assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("loss", [vicreg, lambda z1, z2: barlow_twins(z1, z2, normalize=True)])
def test_variances_keep_their_digits_far_from_the_origin(loss):
    """Single precision, means a thousand times the deviations: the squares' sums agree in six digits."""
    z1, z2 = batch(100, 3)
    near, far = (loss((z1 + shift).float(), (z2 + shift).float()) for shift in (0.0, 1024.0))
    assert near.dtype == torch.float32
    assert float(far) == pytest.approx(float(near), rel=1e-3)


def test_off_diagonal_terms_survive_a_diagonal_that_is_much_larger():
    """In single precision 1 + 1e-10 is 1; the loss is 2e-10 nonetheless."""
    z = torch.eye(2) * 2**0.5 + torch.tensor([[0.0, 1e-5], [0.0, 0.0]]) * 2**0.5
    assert float(barlow_twins(z, z)) == pytest.approx(2e-10, rel=1e-3)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_byol_is_the_mean_squared_distance_on_the_sphere(n, k, seed):
    p, t = batch(n, k, seed)
    naive = sum(float((a / a.norm() - b / b.norm()).square().sum()) for a, b in zip(p, t, strict=True)) / n
    assert float(byol(p, t)) == pytest.approx(naive, abs=1e-12)
    assert float(byol(1e-9 * p, 7 * t)) == pytest.approx(naive, abs=1e-6)


def test_byol_moves_the_prediction_and_not_the_target():
    p, t = batch_with_gradient(5, 3)
    byol(p, t).backward()
    assert t.grad is None
    assert torch.allclose((p.grad * p).sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-14)  # along the sphere
    assert torch.autograd.gradcheck(lambda q: byol(q, t), (p,))


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
        (lambda: barlow_twins(torch.ones(3, 2), torch.ones(4, 2)), "barlow_twins: expected"),
        (lambda: vicreg(torch.ones(3), torch.ones(3)), "vicreg: expected"),
        (lambda: vicreg(torch.ones(1, 2), torch.ones(1, 2)), "at least two pairs"),
        (lambda: byol(torch.ones(3, 2), torch.ones(3, 4)), "byol: expected"),
        (lambda: clip_to_ball(torch.ones(1, 2), 0.0), "radius must be positive"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
