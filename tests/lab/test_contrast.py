"""Witnesses: updates written out with a list for a memory, equalities of whole runs to the last bit, a resumed run."""

import dataclasses
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from companion.lab import alignment, contrast, data, train
from companion.lab.contrast import METHODS
from companion.lab.contrast_network import Network
from companion.lab.encoders import mlp
from companion.lab.predictors import Identity
from companion.theory.graph_attention import batch_attention

IMAGES = data.generated(12, (1, 4, 4))
SIMSIAM = tuple(method for method in METHODS if method.startswith("simsiam"))


def recipe(method, steps=12, batch=8, **changes):
    made = contrast.small(IMAGES, method, k=8, steps=steps, batch=batch)
    options = dataclasses.replace(made.options, checkpoint_every=5, log_every=steps)
    return dataclasses.replace(made, options=options, **changes)


def trained(*arguments, seed=0, after_each=None, **changes):
    """A run through `contrast.run`: the model, and the losses that it saw."""
    made = recipe(*arguments, **changes)
    seen = []

    class Listening(contrast.Recipe):
        def objective(self, model, rows1, rows2):
            seen.append(super().objective(model, rows1, rows2))
            if after_each is not None:
                after_each(model, rows1, rows2)
            return seen[-1]

    fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    model, watch = contrast.run(Listening(**fields), IMAGES, seed, watched=6, every=100)
    return model, torch.stack(seen).detach(), watch


def state(model):
    """Parameters and running averages, not what is remembered."""
    return {name: value for name, value in model.state_dict().items() if name not in ("memory", "visits")}


def same(a, b):
    a, b = state(a), state(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestEqualities:
    def test_uniform_attention_is_simclr_to_the_last_bit(self):
        (plain, losses, _), (attentive, others, _) = trained("simclr"), trained("simclr-attn", beta=0.0)
        assert torch.equal(losses, others)
        assert same(plain, attentive)
        shuffled, others, _ = trained("simclr-shuffled", beta=0.0)
        assert torch.equal(losses, others)
        assert same(plain, shuffled)
        weighted, others, _ = trained("simclr-attn", beta=5.0)
        assert not torch.equal(losses, others)
        assert not same(plain, weighted)

    @pytest.mark.parametrize("stages", [2, 4])
    def test_before_its_time_a_memory_changes_nothing(self, stages):
        plain, losses, _ = trained("simsiam")
        later, others, _ = trained("simsiam-multi", stages=stages, after=7)
        assert torch.equal(losses[:7], others[:7])
        assert not torch.equal(losses[7:], others[7:])
        assert not same(plain, later)
        never, others, _ = trained("simsiam-multi", stages=stages, after=12)
        assert torch.equal(losses, others)
        assert same(plain, never)

    def test_the_same_seed_is_the_same_run_and_another_is_not(self):
        for method in ("simclr-shuffled", "simsiam-multi"):
            (a, losses, _), (b, again, _), (_, other, _) = (trained(method, seed=seed) for seed in (3, 3, 4))
            assert torch.equal(losses, again)
            assert same(a, b)
            assert not torch.equal(losses, other)

    def test_pairs_are_those_of_the_loop(self):
        made = recipe("simsiam-multi")
        model = made.start(0, len(IMAGES))
        ours = model.pairs(IMAGES.images, made.augmentation)
        theirs = train.image_pairs(IMAGES.images, made.augmentation)
        views = [sample(5, torch.Generator().manual_seed(1)) for sample in (ours, theirs)]
        assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))
        expected = torch.randint(12, (5,), generator=torch.Generator().manual_seed(1))
        assert torch.equal(model.drawn, expected)


