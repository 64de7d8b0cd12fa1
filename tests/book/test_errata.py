"""Witness: each entry of the errata page, recomputed from definitions; and the page's other typed facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from companion.lab import fetch
from companion.ledger import claims
from companion.theory.graph import PositivePairGraph

ROOT = Path(__file__).resolve().parents[2]


def random_graph(seed: int) -> PositivePairGraph:
    K = torch.rand(12, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return PositivePairGraph.from_augmentation(K / K.sum(1, keepdim=True))


def test_the_repulsive_part_outgrows_the_printed_bound():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 40, 3))  # a class of five functions, 40 images, k = 3

    def repulsion_gap(scale):  # largest difference of two functions' repulsive parts
        parts = [((scale**2 * f @ f.T) ** 2).mean() for f in features]
        return max(parts) - min(parts)

    def bound(scale, power):  # k^2 kappa^power times the complexity of the coordinates
        kappa = np.abs(scale * features).max()
        sigma = np.random.default_rng(1).choice([-1, 1], size=(200, 40))
        complexity = np.abs(sigma @ (scale * features).transpose(1, 0, 2).reshape(40, -1) / 40).max(1).mean()
        return 9 * kappa**power * complexity

    assert repulsion_gap(10) / repulsion_gap(1) == pytest.approx(1e4)
    assert bound(10, 2) / bound(1, 2) == pytest.approx(1e3)
    assert bound(10, 3) / bound(1, 3) == pytest.approx(1e4)
    crossing = bound(1, 2) / repulsion_gap(1)
    assert repulsion_gap(2e3 * crossing) > 1e3 * bound(2e3 * crossing, 2)  # whatever the hidden constant


def test_a_singletons_conductance_is_below_one():
    graph = random_graph(0)
    A = torch.as_tensor(graph.adjacency)
    for x in range(graph.n):
        mask = torch.zeros(graph.n, dtype=torch.bool)
        mask[x] = True
        formula = float(1 - A[x, x] / A[x].sum())
        assert graph.conductance(mask) == pytest.approx(formula, rel=1e-12)
        assert formula < 1


def test_the_spectral_loss_is_best_in_six_of_nine_columns():
    printed = {claim.id: claim.published for claim in claims.load("spectral") if claim.published}
    lost = []
    for data in ("cifar10", "cifar100", "tiny-imagenet"):
        for epochs in (200, 400, 800):
            values = {
                method: printed[f"spectral.{data}-{method}-{epochs}"]["value"]
                for method in ("spectral", "simclr", "simsiam")
            }
            if max(values, key=values.__getitem__) != "spectral":
                lost.append((data, epochs))
    assert lost == [("cifar10", 400), ("tiny-imagenet", 200), ("tiny-imagenet", 400)]


def test_only_the_corrected_normalisation_is_symmetric():
    A = torch.as_tensor(random_graph(1).adjacency)
    d = A.sum(1)
    printed, corrected = d[:, None] ** -0.5 * A * d[None] ** 0.5, d[:, None] ** -0.5 * A * d[None] ** -0.5
    assert (printed - printed.T).abs().max() > 0.1 * printed.max()
    assert torch.allclose(corrected, corrected.T, atol=1e-15, rtol=0)


@pytest.mark.parametrize(("p", "q", "positive"), [(0.7, 0.2, True), (0.2, 0.7, False)])
def test_the_community_eigenvector_needs_p_above_q(p, q, positive):
    n = 10
    side = torch.tensor([1.0] * 5 + [-1.0] * 5, dtype=torch.float64)
    expected = torch.where(torch.outer(side, side) > 0, p, q).double()
    eigenvalue = float(side @ expected @ side / n)
    assert eigenvalue == pytest.approx((p - q) * n / 2)
    assert (eigenvalue > 0) is positive


@pytest.mark.parametrize("leak", [0.01, 0.05, 0.1])
def test_the_notes_statement_holds_for_the_mean_over_views(leak):
    half, k = 6, 6
    inside = (1 - leak) / half
    A = torch.full((12, 12), leak / half, dtype=torch.float64)
    A[:half, :half] = A[half:, half:] = inside
    values, vectors = torch.linalg.eigh(torch.eye(12, dtype=torch.float64) - A)  # regular: A is its own normalisation
    indicator = torch.tensor([1.0] * half + [0.0] * half, dtype=torch.float64)
    top = vectors[:, :k]
    mean_error = float((indicator - top @ (top.T @ indicator)).square().mean())
    assert mean_error <= leak / float(values[k]) + 1e-12  # phi / lambda_{k+1}
    total = float((indicator - indicator.mean()).square().sum())
    assert total == pytest.approx(half / 2)  # what is lost when a sum is read as a mean


def test_reproduce_page_lists_the_hashes_that_the_code_checks():
    page = (ROOT / "book/reproduce.md").read_text(encoding="utf-8")
    for name, (_, digest) in fetch.FILES.items():
        assert f"| `{name}` | `{digest}` |" in page
