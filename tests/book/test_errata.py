"""Witness: each entry of the errata page, recomputed from definitions; and the page's other typed facts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
from torch.nn import functional

from companion.lab import fetch
from companion.lab.languages import floors, grammars, hmm
from companion.lab.languages.tokens import MASKED
from companion.lab.masked.architecture import Shape
from companion.ledger import claims
from companion.theory import equilibrium, graph_attention, losses, message_passing, oversmoothing, predictor
from companion.theory.flatness import saturation, softmax_net, tiling
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


def test_equal_graphs_are_not_the_only_equilibrium():
    angle = torch.arange(12, dtype=torch.float64) * torch.pi / 6
    U = 0.9 * torch.stack([angle.cos(), angle.sin()], 1)
    A, p = equilibrium.realisable_graph(U, 0.5)
    normalized = A / torch.outer(p, p).sqrt()
    rng = torch.Generator().manual_seed(0)
    collapsed = torch.randn(1, 2, generator=rng, dtype=torch.float64).expand(12, 2)
    anywhere = torch.randn(12, 2, generator=rng, dtype=torch.float64)
    forces, gaps = {}, {}
    for name, features in {"matched": U, "collapsed": collapsed, "anywhere": anywhere}.items():
        F = p.sqrt()[:, None] * features
        forces[name] = float(message_passing.force(F, normalized, p, 0.5).abs().max())
        gaps[name] = float(message_passing.equilibrium_gap(features, A, 0.5))
    assert max(forces["matched"], forces["collapsed"]) < 1e-14 < 0.01 < forces["anywhere"]
    assert gaps["matched"] < 1e-14
    assert gaps["collapsed"] == pytest.approx(float(message_passing.mutual_information(A)), rel=1e-12)
    assert gaps["collapsed"] > 0.1


def batch(seed: int, n: int = 6) -> tuple[torch.Tensor, ...]:
    """Embeddings of two views, and features before the head, which are not negative."""
    rng = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    h1, h2 = (torch.rand(n, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    return z1, z2, h1, h2


def test_a_softmax_over_one_positive_is_one_and_that_of_the_code_is_not():
    z1, z2, h1, h2 = batch(0)
    pairs = torch.eye(12, dtype=torch.float64).roll(6, 0) / 12  # each view with its partner
    over_positives = graph_attention.attention_weights(graph_attention.cosines(torch.cat([h1, h2])), pairs, 1.0)
    assert torch.equal(over_positives[pairs > 0], torch.ones(12, dtype=torch.float64))
    w = graph_attention.batch_attention(h1, h2)
    assert w.max() > 1.05 * w.min()
    equal = losses.attentive_info_nce(z1, z2, 0.5, torch.ones(12))
    assert float(equal) == float(losses.info_nce(z1, z2, 0.5))
    assert abs(float(losses.attentive_info_nce(z1, z2, 0.5, w) - equal)) > 1e-4

    z = functional.normalize(torch.cat([z1, z2]), dim=1).requires_grad_()
    logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    alignment = -(w * logits[torch.arange(12), torch.arange(12).roll(6)]).sum()
    negatives = torch.logsumexp(logits, 1)
    ours = message_passing.batch_gradient(z.detach(), 0.5, w)
    for weights, same in ((w, True), (torch.full((12,), 1 / 12, dtype=torch.float64), False)):
        (found,) = torch.autograd.grad(alignment + (weights * negatives).sum(), z, retain_graph=True)
        assert torch.allclose(found, ours, rtol=0, atol=1e-12) is same  # the weight stands before the negatives, too


def stages(seed: int, like: torch.Tensor) -> list[torch.Tensor]:
    """Predictions of both views and what two earlier stages left."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(like.shape, generator=rng, dtype=like.dtype) for _ in range(4)]


def test_slides_and_code_take_different_means_over_stages():
    z1, z2, _, _ = batch(1)
    p1, p2, old, older = stages(2, z1)
    plain = losses.simsiam(p1, p2, z1, z2)
    slides = losses.multi_stage(p1, p2, z1, z2, torch.stack([old, older]), current=False)
    code = losses.multi_stage(p1, p2, z1, z2, old[None])
    assert len({round(float(loss), 3) for loss in (plain, slides, code)}) == 3
    by_hand = [(z / 2 + old / 2) for z in (z2, z1)]
    cosine = [functional.cosine_similarity(p, t).mean() for p, t in zip((p1, p2), by_hand, strict=True)]
    assert float(code) == pytest.approx(-float(sum(cosine)) / 2, rel=1e-12)
    assert abs(float(losses.multi_stage(p1, p2, z1, z2, 10 * old[None]) - code)) > 0.01
    short, long = (losses.multi_stage(p1, p2, z1, z2, s * old[None], current=False) for s in (1, 10))
    assert float(short) == pytest.approx(float(long), rel=1e-12)
    rates = [float(oversmoothing.multi_stage_rate(0.9, 0.5, 2, replacement=r)) for r in (False, True)]
    assert abs(rates[0] - rates[1]) > 0.01


