"""Witnesses: sums over anchors written out, another library (lightly), limits, threads playing workers, autograd."""

import importlib
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from companion.theory.graph_attention import batch_attention
from companion.theory.losses import alignment, attentive_info_nce, info_nce, multi_stage, simsiam, uniformity


def batch(n, k, seed=0, count=2):
    z = torch.randn(count, n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return [view.requires_grad_() for view in z]


def oracle(name, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import only
        return getattr(importlib.import_module("lightly.loss"), name)(**settings)


def terms(z1, z2, temperature):
    """Minus the logarithm of each anchor's share, one by one."""
    views = [*z1, *z2]
    found = []
    for a, u in enumerate(views):
        s = [u @ v / (u.norm() * v.norm()) / temperature for v in views]
        rest = torch.stack([s[b] for b in range(len(views)) if b != a])
        found.append(rest.logsumexp(0) - s[(a + len(z1)) % len(views)])
    return torch.stack(found)


class TestAttention:
    @given(st.integers(1, 6), st.integers(2, 5), st.floats(0.1, 2), st.integers(0, 1000))
    def test_every_anchor_has_its_weight(self, n, k, temperature, seed):
        z1, z2 = batch(n, k, seed)
        w = torch.rand(2 * n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
        expected = (w / w.sum() * terms(z1, z2, temperature)).sum()
        found = attentive_info_nce(z1, z2, temperature, w)
        assert found.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
        for a, b in zip(torch.autograd.grad(found, (z1, z2)), torch.autograd.grad(expected, (z1, z2)), strict=True):
            assert torch.allclose(a, b, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n", [7, 24, 49, 100])
    @pytest.mark.parametrize("weight", [1.0, 1 / 3, None])
    def test_equal_weights_are_info_nce_to_the_last_bit(self, n, weight, dtype):
        results = []
        for attentive in (False, True):
            z1, z2 = (z.detach().to(dtype).requires_grad_() for z in batch(n, 8))
            w = batch_attention(z1, z2, 0.0) if weight is None else torch.full((2 * n,), weight, dtype=torch.float64)
            value = attentive_info_nce(z1, z2, 0.2, w) if attentive else info_nce(z1, z2, 0.2)
            results.append((value.detach(), *torch.autograd.grad(value, (z1, z2))))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_equal_weights_are_lightlys(self):
        z, theirs = batch(16, 8), batch(16, 8)
        value, expected = attentive_info_nce(*z, 0.2, torch.ones(32)), oracle("NTXentLoss", temperature=0.2)(*theirs)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        for a, b in zip(torch.autograd.grad(value, z), torch.autograd.grad(expected, theirs), strict=True):
            assert torch.allclose(a, b, atol=1e-12)

    def test_one_anchor_alone(self):
        z1, z2 = batch(5, 3)
        only = functional.one_hot(torch.tensor(7), 10).double()
        expected = terms(z1, z2, 0.5)[7].item()
        assert attentive_info_nce(z1, z2, 0.5, only).item() == pytest.approx(expected, rel=1e-12)

    def test_weights_are_constant(self):
        """The gradient through weights that depend on the embedding is not taken."""
        z1, z2 = batch(6, 4)
        u1, u2 = (functional.normalize(z, dim=1) for z in (z1, z2))
        w = torch.softmax(3 * (u1 * u2).sum(1), 0).repeat(2) / 2
        held = torch.autograd.grad(attentive_info_nce(z1, z2, 0.5, w.detach()), z1)[0]
        assert torch.equal(torch.autograd.grad(attentive_info_nce(z1, z2, 0.5, w), z1)[0], held)
        through = torch.autograd.grad((w * terms(z1, z2, 0.5)).sum(), z1)[0]
        assert not torch.allclose(through, held, rtol=0.05)  # control: it would differ


class TestUniformity:
    @given(st.integers(2, 6), st.integers(2, 5), st.floats(0.1, 2), st.integers(0, 1000))
    def test_the_double_loop(self, n, k, temperature, seed):
        z1, z2 = batch(n, k, seed)
        views = [z.detach() / z.detach().norm() for z in (*z1, *z2)]
        total = 0.0
        for a, u in enumerate(views):
            others = [math.exp(float(u @ v) / temperature) for b, v in enumerate(views) if (b - a) % n]
            assert len(others) == 2 * n - 2
            total += math.log(sum(others) / len(others))
        assert uniformity(z1, z2, temperature).item() == pytest.approx(total / (2 * n), rel=1e-9, abs=1e-12)

    def test_with_the_attraction_it_is_the_decoupled_loss(self):
        """Lightly's has this sum in place of the mean, and minus the positive cosines."""
        (z1, z2), theirs = batch(16, 8), batch(16, 8)
        cosine = functional.cosine_similarity(z1, z2).mean()
        value = uniformity(z1, z2, 0.2) + math.log(30) - cosine / 0.2
        expected = oracle("DCLLoss", temperature=0.2)(*theirs)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        for a, b in zip(torch.autograd.grad(value, (z1, z2)), torch.autograd.grad(expected, theirs), strict=True):
            assert torch.allclose(a, b, atol=1e-12)

    def test_collapse_is_the_worst_and_the_estimate_grows_towards_the_population(self):
        """On the circle E exp(cos / tau) is a Bessel function; the logarithm of a mean lies too low, less so with n."""
        assert float(uniformity(torch.ones(5, 3), 2 * torch.ones(5, 3), 0.5)) == pytest.approx(2.0)
        truth, gaps = float(torch.special.i0(torch.tensor(5.0, dtype=torch.float64)).log()), []
        for n in (8, 64, 512):
            found = [uniformity(*batch(n, 2, seed), 0.2).item() for seed in range(1024 // n)]
            gaps.append(truth - sum(found) / len(found))
        assert gaps[0] > 2 * gaps[1] > 0
        assert gaps[1] > 2 * gaps[2] > 0


class TestAlignment:
    def test_pairs_by_hand_and_half_the_gradient(self):
        z1, z2 = batch(5, 3)
        naive = sum(((a - b) @ (a - b)).item() / 2 for a, b in zip(z1, z2, strict=True)) / 5
        both, stopped = alignment(z1, z2), alignment(z1, z2, stop_gradient=True)
        assert both.item() == pytest.approx(naive, rel=1e-12)
        assert stopped.item() == pytest.approx(naive, rel=1e-12)
        for whole, half in zip(
            torch.autograd.grad(both, (z1, z2)), torch.autograd.grad(stopped, (z1, z2)), strict=True
        ):
            assert torch.allclose(whole, 2 * half, atol=1e-15)


class TestSimSiam:
    def test_lightlys_both_ways(self):
        results = []
        for ours in (True, False):
            p1, p2, z1, z2 = batch(9, 4, count=4)
            one = oracle("NegativeCosineSimilarity")
            value = simsiam(p1, p2, z1, z2) if ours else (one(p1, z2.detach()) + one(p2, z1.detach())) / 2
            value.backward()
            assert z1.grad is None
            assert z2.grad is None
            results.append((value.item(), p1.grad, p2.grad))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
        assert torch.allclose(results[0][1], results[1][1])
        assert torch.allclose(results[0][2], results[1][2])

    def test_scales_do_not_matter(self):
        p1, p2, z1, z2 = batch(9, 4, count=4)
        assert simsiam(3 * p1, p2, z1, 1e-3 * z2).item() == pytest.approx(simsiam(p1, p2, z1, z2).item(), rel=1e-9)


def naive_multi_stage(p1, p2, z1, z2, memory, stored, current):
    total = 0.0
    for i in range(len(p1)):
        for p, z in ((p1[i], z2[i]), (p2[i], z1[i])):
            stages = [memory[j, i] for j in range(int(stored[i]))]
            stages += [z] if current or not stages else []
            target = torch.stack(stages).mean(0).detach()
            total = total - p @ target / (p.norm() * target.norm())
    return total / (2 * len(p1))


class TestMultiStage:
    @pytest.mark.parametrize("current", [True, False])
    @given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 1000))
    def test_the_mean_of_what_is_there(self, current, n, stages, seed):
        p1, p2, z1, z2 = batch(n, 3, seed, count=4)
        generator = torch.Generator().manual_seed(seed)
        memory = torch.randn(stages, n, 3, dtype=torch.float64, generator=generator)
        stored = torch.randint(stages + 1, (n,), generator=generator)
        views = (p1, p2, z1, z2)
        found = multi_stage(*views, memory, stored, current=current)
        expected = naive_multi_stage(*views, memory, stored, current)
        assert found.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
        for a, b in zip(torch.autograd.grad(found, (p1, p2)), torch.autograd.grad(expected, (p1, p2)), strict=True):
            assert torch.allclose(a, b, atol=1e-12)

    def test_all_stages_without_a_number(self):
        views, memory = batch(4, 3, count=4), torch.stack(batch(4, 3, 1, count=3))
        everything = torch.full((4,), 3)
        assert torch.equal(multi_stage(*views, memory), multi_stage(*views, memory, everything))

    def test_nothing_stored_is_simsiam_to_the_last_bit(self):
        results = []
        for memory in (None, torch.full((2, 9, 4), torch.inf), torch.zeros(0, 9, 4)):
            p1, p2, z1, z2 = (view.detach().float().requires_grad_() for view in batch(9, 4, count=4))
            nothing = torch.zeros(9, dtype=torch.int64)
            value = simsiam(p1, p2, z1, z2) if memory is None else multi_stage(p1, p2, z1, z2, memory, nothing)
            results.append((value.detach(), *torch.autograd.grad(value, (p1, p2))))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_no_gradient_reaches_a_target(self):
        p1, p2, z1, z2, M = batch(4, 3, count=5)
        multi_stage(p1, p2, z1, z2, M[None]).backward()
        assert z1.grad is None
        assert z2.grad is None
        assert M.grad is None
        assert p1.grad is not None


@pytest.mark.parametrize("loss", [simsiam, alignment, multi_stage])
def test_low_precision_is_summed_in_single_precision(loss):
    views = batch(50, 4, count=2 if loss is alignment else 4)
    memory = [views[0][None]] if loss is multi_stage else []
    low = loss(*(view.bfloat16() for view in [*views, *memory]))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss(*views, *memory).item(), abs=0.02)


THREE = [torch.ones(3, 2) for _ in range(4)]
ZERO = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]])