class TestMemory:
    @pytest.mark.parametrize("stages", [2, 4])
    def test_it_holds_the_latest_visits(self, stages):
        """A list an image, filled by hand after each batch, an image drawn twice counted once."""
        lists = {image: [] for image in range(12)}

        def note(model, rows1, rows2):
            z2 = model.parts(rows2)[1].detach()
            for image, z in dict(zip(model.drawn.tolist(), z2, strict=True)).items():  # a dict keeps the last
                lists[image].insert(0, z)

        model, _, _ = trained("simsiam-multi", after_each=note, stages=stages)
        assert model.memory.shape == (stages - 1, 12, 8)
        assert model.visits.tolist() == [len(lists[image]) for image in range(12)]
        assert max(model.visits) > stages
        assert int(model.updates) == 12
        for image, visits in lists.items():
            held = visits[: stages - 1]
            for place in range(stages - 1):
                expected = held[place] if place < len(held) else torch.zeros(8)
                assert torch.equal(model.memory[place, image], expected)

    def test_a_repeated_image_is_one_visit(self):
        model = Network(mlp((4, 5, 3), generator=torch.Generator().manual_seed(0)), Identity(), k=3, images=5, stages=2)
        for drawn, value in (([1, 3, 1], 1.0), ([3, 4, 0], 10.0)):
            model.drawn = torch.tensor(drawn)
            z2 = value * torch.arange(1.0, 4.0)[:, None].expand(3, 3)
            model.latest = torch.cat([torch.zeros(3, 3), z2])
            model.after_update()
        assert model.visits.tolist() == [1, 1, 0, 2, 1]
        assert model.memory[:, :, 0].tolist() == [[30, 3, 0, 10, 20], [0, 0, 0, 2, 0]]
        model.drawn = torch.tensor([3, 2, 0, 3])
        memory, stored = model.recall()
        assert stored.tolist() == [2, 0, 1, 2]
        assert memory[:, :, 0].tolist() == [[10, 0, 30, 10], [2, 0, 0, 2]]

    @pytest.mark.parametrize("stages", [2, 3])
    def test_the_target_is_the_mean_of_the_stages(self, stages):
        """The loss of each batch from the dictionary of what was seen before it."""
        lists, expected = {image: [] for image in range(12)}, []

        def note(model, rows1, rows2):
            (p1, z1, _), (p2, z2, _) = ([part.detach() for part in model.parts(rows)] for rows in (rows1, rows2))
            total, drawn = 0.0, model.drawn.tolist()
            for i, image in enumerate(drawn):
                held = lists[image][: stages - 1] if len(expected) >= 3 else []
                for p, z in ((p1[i], z2[i]), (p2[i], z1[i])):
                    total -= float(functional.cosine_similarity(p, sum([z, *held]) / (1 + len(held)), dim=0))
            expected.append(total / 16)
            for image, z in dict(zip(drawn, z2, strict=True)).items():
                lists[image].insert(0, z)

        _, losses, _ = trained("simsiam-multi", after_each=note, stages=stages, after=3)
        assert losses.tolist() == pytest.approx(expected, abs=1e-5)

    def test_only_an_update_is_remembered(self):
        made = recipe("simsiam-multi")
        model = made.start(0, len(IMAGES)).train()
        x = torch.cat(model.pairs(IMAGES.images, made.augmentation)(8, torch.Generator().manual_seed(0)))
        model(x)
        assert int(model.visits.sum()) == 0
        model.after_update()
        before = model.memory.clone()
        with torch.no_grad():
            model(x + 1)
        model.after_update()
        assert torch.equal(model.memory, before)  # of the batch that had gradients

    def test_pairs_from_elsewhere(self):
        made = recipe("simsiam-multi")
        model = made.start(0, len(IMAGES))
        pairs = train.image_pairs(IMAGES.images, made.augmentation)
        with pytest.raises(RuntimeError, match="memory of a network: expected batches from its own `pairs`"):
            train.fit(model, pairs, partial(made.objective, model), made.options)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("simsiam-multi", {"stages": 3, "after": 4}),
        ("simclr-shuffled", {"beta": 5.0}),
        ("alignment", {"centre": 0.9}),
    ],
)
def test_killed_and_resumed(method, changes, tmp_path, monkeypatch):
    """Killed in the eighth update, after a checkpoint at the fifth: the numbers of a run that was not."""
    made, path = recipe(method, **changes), tmp_path / "run.pt"
    whole, seen = contrast.run(made, IMAGES, 1, watched=6, every=4)
    with monkeypatch.context() as patch:
        calls, after_update = [], Network.after_update

        def killed(self):
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            after_update(self)

        patch.setattr(Network, "after_update", killed)
        with pytest.raises(KeyboardInterrupt):
            contrast.run(made, IMAGES, 1, watched=6, every=4, checkpoint=path)
    resumed, again = contrast.run(made, IMAGES, 1, watched=6, every=4, checkpoint=path)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(seen.spectrum, again.spectrum)
    assert seen.steps.tolist() == again.steps.tolist() == [0, 4, 8, 12]


