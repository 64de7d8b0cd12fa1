"""Witnesses: autograd on whole losses against laws of modes, adaptive ODE solvers, earlier chapters, the table."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from companion.theory import message_passing, oversmoothing, predictor, riccati, spectral, stepwise
from companion.theory import one_flow_losses as full
from companion.theory.examples import random_graph
from companion.theory.one_flow import (
    aligned_state,
    balanced_state,
    half_time,
    integrate,
    laws,
    leak_rate,
    off_form,
    predictor_curve,
    stage_curve,
)
from companion.theory.spectra import principal_angles

ROWS = laws()
CLOSED = [name for name, law in ROWS.items() if law.curve and name != "infonce"]
EXACT = [name for name in ROWS if name != "infonce"]
LEARN = [name for name in EXACT if name not in ("optimal", "alignment", "stages")]
SOURCE = Path(__file__).resolve().parents[2] / "notebooks/05_one_flow.py"


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Case:
    """A random graph with its eigenvectors, three modes of it (not the leading ones) and a rotation."""

    def __init__(self, seed: int = 3, k: int = 3, leading: bool = False):
        graph = random_graph(14, 14, torch.Generator().manual_seed(seed))
        self.Abar, self.p = graph.normalized, graph.degree
        self.values, self.vectors, _ = graph.eigenpairs(graph.n)
        self.chosen = ([0, 1, 2] if leading else [1, 3, 4])[:k]
        self.gamma, self.V = self.values[self.chosen], self.vectors[:, self.chosen]
        self.Q = torch.linalg.qr(gaussian(k, k, seed=seed)).Q
        self.s = torch.tensor([0.7, 0.2, 0.4], dtype=torch.float64)[:k]


@pytest.fixture
def case() -> Case:
    return Case()


class TestEveryRow:
    """The whole loss, differentiated by autograd, against the law of one mode."""

    @pytest.mark.parametrize("name", EXACT)
    @pytest.mark.parametrize("options", [{}, {"invariance": 3.0, "follow": 2.0, "step": 1.0, "stages": 3}])
    def test_the_velocity_of_the_loss_is_that_of_its_modes(self, name, options, case):
        law = laws(**options)[name]
        parts = tuple(case.s * (1 + 0.3 * i) for i in range(len(law.parts)))  # out of balance, too
        found = law.flow(aligned_state(law, parts, case.V, case.Q), case.Abar, case.p)
        expected = aligned_state(law, law.mode(case.gamma, *parts), case.V, case.Q)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("name", [name for name in EXACT if ROWS[name].gain])  # two rows have no law in one number
    def test_gain_and_brake_are_the_law(self, name, case):
        law = ROWS[name]
        g, s = case.gamma, case.s
        torch.testing.assert_close(law.velocity(g, s), s * (g * law.gain(g, s) - law.brake(g, s)))

    @pytest.mark.parametrize("name", CLOSED)
    def test_the_closed_form_is_the_flow_of_the_loss(self, name, case):
        law, times = (
            ROWS[name],
            torch.tensor([0.0, 0.5, 2.0, 4.0], dtype=torch.float64),
        )  # later, rounding lets others in
        start = balanced_state(law, case.V * case.s @ case.Q.T)
        path = integrate(law, start, case.Abar, case.p, times, rtol=1e-12)
        s = law.curve(case.gamma, case.s, times[:, None])
        torch.testing.assert_close(path, case.V * s[:, None, :] @ case.Q.T, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("name", CLOSED)
    def test_the_closed_form_starts_where_it_should(self, name, case):
        torch.testing.assert_close(ROWS[name].curve(case.gamma, case.s, torch.tensor(0.0).double()), case.s)

    @pytest.mark.parametrize("name", EXACT)
    def test_the_end_is_at_rest_and_attracts(self, name, case):
        law = ROWS[name]
        end = law.ends(case.gamma, case.s)
        assert law.velocity(case.gamma, end).abs().max() < 1e-14
        if name == "optimal":
            return  # every size is at rest
        pushed = [law.velocity(case.gamma, end + push) for push in (-1e-3, 1e-3)]
        grows = (pushed[0] > 0) | (end == 0)
        assert bool(grows.all())
        assert bool((pushed[1] < 0).all())

    @pytest.mark.parametrize("name", LEARN)
    def test_from_a_small_start_it_ends_there(self, name):
        case, law = Case(k=2, leading=True), laws(invariance=3.0)[name]
        start = balanced_state(law, case.V * 0.3 @ case.Q.T)
        end = law.ends(case.gamma, case.s)
        if name == "vicreg":
            assert float(end.min()) == 0  # below the threshold 1 - 1/invariance
        last = integrate(
            law, start, case.Abar, case.p, torch.tensor([0.0, 4000.0]).double(), rtol=1e-8, method="LSODA"
        )[-1]
        torch.testing.assert_close(last, case.V * end @ case.Q.T, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("name", EXACT)
    def test_absent_eigenvectors_stay_absent(self, name, case):
        law, blind = ROWS[name], case.vectors[:, 2]
        F = gaussian(14, 3)
        F = F - torch.outer(blind, blind @ F)
        moved = law.flow(balanced_state(law, F), case.Abar, case.p)[0]
        assert float((blind @ moved).abs().max()) < 1e-12 * float(moved.abs().max())

    @pytest.mark.parametrize("name", EXACT)
    def test_the_flow_knows_the_graph_by_its_eigenvectors_only(self, name, case):
        law, state = ROWS[name], balanced_state(ROWS[name], gaussian(14, 3))
        inside = tuple(case.vectors.T @ x if letter == "F" else x for letter, x in zip(law.parts, state, strict=True))
        there = law.flow(inside, case.values, case.p)
        here = law.flow(state, case.Abar, case.p)
        torch.testing.assert_close(case.vectors @ there[0], here[0])
        for letter, a, b in zip(law.parts, there, here, strict=True):
            torch.testing.assert_close(case.vectors @ a if letter == "F" else a, b)

    @pytest.mark.parametrize("name", EXACT)
    def test_gain_and_brake_are_those_of_the_proposition(self, name, case):
        """Nothing aligned, predictors neither symmetric nor in balance: Psi and B as written in the table's source."""
        state = tuple(gaussian(14 if x == "F" else 2, 2, seed=i) for i, x in enumerate(ROWS[name].parts))
        F, eye = state[0], torch.eye(2).double()
        G, C = F.T @ F, F.T @ case.Abar @ F
        T = state[-1] if name == "slow" else sum(state) / len(state) if name == "stages" else F
        sigma, axes = torch.linalg.eigh(G)
        W = {"set": axes * sigma.sqrt() @ axes.T, "copied": G, "optimal": torch.linalg.solve(G, C)}
        W = W[name] if name in W else state[1] if name in ("trained", "slow") else eye
        gain, brake = {
            "spectral": (4 * eye, 4 * G),
            "barlow": (4 * (eye - C), 0 * eye),
            "vicreg": (5 * eye, eye + 4 * G),
            "alignment": (2 * eye, 2 * eye),
        }.get(name, (W.T, W @ W.T))
        found = ROWS[name].flow(state, case.Abar, case.p)[0]
        torch.testing.assert_close(found, case.Abar @ T @ gain - F @ brake, rtol=1e-11, atol=1e-11)

    def test_the_columns_of_infonce_are_others(self, case):
        F = (gaussian(14, 2),)
        assert off_form(ROWS["spectral"], F, case.Abar, case.p) < 1e-12
        assert off_form(ROWS["infonce"], F, case.Abar, case.p) > 1e-3
        with pytest.raises(ValueError, match="features alone"):
            off_form(ROWS["trained"], (*F, torch.eye(2).double()), case.Abar, case.p)
        with pytest.raises(ValueError, match="2 k < N"):
            off_form(ROWS["spectral"], (gaussian(14, 7),), case.Abar, case.p)

    def test_out_of_balance_it_ends_elsewhere(self, case):
        """The difference of squares is conserved; a predictor that starts above gamma lets small features die."""
        law, g = ROWS["trained"], torch.tensor([0.8, 0.6, 0.5]).double()
        s0, p0 = torch.tensor([0.7, 0.1, 0.05]).double(), torch.tensor([0.3, 0.7, 0.2]).double()
        start = aligned_state(law, (s0, p0), torch.eye(3).double(), torch.eye(3).double())
        last = integrate(law, start, g, case.p[:3], torch.tensor([0.0, 400.0]).double(), rtol=1e-9)[-1].diagonal()
        torch.testing.assert_close(last, (g**2 + s0**2 - p0**2).clamp(min=0).sqrt(), rtol=0, atol=1e-6)

    def test_stages_are_a_polynomial_of_the_graph(self, case):
        law, F = ROWS["stages"], gaussian(14, 3)
        last = integrate(law, balanced_state(law, F), case.Abar, case.p, torch.tensor([0.0, 6.0]).double())[-1]
        phi = stage_curve(case.values, 1.0, 6.0, law.step, 2)
        torch.testing.assert_close(last, case.vectors @ (phi[:, None] * (case.vectors.T @ F)))

        def tangent(F):
            Y = case.vectors.T @ F
            return float(torch.linalg.matrix_norm(Y[3:] @ torch.linalg.inv(Y[:3]), 2))

        assert tangent(last) <= tangent(F) * float(phi[3] / phi[2])

    def test_a_slow_target_has_the_same_threshold(self, case):
        law, end = ROWS["slow"], case.gamma
        state = aligned_state(law, (end, end, end), case.V, case.Q)
        for i in (0, 2, 7):
            v, q, p = case.vectors[:, i], case.Q[:, 1], float(case.gamma[1])
            rate, g = torch.zeros(2, 2).double(), float(case.values[i])
            for column, part in enumerate((0, 2)):
                bumped = [
                    law.flow(
                        tuple(x + h * torch.outer(v, q) if n == part else x for n, x in enumerate(state)),
                        case.Abar,
                        case.p,
                    )
                    for h in (1e-5, -1e-5)
                ]
                rate[:, column] = torch.stack([v @ (bumped[0][n] - bumped[1][n]) @ q / 2e-5 for n in (0, 2)])
            assert float(rate.trace()) == pytest.approx(-(p**2 + 0.5), abs=1e-8)
            assert float(torch.linalg.det(rate)) == pytest.approx(0.5 * p * (p - g), abs=1e-8)

    @pytest.mark.parametrize("name", [name for name in LEARN if name != "slow"])
    def test_a_rest_lets_new_eigenvectors_in_by_its_gain(self, name):
        case, law = Case(k=2), laws(invariance=1.01)[name]
        end = law.ends(case.gamma, case.s)
        state = aligned_state(law, (end,) * len(law.parts), case.V, case.Q)
        for j in range(2):
            for i in (0, 2, 7):
                rate = leak_rate(law, state, case.Abar, case.p, case.vectors[:, i], case.Q[:, j])
                expected = law.gain(case.gamma, end)[j] * (case.values[i] - case.gamma[j])
                assert rate == pytest.approx(float(expected), abs=1e-8)