def test_the_gains_in_standard_errors_and_the_epochs():
    printed = {claim.id: claim.published["value"] for claim in claims.load("message_passing") if claim.published}
    page = (ROOT / "book/errata.md").read_text(encoding="utf-8")
    images = {"cifar10": 10_000, "cifar100": 10_000, "imagenet100": 5_000}
    together, above = [], 0
    for name, plain, new in (
        ("attentive alignment", "simclr", "simclr-attn"),
        ("multi-stage aggregation", "simsiam", "simsiam-multi"),
    ):
        gains, variances = [], []
        for depth in (18, 50):
            for data, n in images.items():
                old, better = (printed[f"message_passing.{method}-resnet{depth}-{data}"] for method in (plain, new))
                gains.append(better - old)
                variances.append(sum(x * (100 - x) for x in (old, better)) / n)  # of a percentage
            row = [f"{g / v**0.5:.1f}" for g, v in zip(gains[-3:], variances[-3:], strict=True)]
            assert f"| {name}, ResNet-{depth} | {' | '.join(row)} |" in page
            above += sum(g > 2 * v**0.5 for g, v in zip(gains[-3:], variances[-3:], strict=True))
        assert min(gains) > 0
        together.append(f"{sum(gains) / sum(variances) ** 0.5:.1f}")
    assert (together, above) == (["2.9", "5.2"], 4)
    assert round(19_200 / (50_000 // 512)) == 198
    assert 450 < 125_100 * 512 / 126_700 < 550  # ImageNet-100 has about so many images


def test_attention_needs_the_features_of_all_processes():
    z1, z2, h1, h2 = batch(3)
    halves = [batch(3), batch(4)]
    whole = [torch.cat([half[i] for half in halves]) for i in range(4)]
    own = graph_attention.batch_attention(h1, h2)
    gathered = graph_attention.batch_attention(whole[2], whole[3])
    turn = iter(whole[:2] * 2)

    def gather(_):
        return next(turn)

    with pytest.raises(ValueError, match="one weight for each of the 24 views"):
        losses.attentive_info_nce(z1, z2, 0.5, own, gather=gather)
    two = losses.attentive_info_nce(z1, z2, 0.5, gathered, gather=gather)
    assert float(two) == float(losses.attentive_info_nce(whole[0], whole[1], 0.5, gathered))


def sixth_chapter(seed: int, **changes: int) -> grammars.Grammar:
    """A random grammar with the numbers of the released one."""
    numbers = {"levels": 4, "symbols": 10, "words": 200, "tops": 9, "rules": 18, "emitted": 81}
    return grammars.levelled(torch.Generator().manual_seed(seed), **(numbers | changes))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_grammar_of_the_released_numbers_has_the_floor_of_the_tables(seed):
    printed = {claim.id: claim.published["value"] for claim in claims.load("flatness") if claim.published}
    lookup = printed["flatness.published-lookup-loss"]
    assert lookup == printed["flatness.published-floor-pcfg"] == 3.196
    for per in ("sentence", "token"):
        found = floors.floor(sixth_chapter(seed), 400, torch.Generator().manual_seed(seed), per=per)
        assert found.value > 3.9
        assert found.value - lookup > 10 * found.stderr
        poor = floors.floor(sixth_chapter(seed, emitted=5), 400, torch.Generator().manual_seed(seed), per=per)
        assert poor.value < lookup


def test_four_levels_have_sixteen_words():
    assert [sixth_chapter(0, levels=levels, words=20, emitted=4).longest for levels in (4, 5)] == [16, 32]
    lengths = sixth_chapter(0).length_law(16)
    assert lengths.sum() == pytest.approx(1)


def test_the_largest_inside_probability_is_not_the_most_probable_symbol():
    rules = torch.tensor([[0, 2, 2], [1, 3, 3]])  # S -> N N, T -> M M
    emission = torch.tensor([[0, 0], [0, 0], [0.5, 0.5], [0.6, 0.4]], dtype=torch.float64)
    start = torch.tensor([0.9, 0.1, 0, 0], dtype=torch.float64)
    toy = grammars.Grammar(("S", "T", "N", "M"), start, rules, torch.ones(2), emission)
    posterior = toy.spine_posteriors(torch.tensor([[0, 0]]), depth=1)[0, 0, :2]
    assert torch.allclose(posterior, torch.tensor([0.225, 0.036], dtype=torch.float64) / 0.261)
    inside = posterior / start[:2]
    assert float(inside[0] / inside[1]) == pytest.approx(0.25 / 0.36)
    assert (int(posterior.argmax()), int(inside.argmax())) == (0, 1)

    differ, right, split = [], [], []
    for seed in range(4):
        grammar = sixth_chapter(seed)
        drawn = grammar.sample(300, torch.Generator().manual_seed(seed), length=(5, 31))
        posterior = grammar.spine_posteriors(drawn.tokens, drawn.lengths, depth=1)[:, 0, :9]
        likely = posterior.argmax(1)
        differ.append((posterior / grammar.start[:9]).argmax(1) != likely)
        right.append(likely == drawn.spine[:, 0])
        level = torch.tensor([ord(name[1]) if name[0] == "A" else 0 for name in grammar.names])[drawn.emitters[:, :2]]
        split.append(level[:, 0] != level[:, 1])  # two words of one symbol alone are emitted on one level
    shares = [float(torch.cat(found).double().mean()) for found in (differ, right, split)]
    assert shares[0] > 1 / 3
    assert shares[1] < 0.6
    assert shares[2] > 1 / 4


def test_a_second_mask_raises_the_floor():
    chain = hmm.HiddenMarkov.random(3, 3, torch.Generator().manual_seed(0))
    sentences = torch.cartesian_prod(*[torch.arange(3)] * 4)
    weights = chain.log_probability(sentences).exp()
    assert weights.sum() == pytest.approx(1)
    hidden = sentences.clone()
    hidden[:, 1] = MASKED
    one, two = (float(weights @ floors.entropies(chain.conditionals(seen)[:, 2])) for seen in (sentences, hidden))
    assert two > one + 1e-3
    far = sentences.clone()
    far[:, 2] = MASKED  # the word itself: nobody saw it anyway
    assert float(weights @ floors.entropies(chain.conditionals(far)[:, 2])) == pytest.approx(one, rel=1e-12)


def pre_norm(p: dict[str, torch.Tensor], tokens: torch.Tensor, norm_first: bool = False) -> torch.Tensor:
    """Logits of a network with one branch that normalises its input, and a normalisation at the end."""

    def norm(h):
        return functional.layer_norm(h, h.shape[-1:], eps=0.0)

    h = norm(p["table"][tokens]) if norm_first else p["table"][tokens]
    h = h + functional.gelu(norm(h) @ p["up"].T) @ p["down"].T
    return norm(h) @ p["output"].T


@pytest.mark.parametrize("times", [2, 3])
def test_a_divided_table_of_embeddings_needs_a_normalisation_behind_it(times):
    rng = torch.Generator().manual_seed(0)
    shapes = {"table": (5, 4), "up": (8, 4), "down": (4, 8), "output": (5, 4)}
    small = {name: torch.randn(*shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}
    rules = {"table": tiling.HIDDEN, "up": tiling.MATRIX, "down": tiling.MATRIX, "output": tiling.OUTPUT}
    script = rules | {"table": tiling.Rule((-1,), 1.0)}
    tokens = torch.arange(5)
    for spec, norm_first, same in (
        (rules, False, True),
        (rules, True, True),
        (script, True, True),
        (script, False, False),
    ):
        before, after = (pre_norm(p, tokens, norm_first) for p in (small, tiling.tile(small, spec, times)))
        assert torch.allclose(before, after, rtol=0, atol=1e-12) is same
        assert same or (before - after).abs().max() > 0.05
    assert (script["table"].factor(times), rules["table"].factor(times)) == (times, 1 / times)


def test_the_two_estimators_of_the_trace_agree_at_saturation_only():
    params, x, p, w = softmax_net.draw(torch.Generator().manual_seed(0))
    at = saturation.traces(softmax_net.logits, softmax_net.saturated(params, x, p), x, p, w)
    away = saturation.traces(softmax_net.logits, params, x, p, w)
    assert at.hessian == pytest.approx(at.gauss_newton, rel=1e-12)
    assert abs(away.hessian / away.gauss_newton - 1) > 0.01


def test_the_tables_of_embeddings_in_235_million():
    own, pieces = (Shape(V, 128, width=1024, layers=16, heads=16) for V in (200, 30_522))
    blocks = sum(math.prod(size) for name, size in own.sizes.items() if name.startswith("blocks."))
    table = math.prod(pieces.sizes["tokens"])
    assert [round(count / 1e6, 1) for count in (blocks, table)] == [201.5, 31.3]
    assert 0.99 * 235e6 < blocks + table < 235e6
    assert 0.13 < (table - math.prod(own.sizes["tokens"])) / 235e6 < 0.135
    assert own.parameters < 203e6


def test_reproduce_page_lists_the_hashes_that_the_code_checks():
    page = (ROOT / "book/reproduce.md").read_text(encoding="utf-8")
    for name, (_, digest) in fetch.FILES.items():
        assert f"| `{name}` | `{digest}` |" in page