class TestAttention:
    def test_weights_of_the_encoders_features(self):
        """The loss by the rows' own features; the head's output would give other weights."""

        def note(model, rows1, rows2):
            (_, z1, h1), (_, z2, h2) = model.parts(rows1), model.parts(rows2)
            assert h1.shape == (8, 128)
            cosine = functional.cosine_similarity(h1, h2)
            assert bool((h1 >= 0).all())  # after a ReLU
            w = torch.softmax(5 * cosine, 0).repeat(2) / 2
            u = functional.normalize(torch.cat([z1, z2]), dim=1)
            logits = (u @ u.T / 0.3).fill_diagonal_(-torch.inf)
            partner = torch.arange(16).roll(8)
            expected.append(-(w * logits.log_softmax(1)[torch.arange(16), partner]).sum().item())

        expected = []
        _, losses, _ = trained("simclr-attn", after_each=note, beta=5.0, temperature=0.3)
        assert losses.tolist() == pytest.approx(expected, rel=1e-5)

    def test_shuffled_weights_are_a_permutation(self, monkeypatch):
        given, taken = [], []

        def attention(*arguments):
            given.append(batch_attention(*arguments))
            return given[-1]

        def loss(z1, z2, temperature, weights, gather):
            taken.append(weights)
            return (z1 - z2).square().mean()

        monkeypatch.setattr(contrast.graph_attention, "batch_attention", attention)
        monkeypatch.setattr(contrast.losses, "attentive_info_nce", loss)
        trained("simclr-shuffled", beta=5.0)
        for before, after in zip(given, taken, strict=True):
            assert not torch.equal(before, after)
            assert torch.equal(before.sort().values, after.sort().values)
            assert torch.equal(before[:8], before[8:])
            assert torch.equal(after[:8], after[8:])  # partners keep one weight, as without shuffling
            assert len(after.unique()) == len(before.unique()) > 4
        model = recipe("simclr-shuffled").start(0, 12)
        first = model.permutation(16)
        assert first.sort().values.tolist() == list(range(16))
        assert torch.equal(model.permutation(16), first)
        model.updates += 1
        assert not torch.equal(model.permutation(16), first)
        assert not torch.equal(recipe("simclr-shuffled").start(1, 12).permutation(16), first)