class TestInfoNCE:
    def test_its_law_holds_to_fifth_order(self, case):
        law, errors = ROWS["infonce"], []
        for scale in (0.04, 0.02, 0.01):
            (found,) = law.flow(aligned_state(law, (scale * case.s,), case.V, case.Q), case.Abar, case.p)
            (s,) = law.mode(case.gamma, scale * case.s)
            errors.append(float((found - case.V * s @ case.Q.T).norm()))
        assert all(a / b == pytest.approx(32, rel=0.02) for a, b in pairwise(errors))

    def test_the_constant_rests(self, case):
        """Alone, and beside other modes to fifth order."""
        law = ROWS["infonce"]
        (alone,) = law.flow((torch.outer(case.vectors[:, 0], torch.tensor([0.6, 0.8]).double()),), case.Abar, case.p)
        assert float(alone.abs().max()) < 1e-15
        V = torch.cat([case.vectors[:, :1], case.V[:, :2]], 1)
        moved = [
            law.flow((V * s @ case.Q.T,), case.Abar, case.p)[0] for s in (torch.full((3,), e) for e in (0.02, 0.01))
        ]
        first, second = (float((x @ case.Q[:, 0]).norm()) for x in moved)
        assert first / second == pytest.approx(32, rel=0.05)

    @pytest.mark.parametrize("temperature", [0.4, 1.0])
    def test_its_velocity_by_the_formula(self, temperature, case):
        F = gaussian(14, 3)
        (expected,) = full.info_nce_flow(temperature)((F,), case.Abar, case.p)
        torch.testing.assert_close(full.info_nce_velocity(F, case.Abar, case.p, temperature), expected)

    def test_the_loss_is_that_of_message_passing(self, case):
        F = gaussian(14, 3)
        root = case.p.sqrt()[:, None]
        A = root * case.Abar * root.T
        expected = message_passing.contrastive_loss(F / root, A, 0.7)
        assert float(full.info_nce_loss(F, case.Abar, case.p, 0.7)) == pytest.approx(float(expected), abs=1e-12)


