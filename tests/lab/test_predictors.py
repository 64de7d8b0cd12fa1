"""Witnesses: moving averages and regressions by naive loops, training written out by hand, resumed runs."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from companion.lab.byol import Siamese, objective
from companion.lab.encoders import mlp
from companion.lab.predictors import Direct, Identity, Optimal, Trained, plain_batch_norm
from companion.lab.train import Options, fit
from companion.theory.direct_predictor import direct_pred

OPTIONS = Options(steps=12, batch_size=8, lr=0.05, checkpoint_every=5, weight_decay=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(n, generator):
    x = torch.rand(n, 6, generator=generator)
    return tuple(x + 0.1 * torch.randn(n, 6, generator=generator) for _ in range(2))


def shift(F_hat):
    """A rule whose result says what it was given."""
    return 2 * F_hat + torch.eye(len(F_hat), dtype=F_hat.dtype)


def model(predictor, momentum=0.9, **settings):
    return Siamese(mlp((6, 9, 4), generator=seeded(7)), predictor, momentum, **settings)


def batches(count, n=10, k=4):
    """Embeddings of both views, and beside each row the target's of the other view."""
    generator = seeded(3)
    return [[torch.randn(n, k, generator=generator) + 0.5 for _ in range(2)] for _ in range(count)]


