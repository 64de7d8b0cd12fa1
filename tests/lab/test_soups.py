"""Witnesses: torch's own layers and SGD one network at a time, scikit-learn's prediction, soups and choices by hand."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from companion.lab import augment, data, soup_scores, soups
from companion.lab.soups import Draw, FineTunes, fold, network, recipe
from companion.theory.flatness.soup import ensemble, soup

DIGITS = data.load("digits")
SMALL = {"widths": (12, 8), "pretraining": 2, "labelled": 150, "held_out": 60, "steps": 5, "batch": 4}


def small(**changes):
    return recipe(DIGITS, **{**SMALL, **changes})


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(*sizes, seed=0, scale=0.5):
    found = {}
    for layer in range(len(sizes) - 1):
        found[f"W{layer}"] = scale * normal(sizes[layer], sizes[layer + 1], seed=10 * seed + layer)
        found[f"b{layer}"] = scale * normal(sizes[layer + 1], seed=100 + 10 * seed + layer)
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def family():
    return soups.draws(small(), DIGITS, 8, 3)


class TestNetwork:
    def test_it_is_torchs_own_perceptron(self):
        params, x = weights(5, 4, 3, 2), normal(7, 5, seed=9)
        layers = []
        for i in range(3):
            linear = nn.Linear(*params[f"W{i}"].shape)
            linear.weight.data, linear.bias.data = params[f"W{i}"].T, params[f"b{i}"]
            layers += [linear, nn.GELU()]
        assert torch.allclose(network(params, x), nn.Sequential(*layers[:-1])(x), atol=1e-6)
        assert torch.allclose(soups.hidden(params, x, 2), nn.Sequential(*layers[:4])(x), atol=1e-6)

    def test_stacked_networks_are_the_networks_one_by_one(self):
        starts = [weights(5, 4, 2, seed=i) for i in range(3)]
        model, x = FineTunes(starts, 2), normal(6, 7, 5)
        alone = torch.stack([network(starts[i // 2], x[i]) for i in range(6)])
        assert torch.allclose(model(x), alone, atol=1e-6)
        assert all(same(found, starts[i // 2]) for i, found in enumerate(model.params()))

    def test_what_is_folded_does_what_linear_map_and_batch_norm_did(self):
        layers = [(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)), (nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3))]
        for i, (_, norm) in enumerate(layers):
            norm.weight.data, norm.bias.data = (
                1 + normal(len(norm.weight), seed=i).abs(),
                normal(len(norm.weight), seed=5),
            )
            norm.running_mean, norm.running_var = normal(len(norm.weight), seed=6), normal(len(norm.weight)).abs() + 0.1
        whole = nn.Sequential(*[part for pair in layers for part in (*pair, nn.GELU())]).eval()
        x = normal(9, 5)
        assert torch.allclose(soups.hidden(fold(layers), x, 2), whole(x), atol=1e-5)
        assert not any(p.requires_grad for p in fold(layers).values())

    def test_an_encoder_knows_no_labels_and_differs_by_seed(self):
        how = small()
        one = soups.pretrained(how, DIGITS, 0)
        blind = replace(DIGITS, labels=torch.zeros_like(DIGITS.labels))
        assert same(one, soups.pretrained(how, blind, 0))
        assert not same(one, soups.pretrained(how, DIGITS, 1))
        assert [tuple(p.shape) for p in one.values()] == [(64, 12), (12,), (12, 8), (8,)]
        longer = soups.pretrained(replace(how, pretraining=3), DIGITS, 0)
        assert not same(one, longer)


class TestProbe:
    def test_its_gradient_vanishes_with_the_penalty(self):
        body, x = weights(64, 12, 8), small().inputs(DIGITS.float())[:200].double()
        body = {k: p.double() for k, p in body.items()}
        y, penalty = DIGITS.labels[:200], 0.03
        params = soups.with_probe(body, x, y, 10, penalty)
        assert all(torch.equal(params[k], body[k]) for k in body)
        h = soups.hidden(body, x, 2)
        scale = h.var(0, correction=0).mean().sqrt()
        W, b = (params[k].clone().requires_grad_() for k in ("W2", "b2"))
        loss = functional.cross_entropy(h @ W + b, y) + penalty / 2 * (scale * W).square().sum()
        # the intercept belongs to centred features: b + mean W is what is free
        gradients = torch.autograd.grad(loss, (W, b))
        assert gradients[1].abs().max() < 1e-3
        assert (gradients[0] / scale).abs().max() < 1e-3
        worse = functional.cross_entropy(h @ (1.1 * W) + b, y) + penalty / 2 * (scale * 1.1 * W).square().sum()
        assert worse > loss + 1e-4

    def test_a_class_without_a_label(self):
        x, y = small().inputs(DIGITS.float())[:50], DIGITS.labels[:50] % 4
        with pytest.raises(ValueError, match=r"labels of 6 classes, found none of \[4, 5\]; label more"):
            soups.with_probe(weights(64, 12), x, y, 6, 0.1)

    def test_probes_share_the_encoder_and_nothing_else(self, family):
        found = soup_scores.probes(family[0], small(), 3, 0)
        for params in found:
            assert all(p.dtype == torch.float64 for p in params.values())
            assert all(torch.equal(params[k], family[0].start[k].double()) for k in ("W0", "b0", "W1", "b1"))
        assert len({float(params["W2"].sum()) for params in found}) == 3
        again = soup_scores.probes(family[0], small(), 3, 0)
        assert all(same(a, b) for a, b in zip(found, again, strict=True))


class TestFineTunes:
    def test_each_is_torchs_sgd_at_its_own_rate_on_its_own_batches(self):
        how = small(augmentations=(augment.Augmentation(), augment.Augmentation(brightness=0.5)), rates=(0.1, 0.3))
        starts = [weights(64, 12, 10, seed=i, scale=0.1) for i in range(2)]
        sets = [DIGITS.subset(torch.arange(60 * i, 60 * (i + 1))) for i in range(2)]
        found = soups.fine_tune(how, starts, sets, 7)
        generator, batches = torch.Generator().manual_seed(7), []
        for _ in range(how.steps):  # the draws of the run, in its order
            index = torch.randint(60, (2, how.seeds * how.batch), generator=generator)
            x = torch.cat([s.images[i] for s, i in zip(sets, index, strict=True)])
            y = torch.stack([s.labels[i] for s, i in zip(sets, index, strict=True)])
            batches.append((y, [a(x, generator).flatten(1).view(2, -1, 64) for a in how.augmentations]))
        for d in range(2):
            for number, (rate, a, s) in enumerate(product(how.rates, range(2), range(2))):
                params = {k: p.clone().requires_grad_() for k, p in starts[d].items()}
                sgd = torch.optim.SGD(params.values(), rate, momentum=0.9)
                cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, how.steps)
                for y, views in batches:
                    rows = slice(s * how.batch, (s + 1) * how.batch)
                    sgd.zero_grad()
                    functional.cross_entropy(network(params, views[a][d, rows]), y[d, rows]).backward()
                    # momentum as the loop has it: the rate of the moment is in the step, not in the buffer
                    sgd.step()
                    cosine.step()
                for k, p in params.items():
                    assert torch.allclose(found[d][number][k], p, atol=1e-5), (d, number, k)
                    assert not torch.allclose(found[d][number][k], starts[d][k], atol=1e-4)

    def test_draws_are_reproducible_and_apart(self, family):
        again = soups.draws(small(), DIGITS, 2, 3)
        for one, other in zip(family, again, strict=False):
            assert same(one.start, other.start)
            assert torch.equal(one.held_out.images, other.held_out.images)
        first, second = family[:2]
        assert not torch.equal(first.labelled.labels, second.labelled.labels)
        assert not torch.equal(first.start["W0"], second.start["W0"])
        assert [len(first.labelled), len(first.held_out), len(first.models)] == [150, 60, 8]
        pixels = {tuple(x.flatten().tolist()) for x in first.labelled.images}
        assert not pixels & {tuple(x.flatten().tolist()) for x in first.held_out.images}
        assert len({float(model["W0"].sum()) for model in first.models}) == 8

    def test_fewer_images_than_wanted(self):
        with pytest.raises(ValueError, match="150 to train on and 60 to choose by, found 200"):
            soups.draws(small(), DIGITS.subset(torch.arange(200)), 1, 0)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"rates": ()}, "rates of a recipe: expected at least one, found none"),
            ({"augmentations": ()}, "augmentations of a recipe"),
            ({"widths": ()}, "widths of a recipe"),
            ({"seeds": 0}, "seeds of a recipe: expected at least 1, found 0"),
            ({"held_out": 0}, "held_out of a recipe"),
        ],
    )
    def test_recipes_that_cannot_be_meant(self, changes, words):
        with pytest.raises(ValueError, match=words):
            small(**changes)

    def test_recipes_by_images(self):
        fashion = recipe(replace(DIGITS, name="fashion-mnist"))
        assert fashion.settings == recipe(DIGITS).settings == 8
        plain, noisy = fashion.augmentations
        assert (plain.noise, plain.flip, noisy.noise, noisy.flip) == (0.0, 0.0, 0.1, 0.5)
        assert {a.mean for a in (plain, noisy)} == {fashion.views.mean}
        assert recipe(DIGITS).augmentations[1].flip == 0.0  # a mirrored 2 is no 5
        images = DIGITS.float()[:3]
        assert torch.allclose(small().inputs(images), ((images - 0.305) / 0.376).flatten(1))

    def test_pooling_averages_blocks(self):
        images = replace(DIGITS, images=torch.tensor([[[[0, 2, 9, 9], [4, 6, 9, 9]]]], dtype=torch.uint8))
        assert soups.pooled(images).images.tolist() == [[[[3, 9]]]]
        assert soups.pooled(images).images.dtype == torch.uint8


class TestChoices:
    def test_a_greedy_soup_by_hand(self):
        points = [{"x": torch.tensor(x)} for x in (3.0, -2.0, 1.0, -4.0)]
        # scores -3, -2, -1, -4: first 1; with -2 at -0.5, stays; with 3 at 2/3, worse; with -4 at -5/3, worse
        assert soup_scores.greedy(points, lambda p: -abs(float(p["x"]))) == [2, 1]
        assert soup_scores.greedy(points, lambda p: 1.0) == [0]  # an equal score is no gain
        assert soup_scores.greedy(points, lambda p: float(len(p))) == [0]
        seen = []
        soup_scores.greedy(points, lambda p: seen.append(float(p["x"])) or -abs(float(p["x"])))
        assert seen[4:] == pytest.approx([-0.5, 2 / 3, -5 / 3])

    def test_a_greedy_soup_is_never_worse_where_it_is_chosen(self, family):
        for draw in family:
            chosen, score = soup_scores.choose(draw, small()), soup_scores.held_out_score(draw, small())
            alone = [score(model) for model in draw.models]
            assert alone[chosen["best"][0]] == max(alone)
            assert chosen["best"] == chosen["greedy"][:1]
            assert chosen["uniform"] == list(range(8))
            assert score(soup([draw.models[i] for i in chosen["greedy"]])) >= max(alone)

    def test_scores_are_shares_of_right_answers(self, family):
        how, draw, test = small(), family[0], data.load("digits", "test")
        sets = {"test": how.inputs(test.float()), "other": how.inputs(1 - test.float())}
        found = soup_scores.scores(draw, how, sets, test.labels)
        assert tuple(found) == soup_scores.ROWS
        assert all(tuple(row) == ("test", "other") for row in found.values())
        z = torch.stack([network(m, sets["other"]) for m in draw.models])
        share = (z.argmax(2) == test.labels).double().mean(1)
        assert found["mean"]["other"] == pytest.approx(float(share.mean()))
        assert found["best"]["other"] == pytest.approx(float(share[soup_scores.choose(draw, how)["best"][0]]))
        together = ensemble(lambda p: network(p, sets["other"]), draw.models).argmax(1) == test.labels
        assert found["ensemble"]["other"] == pytest.approx(float(together.double().mean()))
        mixed = network(soup(draw.models), sets["test"]).argmax(1) == test.labels
        assert found["uniform"]["test"] == pytest.approx(float(mixed.double().mean()))
        assert found["probe"]["test"] == float(soup_scores.right(network(draw.start, sets["test"]), test.labels))

    def test_an_ensemble_averages_logits_not_probabilities(self):
        tiny = DIGITS.subset(torch.arange(1))
        heads = [torch.tensor([[0.0, 3.0, 0.0]]), torch.tensor([[1.0, 0.0, -9.0]]), torch.tensor([[1.0, 0.0, -9.0]])]
        models = [{"W0": torch.zeros(64, 3), "b0": head[0]} for head in heads]
        how, x, y = small(), torch.zeros(1, 64), torch.tensor([1])  # logits 2/3, 1, -6
        row = soup_scores.scores(Draw(models[0], tiny, tiny, models), how, {"one": x}, y)["ensemble"]
        assert row["one"] == 1.0
        assert int(torch.stack(heads).softmax(-1).mean(0).argmax()) == 0

    def test_test_images_choose_nothing(self, family):
        how, draw = small(), family[0]
        chosen = soup_scores.choose(draw, how)
        other = replace(draw, labelled=draw.held_out)
        assert soup_scores.choose(other, how) == chosen
        shuffled = replace(draw.held_out, labels=draw.held_out.labels.roll(1))
        assert soup_scores.choose(replace(draw, held_out=shuffled), how) != chosen

    def test_strangers_are_a_latin_square(self):
        tiny = DIGITS.subset(torch.arange(1))
        marked = [Draw({}, tiny, tiny, [{"x": torch.tensor((d, s))} for s in range(3)]) for d in range(4)]
        families = [[tuple(m["x"].tolist()) for m in others] for others in soup_scores.strangers(marked)]
        assert [[s for _, s in one] for one in families] == [[0, 1, 2]] * 4
        assert all(len({d for d, _ in one}) == 3 for one in families)
        assert len({pair for one in families for pair in one}) == 12
        with pytest.raises(ValueError, match="expected at least 3 draws, one a setting, found 2"):
            soup_scores.strangers(marked[:2])

    def test_linear_probes_make_soup_and_ensemble_one_and_fine_tunes_do_not(self, family):
        x = small().inputs(DIGITS.float()).double()
        assert soup_scores.disagreement(soup_scores.probes(family[0], small(), 4, 0), x) < 1e-14
        apart = [{k: p.double() for k, p in weights(64, 12, 10, seed=i).items()} for i in range(2)]
        z, mixed = ensemble(lambda p: network(p, x), apart), network(soup(apart), x)
        share = (mixed - z).abs().max() / z.abs().max()
        assert soup_scores.disagreement(apart, x) == pytest.approx(float(share))
        assert share > 0.1


def test_shifts_change_images_as_they_say():
    x = normal(400, 1, 6, 5).sigmoid()
    found = soup_scores.shifted(x, torch.Generator().manual_seed(1))
    assert tuple(found) == soup_scores.SHIFTS
    assert float((found["noise"] - x).std()) == pytest.approx(0.2, rel=0.03)
    moved = torch.zeros_like(x)
    moved[:, :, 1:, 1:] = x[:, :, :-1, :-1]
    assert torch.equal(found["shift"], moved)
    mean = x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(found["contrast"] - mean, 0.5 * (x - mean), atol=1e-6)
    peak = torch.zeros(1, 1, 9, 9)
    peak[0, 0, 4, 4] = 1
    seen = soup_scores.shifted(peak, torch.Generator())["blur"][0, 0]
    assert float(seen.sum()) == pytest.approx(1, abs=1e-5)
    assert float(seen[4, 5] / seen[4, 4]) == pytest.approx(2.718281828 ** (-0.5 / 0.36), rel=1e-4)