class TestLossesAsTheyWereDefined:
    def test_spectral_and_alignment(self, case):
        F = gaussian(14, 3)
        factored = (case.Abar - F @ F.T).square().sum() - case.Abar.square().sum()
        torch.testing.assert_close(full.spectral_loss(F, case.Abar), factored)
        torch.testing.assert_close(full.alignment_loss(F, case.Abar), message_passing.alignment_loss(F, case.Abar))

    def test_vicreg_at_one_is_the_spectral_loss(self, case):
        F = gaussian(14, 3)
        torch.testing.assert_close(full.vicreg_loss(F, case.Abar, 1.0), full.spectral_loss(F, case.Abar) + 3)

    def test_barlow_twins_is_that_of_chapter_two(self, case):
        F = gaussian(14, 3)
        assert float(full.barlow_loss(F, case.Abar)) == pytest.approx(stepwise.barlow_loss(F.T, case.Abar))

    def test_a_siamese_loss_is_an_expectation_over_pairs(self, case):
        F, T, W = gaussian(14, 2), gaussian(14, 2, seed=1), gaussian(2, 2, seed=2)
        root = case.p.sqrt()[:, None]
        A, U, targets = root * case.Abar * root.T, F / root, T / root
        gaps = ((U @ W)[:, None] - targets[None]).square().sum(-1)
        torch.testing.assert_close(full.siamese_loss(F, W, T, case.Abar), 0.5 * (A * gaps).sum())

    def test_the_optimal_predictor_has_no_gradient_left(self, case):
        F = gaussian(14, 3)
        W = full.least_loss_predictor(F, case.Abar)
        (left,) = full.descend(lambda V: full.siamese_loss(F, V, F, case.Abar), W)
        assert float(left.abs().max()) < 1e-12
        torch.testing.assert_close(W, oversmoothing.optimal_predictor(F, case.Abar))


