"""Witnesses: loops over images, the algebra of a scaled perceptron, torch's own optimiser, and bit-equal runs."""

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn

from companion.lab import augment, data, encoders, growth, steps, train
from companion.lab.encoders import Encoder
from companion.lab.train import fit, image_pairs
from companion.theory import ntk, stepwise
from companion.theory.losses import barlow_twins, info_nce, vicreg

LOSSES = tuple(growth.LOSSES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def views():
    """64 pairs of crops of 6 x 6 pixels from grey pictures of 8 kinds, each of 4 x 4 blocks."""
    pictures = data.generated(64, (1, 4, 4), classes=8).images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return growth.crop_pairs(pictures, 6, generator(), pool=2)


def perceptron(loss, updates, **changes):
    return growth.perceptron(loss, 36, 64, k=4, updates=updates, **changes)


def grown(recipe, views, seed=0, **more):
    return growth.grow(recipe, steps.fixed_pairs(*views), views, seed, **more)


def state(model):
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def linear_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def cosines(z):
    u = nn.functional.normalize(z, dim=1)
    return u @ u.T


class TestCropPairs:
    @pytest.mark.parametrize(("side", "pool"), [(3, 1), (2, 2), (8, 1)])
    def test_a_loop_over_pixels(self, side, pool):
        images = data.generated(7, (1, 8, 9)).images
        found = growth.crop_pairs(images, side, generator(), pool)
        g, views = generator(), []
        for _ in range(2):
            top = torch.randint(8 // pool - side + 1, (7, 1), generator=g)
            left = torch.randint(9 // pool - side + 1, (7, 1), generator=g)
            views.append(torch.zeros(7, side * side))
            for i in range(7):
                for row in range(side):
                    for column in range(side):
                        y, x = pool * (int(top[i]) + row), pool * (int(left[i]) + column)
                        block = images[i, 0, y : y + pool, x : x + pool].double()
                        views[-1][i, side * row + column] = block.mean() / 255
        mean = sum(views).sum(0) / 14
        for view, expected in zip(found, views, strict=True):
            assert torch.allclose(view, expected - mean, atol=1e-6)
        assert torch.cat(found).mean(0).abs().max() < 1e-6

    def test_every_place_equally_often(self):
        """Pixels that name their place, crops of one pixel; both views are independent."""
        place = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4).expand(6000, -1, -1, -1)
        found = torch.stack(growth.crop_pairs(place, 1, generator()))[..., 0]
        first, second = (255 * (found - found.min())).round().int().tolist()
        both = Counter(zip(first, second, strict=True))
        expected = 6000 / 144
        assert len(both) == 144
        assert sum((count - expected) ** 2 / expected for count in both.values()) < 143 + 4 * (2 * 143) ** 0.5

    @pytest.mark.unchecked
    def test_colour_images_are_refused(self):
        with pytest.raises(ValueError, match="grey images"):
            growth.crop_pairs(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 4, torch.Generator())

    @pytest.mark.unchecked
    def test_a_crop_larger_than_the_image(self):
        with pytest.raises(ValueError, match="side of at most 4 pixels, got 5"):
            growth.crop_pairs(data.generated(2, (1, 8, 9)).images, 5, generator(), pool=2)


class TestRecipe:
    def test_simclr_needs_a_bias_for_its_small_start(self):
        def encoder(draw):
            return encoders.small_cnn(1, 8, 4, size=8, width=4, hidden=(8,), generator=draw)

        recipe = growth.Recipe("simclr", encoder, train.Options(), scale=0.1)
        with pytest.raises(ValueError, match="bias in the last linear layer"):
            recipe.start(0)

    def test_an_unknown_loss_is_refused(self):
        recipe = perceptron("vicreg", 1)
        with pytest.raises(ValueError, match="one of barlow_twins, vicreg, simclr, found 'byol'"):
            dataclasses.replace(recipe, loss="byol")
        assert dataclasses.replace(recipe, loss="simclr").loss == "simclr"

    def test_the_three_losses(self):
        z1, z2 = torch.randn(2, 9, 4, generator=generator())
        expected = {"barlow_twins": barlow_twins(z1, z2), "vicreg": vicreg(z1, z2), "simclr": info_nce(z1, z2, 0.5)}
        assert {name: loss(z1, z2) for name, loss in growth.LOSSES.items()} == expected
        assert len({float(value) for value in expected.values()}) == 3

    def test_number_of_updates(self):
        assert growth.resnet("vicreg", epochs=3, n=1000).options.steps == 3 * 3  # 1000 / 256 = 3.9
        assert growth.resnet("vicreg", epochs=3, n=20).options.steps == 3


class TestStart:
    """A small start: nearly one embedding for all views. Control: the ordinary start."""

    @pytest.mark.parametrize("loss", ["barlow_twins", "vicreg"])
    def test_lengths_shrink_with_the_square(self, loss, views):
        """Two layers, scale s: from W relu(V x + a) + b to s^2 W relu(V x + a) + s b."""
        small, ordinary = (perceptron(loss, 1, small=small) for small in (True, False))
        s, x = small.scale, torch.cat(views)
        with torch.no_grad():
            b, z, found = ordinary.start(0).projector.bias, ordinary.start(0)(x), small.start(0)(x)
        assert s == 0.2
        assert torch.allclose(found, s**2 * (z - b) + s * b, atol=1e-6)
        assert not torch.allclose(found, s * z, atol=1e-3)
        spread, usual = (float(steps.covariance_spectrum(values).sum()) for values in (found, z))
        assert spread == pytest.approx(s**4 * usual, rel=1e-4)
        assert steps.correlation_spectrum(*found.chunk(2))[0] < 0.01

    def test_directions_agree_for_simclr(self, views):
        x = torch.cat(views)
        with torch.no_grad():
            small, ordinary = (perceptron("simclr", 1, small=small).start(0) for small in (True, False))
            assert cosines(small(x)).min() > 0.999
            assert cosines(ordinary(x)).min() < 0.9
        assert small.projector.bias.tolist() == [1, 0, 0, 0]

    def test_small_lengths_alone_are_not_enough_for_simclr(self, views):
        """Control of the bias: under the other losses' start directions differ."""
        recipe = dataclasses.replace(perceptron("barlow_twins", 1), scale=0.05)
        encoder = recipe.start(0)
        with torch.no_grad():
            encoder.projector.bias.zero_()
            assert cosines(encoder(torch.cat(views))).min() < 0.9

    @pytest.mark.parametrize("loss", LOSSES)
    def test_an_ordinary_start_is_torchs_bit_by_bit(self, loss):
        ordinary, small = perceptron(loss, 1, small=False), perceptron(loss, 1)
        untouched = state(ordinary.encoder(generator(3)))
        assert torch.equal(state(ordinary.start(3)), untouched)
        assert not torch.equal(state(small.start(3)), untouched)
        assert not torch.equal(state(ordinary.start(4)), untouched)
        assert not ordinary.start(3).training

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_last_layer_alone(self, loss):
        images = data.generated(20, (1, 8, 8))
        small, ordinary = (growth.small_cnn(loss, images, small=small).start(0) for small in (True, False))
        x = images.images / 255
        with torch.no_grad():
            assert torch.equal(small.features(x), ordinary.features(x))
            assert torch.allclose(small.projector.weight, 0.01 * ordinary.projector.weight)
            assert (cosines(small(x)).min() > 0.999) == (loss == "simclr")


@pytest.fixture(scope="module", params=LOSSES)
def run(request, views):
    recipe = perceptron(request.param, 1500)
    return recipe, *grown(recipe, views, every=50)


class TestSpectrum:
    def test_each_eigenvalue_rises_to_about_one(self, run):
        """From nothing; only Barlow Twins, on its last plateau but one, has an eigenvalue left to learn."""
        recipe, _, watch = run
        curves = growth.spectrum(recipe, watch)
        learned = curves[-1] > 0.1
        assert curves.shape == (31, 4)
        assert curves[0].max() < 1e-3
        assert learned.tolist() == [True, True, True, recipe.loss != "barlow_twins"]
        assert curves[-1][learned].min() > 0.8
        assert curves[-1][learned].max() < 2
        if recipe.loss == "barlow_twins":
            assert float(watch.losses[-1]) == pytest.approx(1, abs=0.01)

    def test_what_is_watched(self, run, views):
        """Of the last look, from the encoder itself, which is in evaluation mode."""
        recipe, encoder, watch = run
        with torch.no_grad():
            z1, z2 = (encoder(x) for x in views)
        z = torch.cat([z1, z2])
        expected = {
            "barlow_twins": torch.linalg.eigvalsh((z1.T @ z2 + z2.T @ z1).double() / 128),
            "vicreg": torch.linalg.eigvalsh(z.double().T.cov(correction=0)),
            "simclr": 4 * torch.linalg.eigvalsh(nn.functional.normalize(z.double()).T.cov(correction=0)),
        }
        found = growth.spectrum(recipe, watch)[-1].flip(0)
        for loss, values in expected.items():
            assert torch.allclose(found, values, rtol=1e-3) == (loss == recipe.loss)
        assert float(watch.losses[-1]) == pytest.approx(float(growth.LOSSES[recipe.loss](z1, z2)), rel=1e-4)
        assert not encoder.training


class TestGrow:
    def test_torchs_own_gradient_descent(self, views):
        """Five updates by hand; the seed is that of `grow`, not that of the options."""
        recipe = perceptron("barlow_twins", 5)
        encoder, watch = grown(recipe, views, 2, every=2, keep=(0, 4))
        by_hand = recipe.start(2)
        optimizer = torch.optim.SGD(by_hand.parameters(), 0.01, momentum=0.9)
        for step in range(5):
            z1, z2 = (by_hand(x) for x in views)
            loss = barlow_twins(z1, z2)
            assert step % 2 or float(watch.losses[step // 2]) == pytest.approx(loss.item(), rel=1e-5)
            assert step % 4 or torch.allclose(watch.embeddings[step], torch.cat([z1, z2]), atol=1e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert torch.allclose(state(encoder), state(by_hand), atol=1e-6)
        assert not torch.allclose(state(encoder), state(recipe.start(2)), atol=1e-3)
        assert watch.steps.tolist() == [0, 2, 4, 5]
        assert isinstance(encoder, Encoder)
        assert not encoder.training

    def test_one_seed_one_result(self):
        """The seed decides weights, images and views."""
        images = data.generated(40, (1, 8, 8))
        recipe = growth.small_cnn("simclr", images, small=False, updates=3)
        pairs = image_pairs(images.images, augment.digits())
        watched = pairs(30, generator(9))
        runs = [growth.grow(recipe, pairs, watched, seed, every=1) for seed in (0, 0, 1)]
        states, curves = [state(encoder) for encoder, _ in runs], [watch.covariance for _, watch in runs]
        assert torch.equal(states[0], states[1])
        assert torch.equal(curves[0], curves[1])
        assert not torch.equal(states[0], states[2])
        same_weights = dataclasses.replace(recipe, encoder=lambda _: recipe.encoder(generator()))
        views_alone = [growth.grow(same_weights, pairs, watched, seed, every=1)[1].losses for seed in (0, 1)]
        assert views_alone[0][0] == views_alone[1][0]
        assert not torch.equal(*views_alone)

    def test_another_objective(self, views):
        """Its gradient moves the weights, the recipe's own loss is watched."""
        plain = perceptron("barlow_twins", 30)
        fast = dataclasses.replace(plain, objective=steps.preconditioned(growth.LOSSES["barlow_twins"], 0.1))
        expected = fast.start(0)
        fit(expected, steps.fixed_pairs(*views), fast.objective, fast.options)
        runs = [grown(recipe, views, every=1) for recipe in (plain, fast)]
        assert torch.equal(state(runs[1][0]), state(expected))
        assert not torch.equal(state(runs[0][0]), state(expected))
        watches = [watch for _, watch in runs]
        assert watches[0].losses[0] == watches[1].losses[0]
        late, soon = (steps.step_times(watch.steps, watch.correlation, 0.5)[0] for watch in watches)
        assert soon < late / 2
        with torch.no_grad():
            loss = float(barlow_twins(*map(expected, views)))
        assert float(watches[1].losses[-1]) == pytest.approx(loss, rel=1e-5)

    def test_killed_and_resumed(self, views, tmp_path):
        recipe = perceptron("vicreg", 30)
        recipe = dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, checkpoint_every=10))
        calls, source = [], steps.fixed_pairs(*views)

        def stops(n, generator):
            calls.append(1)
            if len(calls) == 25:
                raise KeyboardInterrupt
            return source(n, generator)

        expected, whole = grown(recipe, views, every=4, keep=(4, 30))
        more = {"every": 4, "keep": (4, 30), "checkpoint": tmp_path / "run.pt"}
        with pytest.raises(KeyboardInterrupt):
            growth.grow(recipe, stops, views, 0, **more)
        calls.clear()
        found, resumed = growth.grow(recipe, lambda *a: calls.append(1) or source(*a), views, 0, **more)
        assert len(calls) == 10
        assert torch.equal(state(found), state(expected))
        for name in ("steps", "losses", "correlation", "covariance", "hidden"):
            assert torch.equal(getattr(resumed, name), getattr(whole, name))
        assert all(torch.equal(resumed.embeddings[step], whole.embeddings[step]) for step in (4, 30))
        with pytest.raises(ValueError, match="other seed"):
            grown(recipe, views, 1, **more)


def deep(loss, depth, updates, **changes):
    """The deep recipe, cut to images of 32 x 32 pixels, batches of 8 pairs and a few updates."""
    recipe = growth.resnet(loss, depth=depth, k=4, n=16)
    options = dataclasses.replace(recipe.options, steps=updates, batch_size=8, **changes)
    pairs = image_pairs(data.generated(16).images, augment.cifar(32))
    return dataclasses.replace(recipe, options=options), pairs, pairs(8, generator(1))


class TestGpuConfigurationOnCpu:
    @pytest.mark.parametrize(("depth", "loss"), [(18, "simclr"), (18, "vicreg"), (50, "barlow_twins")])
    def test_from_images_to_the_kernels_embedding(self, depth, loss):
        """Two updates, the kernel of the network, and the embedding that the kernel predicts, whose C is I."""
        recipe, pairs, watched = deep(loss, depth, 2)
        before = state(recipe.start(0))
        encoder, watch = growth.grow(recipe, pairs, watched, 0, every=1)
        assert (recipe.options.bf16, recipe.options.channels_last, recipe.options.momentum) == (True, True, 0)
        assert watch.steps.tolist() == [0, 1, 2]
        assert growth.spectrum(recipe, watch).shape == (3, 4)
        assert watch.hidden.shape == (3, 20)
        assert watch.losses.isfinite().all()
        assert not torch.equal(state(encoder), before)

        x = torch.cat([view[:2] for view in watched])
        K = ntk.empirical(encoder, x, method="blocks", outputs=[0, 1])
        assert float(barlow_twins(*stepwise.kernel_embedding(K, 2).chunk(2))) < 1e-6
        principal = 2 * torch.linalg.eigh(K).eigenvectors[:, -2:]  # the control: white, but not over pairs
        assert float(barlow_twins(*principal.chunk(2))) > 0.01
        with pytest.raises(ValueError, match="call model"):
            ntk.empirical(encoder.train(), x, method="blocks", outputs=[0, 1])

    def test_its_small_start_is_small_under_batch_norm(self):
        """In training mode a factor on the last layer counts; one on convolutions besides, the control, does not."""
        recipe, _, (x, _) = deep("barlow_twins", 18, 1)
        ordinary = dataclasses.replace(recipe, scale=1.0)
        models = recipe.start(0), ordinary.start(0), steps.scale_weights(ordinary.start(0), recipe.scale)
        for model in models:
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eps = 1e-12  # else eps counts beside the variance of convolutions scaled by 0.01
        with torch.no_grad():
            z, usual, other = (model.train().double()(x.double()) for model in models)
        assert torch.allclose(z, recipe.scale * usual)
        assert (other - z).abs().max() < 0.05 * z.abs().max()

    def test_barlow_twins_needs_its_small_rate(self):
        """Features that share a mean have a large gamma; above a rate of 1 / (4 gamma) training explodes."""
        recipe, pairs, watched = deep("barlow_twins", 18, 8)
        _, watch = growth.grow(recipe, pairs, watched, 0, every=8)
        assert watch.losses.max() < 4.1
        recipe, pairs, watched = deep("barlow_twins", 18, 8, lr=0.01)
        with pytest.raises(FloatingPointError, match="smaller lr"):
            growth.grow(recipe, pairs, watched, 0, every=8)
