"""Witnesses: the watch's numbers by naive loops and numpy's eigenvectors, extremes known by hand, short real runs."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from companion.lab import alignment, augment, data, probe
from companion.lab.alignment import AlignmentWatch
from companion.lab.byol import Siamese, objective
from companion.lab.encoders import Encoder, mlp
from companion.lab.predictors import Direct, Identity, Trained
from companion.lab.train import Options, fit
from companion.theory.direct_predictor import direct_pred


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(n, generator):
    x = torch.rand(n, 6, generator=generator)
    return tuple(x + 0.1 * torch.randn(n, 6, generator=generator) for _ in range(2))


def model(predictor=None):
    return Siamese(mlp((6, 9, 4), generator=seeded(7)), predictor or Trained(4, generator=seeded()), 0.9)


def still(*diagonal, predictor=None):
    """A model whose embedding is its input, with a diagonal predictor."""
    found = Siamese(Encoder(nn.Identity(), nn.Identity()), predictor or Trained(len(diagonal), generator=seeded()), 0.0)
    if predictor is None:
        with torch.no_grad():
            found.predictor.weight.copy_(torch.diag(torch.tensor(diagonal)))
    return found


class TestWatch:
    def test_a_look_by_hand(self):
        x1, x2 = pairs(20, seeded())
        found, watch = model(), AlignmentWatch(x1, x2, chunk=7)
        watch(3, found)
        with torch.no_grad():
            z = found.encoder(torch.cat([x1, x2])).numpy().astype(float)
        Wp = found.predictor.weight.detach().numpy().astype(float)
        C = sum(np.outer(f, f) for f in z) / 40
        u = z / np.linalg.norm(z, axis=1, keepdims=True)
        s, U = np.linalg.eigh(C)
        s, U = s[::-1], U[:, ::-1]
        assert watch.steps.tolist() == [3]
        assert np.allclose(watch.spectrum[0], s, rtol=1e-5, atol=1e-7)
        unit = np.linalg.eigvalsh(sum(np.outer(f, f) for f in u) / 40)[::-1]
        assert np.allclose(watch.unit_spectrum[0], unit, rtol=1e-5, atol=1e-7)
        assert float(watch.unit_spectrum.sum()) == pytest.approx(1)
        for j in range(4):
            moved = Wp @ U[:, j]
            assert float(watch.predictor[0, j]) == pytest.approx(U[:, j] @ moved, abs=1e-4)
            assert float(watch.cosines[0, j]) == pytest.approx(U[:, j] @ moved / np.linalg.norm(moved), abs=1e-4)
        assert np.allclose(watch.eigenvalues[0], np.linalg.eigvalsh((Wp + Wp.T) / 2)[::-1], atol=1e-6)
        assert float(watch.asymmetry[0]) == pytest.approx(np.abs(Wp - Wp.T).sum() / np.abs(Wp).sum(), rel=1e-6)
        norm = np.linalg.norm
        assert float(watch.commutator[0]) == pytest.approx(norm(C @ Wp - Wp @ C) / norm(C) / norm(Wp), rel=1e-5)
        assert float(watch.spread[0]) == pytest.approx(2 * np.mean([u[:, a].std() for a in range(4)]), rel=1e-5)
        q = s / s.sum()
        assert float(watch.rank[0]) == pytest.approx(np.exp(-sum(q * np.log(q))), rel=1e-5)

    def test_the_plus_minus_cube(self):
        """All corners of a square and an aligned predictor: the sphere evenly filled, everything commutes."""
        x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        watch = AlignmentWatch(x, 3 * x)
        watch(0, still(2.0, -1.0))
        assert watch.spectrum.tolist() == [[pytest.approx(5.0)] * 2]
        assert watch.unit_spectrum.tolist() == [[pytest.approx(0.5)] * 2]
        assert float(watch.spread) == pytest.approx(1)
        assert float(watch.rank) == pytest.approx(2)
        assert float(watch.commutator) == pytest.approx(0)
        assert float(watch.asymmetry) == 0
        assert watch.eigenvalues.tolist() == [[pytest.approx(2.0), pytest.approx(-1.0)]]

    def test_order_and_cosines(self):
        x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        watch = AlignmentWatch(x, x)
        watch(0, still(-3.0, 5.0))
        assert watch.spectrum.tolist() == [[pytest.approx(2.0), pytest.approx(0.5)]]
        assert watch.predictor.tolist() == [[pytest.approx(5.0), pytest.approx(-3.0)]]
        assert watch.cosines.tolist() == [[pytest.approx(1.0), pytest.approx(-1.0)]]

    def test_collapse(self):
        watch = AlignmentWatch(torch.ones(5, 3), torch.ones(5, 3))
        watch(0, still(1.0, 2.0, 3.0))
        watch.x = torch.zeros(10, 3)
        watch(1, still(1.0, 2.0, 3.0))
        assert watch.spread.tolist() == pytest.approx([0, 0], abs=1e-12)
        assert watch.rank.tolist() == pytest.approx([1, 0])

    @pytest.mark.parametrize("predictor", [Identity(), Trained(3, hidden=5, generator=seeded())])
    def test_no_matrix(self, predictor):
        watch = AlignmentWatch(torch.rand(5, 3), torch.rand(5, 3))
        for step in range(2):
            watch(step, still(1.0, 1.0, 1.0, predictor=predictor))
        assert watch.predictor.shape == watch.cosines.shape == watch.eigenvalues.shape == (2, 0)
        assert watch.asymmetry.isnan().all()
        assert watch.commutator.isnan().all()
        assert watch.spectrum.shape == (2, 3)

    def test_it_moves_nothing(self):
        """A watched run has the losses of one that is not, and every module the mode it had."""
        runs = []
        for watch in (None, AlignmentWatch(*pairs(20, seeded(1)))):
            found = model(Direct(4, partial(direct_pred, epsilon=0.1), generator=seeded()))
            options = Options(steps=6, batch_size=8, lr=0.05)
            runs.append(fit(found, pairs, objective, options, observe=watch, observe_every=2).losses)
        assert torch.equal(*runs)
        assert watch.steps.tolist() == [0, 2, 4, 6]
        found.train()
        found.encoder.projector.eval()
        modes = [module.training for module in found.modules()]
        watch(7, found)
        assert [module.training for module in found.modules()] == modes

    def test_it_looks_in_evaluation_mode(self):
        x = torch.rand(9, 2, generator=seeded()) + 1
        watch, norm = AlignmentWatch(x, x), nn.BatchNorm1d(2)
        watch(0, Siamese(Encoder(norm, nn.Identity()), Identity(), 0.0).train())
        assert float(watch.spectrum.sum()) == pytest.approx(float(x.square().sum(1).mean()), rel=1e-4)
        assert int(norm.num_batches_tracked) == 0

    def test_resumed(self, tmp_path):
        calls = []

        def stops(n, generator):
            calls.append(1)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return pairs(n, generator)

        options = Options(steps=12, batch_size=8, lr=0.05, checkpoint_every=5)
        whole, first, second = (AlignmentWatch(*pairs(20, seeded(1))) for _ in range(3))
        fit(model(), pairs, objective, options, observe=whole, observe_every=3)
        settings = {"checkpoint": tmp_path / "run.pt", "observe_every": 3}
        with pytest.raises(KeyboardInterrupt):
            fit(model(), stops, objective, options, observe=first, **settings)
        fit(model(), pairs, objective, options, observe=second, **settings)
        assert second.steps.tolist() == [0, 3, 6, 9, 12]
        for name in ("spectrum", "predictor", "cosines", "spread", "rank", "commutator"):
            assert torch.equal(getattr(second, name), getattr(whole, name)), name

    def test_errors_teach(self):
        watch = AlignmentWatch(torch.full((3, 2), torch.inf), torch.ones(3, 2))
        with pytest.raises(FloatingPointError, match="AlignmentWatch: an embedding after 4 updates is not finite"):
            watch(4, still(1.0, 1.0))
        with pytest.raises(ValueError, match="AlignmentWatch: expected a Siamese model, found Linear"):
            watch(0, nn.Linear(2, 2))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def named(name, n, side):
    """An image set of that name and size that takes no memory."""
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(n, 3, side, side)
    return data.ImageSet(images, torch.zeros(n, dtype=torch.int64), tuple("abcdefghij"), name)


class TestRecipes:
    def test_small(self, digits):
        found = alignment.small(digits, k=5, pool=2, momentum=0.5).start(0)
        kinds = [nn.AvgPool2d, nn.Flatten, *[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2]
        assert [type(layer) for layer in found.encoder.backbone] == kinds
        shapes = [tuple(p.shape) for p in found.encoder.parameters() if p.ndim == 2]
        assert shapes == [(256, 16), (128, 256), (128, 128), (5, 128)]
        assert found.momentum == 0.5
        assert found.predictor.weight.shape == (5, 5)
        assert torch.equal(found.target.projector[3].weight, found.encoder.projector[3].weight)
        options = alignment.small(digits).options
        assert (options.lr, options.momentum, options.weight_decay) == (0.03, 0.9, 4e-4)
        assert (options.batch_size, options.cosine, options.rate(1999)) == (128, False, 0.03)

    @pytest.mark.parametrize(
        ("name", "n", "side", "epoch"), [("cifar10", 50_000, 32, 391), ("stl10", 105_000, 96, 821)]
    )
    def test_authors(self, name, n, side, epoch):
        recipe = alignment.authors(named(name, n, side))
        assert recipe.options.steps == 100 * epoch
        assert recipe.options.rate(100 * epoch - 1) == 0.03
        found = recipe.start(0)
        assert (found.momentum, found.stop_gradient, recipe.factor) == (0.996, True, 2.0)
        shapes = [tuple(p.shape) for p in found.encoder.projector.parameters() if p.requires_grad]
        assert shapes == [(512, 512), (512,), (128, 512), (128,)]
        conv = found.encoder.backbone.conv1
        assert conv.kernel_size == ((3, 3) if side == 32 else (7, 7))
        assert not torch.equal(found.target.backbone.conv1.weight, conv.weight)  # weights of its own
        assert found.predictor.weight.shape == (128, 128)
        same = alignment.authors(named(name, n, side), own_target=False).start(0)
        assert torch.equal(same.target.backbone.conv1.weight, conv.weight)
        assert torch.equal(recipe.start(0).encoder.backbone.conv1.weight, conv.weight)
        assert not torch.equal(recipe.start(1).encoder.backbone.conv1.weight, conv.weight)
        assert alignment.authors(named(name, n, side), momentum=0.0).start(0).slow is None

    def test_the_authors_views(self):
        cifar, stl = alignment.CIFAR10, alignment.STL10
        assert (cifar.brightness, cifar.contrast, cifar.saturation, cifar.hue) == (0.4, 0.4, 0.4, 0.1)
        assert (stl.brightness, stl.contrast, stl.saturation, stl.hue) == (0.8, 0.8, 0.8, 0.2)
        assert cifar.blur is None
        assert (stl.blur, stl.blurred) == ((0.1, 2.0), 1.0)
        assert (stl.mean, stl.std) == ((0.0,), (1.0,))
        for views in (cifar, stl):
            assert (views.area, views.flip, views.jitter, views.grey) == ((0.08, 1.0), 0.5, 0.8, 0.2)

    def test_other_images(self, digits):
        with pytest.raises(ValueError, match="authors: expected images of cifar10 or stl10, found 'digits'"):
            alignment.authors(digits)

    def test_factor_of_the_loss(self, digits):
        z1, z2 = (torch.randn(5, 8, generator=seeded(s)) for s in (0, 1))
        recipe = alignment.small(digits, factor=2.0)
        cosines = [
            nn.functional.cosine_similarity(*pair).mean() for pair in ((z1[:, :4], z2[:, 4:]), (z2[:, :4], z1[:, 4:]))
        ]
        assert float(recipe.objective(z1, z2)) == pytest.approx(float(4 - 2 * sum(cosines)), rel=1e-5)

    def test_a_run(self, digits):
        recipe = alignment.small(digits, partial(Direct, rule=partial(direct_pred, epsilon=0.1)), k=8, steps=30)
        (a, watch), (b, again), (_, other) = (
            alignment.run(recipe, digits, seed, watched=50, every=10) for seed in (0, 0, 1)
        )
        assert watch.steps.tolist() == [0, 10, 20, 30]
        assert torch.equal(watch.x, other.x)
        assert watch.x.shape == (100, 1, 8, 8)
        assert not torch.equal(watch.x[:50], watch.x[50:])
        assert torch.equal(watch.spectrum, again.spectrum)
        assert not torch.equal(watch.spectrum, other.spectrum)
        assert torch.equal(a.predictor.F_hat, b.predictor.F_hat)
        assert int(a.predictor.updates) == 30
        assert not a.training
        assert watch.cosines[-1].mean() > 0.8 > watch.cosines[0].mean()  # set from its own moments, it is aligned

    def test_views_of_ones_own(self, digits):
        views = tuple(augment.digits().clean(digits.images[:20]) for _ in range(2))
        _, watch = alignment.run(alignment.small(digits, steps=2), digits, 0, watched=views)
        assert torch.equal(watch.x, torch.cat(views))

    def test_the_first_look_sees_settled_norms(self, digits):
        """In evaluation mode before any update the hidden units have the moments of the watched views."""
        recipe = alignment.small(digits, steps=1)
        looks = []

        class Encoding(AlignmentWatch):
            def __call__(self, step, model):
                h = model.encoder.eval().backbone[:7](self.x)
                looks.append((h.mean(0), h.std(0, correction=0)))
                model.encoder.train()
                super().__call__(step, model)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(alignment, "AlignmentWatch", Encoding)
            alignment.run(recipe, digits, 0, watched=400)
        mean, std = looks[0]
        assert torch.allclose(mean, torch.zeros(128), atol=0.01)  # a running variance has divisor n - 1
        assert torch.allclose(std, torch.ones(128), atol=0.02)

    def test_the_authors_run_shortened(self):
        images = dataclasses.replace(data.generated(16), name="cifar10")
        recipe = alignment.authors(images, partial(Trained, hidden=512))
        recipe = dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, steps=2, batch_size=4))
        found, watch = alignment.run(recipe, images, 0, watched=8, every=1)
        assert watch.spectrum.shape == (3, 128)
        assert watch.spectrum.isfinite().all()
        assert all(p.isfinite().all() for p in found.state_dict().values())


class TestLinearEvaluation:
    def test_against_the_optimum(self, digits):
        test = data.load("digits", "test")
        x, x_test = digits.flat(), test.flat()
        best = probe.logistic(x, digits.labels, x_test, test.labels)
        found = alignment.linear_evaluation(x, digits.labels, x_test, test.labels, epochs=300)
        assert found == pytest.approx(best, abs=0.03)
        assert alignment.linear_evaluation(x, digits.labels, x_test, test.labels, epochs=1) < found
        again = alignment.linear_evaluation(1000 * x + 7, digits.labels, 1000 * x_test + 7, test.labels, epochs=300)
        assert again == pytest.approx(found, abs=0.01)

    def test_several_workers(self, monkeypatch):
        monkeypatch.setattr(alignment.distributed, "workers", lambda: 2)
        x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
        with pytest.raises(RuntimeError, match="linear_evaluation: expected one process"):
            alignment.linear_evaluation(x, y, x, y)