class TestAgainstEarlierChapters:
    def test_spectral_flow_from_any_start(self, case):
        F, times = 0.3 * gaussian(14, 3), torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)
        path = integrate(ROWS["spectral"], (F,), case.Abar, case.p, times, rtol=1e-11)
        for t, found in zip(times.tolist(), path, strict=True):
            closed = spectral.flow(case.Abar, F, t)
            torch.testing.assert_close(found @ found.T, closed @ closed.T, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            ROWS["spectral"].curve(case.gamma, case.s, times[2]) ** 2, riccati.mode_curve(case.gamma, case.s**2, 2.0)
        )

    def test_the_trained_predictor_is_that_of_chapter_three(self, case):
        p, s = torch.tensor([0.1, 0.5, 0.3]).double(), case.s
        g = case.gamma
        found = ROWS["trained"].mode(g, s, p)
        p_dot, s_dot, _ = predictor.mode_velocity(p, g * s**2, 1.0, sigma2=1 - g, gamma=g)
        torch.testing.assert_close(found[1], p_dot)
        torch.testing.assert_close(2 * g * s * found[0], s_dot)  # chapter 3 has the eigenvalue of C

    def test_barlow_twins_is_that_of_chapter_two(self, case):
        t = torch.tensor(0.8).double()
        torch.testing.assert_close(
            ROWS["barlow"].curve(case.gamma, case.s, t), stepwise.singular_values(case.gamma, case.s, t)
        )

    def test_stages_are_those_of_chapter_four(self, case):
        history = torch.stack([gaussian(14, 2, seed=i) for i in range(3)])
        law = laws(step=0.4, stages=3)["stages"]
        moved = law.flow(tuple(history), case.Abar, case.p)
        following = oversmoothing.multi_stage_step(history, case.Abar, 0.4)
        torch.testing.assert_close(torch.stack([x + 0.4 * v for x, v in zip(history, moved, strict=True)]), following)