class TestSiamese:
    def test_average_is_the_mean_of_both_views(self):
        def note(model, rows1, rows2):
            (p1, z1, _), (p2, z2, _) = model.parts(rows1), model.parts(rows2)
            cosines = [functional.cosine_similarity(p, (z1 + z2) / 2).mean() for p in (p1, p2)]
            expected.append(-sum(cosines).item() / 2)

        expected = []
        model, losses, _ = trained("simsiam-average", after_each=note)
        assert losses.tolist() == pytest.approx(expected, abs=1e-6)
        assert model.memory.numel() == 0

    def test_before_its_time_the_average_changes_nothing(self):
        plain, losses, _ = trained("simsiam")
        later, others, _ = trained("simsiam-average", after=7)
        assert torch.equal(losses[:7], others[:7])
        assert not torch.equal(losses[7:], others[7:])
        assert not same(plain, later)
        never, others, _ = trained("simsiam-average", after=12)
        assert torch.equal(losses, others)
        assert same(plain, never)

    @pytest.mark.parametrize("method", SIMSIAM)
    def test_gradients_come_through_the_prediction_alone(self, method):
        made = recipe(method)
        model = made.start(0, len(IMAGES)).train()
        x1, x2 = model.pairs(IMAGES.images, made.augmentation)(8, torch.Generator().manual_seed(0))
        rows = model(torch.cat([x1, x2])).detach().requires_grad_()
        made.objective(model, *rows.chunk(2)).backward()
        assert bool((rows.grad[:, :8] != 0).any())
        assert not bool((rows.grad[:, 8:] != 0).any())

    def test_a_constant_rate_of_the_predictor(self, monkeypatch):
        rates = []

        class Sgd(torch.optim.SGD):
            def step(self):
                rates.append([group["lr"] for group in self.param_groups])
                super().step()

        monkeypatch.setattr(torch.optim, "SGD", Sgd)
        made = recipe("simsiam", constant=True)
        contrast.run(made, IMAGES, 0, watched=6)
        scheduled = [made.options.rate(step) for step in range(12)]
        assert rates == [[rate, 0.1] for rate in scheduled]