class TestTrained:
    def test_a_linear_one_is_its_matrix(self):
        found = Trained(4, generator=seeded())
        z = torch.randn(5, 4, generator=seeded(1))
        assert torch.allclose(found(z), z @ found.weight.T)
        assert [tuple(p.shape) for p in found.parameters()] == [(4, 4)]
        assert Trained(4, hidden=6, generator=seeded()).weight is None
        assert Identity().weight is None

    def test_layers_and_seeds(self):
        before = torch.get_rng_state()
        plain, normed, other = (
            Trained(4, hidden=6, batch_norm=batch_norm, generator=seeded(seed))
            for batch_norm, seed in ((False, 0), (True, 0), (True, 1))
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert [type(layer) for layer in normed.layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert not any(isinstance(layer, nn.BatchNorm1d) for layer in plain.layers)
        assert torch.equal(plain.layers[0].weight, normed.layers[0].weight)
        assert not torch.equal(other.layers[0].weight, normed.layers[0].weight)
        assert all(layer.bias is None for layer in (normed.layers[0], normed.layers[3]))
        assert len(list(Trained(4, hidden=6, bias=True, affine=True, generator=seeded()).parameters())) == 6

    def test_plain_batch_norm_is_torchs_without_weights(self):
        x = torch.randn(7, 3, generator=seeded())
        ours, theirs = plain_batch_norm(3), nn.BatchNorm1d(3, affine=False)
        assert torch.allclose(ours(x), theirs(x))
        assert not any(p.requires_grad for p in ours.parameters())
        found = Trained(4, hidden=6, generator=seeded())
        assert [tuple(p.shape) for p in found.group(OPTIONS)["params"]] == [(6, 4), (4, 6)]
        learned = Trained(4, hidden=6, affine=True, generator=seeded())
        assert len(learned.group(OPTIONS)["params"]) == 4

    def test_symmetric(self):
        found = Trained(4, symmetric=True, generator=seeded())
        before = found.weight.detach().clone()
        found.after_update()
        for i in range(4):
            for j in range(4):
                assert float(found.weight[i, j].detach()) == pytest.approx(float(before[i, j] + before[j, i]) / 2)
        free = Trained(4, generator=seeded())
        free.after_update()
        assert torch.equal(free.weight, before)

    def test_symmetric_with_two_layers(self):
        found = Trained(4, hidden=6, symmetric=True, bias=True, generator=seeded())
        first, last = (found.layers[n].weight.detach().clone() for n in (0, 3))
        biases = [found.layers[n].bias.detach().clone() for n in (0, 3)]
        found.after_update()
        for i in range(6):
            for j in range(4):
                mean = pytest.approx(float(first[i, j] + last[j, i]) / 2)
                assert float(found.layers[0].weight[i, j].detach()) == mean
                assert float(found.layers[3].weight[j, i].detach()) == mean
        assert all(torch.equal(found.layers[n].bias, bias) for n, bias in zip((0, 3), biases, strict=True))

    def test_it_stays_symmetric_in_a_run(self):
        found = model(Trained(4, symmetric=True, generator=seeded()))
        fit(found, pairs, objective, OPTIONS)
        assert torch.equal(found.predictor.weight, found.predictor.weight.T)

    def test_rates_of_its_own(self):
        """One step of plain gradient descent: the predictor moves alpha_p times as far as under the common rate."""
        options = Options(steps=1, batch_size=8, lr=0.05, momentum=0.0, weight_decay=0.0, cosine=False)
        moved = []
        for lr_ratio in (1.0, 5.0):
            found = model(Trained(4, lr_ratio=lr_ratio, generator=seeded()))
            start = [p.detach().clone() for p in (found.predictor.weight, found.encoder.projector.weight)]
            fit(found, pairs, objective, options)
            ends = (found.predictor.weight, found.encoder.projector.weight)
            moved.append([(b - a).detach() for a, b in zip(start, ends, strict=True)])
        assert torch.allclose(moved[1][0], 5 * moved[0][0], atol=1e-6)
        assert torch.equal(moved[1][1], moved[0][1])
        assert moved[0][0].abs().max() > 1e-4

    @pytest.mark.parametrize(("weight_decay", "rate"), [(0.2 / 5, 0.2), (None, 0.2 * 5), (0.0, 0.0)])
    def test_units_of_the_weight_decay(self, weight_decay, rate):
        """Without a gradient W shrinks by 1 - lr eta an update, and W_p, at the rate 5 lr, by 1 - lr `rate`."""
        options = Options(steps=10, batch_size=8, lr=0.05, momentum=0.0, weight_decay=0.2, cosine=False)
        found = model(Trained(4, lr_ratio=5.0, weight_decay=weight_decay, generator=seeded()))
        W, Wp = (p.detach().clone() for p in (found.encoder.projector.weight, found.predictor.weight))
        fit(found, pairs, lambda z1, z2: 0 * objective(z1, z2), options)
        assert torch.allclose(found.encoder.projector.weight, (1 - 0.05 * 0.2) ** 10 * W, rtol=1e-5)
        assert torch.allclose(found.predictor.weight, (1 - 0.05 * rate) ** 10 * Wp, rtol=1e-5)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lr_ratio": 0.0}, "lr_ratio of the predictor: expected a positive number, found 0.0"),
            ({"weight_decay": -1.0}, "weight_decay of the predictor: expected 0 or more, or None, found -1.0"),
        ],
    )
    def test_errors_teach(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Trained(4, generator=seeded(), **settings)


class TestDirect:
    def test_the_moving_average_by_naive_loops(self):
        found = Direct(4, shift, rho=0.3, generator=seeded())
        expected = None
        for z, other in batches(4):
            found.observe(z, other)
            moment = [[sum(float(f[a]) * float(f[b]) for f in z) / 10 for b in range(4)] for a in range(4)]
            C = np.array(moment)
            expected = C if expected is None else 0.3 * expected + 0.7 * C
            assert np.allclose(found.F_hat, expected, atol=1e-6)
        assert found.F_hat.dtype == torch.float64

    def test_when_it_is_set(self):
        found, start = Direct(4, shift, every=3, generator=seeded()), None
        start, expected = found.weight.detach().clone(), []
        for number, (z, other) in enumerate(batches(7), 1):
            found.observe(z, other)
            if number in (3, 6):
                expected.append(shift(found.F_hat).float())
            found.after_update()
            assert torch.equal(found.weight, expected[-1] if expected else start)

    def test_both_views_as_they_stand(self):
        """In a run at batch size 8 the average is over the 16 rows of both views, with their means."""
        found = model(Direct(4, shift, rho=0.0, generator=seeded())).train()
        x = torch.cat(pairs(8, seeded()))
        found(x)
        z = found.encoder(x).detach().double()
        assert torch.allclose(found.predictor.F_hat, sum(torch.outer(f, f) for f in z) / 16, atol=1e-6)

    @pytest.mark.parametrize("every", [1, 3])
    def test_a_run_by_hand(self, every):
        """The published loop: gradient step, then F and, where its time has come, the predictor."""
        options = Options(steps=7, batch_size=8, lr=0.05, weight_decay=0.01, cosine=False)
        rule = partial(direct_pred, epsilon=0.1)
        found = model(Direct(4, rule, rho=0.4, every=every, generator=seeded()), 0.0)
        online = mlp((6, 9, 4), generator=seeded(7))
        Wp = found.predictor.weight.detach().clone().requires_grad_()
        optimizer = torch.optim.SGD([*online.parameters(), Wp], 0.05, 0.9, weight_decay=0.01)
        generator, F_hat = seeded(), None
        for t in range(1, 8):
            z1, z2 = (online(x) for x in pairs(8, generator))
            cosine = nn.functional.cosine_similarity
            loss = 2 - cosine(z1 @ Wp.T, z2.detach()).mean() - cosine(z2 @ Wp.T, z1.detach()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            C = (z1.T @ z1 + z2.T @ z2).detach().double() / 16
            F_hat = C if F_hat is None else 0.4 * F_hat + 0.6 * C
            if t % every == 0:
                s, U = torch.linalg.eigh(F_hat)
                p = ((s.clamp(min=0) / s.max()).sqrt() + 0.1).clamp(min=1e-4)
                with torch.no_grad():
                    Wp.copy_((U * p) @ U.T)
        history = fit(found, pairs, objective, options)
        assert float(history.losses[-1]) == pytest.approx(float(loss.detach()), abs=1e-4)
        assert torch.allclose(found.predictor.F_hat, F_hat, atol=1e-4)
        assert torch.allclose(found.predictor.weight, Wp, atol=1e-4)
        assert torch.allclose(found.encoder.projector.weight, online.projector.weight, atol=1e-4)

    def test_a_look_leaves_no_trace(self):
        found = model(Direct(4, shift, generator=seeded())).train()
        x = torch.cat(pairs(8, seeded()))
        with torch.no_grad():
            found(x)
        found.eval()(x)
        assert int(found.predictor.seen) == 0
        start = found.predictor.weight.detach().clone()
        found.predictor.after_update()  # nothing seen, nothing set
        assert torch.equal(found.predictor.weight, start)

    def test_it_forgets_nothing_in_bfloat16(self):
        found = model(Direct(4, shift, rho=0.0, generator=seeded())).train()
        x = torch.cat(pairs(8, seeded()))
        with torch.autocast("cpu", torch.bfloat16):
            found(x)
            z = found.encoder(x).detach()
        assert z.dtype == torch.bfloat16
        assert torch.allclose(found.predictor.F_hat, z.double().T @ z.double() / 16, atol=1e-12)

    def test_embeddings_that_are_not_finite(self):
        found = Direct(4, shift, generator=seeded())
        found.observe(torch.full((10, 4), torch.inf), torch.zeros(10, 4))
        with pytest.raises(FloatingPointError, match=r"Direct: second moments .* not finite after 1 updates"):
            found.after_update()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"rho": 1.0}, r"rho of the moving average: expected a number in \[0, 1\), found 1.0"),
            ({"rho": -0.1}, r"rho of the moving average: expected a number in \[0, 1\), found -0.1"),
            ({"rho": float("nan")}, r"rho of the moving average: expected a number in \[0, 1\), found nan"),
            ({"every": 0}, "every: expected at least 1 update between two settings, found 0"),
            ({"rule": torch.diagonal}, r"rule of Direct: expected a matrix of shape \(4, 4\), found \(4,\)"),
        ],
    )
    def test_errors_teach(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Direct(4, generator=seeded(), **({"rule": shift} | settings))


class TestOptimal:
    def test_the_regression_by_naive_loops(self):
        found = Optimal(4, rho=0.3, ridge=0.2, generator=seeded())
        F_hat = cross = None
        for z, other in batches(3):
            found.observe(z, other)
            f, a = z.numpy().astype(float), other.numpy().astype(float)
            now = sum(np.outer(v, v) for v in f) / 10
            both = sum(np.outer(v, w) + np.outer(w, v) for v, w in zip(f, a, strict=True)) / 20
            F_hat = now if F_hat is None else 0.3 * F_hat + 0.7 * now
            cross = both if cross is None else 0.3 * cross + 0.7 * both
        found.after_update()
        expected = cross @ np.linalg.inv(F_hat + 0.2 * np.trace(F_hat) / 4 * np.eye(4))
        assert np.allclose(found.weight.detach(), expected, atol=1e-5)

    def test_it_finds_the_factor_of_a_proportional_target(self):
        found = Optimal(4, ridge=0.0, generator=seeded())
        for z, _ in batches(3):
            found.observe(z, 0.7 * z)
        found.after_update()
        assert torch.allclose(found.weight, 0.7 * torch.eye(4), atol=1e-5)

    def test_the_target_is_that_of_the_other_view(self):
        found = model(
            Optimal(4, rho=0.0, ridge=0.1, generator=seeded()), own_target=mlp((6, 9, 4), generator=seeded(8))
        )
        x1, x2 = pairs(8, seeded())
        found.train()(torch.cat([x1, x2]))
        with torch.no_grad():
            f1, f2, a1, a2 = (network(x).double() for network in (found.encoder, found.target) for x in (x1, x2))
        cross = (a2.T @ f1 + a1.T @ f2) / 16
        assert torch.allclose(found.predictor.cross, (cross + cross.T) / 2, atol=1e-6)

    def test_no_ridge_below_zero(self):
        with pytest.raises(ValueError, match="ridge of Optimal: expected 0 or more, found -1"):
            Optimal(4, ridge=-1, generator=seeded())


PREDICTORS = {
    "trained": partial(Trained, symmetric=True, lr_ratio=3.0),
    "two layers": partial(Trained, hidden=5),
    "direct": partial(Direct, rule=partial(direct_pred, epsilon=0.1)),
    "every third": partial(Direct, rule=partial(direct_pred, epsilon=0.1), every=3),
    "optimal": partial(Optimal, every=2),
}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", PREDICTORS)
def test_stopped_and_resumed(name, momentum, tmp_path):
    """Averages and counters are part of the state: a run that stops in step 9 ends like one that does not."""
    calls = []

    def stops(n, generator):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return pairs(n, generator)

    whole, stopped, resumed = (model(PREDICTORS[name](4, generator=seeded(s)), momentum) for s in (0, 0, 1))
    expected = fit(whole, pairs, objective, OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, stops, objective, OPTIONS, checkpoint=tmp_path / "run.pt")
    found = fit(resumed, pairs, objective, OPTIONS, checkpoint=tmp_path / "run.pt")
    assert torch.equal(found.losses, expected.losses)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