class TestPredictorCurve:
    @pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
    def test_it_solves_its_equation_from_below_and_above(self, power):
        gamma = torch.tensor([0.9, 0.5, 0.5, 0.0, 0.3], dtype=torch.float64)
        s0 = torch.tensor([0.05, 0.4, 1.7, 0.6, 0.3 ** (0.5 / power)], dtype=torch.float64)
        times = torch.tensor([0.0, 1.0, 30.0, 2000.0], dtype=torch.float64)

        def velocity(_, s):
            p = s ** (2 * power)
            return s * p * (gamma.numpy() - p)

        path = solve_ivp(velocity, (0, 2000), s0.numpy(), "LSODA", t_eval=times.numpy(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(
            predictor_curve(gamma, s0, times[:, None], power), torch.from_numpy(path.y.T.copy()), rtol=0, atol=1e-7
        )

    def test_limits(self):
        assert float(predictor_curve(0.7, 1e-200, 1e300)) == pytest.approx(0.7)
        assert float(predictor_curve(0.7, 0.0, 1e300)) == 0
        assert float(predictor_curve(0.7, 1e-9, 0.0)) == pytest.approx(1e-9, rel=1e-6)

    def test_it_composes(self):
        once = predictor_curve(0.6, 0.05, 37.0)
        twice = predictor_curve(0.6, predictor_curve(0.6, 0.05, 20.0), 17.0)
        assert float(once) == pytest.approx(float(twice), rel=1e-11)


class TestStageCurve:
    def test_it_is_the_recursion(self):
        gamma, history = 0.7, [1.0] * 4
        for n in range(1, 8):
            history.append(0.6 * history[-1] + 0.4 * gamma * sum(history[-3:]) / 3)
            assert float(stage_curve(gamma, 1.0, 0.4 * n, 0.4, 3)) == pytest.approx(history[-1], rel=1e-13)

    def test_its_rate_is_the_largest_root(self):
        gamma = torch.tensor([0.99, 0.5], dtype=torch.float64)
        late = [stage_curve(gamma, 1.0, 0.5 * n, 0.5, 4) for n in (300, 301)]
        torch.testing.assert_close(late[1] / late[0], oversmoothing.multi_stage_rate(gamma, 0.5, 4))

    def test_the_constant_stays(self):
        assert float(stage_curve(1.0, 0.3, 500.0, 0.5, 3)) == pytest.approx(0.3, rel=1e-12)


class TestWaiting:
    def test_the_wait_is_the_closed_form_of_chapter_one(self):
        found = half_time(ROWS["spectral"], 0.6, 1e-3)  # s^2 reaches a quarter of gamma where s reaches half of the end
        s0 = 1e-6
        assert found == pytest.approx(math.log((0.6 - s0) / s0 / 3) / (8 * 0.6), rel=1e-9)

    @pytest.mark.parametrize("name", [name for name in LEARN if name != "slow"])
    def test_it_is_where_the_curve_stands_at_half(self, name):
        law, (gamma, s0) = ROWS[name], torch.tensor([0.6, 0.02], dtype=torch.float64)
        t = torch.tensor(half_time(law, float(gamma), float(s0)), dtype=torch.float64)
        assert float(law.curve(gamma, s0, t)) == pytest.approx(float(law.ends(gamma, s0)) / 2, rel=1e-8)

    @pytest.mark.parametrize(("name", "m"), [("set", 1), ("copied", 2)])
    def test_predictors_wait_for_a_power_of_the_start(self, name, m):
        assert half_time(ROWS[name], 0.5, 1e-5) * m * 0.5 * (1e-5) ** m == pytest.approx(1, rel=1e-3)

    @pytest.mark.parametrize("name", ["spectral", "barlow", "vicreg"])
    def test_negatives_and_whitening_wait_for_a_logarithm(self, name):
        law = ROWS[name]
        rate = float(law.rate(torch.tensor(0.5).double()))
        waits = [half_time(law, 0.5, s0) for s0 in (1e-20, 1e-30)]
        assert (waits[1] - waits[0]) * rate == pytest.approx(10 * 2.302585093, rel=1e-8)

    def test_quadrature_of_the_law_itself(self):
        found = quad(lambda s: 1 / (s**2 * (0.6 - s)), 0.01, 0.3, epsabs=0, epsrel=1e-12, limit=200)[0]
        assert half_time(ROWS["set"], 0.6, 0.01) == pytest.approx(found, rel=1e-9)


class TestSpans:
    def test_scalar_gains_take_the_same_path_of_subspaces(self, case):
        F, t = 0.3 * gaussian(14, 3), 2.0
        ends = []
        for name, gain in (("spectral", 4), ("vicreg", 5), ("alignment", 2)):
            times = torch.tensor([0.0, t / gain], dtype=torch.float64)
            ends.append(integrate(ROWS[name], (F,), case.Abar, case.p, times, rtol=1e-12)[-1])
        power = torch.matrix_exp(t * case.Abar) @ F  # the power method in continuous time
        for end in ends:
            assert float(principal_angles(end, power).max()) < 1e-8

    def test_a_balanced_predictor_stays_in_balance(self, case):
        law = ROWS["trained"]
        F, W = balanced_state(law, gaussian(14, 3))
        F_dot, W_dot = law.flow((F, W), case.Abar, case.p)
        gram = F_dot.T @ F + F.T @ F_dot
        torch.testing.assert_close(gram, W_dot @ W.T + W @ W_dot.T)


class TestErrors:
    @pytest.mark.parametrize("name", ["temperature", "invariance", "follow", "step"])
    @pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
    def test_parameters(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            laws(**{name: value})

    def test_steps_and_stages(self):
        with pytest.raises(ValueError, match="a step at most 1"):
            laws(step=1.5)
        with pytest.raises(ValueError, match="at least 1, got 0"):
            laws(stages=0)
        with pytest.raises(ValueError, match="at least one stage"):
            stage_curve(0.5, 1.0, 1.0, 0.5, 0)

    def test_curves_and_times(self):
        with pytest.raises(ValueError, match="gamma belongs to Abar"):
            predictor_curve(-0.1, 0.1, 1.0)
        with pytest.raises(ValueError, match="no law in one number"):
            half_time(ROWS["slow"], 0.5, 0.1)
        with pytest.raises(ValueError, match="half of where"):
            half_time(ROWS["alignment"], 0.5, 0.1)

    def test_times_between_two_steps(self, case):
        law = ROWS["stages"]
        with pytest.raises(ValueError, match=r"in steps of 0\.5"):
            integrate(law, balanced_state(law, gaussian(14, 2)), case.Abar, case.p, torch.tensor([0.0, 0.7]).double())

    def test_a_solver_that_gives_up(self, case):
        wild = replace(ROWS["spectral"], flow=lambda state, normalized, degree: (state[0] ** 2,))  # infinite at t = 1
        with pytest.raises(ValueError, match="gave up on Spectral"):
            integrate(wild, (torch.ones(3, 1).double(),), case.Abar, case.p, torch.tensor([0.0, 2.0]).double())


class TestTheTable:
    """The table that a reader sees is written by hand: it must say what the records say."""

    @pytest.fixture
    def rows(self) -> dict[str, str]:
        text = re.sub(r"^# ?", "", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
        tables = re.findall(r"^```\{list-table\}[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        (table,) = (table for table in tables if ROWS["spectral"].name in table)
        _, *rows = re.split(r"^\* - ", table, flags=re.MULTILINE)[1:]
        return {row.split("\n")[0].strip("* "): " ".join(row.split()) for row in rows}

    def test_it_has_every_row_in_order(self, rows):
        assert list(rows) == [law.name for law in ROWS.values()]

    @pytest.mark.parametrize("name", ROWS)
    @pytest.mark.parametrize("field", ["descends", "law", "growth", "end", "order", "keeps", "closed", "proved"])
    def test_a_cell_says_what_the_record_says(self, rows, name, field):
        assert getattr(ROWS[name], field) in rows[ROWS[name].name]