def weighted(*weights):
    return attentive_info_nce(torch.ones(2, 2), torch.ones(2, 2), 1.0, torch.tensor(weights))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attentive_info_nce(*THREE[:2], 0.0, torch.ones(6)), "attentive_info_nce: temperature must be pos"),
        (lambda: attentive_info_nce(*THREE[:2], 1.0, torch.ones(3)), r"each of the 6 views .* got \(3,\)"),
        (lambda: weighted(2.0, -1.0, 1.0, 1.0), "weights must be finite, none negative .* got -1 to 2; use graph_att"),
        (lambda: weighted(0.0, 0.0, 0.0, 0.0), "not all 0, got 0 to 0; use graph_attention.batch_attention"),
        (lambda: weighted(math.inf, 0.0, 0.0, 0.0), "weights must be finite"),
        (lambda: weighted(math.nan, 0.0, 0.0, 0.0), "weights must be finite"),
        (lambda: info_nce(ZERO, THREE[0], 1.0), "info_nce, first views: row 1 is zero and has no direction; drop it"),
        (lambda: attentive_info_nce(THREE[0], ZERO, 1.0, torch.ones(6)), "attentive_info_nce, second views: row 1 is"),
        (lambda: uniformity(THREE[0], ZERO, 1.0), "uniformity, second views: row 1 is zero"),
        (lambda: simsiam(ZERO, *THREE[:3]), "simsiam, a prediction: row 1 is zero"),
        (lambda: simsiam(*THREE[:3], ZERO), "simsiam, a target: row 1 is zero"),
        (
            lambda: multi_stage(*THREE[:3], ZERO, THREE[0][None], current=True, stored=torch.tensor([1, 0, 1])),
            "a target: r",
        ),
        (lambda: multi_stage(*THREE, -THREE[0][None]), "multi_stage, a target: row 0 is zero"),
        (lambda: uniformity(*THREE[:2], -1.0), "uniformity: temperature must be positive, got -1"),
        (lambda: uniformity(torch.ones(1, 2), torch.ones(1, 2), 1.0), "uniformity: needs at least two pairs"),
        (lambda: alignment(torch.ones(3, 2), torch.ones(2, 2)), "alignment: expected"),
        (lambda: simsiam(*THREE[:3], torch.ones(3, 4)), r"simsiam: expected .* got \(3, 2\) and \(3, 4\)"),
        (lambda: multi_stage(*THREE[:3], torch.ones(3), torch.ones(1, 3, 2)), "multi_stage: expected"),
        (lambda: multi_stage(*THREE, torch.ones(3, 2)), r"memory \(stages, 3, 2\) .* got \(3, 2\) and None"),
        (lambda: multi_stage(*THREE, torch.ones(1, 3, 2), torch.ones(2)), r"got \(1, 3, 2\) and \(2,\)"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
