"""Witnesses: naive loops over runs and updates, the slow flow, the stationary law, a run that is cut in two."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from companion.lab import majority
from companion.lab.majority import Recipe, Runs, run
from companion.theory.flatness.drift import step_noise
from companion.theory.flatness.fluctuation import stationary_excess
from companion.theory.flatness.majority_trace import flattest, hessian, root_trace, trace
from companion.theory.flatness.slow_flow import adam_slow_flow, slow_flow
from companion.theory.flatness.soft_majority import Point, excess_loss, project, soft_majority, start, transverse

LANGUAGE = soft_majority(torch.tensor([0.9, 0.9, 0.5], dtype=torch.float64))


def drawn(seed: int = 1, hidden: int = 4) -> Point:
    return start(LANGUAGE, hidden, torch.Generator().manual_seed(seed))


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def wide() -> Point:
    """A sharp start: much of the representation is transverse."""
    return start(LANGUAGE, 8, torch.Generator().manual_seed(1), 2.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("labels", ["sampled", "soft"])
def test_runs_are_those_of_a_loop_over_runs_and_updates(optimizer, labels):
    recipe = Recipe(steps=5, lr=0.1, batch=3, optimizer=optimizer, labels=labels, runs=4, every=2, seed=7)
    begin = Point(drawn().a, drawn().W + 0.1)  # off the manifold, where soft labels move it too
    found, generator, rows, tokens = run(begin, LANGUAGE, recipe), torch.Generator().manual_seed(7), [], []
    for _ in range(5):
        rows.append(torch.randint(8, (4, 3), generator=generator))
        p = LANGUAGE.truth[rows[-1]]
        tokens.append(torch.bernoulli(p, generator=generator) if labels == "sampled" else p)
    assert found.steps.tolist() == [0, 2, 4, 5]
    for s in range(4):
        a, W = (x.clone().requires_grad_() for x in begin)
        kind = torch.optim.SGD([a, W], 0.1) if optimizer == "sgd" else torch.optim.Adam([a, W], 0.1)
        for r, x in zip(rows, tokens, strict=True):
            loss = torch.zeros(()).double()
            for i in range(3):
                q = torch.sigmoid(a @ W @ LANGUAGE.contexts[r[s, i]])
                loss = loss - (x[s, i] * q.log() + (1 - x[s, i]) * (1 - q).log()) / 3
            kind.zero_grad()
            loss.backward()
            kind.step()
        raw = Point(a.detach(), W.detach())
        on = project(raw, LANGUAGE)
        assert torch.allclose(found.points.a[-1, s], on.a, atol=1e-12)
        assert torch.allclose(found.points.W[-1, s], on.W, atol=1e-12)
        assert float(found.excess[-1, s]) == pytest.approx(float(excess_loss(raw, LANGUAGE)), abs=1e-12)
        assert float(found.trace[-1, s]) == pytest.approx(float(trace(on, LANGUAGE)), rel=1e-10)
        assert float(found.root_trace[-1, s]) == pytest.approx(float(root_trace(on, LANGUAGE)), rel=1e-10)
        assert float(found.transverse[-1, s]) == pytest.approx(float(transverse(on).square().sum()), rel=1e-9)


def test_gradients_are_among_those_that_theory_enumerates():
    point, recipe = drawn(), Recipe(runs=50)
    model = Runs(point, 50)
    loss = majority.objective(model, LANGUAGE, recipe)
    loss(torch.Generator().manual_seed(0)).backward()
    assert isinstance(model.a.grad, Tensor)
    assert isinstance(model.W.grad, Tensor)
    listed, _ = step_noise(point, LANGUAGE)
    far = (model.a.grad[:, None] - listed.a).norm(dim=-1) + (model.W.grad[:, None] - listed.W).flatten(2).norm(dim=-1)
    assert float(far.min(1).values.max()) < 1e-12
    assert len(far.argmin(1).unique()) > 10  # and not all the same


def test_a_run_cut_in_two_ends_at_the_same_numbers(tmp_path):
    recipe = Recipe(steps=30, lr=0.1, runs=3, every=10, seed=2)
    options = dataclasses.replace(recipe.options, checkpoint_every=20)

    class CutError(RuntimeError):
        pass

    class Cutting(Recipe):
        @property
        def options(self):
            return options

    recipe = Cutting(**dataclasses.asdict(recipe))
    whole, looks = run(drawn(), LANGUAGE, recipe), []

    class Stops(majority.Watch):
        def __call__(self, done, model):
            if done == 30 and not looks:
                looks.append(done)
                raise CutError
            super().__call__(done, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(majority, "Watch", Stops)
        with pytest.raises(CutError):
            run(drawn(), LANGUAGE, recipe, checkpoint=tmp_path / "run.pt")
        again = run(drawn(), LANGUAGE, recipe, checkpoint=tmp_path / "run.pt")
    assert again.steps.tolist() == whole.steps.tolist() == [0, 10, 20, 30]
    assert torch.equal(again.points.W, whole.points.W)
    assert torch.equal(again.excess, whole.excess)


def test_sgd_follows_the_slow_flow_up_to_the_order_of_its_rate():
    point, gaps, rates = wide(), [], [0.1, 0.05, 0.025]
    expected = float(trace(slow_flow(point, LANGUAGE, [1.0]), LANGUAGE)[0])
    fall = float(trace(point, LANGUAGE)) - expected
    for lr in rates:
        seen = run(point, LANGUAGE, Recipe(steps=round(1 / lr**2), lr=lr, runs=256, every=100))
        last = seen.trace[seen.at(1.0)]
        assert float(last.std()) / 256**0.5 < 0.03 * fall
        gaps.append(abs(float(last.mean()) - expected) / fall)
    assert slope(rates, gaps) == pytest.approx(1, abs=0.25)
    assert gaps[-1] < 0.3


def test_soft_labels_go_nowhere():
    point = wide()
    soft = run(point, LANGUAGE, Recipe(steps=200, labels="soft", runs=2))
    assert torch.allclose(soft.points.W[-1], point.W.expand(2, -1, -1), atol=1e-12)
    hard = run(point, LANGUAGE, Recipe(steps=200, runs=2))
    assert float((hard.points.W[-1] - point.W).abs().max()) > 0.1  # control


def test_slow_time_counts_the_batch_for_sgd_and_not_for_adam():
    assert Recipe(lr=0.1, batch=4).slow_unit == pytest.approx(0.01 / 4)
    assert Recipe(lr=0.1, batch=4, optimizer="adam").slow_unit == pytest.approx(0.01)
    seen = run(drawn(), LANGUAGE, Recipe(steps=40, lr=0.1, batch=2, every=20))
    assert torch.allclose(seen.slow, torch.tensor([0.0, 0.1, 0.2]).double())
    assert [seen.at(u) for u in (0.0, 0.1, 0.2)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"no look at slow time 0\.15"):
        seen.at(0.15)


def test_a_run_hovers_where_the_stationary_law_says():
    best = flattest(LANGUAGE, torch.ones(4))  # the trace is stationary there
    seen = run(best, LANGUAGE, Recipe(steps=3000, lr=0.02, runs=64, every=50))
    late = seen.excess[seen.steps >= 1000].mean()
    expected = stationary_excess(hessian(best, LANGUAGE), 0.02)
    assert float(late) == pytest.approx(expected, rel=0.1)
    assert float(seen.excess[0].max()) < 1e-14


def test_adam_follows_its_own_flow_whatever_the_batch():
    point = wide()
    flow = adam_slow_flow(point, LANGUAGE, [0.05], epsilon=1e-3)
    begin, expected = float(root_trace(point, LANGUAGE)), float(root_trace(flow, LANGUAGE)[0])
    found = []
    for batch in (1, 16):
        recipe = Recipe(steps=5000, lr=10**-2.5, batch=batch, optimizer="adam", runs=16, every=5000)
        found.append(float(run(point, LANGUAGE, recipe).root_trace[-1].mean()))
    falls = [(begin - x) / (begin - expected) for x in found]
    assert falls == pytest.approx([1, 1], abs=0.3)
    assert falls[0] == pytest.approx(falls[1], rel=0.25)  # and not a sixteenth of it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "muon"}, 'expected "sgd" or "adam"'),
        ({"labels": "hard"}, 'expected "sampled" or "soft"'),
        ({"runs": 0}, "runs of a recipe"),
        ({"batch": 0}, "batch of a recipe"),
        ({"every": 0}, "every of a recipe"),
    ],
)
def test_recipes_that_cannot_be_meant(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


def test_one_start_only():
    with pytest.raises(ValueError, match=r"one starting point.*\(2,\)"):
        run(Point(torch.ones(2, 4), torch.ones(2, 4, 3)), LANGUAGE, Recipe())