class TestAlignment:
    def value(self, method="alignment", mean=None, **changes):
        """Loss and gradient with respect to both views' embeddings."""
        made = recipe(method, **changes)
        model = made.start(0, 12)
        if mean is not None:
            model.mean.copy_(mean)
            model.updates += 1
        rows = torch.randn(10, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
        found = made.objective(model, *rows.chunk(2))
        return rows[:, 8:16].detach(), found.item(), torch.autograd.grad(found, rows)[0][:, 8:16]

    def test_cosines_or_distances(self):
        z, value, _ = self.value()
        assert value == pytest.approx(float(1 - functional.cosine_similarity(z[:5], z[5:]).mean()), abs=1e-6)
        z, value, gradient = self.value(normalize=False)
        assert value == pytest.approx(float((z[:5] - z[5:]).square().sum(1).mean() / 2), rel=1e-6)
        assert torch.allclose(gradient[:5], (z[:5] - z[5:]) / 5)

    def test_a_stop_gradient_halves_the_gradient(self):
        (_, value, whole), (_, stopped, half) = self.value(), self.value(stop_gradient=True)
        assert stopped == pytest.approx(value)
        assert torch.allclose(whole, 2 * half)

    @pytest.mark.parametrize("centre", [0.0, 0.5])
    def test_centred_targets(self, centre):
        old = torch.arange(8.0) / 8
        z, value, _ = self.value(centre=centre, mean=old)
        mean = centre * old + (1 - centre) * z.mean(0)
        t = functional.normalize(z - mean, dim=1).roll(5, 0)
        assert value == pytest.approx(float(1 - (functional.normalize(z, dim=1) * t).sum(1).mean()), abs=1e-6)
        z, value, gradient = self.value(centre=centre, mean=old, normalize=False)
        difference = z - (z - mean).roll(5, 0)
        assert value == pytest.approx(float(difference.square().sum(1).mean() / 2), rel=1e-6)
        assert torch.allclose(gradient, difference / 10, atol=1e-6)  # the target is held

    def test_the_running_mean(self):
        means = []

        def note(model, rows1, rows2):
            batch = torch.cat([model.parts(rows)[1].detach() for rows in (rows1, rows2)]).mean(0)
            if means:
                assert torch.allclose(model.mean, means[-1], atol=1e-6)
            means.append(0.7 * means[-1] + 0.3 * batch if means else batch)

        model, _, _ = trained("alignment", after_each=note, centre=0.7)
        assert len(means) == 12
        assert torch.allclose(model.mean, means[-1], atol=1e-6)

    def test_complete_and_dimensional_collapse(self):
        """On digits a plain head makes one point of all images; centring or batch norm leaves a spread, on a line.

        A mean that lags behind is no centre: what it misses is common to all images, and grows by normalisation.
        """
        digits = data.load("digits")
        found = {}
        settings = {
            "plain": ("alignment", False, None),
            "lagging": ("alignment", False, 0.9),
            "centred": ("alignment", False, 0.0),
            "normed": ("alignment", True, None),
            "simclr": ("simclr", True, None),
        }
        for name, (method, batch_norm, centre) in settings.items():
            made = contrast.small(digits, method, k=16, steps=40, batch=64, batch_norm=batch_norm, centre=centre)
            _, watch = contrast.run(made, digits, 0, watched=200, every=40)
            found[name] = float(watch.spread[-1]), float(watch.rank[-1])
        assert max(found[name][0] for name in ("plain", "lagging")) < 0.1
        assert min(found[name][0] for name in ("centred", "normed", "simclr")) > 0.6
        assert max(found[name][1] for name in ("centred", "normed")) < 2.5
        assert found["simclr"][1] > 4


class TestRecipes:
    @pytest.mark.parametrize("method", METHODS)
    def test_small(self, method):
        model = contrast.small(IMAGES, method, k=12, pool=2).start(0, 12)
        widths = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
        backbone, head = [(4, 256), (256, 128)], [(128, 128), (128, 12)]
        if not method.startswith("simclr"):
            head = [(128, 128), *head]
        predictor = [(12, 3), (3, 12)] if method.startswith("simsiam") else []
        assert widths == [*backbone, *head, *predictor]
        norms = [layer for layer in model.encoder.projector if isinstance(layer, nn.BatchNorm1d)]
        assert len(norms) == len(head)
        assert norms[-1].weight.requires_grad == method.startswith("simclr")
        assert model.memory.shape == ((1, 12, 12) if method == "simsiam-multi" else (0, 0, 12))

    def test_without_batch_norm(self):
        head = contrast.small(IMAGES, "alignment", k=12, batch_norm=False).start(0, 12).encoder.projector
        assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
        assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Linear))

    def test_hidden_layers_of_the_head(self):
        """SimCLR with the head of SimSiam and no batch norm in it."""
        for hidden in ((128, 128), (7,), ()):
            made = contrast.small(IMAGES, "simclr", k=12, batch_norm=False, hidden=hidden)
            head = made.start(0, 12).encoder.projector
            widths = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
            assert widths == list(pairwise((128, *hidden, 12)))
            assert not any(isinstance(layer, nn.BatchNorm1d) for layer in head)
        made = contrast.small(IMAGES, "simclr", k=8, steps=2, batch_norm=False, hidden=(128, 128))
        _, watch = contrast.run(made, IMAGES, 0, watched=6, every=2)
        assert bool(watch.spectrum.isfinite().all())

    def test_small_is_the_backbone_of_chapter_three(self):
        ours = contrast.small(IMAGES).start(0, 12).encoder.backbone
        theirs = alignment.small(IMAGES).start(0).encoder.backbone
        assert [type(layer) for layer in ours] == [type(layer) for layer in theirs]
        assert contrast.small(IMAGES).augmentation == alignment.small(IMAGES).augmentation

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"method": "byol"}, "method of a recipe: expected one of simclr, .* found 'byol'"),
            ({"temperature": 0.0}, "temperature of a recipe: expected a positive number, found 0.0"),
            ({"beta": -1.0}, "beta of a recipe: expected a finite number, 0 or more, found -1.0"),
            ({"method": "simsiam-multi", "stages": 1}, "stages of a recipe: expected at least 2, .* found 1"),
            ({"after": -1}, "after of a recipe: expected 0 updates or more"),
            ({"method": "alignment", "centre": 1.0}, r"centre of a recipe: .* a number in \[0, 1\), found 1.0"),
            ({"centre": 0.9}, r"centre of a recipe: expected None, or for .alignment., found|centre of a recipe"),
        ],
    )
    def test_errors_teach(self, settings, message):
        with pytest.raises(ValueError, match=message):
            contrast.small(IMAGES, **{"method": "simclr"} | settings)
