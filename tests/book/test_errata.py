"""Witness: each entry of the errata page, recomputed from definitions; and the page's other typed facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sympy
import torch

from companion.lab import fetch
from companion.ledger import claims
from companion.theory import predictor
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


def test_the_integral_of_motion_has_the_appendix_sign():
    alpha_p, eta, t = 3.0, 0.1, torch.linspace(0, 20, 41, dtype=torch.float64)
    p0, s0 = torch.tensor([[0.2, 0.5, 0.1], [0.5, 0.02, 0.1]], dtype=torch.float64)
    p, s, _ = predictor.mode_flow(p0, s0, 1.0, t, alpha_p=alpha_p, eta=eta, sigma2=0.25)
    fading = torch.exp(-2 * eta * t)[:, None]
    constant = s0 - p0**2 / alpha_p
    assert (s - p**2 / alpha_p - constant * fading).abs().max() < 1e-8
    miss = s - p**2 / alpha_p + constant * fading  # the printed sign
    assert torch.allclose(miss, 2 * constant * fading, rtol=0, atol=1e-8)
    assert miss.abs().max() > 0.5


def siamese(seed: int, alpha_p: float, eta: float, t: torch.Tensor) -> predictor.State:
    rng = torch.Generator().manual_seed(seed)
    W, Wp, root, noise = (torch.randn(*shape, generator=rng).double() / 2 for shape in ((3, 5), (3, 3), (5, 5), (5, 5)))
    return predictor.flow(predictor.State(W, Wp), root @ root.T, noise @ noise.T, t, alpha_p=alpha_p, eta=eta)


def test_the_balance_needs_the_ratio_of_learning_rates():
    eta, t = 0.05, torch.linspace(0, 10, 21, dtype=torch.float64)
    state = siamese(0, 4.0, eta, t)
    outer, inner = state.W @ state.W.mT, state.Wp.mT @ state.Wp
    fading = torch.exp(-2 * eta * t)[:, None, None]

    def off(ratio):
        difference = outer - inner / ratio
        return float((difference - fading * difference[0]).norm(dim=(1, 2)).max() / difference[0].norm())

    assert off(4.0) < 1e-8
    assert off(1.0) > 0.1


def test_the_commutator_obeys_the_integral_and_not_the_maximum():
    t, sigma2 = torch.linspace(0, 80, 801, dtype=torch.float64), 0.04
    rng = torch.Generator().manual_seed(1)
    W, root = (0.2 * torch.randn(4, 4, generator=rng).double() for _ in range(2))
    eye = torch.eye(4, dtype=torch.float64)
    state = predictor.flow(predictor.State(W, root @ root.T), eye, sigma2 * eye, t, symmetric=True)
    C = state.W @ state.W.mT
    size = predictor.commutator(C, state.Wp).norm(dim=(1, 2))
    Xi = predictor.alignment_matrix(C, state.Wp, tau=1.0, sigma2=sigma2)
    least = torch.linalg.eigvalsh(Xi)[:, 0]
    assert least[0] < 0 < least.max()
    assert (size > 1.1 * size[0] * torch.exp(-2 * least.max() * t)).any()  # the printed bound
    assert size.max() > 1.5 * size[0]  # as no bound that falls allows
    exponent = torch.cumulative_trapezoid(least, t)
    assert (size[1:] <= 1.01 * size[0] * torch.exp(-2 * exponent) + 1e-9).all()  # down to the solver's error


def test_without_a_predictor_the_moment_stands_on_the_right():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(7, 6, 4, generator=rng).double()  # 7 images, 6 views of each; all pairs of views
    mean = x.mean(1)
    moment = torch.einsum("ivm,ivn->mn", x, x) / 42
    noise = moment - mean.T @ mean / 7
    for k in (3, 4):
        W = torch.randn(k, 4, generator=rng).double().requires_grad_()
        f, target = x @ W.T, (x @ W.T).detach()
        loss = (f[:, :, None] - target[:, None]).square().sum(-1).mean() / 2
        (gradient,) = torch.autograd.grad(loss, W)
        assert torch.allclose(gradient, W @ noise, rtol=0, atol=1e-12)
    assert (gradient - noise @ W).norm() > 0.1 * gradient.norm()  # k = m, the one case in which it can be formed


def test_the_cubic_has_the_factor():
    p, tau, eta, sigma = sympy.symbols("p tau eta sigma", positive=True)
    lead = 1 + sigma**2
    root = sympy.sqrt(tau**2 - 4 * eta * lead)
    low, high = ((tau + sign * root) / (2 * lead) for sign in (-1, 1))
    velocity = p**2 * (tau - lead * p) - eta * p
    assert sympy.simplify(velocity + lead * p * (p - low) * (p - high)) == 0
    printed = -p * (p - low) * (p - high)
    assert sympy.simplify(printed - velocity - sigma**2 * p * (p - low) * (p - high)) == 0
    found = predictor.fixed_points(0.9, 0.1, 0.25)
    values = {tau: 0.9, eta: 0.1, sigma: 0.5}
    assert [float(low.subs(values)), float(high.subs(values))] == pytest.approx([float(x) for x in found])


def test_scrambling_has_the_corrected_second_moment():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5)) * np.array([2.0, 0.3, 1.0, 0.5, 1.5])
    U = np.linalg.qr(rng.normal(size=(5, 2)))[0]
    keep, z = np.eye(5) - U @ U.T, rng.normal(size=(200_000, 5)) @ root.T
    B = rng.normal(size=(len(z), 2, 2))
    x = z @ keep + np.einsum("nab,nb->na", B, z @ U) @ U.T
    image = root @ root.T

    def second_moment(image):
        return keep @ image @ keep + np.trace(U.T @ image @ U) * U @ U.T

    drawn, corrected = x.T @ x / len(x), second_moment(image)
    assert np.linalg.norm(drawn - corrected) < 0.02 * np.linalg.norm(corrected)
    assert np.linalg.norm(drawn - image) > np.linalg.norm(image) / 3
    scales = np.diag(rng.uniform(0.5, 2, size=5))
    basis = np.linalg.qr(np.column_stack([U, rng.normal(size=(5, 3))]))[0]
    commuting = basis @ scales @ basis.T
    for moment in (image, commuting):
        quotient = keep @ moment @ keep @ np.linalg.inv(second_moment(moment))
        assert np.allclose(quotient, keep, atol=1e-12)
    assert np.allclose(keep @ commuting @ keep @ np.linalg.inv(commuting), keep, atol=1e-12)
    assert not np.allclose(keep @ image @ keep @ np.linalg.inv(image), keep, atol=0.1)


def test_only_the_codes_boost_keeps_its_shape():
    F = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))

    def printed(s, epsilon=0.1):
        return s.sqrt() + epsilon * s.max()

    assert torch.allclose(predictor.direct_pred(100 * F, 0.1), predictor.direct_pred(F, 0.1), rtol=1e-12)
    small, large = printed(F.diagonal()), printed(100 * F.diagonal())
    assert small[0] / small[-1] > 1.5 * large[0] / large[-1]
    unit = F / 4  # here both are the same rule
    assert torch.allclose(predictor.direct_pred(unit, 0.1).diagonal(), printed(unit.diagonal()), rtol=1e-12)


def test_the_alignment_papers_numbers_differ_where_they_should_agree():
    rows = {claim.id.removeprefix("alignment."): claim for claim in claims.load("alignment") if claim.published}
    printed = {name: claim.published["value"] for name, claim in rows.items()}
    settings = {name: claim.published["setting"] for name, claim in rows.items()}
    deviation = {name: float(text.rpartition("± ")[2]) for name, text in settings.items() if "±" in text}
    boosted = [value for name, value in printed.items() if name.startswith("table6-")]
    assert printed["text-boost-100"] not in boosted
    assert max(boosted) == printed["table6-rho03-eps01"]
    regular, later = printed["table3-linear-ema-nobias-regular"], printed["table8-stl10-sgd-100"]
    symmetric = printed["table3-linear-ema-nobias-sym"]
    assert abs(regular - later) > 0.5
    assert abs(symmetric - later) < deviation["table8-stl10-sgd-100"]
    pair = ["table8-stl10-sgd-300", "table8-stl10-sgd-500"]
    assert len({printed[name] for name in pair}) == len({deviation[name] for name in pair}) == 1


def test_reproduce_page_lists_the_hashes_that_the_code_checks():
    page = (ROOT / "book/reproduce.md").read_text(encoding="utf-8")
    for name, (_, digest) in fetch.FILES.items():
        assert f"| `{name}` | `{digest}` |" in page
