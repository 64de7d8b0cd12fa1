"""Witnesses: the logistic solution of the linear model, numpy, double loops, bit-equal runs, and Monte Carlo nulls."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from companion.lab import steps
from companion.lab.encoders import Encoder, mlp, small_cnn
from companion.lab.train import Options, fit
from companion.theory.losses import barlow_twins
from companion.theory.spectra import subspace_overlap

PLAIN = Options(steps=60, batch_size=40, lr=0.01, momentum=0.0, weight_decay=0.0, cosine=False)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(n=40, m=6, dtype=torch.float32):
    x = torch.randn(n, m, generator=generator(), dtype=dtype) * torch.linspace(2, 0.3, m, dtype=dtype)
    return tuple(x + 0.2 * torch.randn(n, m, generator=generator(seed), dtype=dtype) for seed in (1, 2))


def diagonal_pairs(gamma):
    """As many views as coordinates, both views the same, whose cross-correlation is diag(gamma)."""
    x = torch.diag((len(gamma) * torch.tensor(gamma, dtype=torch.float64)).sqrt())
    return x, x


GAMMA, START, RATE = (2.0, 1.2, 0.5), 1e-3, 2e-3


@pytest.fixture(scope="module")
def linear():
    """Gradient descent with small steps from an aligned start."""
    model = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(START * torch.linalg.qr(torch.randn(3, 3, generator=generator()).double()).Q)
    x1, x2 = diagonal_pairs(GAMMA)
    watch = steps.Watch(x1, x2, layers=("embedding",), loss=barlow_twins, keep=(0, 2000))
    options = dataclasses.replace(PLAIN, steps=2000, batch_size=3, lr=RATE)
    history = fit(model, steps.fixed_pairs(x1, x2), barlow_twins, options, observe=watch, observe_every=5)
    return watch, history


def critical_times():
    """Where gamma s^2 = 1/2, exactly; late by x / log(1 + x) since steps are finite."""
    c0 = [g * START**2 for g in GAMMA]
    lag = [4 * RATE * g / math.log1p(4 * RATE * g) for g in GAMMA]
    return [math.log(1 / c - 1) / (8 * g) * late for c, g, late in zip(c0, GAMMA, lag, strict=True)]


class TestLinearModel:
    """Every eigenvalue of C is a known logistic function of time, rate times updates."""

    def test_curves_are_logistic(self, linear):
        watch, _ = linear
        t = RATE * watch.steps.double()[:, None]
        gamma, times = torch.tensor(GAMMA, dtype=torch.float64), torch.tensor(critical_times(), dtype=torch.float64)
        logistic = torch.sigmoid(8 * gamma * (t - times)).sort(1, descending=True).values
        assert watch.steps.tolist() == list(range(0, 2001, 5))
        assert (watch.correlation - logistic).abs().max() < 0.01
        assert watch.hidden.shape == (401, 0)

    @pytest.mark.parametrize("log", [False, True])
    def test_step_times(self, linear, log):
        watch, _ = linear
        times = RATE * steps.step_times(watch.steps, watch.correlation, 0.5, log=log)
        assert times.tolist() == pytest.approx(critical_times(), rel=2e-3)

    def test_separation(self, linear):
        """Halfway of one mode, the next stands at sigmoid(8 gamma (t_j - t_{j+1})), twice that in units of its half."""
        watch, _ = linear
        t, gamma = critical_times(), GAMMA
        shares = [2 / (1 + math.exp(8 * gamma[j + 1] * (t[j + 1] - t[j]))) for j in range(2)]
        assert steps.separation(watch.correlation) == pytest.approx(sum(shares) / 2, rel=0.1, abs=1e-4)

    def test_losses_and_embeddings(self, linear):
        """What it evaluates after s updates is what the loop saw before update s + 1."""
        watch, history = linear
        assert torch.allclose(watch.losses[:-1], history.losses[watch.steps[:-1]], rtol=1e-12)
        assert sorted(watch.embeddings) == [0, 2000]
        z1, z2 = watch.embeddings[2000].chunk(2)
        assert float(barlow_twins(z1, z2)) == pytest.approx(float(watch.losses[-1]), rel=1e-12)
        assert torch.allclose(watch.covariance[-1], steps.covariance_spectrum(watch.embeddings[2000]))


class TestSpectra:
    def test_correlation_is_numpys(self):
        z1, z2 = (torch.randn(7, 4, generator=generator(seed)) for seed in (0, 1))
        C = sum(np.outer(a, b) + np.outer(b, a) for a, b in zip(z1.double(), z2.double(), strict=True)) / 14
        expected = np.linalg.eigvalsh(C)[::-1]
        assert steps.correlation_spectrum(z1, z2).numpy() == pytest.approx(expected, abs=1e-12)
        assert expected[-1] < 0

    @pytest.mark.parametrize(("n", "k"), [(9, 4), (4, 9)])
    @pytest.mark.parametrize("normalise", [False, True])
    def test_covariance_is_numpys(self, n, k, normalise):
        z = torch.randn(n, k, generator=generator()) + 3
        rows = z.double().numpy()
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalise else rows
        expected = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
        assert steps.covariance_spectrum(z, normalise).numpy() == pytest.approx(expected, abs=1e-12)


class TestWatch:
    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_it_changes_nothing(self, batch_norm):
        def model():
            return (
                small_cnn(k=4, size=8, generator=generator()) if batch_norm else mlp((64, 9, 4), generator=generator())
            )

        x1, x2 = (torch.rand(40, 1, 8, 8, generator=generator(seed)) for seed in (1, 2))
        watched, alone = model(), model()
        watch = steps.Watch(x1, x2, loss=barlow_twins, top=5)
        found = fit(watched, steps.fixed_pairs(x1, x2), barlow_twins, PLAIN, observe=watch, observe_every=7)
        expected = fit(alone, steps.fixed_pairs(x1, x2), barlow_twins, PLAIN)
        assert torch.equal(found.losses, expected.losses)
        for a, b in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert watch.steps.tolist() == [*range(0, 60, 7), 60]
        assert watch.hidden.shape == (10, 5)
        with torch.no_grad():  # fit leaves models in evaluation mode, in which the watch has seen it
            z, h = watched(torch.cat([x1, x2])), watched.features(torch.cat([x1, x2]))
        assert torch.allclose(watch.covariance[-1], steps.covariance_spectrum(z), rtol=1e-4)
        assert torch.allclose(watch.hidden[-1], steps.covariance_spectrum(h)[:5], rtol=1e-4)

    def test_chunks_and_modes(self):
        x1, x2 = (torch.rand(40, 1, 8, 8, generator=generator(seed)) for seed in (1, 2))
        model = small_cnn(k=4, size=8, generator=generator()).train()
        model.projector.eval()
        modes = [module.training for module in model.modules()]
        curves = []
        for chunk in (7, 1000):
            watch = steps.Watch(x1, x2, normalise=True, chunk=chunk, keep=(3,))
            watch(3, model)
            curves.append((watch.embeddings[3], watch.covariance, watch.hidden))
        for a, b in zip(*curves, strict=True):
            assert torch.allclose(a, b, rtol=1e-4)
        assert [module.training for module in model.modules()] == modes
        assert watch.covariance.sum() <= 1
        assert watch.losses.isnan().all()

    def test_resumed(self, tmp_path):
        x1, x2 = pairs()
        calls, source = [], steps.fixed_pairs(x1, x2)

        def stops(n, generator):
            calls.append(1)
            if len(calls) == 40:
                raise KeyboardInterrupt
            return source(n, generator)

        options = dataclasses.replace(PLAIN, checkpoint_every=25)
        whole, first, second = (steps.Watch(x1, x2, keep=(0, 60)) for _ in range(3))
        run = partial(fit, loss=barlow_twins, options=options)
        run(mlp((6, 9, 4), generator=generator()), source, observe=whole)
        with pytest.raises(KeyboardInterrupt):
            run(mlp((6, 9, 4), generator=generator()), stops, observe=first, checkpoint=tmp_path / "run.pt")
        run(mlp((6, 9, 4), generator=generator(1)), source, observe=second, checkpoint=tmp_path / "run.pt")
        assert second.steps.tolist() == [0, 20, 40, 60]
        for name in ("correlation", "covariance", "hidden"):
            assert torch.equal(getattr(second, name), getattr(whole, name))
        assert torch.equal(second.embeddings[0], whole.embeddings[0])
        assert torch.equal(second.embeddings[60], whole.embeddings[60])

    def test_seconds_without_its_own(self, monkeypatch, tmp_path):
        """A clock that only the sampler (1 s an update) and the watched loss (100 s a look) move, and a kill between.

        Killed in update 40 with a checkpoint of 25: the 14 updates after it are forgotten, and so are 1000 s of rest.
        """
        now = [5.0]
        monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        x1, x2 = pairs()

        def sample(n, generator, stop=math.inf):
            now[0] += 1
            if now[0] - 5 - 100 * sum(len(watch.rows) for watch in watches) == stop:
                raise KeyboardInterrupt
            return x1, x2

        def slow(z1, z2):
            now[0] += 100
            return barlow_twins(z1, z2)

        run = partial(fit, loss=barlow_twins, options=dataclasses.replace(PLAIN, checkpoint_every=25))
        watches = [steps.Watch(x1, x2, loss=slow)]
        run(mlp((6, 9, 4), generator=generator()), sample, observe=watches[0])
        assert watches[0].seconds.tolist() == [0, 20, 40, 60]
        assert watches[0].seconds.dtype == torch.float64
        assert now[0] == 5 + 60 + 4 * 100  # the control: time with looking

        now[0], watches = 5.0, [steps.Watch(x1, x2, loss=slow)]
        stops = partial(sample, stop=40)
        with pytest.raises(KeyboardInterrupt):
            run(mlp((6, 9, 4), generator=generator()), stops, observe=watches[0], checkpoint=tmp_path / "run.pt")
        assert watches[0].seconds.tolist() == [0, 20]
        now[0] += 1000
        watches = [steps.Watch(x1, x2, loss=slow)]
        run(mlp((6, 9, 4), generator=generator(1)), sample, observe=watches[0], checkpoint=tmp_path / "run.pt")
        assert watches[0].steps.tolist() == [0, 20, 40, 60]
        assert watches[0].seconds.tolist() == [0, 20, 40, 60]

    def test_part_of_a_model(self):
        encoder = mlp((6, 9, 4), generator=generator())
        part, whole = (steps.Watch(*pairs(), encoder=where) for where in (lambda model: model[0], lambda model: model))
        part(0, nn.Sequential(encoder, nn.Linear(4, 2)))
        whole(0, encoder)
        assert torch.equal(part.correlation, whole.correlation)

    def test_errors_teach(self):
        with pytest.raises(ValueError, match=r"layers: .* found \['logits'\]"):
            steps.Watch(*pairs(), layers=("logits",))
        with pytest.raises(ValueError, match="features are an Encoder's, found Linear"):
            steps.Watch(*pairs())(0, nn.Linear(6, 2))
        broken = steps.scale_weights(nn.Sequential(nn.Linear(6, 2)), math.inf)
        with pytest.raises(FloatingPointError, match="after 3 updates"):
            steps.Watch(*pairs(), layers=("embedding",))(3, broken)
        with pytest.raises(ValueError, match="batch_size = 40, the number of pairs, found 8"):
            fit(nn.Linear(6, 2), steps.fixed_pairs(*pairs()), barlow_twins, dataclasses.replace(PLAIN, batch_size=8))


class TestCurves:
    def test_step_times_of_a_parabola(self):
        clock = torch.linspace(0, 2, 201, dtype=torch.float64)
        curves = torch.stack([clock**2, clock**2 / 4, clock**2 - 5], 1)
        times = steps.step_times(clock, curves, torch.tensor([0.5, 0.5, -4.5]))
        assert times.tolist() == pytest.approx([0.5**0.5, 2**0.5, 0.5**0.5], abs=1e-4)
        assert steps.step_times(clock, curves, 0.5)[2].isnan()

    def test_logarithms_are_exact_for_exponential_growth(self):
        """Two samples are enough for the logarithm, and far too few for the line."""
        clock = torch.tensor([0.0, 10.0, 20.0])
        curves = torch.exp(0.5 * clock)[:, None] * 1e-3
        exact = 2 * math.log(500)
        assert float(steps.step_times(clock, curves, 0.5, log=True)) == pytest.approx(exact, rel=1e-6)
        assert abs(float(steps.step_times(clock, curves, 0.5)) - exact) > 1
        negative = torch.tensor([[-1.0], [1.0], [1.0]])
        assert float(steps.step_times(clock, negative, 0.5, log=True)) == pytest.approx(7.5)

    def test_the_first_passage_counts(self):
        clock, curve = torch.arange(5), torch.tensor([[0.7], [0.0], [1.0], [0.0], [1.0]])
        assert steps.step_times(clock, curve, 0.5).tolist() == [0.0]
        assert steps.step_times(clock[1:], curve[1:], 0.5).tolist() == [1.5]

    @pytest.mark.parametrize("delay", [0.0, 2.0, 10.0])
    def test_separation_of_shifted_logistics(self, delay):
        """Finals 1, 1/2, 1/3, each `delay` later: halfway of one, the next is at sigmoid(-delay); no unlearned mode."""
        t = torch.linspace(-20, 60, 4001, dtype=torch.float64)
        curves = torch.stack(
            [torch.sigmoid(t - j * delay) / (j + 1) for j in range(3)] + [0.01 * torch.sigmoid(t - 40)], 1
        )
        assert steps.separation(curves) == pytest.approx(2 / (1 + math.exp(delay)), rel=1e-3)
        assert steps.separation(curves, learned=0.0) < 0.7 * steps.separation(curves)

    def test_separation_with_given_ends(self):
        curves = torch.tensor([[0.0, 0.0], [0.5, 0.1], [2.0, 0.6]])
        assert steps.separation(curves, torch.tensor([1.0, 1.0])) == pytest.approx(0.2)
        assert math.isnan(steps.separation(curves[:, :1]))


class TestTwoClusters:
    def test_control_log_uniform(self):
        """Without clusters a verdict of 1 % is wrong in at most 1 % of spectra, and the bound is not a loose one."""
        spectra = 10 ** (-6 * torch.rand(4000, 32, generator=generator(), dtype=torch.float64))
        found = [steps.two_clusters(values) for values in spectra]
        for level in (0.01, 0.05):
            share, error = sum(f.chance < level for f in found) / 4000, (level / 4000) ** 0.5
            assert 0.5 * level < share < level + 3 * error
        assert sum(f.separate for f in found) == sum(f.chance < 0.01 for f in found)

    @pytest.mark.parametrize("above", [2, 10, 28])
    def test_two_clusters_are_found(self, above):
        noise = 0.5 * torch.randn(32, generator=generator(), dtype=torch.float64)
        logs = noise + torch.where(torch.arange(32) < above, 0.0, -6.0)
        found = steps.two_clusters(10 ** logs[torch.randperm(32, generator=generator())])
        top, bottom = logs[:above].min(), logs[above:].max()
        assert (found.above, found.separate) == (above, True)
        assert found.gap == pytest.approx(float(top - bottom))
        assert math.log10(found.threshold) == pytest.approx(float(top + bottom) / 2)

    def test_a_mode_on_its_way_hides_nothing(self):
        logs = torch.cat([torch.linspace(-0.5, 0, 10), torch.tensor([-3.0]), torch.linspace(-6.5, -6, 21)]).double()
        assert steps.two_clusters(10**logs).separate

    def test_one_outlier_is_no_cluster(self):
        logs = torch.cat([torch.tensor([6.0]), torch.linspace(-3, 0, 31)]).double()
        assert not steps.two_clusters(10**logs).separate
        assert steps.two_clusters(10**logs, least=1).above == 1

    def test_equal_values(self):
        assert steps.two_clusters(torch.ones(8)).chance == 1

    @pytest.mark.parametrize("values", [[1.0, 0.5, 0.1, 0.0], [1.0, 0.5, 0.1]])
    def test_errors_teach(self, values):
        with pytest.raises(ValueError, match="at least 4 positive eigenvalues, found"):
            steps.two_clusters(torch.tensor(values))


class TestScale:
    def test_all_weights(self):
        """Without biases a network of three layers is homogeneous of degree three."""
        model, x = mlp((6, 9, 8, 4), generator=generator()), pairs()[0]
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.Linear):
                    layer.bias.zero_()
        before = model(x)
        assert steps.scale_weights(model, 0.5) is model
        assert torch.allclose(model(x), before / 8)

    def test_which_parameters(self):
        before, model = (small_cnn(k=4, size=8, generator=generator()) for _ in range(2))
        steps.scale_weights(model, 0.25)
        for (name, a), b in zip(model.named_parameters(), before.parameters(), strict=True):
            assert torch.equal(a, b / 4 if a.ndim > 1 else b), name  # the norms' vectors stay

    def test_last_layer(self):
        before, model = (mlp((6, 9, 8, 4), generator=generator()) for _ in range(2))
        x = pairs()[0]
        steps.scale_weights(model, 1e-3, last_only=True)
        assert torch.equal(model.features(x), before.features(x))
        assert torch.allclose(model(x), 1e-3 * before(x))

    def test_errors_teach(self):
        with pytest.raises(ValueError, match="positive number, found 0"):
            steps.scale_weights(nn.Linear(2, 2), 0.0)
        with pytest.raises(ValueError, match="linear layer, found none in Conv2d"):
            steps.scale_weights(nn.Conv2d(1, 1, 1), 0.5)


class TestPreconditioned:
    def test_gradient_in_a_linear_model(self):
        """(C_+ + eps I)^{-1} times the gradient, by hand; one eigenvalue of C is negative and counts as zero."""
        x1, x2 = pairs(dtype=torch.float64)
        x2 = x2 * torch.tensor([1.0, 1, 1, 1, 1, -1], dtype=torch.float64)
        W = torch.eye(6, dtype=torch.float64)[3:].add(0.1).requires_grad_()
        plain = barlow_twins(x1 @ W.T, x2 @ W.T)
        (gradient,) = torch.autograd.grad(plain, W)
        changed = steps.preconditioned(barlow_twins, 0.05)(x1 @ W.T, x2 @ W.T)
        (found,) = torch.autograd.grad(changed, W)
        C = (W @ (x1.T @ x2 + x2.T @ x1) @ W.T / 80).detach().numpy()
        values, Q = np.linalg.eigh(C)
        assert values[0] < -0.01
        expected = Q @ np.diag(1 / (values.clip(0) + 0.05)) @ Q.T @ gradient.numpy()
        assert changed.item() == plain.item()
        assert found.numpy() == pytest.approx(expected, rel=1e-10)

    def test_the_same_end_much_sooner(self):
        """Slow modes wait less, the order stays: the same top eigenvectors are learned, in a third of the updates."""
        gamma = [2.0, 1.0, 0.5, 0.25, 0.06, 0.03]
        x1, x2 = diagonal_pairs(gamma)
        needed, overlaps = [], []
        for loss in (barlow_twins, steps.preconditioned(barlow_twins, 0.1)):
            model = nn.Linear(6, 4, bias=False).double()
            with torch.no_grad():
                model.weight.copy_(1e-5 * torch.randn(4, 6, generator=generator()))
            options = dataclasses.replace(PLAIN, steps=1500, batch_size=6, lr=0.1 / (4 * gamma[0]))
            history = fit(model, steps.fixed_pairs(x1, x2), loss, options)
            needed.append(int((history.losses < 0.01).int().argmax()))
            overlaps.append(subspace_overlap(model.weight.detach().T, torch.eye(6, dtype=torch.float64)[:, :4]))
        assert 0 < needed[1] < needed[0] / 3
        assert min(overlaps) > 0.99

    def test_values_without_gradients_and_bad_epsilon(self):
        z1, z2 = pairs()
        assert torch.equal(steps.preconditioned(barlow_twins, 0.1)(z1, z2), barlow_twins(z1, z2))
        with pytest.raises(ValueError, match="epsilon: expected a positive number, found 0"):
            steps.preconditioned(barlow_twins, 0.0)


def test_small_starts_learn_one_dimension_at_a_time():
    """A ReLU network, all weights times 0.3: steps far apart; control: at its usual scale they overlap."""
    x1, x2 = pairs()
    found = []
    for factor in (0.3, 1.0):
        model = steps.scale_weights(mlp((6, 64, 3), generator=generator()), factor)
        assert isinstance(model, Encoder)
        watch = steps.Watch(x1, x2)
        options = dataclasses.replace(PLAIN, steps=1500, lr=0.005)
        fit(model, steps.fixed_pairs(x1, x2), barlow_twins, options, observe=watch, observe_every=5)
        assert float(watch.correlation[-1].min()) > 0.9
        found.append(steps.separation(watch.correlation))
    assert found[0] < 0.01
    assert found[1] > 0.1
