"""Witnesses: Jacobians by autograd of the population loss, differences of the flow, blocks by hand, the flow itself."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from companion.theory.predictor import (
    State,
    escape_rate,
    flow,
    linearised,
    mixing_margin,
    resting_state,
    velocity,
)
from tests.theory.linear_flow import gaussian

LAWS = [
    ({}, False),
    ({"alpha_p": 3.0, "eta": 0.07}, False),
    ({"symmetric": True}, False),
    ({"symmetric": True, "alpha_p": 3.0, "eta": 0.07}, False),
    ({"alpha_p": 0.4, "eta": 0.07, "beta": 0.3}, True),
    ({"symmetric": True, "alpha_p": 3.0, "eta": 0.07, "beta": 0.3}, True),
    ({"symmetric": True, "beta": 0.0}, True),
]
SHAPES = [(1, 1), (2, 2), (3, 5), (4, 3)]


def data(m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments that do not commute."""
    A, B = gaussian(m, 2 * m, seed=seed), gaussian(m, 2 * m, seed=seed + 100)
    return A @ A.T / (2 * m), B @ B.T / (8 * m)


def anywhere(k: int, m: int, *, slow: bool, symmetric: bool, seed: int = 0) -> State:
    """A state that is not at rest."""
    Wp = gaussian(k, k, seed=seed + 20)
    Wa = gaussian(k, m, seed=seed + 30) if slow else None
    return State(gaussian(k, m, seed=seed + 10), (Wp + Wp.T) / 2 if symmetric else Wp, Wa)


def moved(state: State, by: torch.Tensor, symmetric: bool) -> State:
    """The state displaced by a vector of the coordinates that `linearised` promises."""
    k, m = state.W.shape
    places = [(i, j) for i in range(k) for j in range(k) if i <= j or not symmetric]
    dWp = torch.zeros_like(state.Wp)
    for value, (i, j) in zip(by[k * m :], places, strict=False):
        unit = torch.zeros_like(state.Wp)
        unit[i, j] = 1
        if symmetric:
            unit[j, i] = 1
        dWp = dWp + value * unit
    Wa = None if state.Wa is None else state.Wa + by[k * m + len(places) :].view(k, m)
    return State(state.W + by[: k * m].view(k, m), state.Wp + dWp, Wa)


def coordinates(d: State, symmetric: bool) -> torch.Tensor:
    k = len(d.Wp)
    Wp = torch.stack([d.Wp[i, j] for i in range(k) for j in range(k) if i <= j or not symmetric])
    return torch.cat([d.W.flatten(), Wp, *([] if d.Wa is None else [d.Wa.flatten()])])


def dimension(state: State, symmetric: bool) -> int:
    k, m = state.W.shape
    return k * m * (1 if state.Wa is None else 2) + (k * (k + 1) // 2 if symmetric else k * k)


def descent(state: State, X, X_aug, alpha_p=1.0, beta=0.0, eta=0.0, symmetric=False) -> State:
    """The flow from the loss: minus its gradient in W and W_p alone, whatever the target is, and decay."""

    def loss(W, Wp, target):
        return (Wp @ W @ (X + X_aug) * (Wp @ W)).sum() / 2 - (Wp @ W @ X * target).sum()

    W, Wp, Wa = state
    gW, gWp = torch.func.grad(loss, argnums=(0, 1))(W, Wp, W if Wa is None else Wa)
    gWp = (gWp + gWp.T) / 2 if symmetric else gWp
    return State(-gW - eta * W, -alpha_p * gWp - eta * Wp, None if Wa is None else beta * (W - Wa))


def commuting(kappa, variances, seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments with these correlations and variances of the inputs in common directions."""
    kappa, variances = (torch.as_tensor(part, dtype=torch.float64) for part in (kappa, variances))
    Q = torch.eye(len(kappa), dtype=torch.float64)
    if seed is not None:
        Q = torch.linalg.qr(gaussian(len(kappa), len(kappa), seed=seed)).Q
    return (Q * kappa * variances) @ Q.T, (Q * (1 - kappa) * variances) @ Q.T


def draw_pair(seed: int) -> dict:
    """Two modes; short or long rows, so that either sign of the margin is common."""
    rng = np.random.default_rng(seed)
    kappa = np.sort(rng.uniform(0.05, 1, 2))[::-1].copy()
    return {
        "kappa": torch.from_numpy(kappa),
        "lengths": torch.from_numpy(np.exp(rng.uniform(-3, 0.5, 2))),
        "alpha_p": float(np.exp(rng.uniform(-1.5, 1.5))),
        "variances": np.exp(rng.uniform(-1, 1, 2)),
        "beta": float(np.exp(rng.uniform(-4, 3))),
    }


def rates(pair: dict, seed: int | None = None) -> dict[str, float]:
    """Escape rates of a pair in each law, in directions that are not the axes."""
    X, X_aug = commuting(pair["kappa"], pair["variances"], seed)
    fast, slow = (
        resting_state(X, X_aug, 2, pair["lengths"], alpha_p=pair["alpha_p"], slow=own) for own in (False, True)
    )
    alpha_p, beta = pair["alpha_p"], pair["beta"]
    return {
        "symmetric": escape_rate(fast, X, X_aug, alpha_p=alpha_p, symmetric=True),
        "free": escape_rate(fast, X, X_aug, alpha_p=alpha_p),
        "symmetric, slow": escape_rate(slow, X, X_aug, alpha_p=alpha_p, beta=beta, symmetric=True),
        "free, slow": escape_rate(slow, X, X_aug, alpha_p=alpha_p, beta=beta),
    }


def minors(matrix: torch.Tensor, size: int) -> float:
    """The sum of the principal minors: the product of the eigenvalues where the others are 0."""
    return sum(float(torch.linalg.det(matrix[list(i)][:, list(i)])) for i in combinations(range(len(matrix)), size))


def mixing_blocks(pair: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks of the drive's entries (1, 2), (2, 1), and with a slow target also of W - W_a, by hand."""
    (k1, k2), (w1, w2), (s1, s2) = (part.tolist() for part in (pair["kappa"], pair["lengths"], pair["variances"]))
    a, beta, gap = pair["alpha_p"] / 2, pair["beta"], k1 - k2
    two = [[-s2 * (gap * k1 + a * w2 * w2), -s2 * a * w1 * w2], [-s1 * a * w1 * w2, s1 * (gap * k2 - a * w1 * w1)]]
    four = [
        [-s2 * (k1 * k1 + a * w2 * w2), -s2 * a * w1 * w2, s2 * k2 * beta, 0],
        [-s1 * a * w1 * w2, -s1 * (k2 * k2 + a * w1 * w1), 0, s1 * k1 * beta],
        [k1, 0, -beta, 0],
        [0, k2, 0, -beta],
    ]
    return torch.tensor(two, dtype=torch.float64), torch.tensor(four, dtype=torch.float64)


class TestLinearised:
    @pytest.mark.parametrize(("law", "slow"), LAWS)
    @pytest.mark.parametrize(("k", "m"), SHAPES)
    def test_it_is_the_jacobian_of_the_descent_on_the_loss(self, law, slow, k, m):
        symmetric, (X, X_aug) = law.get("symmetric", False), data(m)
        state = anywhere(k, m, slow=slow, symmetric=symmetric, seed=k)

        def speed(by):
            return coordinates(descent(moved(state, by, symmetric), X, X_aug, **law), symmetric)

        still = torch.zeros(dimension(state, symmetric), dtype=torch.float64)
        J = linearised(state, X, X_aug, **law)
        assert J.dtype == torch.float64
        assert torch.allclose(J, torch.autograd.functional.jacobian(speed, still), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("law", "slow"), LAWS)
    @pytest.mark.parametrize("rest", [False, True])
    def test_it_is_the_difference_quotient_of_the_flow(self, law, slow, rest):
        symmetric, (X, X_aug) = law.get("symmetric", False), data(4)
        state = anywhere(3, 4, slow=slow, symmetric=symmetric)
        state = resting_state(X, X_aug, 3, slow=slow) if rest else state
        J = linearised(state, X, X_aug, **law)
        assert J.shape == 2 * (dimension(state, symmetric),)

        def quotient(unit, h):
            ahead, behind = (velocity(moved(state, s * h * unit, symmetric), X, X_aug, **law) for s in (1, -1))
            return (coordinates(ahead, symmetric) - coordinates(behind, symmetric)) / (2 * h)

        for unit, column in zip(torch.eye(len(J), dtype=torch.float64), J.T, strict=True):
            exact = (4 * quotient(unit, 0.25) - quotient(unit, 0.5)) / 3  # the flow is a cubic polynomial
            assert torch.allclose(column, exact, rtol=0, atol=1e-12)

    def test_single_precision_is_no_less_exact(self):
        X, X_aug = torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2)
        state = State(torch.tensor([[0.1, 0.7]]), torch.tensor([[0.3]]), torch.tensor([[0.2, 0.4]]))
        exact = State(*(part.double() for part in state))
        assert torch.equal(linearised(state, X, X_aug, beta=0.1), linearised(exact, X, X_aug, beta=0.1))

    @pytest.mark.parametrize(("law", "slow"), LAWS)
    def test_turning_the_inputs_turns_it(self, law, slow):
        symmetric, (X, X_aug), Q = law.get("symmetric", False), data(4), torch.linalg.qr(gaussian(4, 4, seed=7)).Q
        state = anywhere(3, 4, slow=slow, symmetric=symmetric)
        other = State(state.W @ Q.T, state.Wp, state.Wa @ Q.T if slow else None)
        turn = torch.kron(torch.eye(3, dtype=torch.float64), Q.contiguous())
        between = torch.eye(6 if symmetric else 9, dtype=torch.float64)
        T = torch.block_diag(turn, between, *([turn] if slow else []))
        J, turned = linearised(state, X, X_aug, **law), linearised(other, Q @ X @ Q.T, Q @ X_aug @ Q.T, **law)
        assert torch.allclose(turned @ T, T @ J, rtol=0, atol=1e-12)
        assert not torch.allclose(J @ T, T @ J, rtol=0, atol=0.1)  # control


class TestRestingState:
    @pytest.mark.parametrize("slow", [False, True])
    @pytest.mark.parametrize("alpha_p", [1.0, 0.3])
    @pytest.mark.parametrize("lengths", [None, [0.3, 2.0, 1.0]])
    def test_it_rests_with_the_leading_correlations(self, slow, alpha_p, lengths):
        X, X_aug = data(5)
        asked = None if lengths is None else torch.tensor(lengths)
        rest = resting_state(X, X_aug, 3, asked, alpha_p=alpha_p, slow=slow)
        d = velocity(rest, X, X_aug, alpha_p=alpha_p, beta=0.3 * slow)
        assert all(part is None or part.abs().max() < 1e-12 for part in d)
        largest = np.sort(np.linalg.eigvals((X @ torch.linalg.inv(X + X_aug)).numpy()).real)[::-1][:3]
        assert rest.Wp.diagonal().numpy() == pytest.approx(largest)
        assert torch.equal(rest.Wp, torch.diag(rest.Wp.diagonal()))
        squares = (rest.W @ rest.W.T).diagonal()
        balanced = (rest.Wp.T @ rest.Wp).diagonal() / alpha_p
        expected = balanced if asked is None else asked.double() ** 2
        assert torch.allclose(squares, expected, atol=1e-12)
        assert {part.dtype for part in rest if part is not None} == {torch.float64}
        assert (rest.Wa is not None) == slow
        if rest.Wa is not None:
            assert torch.equal(rest.Wa, rest.W)
            assert rest.Wa.data_ptr() != rest.W.data_ptr()

    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("slow", [False, True])
    def test_states_of_rest_come_in_families(self, symmetric, slow):
        X, X_aug = data(5)
        rest = resting_state(X, X_aug, 3, slow=slow)
        A = gaussian(3, 3, seed=2)
        turning, stretching = (A - A.T), torch.diag(A.diagonal())
        J = linearised(rest, X, X_aug, symmetric=symmetric, beta=0.2 * slow)
        for way, stays in ((turning, True), (stretching, True), (A, not symmetric)):
            d = State(way @ rest.W, way @ rest.Wp - rest.Wp @ way, way @ rest.W if slow else None)
            assert (float((J @ coordinates(d, symmetric)).abs().max()) < 1e-12) == stays
        assert abs(escape_rate(rest, X, X_aug)) < 1e-9


class TestMixing:
    def test_the_margin_tells_by_its_sign(self):
        tally = {name: [0, 0] for name in ("symmetric", "free", "symmetric, slow", "free, slow")}
        for seed in range(260):
            pair = draw_pair(seed)
            for name, rate in rates(pair, seed).items():
                margin = mixing_margin(pair["kappa"], pair["lengths"], pair["alpha_p"], name.startswith("symmetric"))
                if abs(float(margin)) > 1e-3:
                    assert (float(margin) < 0) == (rate > 1e-9), (seed, name, float(margin), rate)
                    tally[name][rate > 1e-9] += 1
        assert all(min(counts) >= 40 and sum(counts) >= 200 for counts in tally.values()), tally

    def test_any_pair_of_many_modes_may_mix(self):
        counts = [0, 0]
        for seed in range(80):
            rng = np.random.default_rng(seed)
            kappa = torch.from_numpy(np.sort(rng.uniform(0.05, 1, 6))[::-1].copy())
            X, X_aug = commuting(kappa, np.exp(rng.uniform(-1, 1, 6)), seed)
            lengths = torch.from_numpy(np.sort(np.exp(rng.uniform(-2, 0.5, 4)))[::-1].copy())
            rest = resting_state(X, X_aug, 4, lengths)
            for symmetric in (True, False):
                i, j = torch.triu_indices(4, 4, 1)
                pairs = torch.stack([kappa[i], kappa[j]], 1), torch.stack([lengths[i], lengths[j]], 1)
                least = float(mixing_margin(*pairs, symmetric=symmetric).min())
                rate = escape_rate(rest, X, X_aug, symmetric=symmetric)
                if abs(least) > 1e-3:
                    assert (least < 0) == (rate > 1e-9)
                    counts[least < 0] += 1
        assert min(counts) >= 20

    def test_the_blocks_by_hand_are_those_of_the_flow(self):
        for seed in range(40):
            pair = draw_pair(seed)
            X, X_aug = commuting(pair["kappa"], pair["variances"])
            off = [1, 2, 5]  # W_12, W_21, and the predictor's entry off the diagonal
            for hand, slow in zip(mixing_blocks(pair), (False, True), strict=True):
                rest = resting_state(X, X_aug, 2, pair["lengths"], alpha_p=pair["alpha_p"], slow=slow)
                beta = pair["beta"] * slow
                J = linearised(rest, X, X_aug, alpha_p=pair["alpha_p"], beta=beta, symmetric=True)
                inside = [*off, 8, 9] if slow else off
                outside = [i for i in range(len(J)) if i not in inside]
                assert J[inside][:, outside].abs().max() == J[outside][:, inside].abs().max() == 0
                found = torch.linalg.eigvals(J[inside][:, inside])
                assert float(found.imag.abs().max()) < 1e-6 * float(found.abs().max())  # nothing turns
                expected = torch.cat([torch.linalg.eigvals(hand).real, torch.zeros(1)]).sort().values
                assert torch.allclose(found.real.sort().values, expected, atol=1e-9 * float(hand.abs().max()))

    def test_a_slow_target_only_multiplies_the_determinant(self):
        for seed in range(40):
            pair = draw_pair(seed)
            law = {"alpha_p": pair["alpha_p"], "symmetric": True}
            X, X_aug = commuting(pair["kappa"], pair["variances"])
            fast, slow = (resting_state(X, X_aug, 2, pair["lengths"], slow=own) for own in (False, True))
            two = minors(linearised(fast, X, X_aug, **law)[[1, 2, 5]][:, [1, 2, 5]], 2)
            inside = [1, 2, 5, 8, 9]
            four = minors(linearised(slow, X, X_aug, beta=pair["beta"], **law)[inside][:, inside], 4)
            assert four == pytest.approx(pair["beta"] ** 2 * two, rel=1e-8)
            by_hand = [float(torch.linalg.det(block)) for block in mixing_blocks(pair)]
            assert [two, four] == pytest.approx(by_hand, rel=1e-8)
            margin = float(mixing_margin(pair["kappa"], pair["lengths"], pair["alpha_p"]))
            gap = float(pair["kappa"][0] - pair["kappa"][1])
            assert two == pytest.approx(float(np.prod(pair["variances"])) * gap * margin, rel=1e-8)

    def test_a_slow_target_delays_and_cannot_heal(self):
        seen = 0
        for seed in range(120):
            pair = draw_pair(seed)
            fast, (k1, k2) = rates(pair, seed)["symmetric"], pair["kappa"].tolist()
            if fast < 1e-3:
                continue
            betas = [1e-6, 1e-4, 1e-2, 0.3, 3.0, 30.0, 1e5]
            slow = [rates(pair | {"beta": beta}, seed)["symmetric, slow"] for beta in betas]
            assert all(0 < rate < min(fast, beta * (k1 / k2 - 1)) for rate, beta in zip(slow, betas, strict=True))
            assert all(a < b for a, b in pairwise(slow))
            assert slow[-1] == pytest.approx(fast, rel=1e-2)
            w2, w1 = pair["lengths"].flip(0).tolist()
            other = torch.tensor([w2, w1], dtype=torch.float64)
            brake = torch.diag(pair["kappa"] ** 2) + pair["alpha_p"] / 2 * torch.outer(other, other)
            slope = k1 * k2 / float(torch.linalg.eigvalsh(brake)[0]) - 1
            assert slow[0] == pytest.approx(1e-6 * slope, rel=3e-3)
            assert all(rate < beta * slope for rate, beta in zip(slow[1:], betas[1:], strict=True))
            seen += 1
        assert seen >= 20

    def test_balanced_modes_never_mix(self):
        for seed in range(60):
            pair = draw_pair(seed)
            pair["lengths"] = pair["kappa"] / pair["alpha_p"] ** 0.5
            k1, k2 = pair["kappa"].tolist()
            both = [mixing_margin(pair["kappa"], pair["lengths"], pair["alpha_p"], s) for s in (True, False)]
            assert [float(part) for part in both] == pytest.approx(
                [(k1 - k2) * (k1**2 - k1 * k2 + k2**2) / 2, k1**2 - k1 * k2 + k2**2]
            )
            assert min(both) > 0
            assert max(rates(pair, seed).values()) < 1e-9

    def test_symmetry_asks_for_more_than_twice(self):
        pairs = [draw_pair(seed) for seed in range(200)]
        kappa, lengths = (torch.stack([pair[name] for pair in pairs]) for name in ("kappa", "lengths"))
        kept, free = (mixing_margin(kappa, lengths, 1.5, symmetric) for symmetric in (True, False))
        assert kept.shape == free.shape == (200,)
        gap = kappa[:, 1] * (kappa[:, 0] - kappa[:, 1])
        assert (1.5 * lengths[:, 0] ** 2 > 2 * gap)[kept > 0].all()
        assert ((free > 0) & (kept < 0)).any()
        one = mixing_margin(kappa[3].float(), lengths[3].float(), 1.5)
        assert one.dtype == torch.float64
        assert float(one) == pytest.approx(float(kept[3]), rel=1e-5)


class TestEscapeRate:
    @pytest.mark.parametrize(("symmetric", "slow"), [(True, False), (True, True), (False, False), (False, True)])
    def test_the_flow_leaves_at_this_rate(self, symmetric, slow):
        X, X_aug = commuting([0.8, 0.4], [1.2, 0.9], seed=1)
        law = {"symmetric": symmetric, "beta": 0.3 * slow}
        rest = resting_state(X, X_aug, 2, torch.tensor([0.1, 0.12]), slow=slow)
        rate = escape_rate(rest, X, X_aug, **law)
        assert rate > 0.05
        nudge = 1e-7 * gaussian(dimension(rest, symmetric), seed=3)
        early, late = 4 / rate, 8 / rate
        path = flow(moved(rest, nudge, symmetric), X, X_aug, [early, late], **law)
        drive = velocity(path, X, X_aug, **law).W.norm(dim=(1, 2))
        assert math.log(drive[1] / drive[0]) / (late - early) == pytest.approx(rate, rel=0.01)

    def test_what_is_stable_stays(self):
        X, X_aug = commuting([0.8, 0.4], [1.2, 0.9], seed=1)
        rest = resting_state(X, X_aug, 2)
        for symmetric in (True, False):
            path = flow(moved(rest, 1e-4 * gaussian(7, seed=3), True), X, X_aug, [200.0], symmetric=symmetric)
            end = State(path.W[0], path.Wp[0])
            assert velocity(end, X, X_aug).W.norm() < 1e-9
            assert (end.W - rest.W).abs().max() < 1e-2
            assert escape_rate(end, X, X_aug, symmetric=symmetric) < 1e-9

    def test_the_directions_must_be_the_leading_ones(self):
        kappa = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
        X, X_aug = commuting(kappa, [1.0, 2.0, 0.5])
        rest = resting_state(X, X_aug, 3)
        for rows, expected in (([0, 1], 0.0), ([0, 2], 0.3 * 2.0 * (0.6 - 0.3)), ([1, 2], 0.3 * 1.0 * (0.9 - 0.3))):
            state = State(rest.W[rows], rest.Wp[rows][:, rows])
            for symmetric in (True, False):
                assert escape_rate(state, X, X_aug, symmetric=symmetric) == pytest.approx(expected, abs=1e-9)

    def test_neither_basis_enters(self):
        X, X_aug = data(4)
        state, Q, U = anywhere(3, 4, slow=True, symmetric=True), *(torch.linalg.qr(gaussian(n, n)).Q for n in (4, 3))
        other = State(U @ state.W @ Q.T, U @ state.Wp @ U.T, U @ state.Wa @ Q.T)
        for symmetric in (True, False):
            law = {"symmetric": symmetric, "beta": 0.2, "alpha_p": 2.0, "eta": 0.01}
            turned = escape_rate(other, Q @ X @ Q.T, Q @ X_aug @ Q.T, **law)
            assert turned == pytest.approx(escape_rate(state, X, X_aug, **law))

    def test_where_moments_do_not_commute_symmetry_destabilises_most(self):
        kept = []
        for seed in range(20):
            X, X_aug = data(8, seed)
            rest = resting_state(X, X_aug, 4)
            kept.append(escape_rate(rest, X, X_aug, symmetric=True))
            assert abs(escape_rate(rest, X, X_aug)) < 1e-9  # control: the predictor that is left free
        assert sum(rate > 1e-6 for rate in kept) >= 15


EYE, ONE = torch.eye(3), torch.ones(2, 3)
SKEW = torch.tensor([[1.0, 1.0, 0], [0, 1, 0], [0, 0, 1]])
PAIR = torch.tensor([0.8, 0.4])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: resting_state(EYE, EYE, 0), "resting_state: need 1 <= k <= 3 .* k=0"),
        (lambda: resting_state(EYE, EYE, 4), "k=4"),
        (lambda: resting_state(EYE, EYE, 1, alpha_p=0.0), r"alpha_p > 0, got k=1, alpha_p=0\.0"),
        (lambda: resting_state(EYE, EYE, 1, alpha_p=math.nan), "alpha_p=nan"),
        (lambda: resting_state(EYE, EYE, 2, torch.ones(3)), "resting_state: need 2 positive lengths"),
        (lambda: resting_state(EYE, EYE, 2, torch.tensor([1.0, 0.0])), r"lengths, .*got \[1\.0, 0\.0\]"),
        (lambda: resting_state(EYE, EYE, 2, torch.tensor([1.0, -2.0])), "positive lengths"),
        (lambda: resting_state(EYE, EYE, 2, torch.tensor([1.0, math.nan])), "positive lengths"),
        (lambda: resting_state(0 * EYE, EYE, 2), "positive lengths"),  # nothing to learn: balanced lengths are 0
        (lambda: resting_state(SKEW, EYE, 2), "X is not symmetric"),
        (lambda: resting_state(EYE, torch.eye(2), 2), "must both be"),
        (lambda: mixing_margin(PAIR.flip(0), PAIR), "mixing_margin: need correlations kappa_1 > kappa_2 > 0"),
        (lambda: mixing_margin(torch.tensor([0.5, 0.5]), PAIR), "kappa_1 > kappa_2"),
        (lambda: mixing_margin(torch.tensor([0.5, 0.0]), PAIR), "kappa_2 > 0, got"),
        (lambda: mixing_margin(torch.tensor([math.nan, 0.1]), PAIR), "nan"),
        (lambda: mixing_margin(PAIR, torch.tensor([0.0, 1.0])), "mixing_margin: need positive lengths and alpha_p"),
        (lambda: mixing_margin(PAIR, torch.tensor([1.0, -1.0])), "positive lengths"),
        (lambda: mixing_margin(PAIR, PAIR, 0.0), r"and 0\.0"),
        (lambda: mixing_margin(PAIR, PAIR, math.nan, symmetric=False), "and nan"),
        (lambda: linearised(State(ONE, EYE), EYE, EYE), r"linearised: W \(2, 3\), Wp \(3, 3\) and X \(3, 3\) do not"),
        (lambda: linearised(State(ONE, torch.eye(2)), torch.eye(2), torch.eye(2)), "do not fit"),
        (lambda: linearised(State(ONE, torch.eye(2), torch.ones(2, 2)), EYE, EYE), "do not fit"),
        (lambda: linearised(State(ONE, torch.eye(2)), SKEW, EYE), "linearised: X is not symmetric"),
        (lambda: linearised(State(ONE, torch.eye(2)), EYE, -0.5 * EYE), "X_aug has eigenvalue -0.5"),
        (lambda: escape_rate(State(ONE, EYE), EYE, EYE), "linearised: .*do not fit"),
    ],
)
def test_errors_teach(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
