"""Witnesses: double loops over a batch, bit-equal repetition, the authors' configuration cut short, random labels."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from companion.lab import augment, data, encoders, pretrain, train
from companion.theory.losses import clip_to_ball, spectral_contrastive


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def histories(monkeypatch):
    """The history of every run of the training loop, in order."""
    found, fit = [], train.fit

    def noted(*arguments, **keywords):
        found.append(fit(*arguments, **keywords))
        return found[-1]

    monkeypatch.setattr(train, "fit", noted)
    return found


DIGITS = data.load("digits")


class TestObjective:
    def batch(self, scale=2.0):
        z1, z2 = (scale * torch.randn(6, 4, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
        z1[0] *= 0.01  # one row inside every ball
        return z1, z2

    @pytest.mark.parametrize("mu", [0.25, 1.0, 10.0])
    def test_the_papers_form_written_out(self, mu):
        z1, z2 = self.batch()
        recipe = replace(pretrain.small(DIGITS), mu=mu)
        in_ball = [[row * min(1.0, math.sqrt(mu) / row.norm()) for row in z] for z in (z1, z2)]  # radius sqrt(mu)
        f1, f2 = in_ball
        attraction = sum(float(a @ b) for a, b in zip(f1, f2, strict=True))
        repulsion = sum(float(f1[i] @ f2[j]) ** 2 for i in range(6) for j in range(6) if i != j)
        paper = -2 / 6 * attraction + repulsion / (6 * 5)
        assert float(recipe.objective(z1, z2)) == pytest.approx(paper / mu, rel=1e-12)

    @pytest.mark.parametrize("mu", [0.25, 1.0, 10.0])
    def test_it_is_the_spectral_loss_of_the_scaled_features(self, mu):
        z1, z2 = self.batch()
        g1, g2 = (clip_to_ball(z, math.sqrt(mu)) / math.sqrt(mu) for z in (z1, z2))
        scaled = spectral_contrastive(math.sqrt(mu) * g1, math.sqrt(mu) * g2) / mu
        assert float(replace(pretrain.small(DIGITS), mu=mu).objective(z1, z2)) == pytest.approx(
            float(scaled), rel=1e-12
        )
        assert max(float(g.norm(dim=1).max()) for g in (g1, g2)) == pytest.approx(1.0)

    def test_rows_beyond_the_ball_feel_only_their_direction(self):
        recipe = replace(pretrain.small(DIGITS), mu=1.0)
        z1, z2 = self.batch(scale=50.0)
        z1 = z1[1:].requires_grad_()
        recipe.objective(z1, z2[1:]).backward()
        assert float((z1.grad * z1.detach()).sum(1).abs().max()) < 1e-12
        once, thrice = (float(recipe.objective(scale * z1.detach(), z2[1:])) for scale in (1, 3))
        assert thrice == pytest.approx(once, rel=1e-12)

    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_info_nce_over_all_views_but_oneself(self, temperature):
        z1, z2 = self.batch()
        views = [z / z.norm() for z in torch.cat([z1, z2])]
        total = 0.0
        for a in range(12):
            scores = {b: math.exp(float(views[a] @ views[b]) / temperature) for b in range(12) if b != a}
            total -= math.log(scores[(a + 6) % 12] / sum(scores.values()))
        recipe = replace(pretrain.small(DIGITS, "info_nce"), temperature=temperature)
        assert float(recipe.objective(z1, z2)) == pytest.approx(total / 12, rel=1e-12)

    def test_another_loss_is_refused(self):
        recipe = pretrain.small(DIGITS, "barlow")
        message = r'^loss of a recipe: expected "spectral" or "info_nce", found \'barlow\'$'
        with pytest.raises(ValueError, match=message):
            recipe.objective(*self.batch())


class TestSmall:
    def short(self, loss="spectral", steps=30):
        recipe = pretrain.small(DIGITS, loss, k=16, steps=steps)
        return replace(recipe, options=replace(recipe.options, batch_size=128))

    @pytest.mark.parametrize("loss", ["spectral", "info_nce"])
    def test_a_few_steps_on_digits_lower_the_loss(self, loss, histories):
        pretrain.run(DIGITS, self.short(loss), 0)
        (history,) = histories
        assert history.losses[-5:].mean() < history.losses[:5].mean() - 0.1

    def test_one_seed_is_one_encoder_and_the_global_state_stays(self, histories):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        runs = [pretrain.run(DIGITS, self.short(steps=4), seed) for seed in (0, 0, 1)]
        assert torch.equal(torch.get_rng_state(), before)
        assert equal(state(runs[0]), state(runs[1]))
        assert torch.equal(histories[0].losses, histories[1].losses)
        assert not equal(state(runs[0]), state(runs[2]))
        assert not any(module.training for module in runs[0].modules())

    def test_a_seed_draws_weights_and_batches(self):
        """With the same weights another seed still sees other pairs."""
        recipe = self.short(steps=2)
        fixed = replace(recipe, encoder=lambda _: recipe.encoder(generator()))
        first, second = (pretrain.run(DIGITS, fixed, seed) for seed in (0, 1))
        assert not equal(state(first), state(second))

    def test_pairs_can_come_from_elsewhere(self):
        drawn = []

        def pairs(n, draw):
            drawn.append(n)
            return torch.rand(n, 1, 8, 8, generator=draw), torch.rand(n, 1, 8, 8, generator=draw)

        pretrain.run(DIGITS, self.short(steps=3), 0, pairs=pairs)
        assert drawn == [128] * 3

    def test_a_finished_run_is_read_from_its_checkpoint(self, tmp_path):
        first = pretrain.run(DIGITS, self.short(steps=3), 0, checkpoint=tmp_path / "run.pt")

        def never(n, draw):
            raise AssertionError("trained again")

        again = pretrain.run(DIGITS, self.short(steps=3), 0, checkpoint=tmp_path / "run.pt", pairs=never)
        assert equal(state(first), state(again))
        with pytest.raises(ValueError, match=r"run\.pt: .* other seed"):
            pretrain.run(DIGITS, self.short(steps=3), 1, checkpoint=tmp_path / "run.pt")

    def test_the_recipe_is_what_it_says(self):
        recipe = pretrain.small(DIGITS, k=24, mu=3.0, steps=17)
        options = recipe.options
        assert (recipe.mu, options.steps, options.batch_size, options.lr) == (3.0, 17, 256, 0.06)
        assert (options.optimizer, options.momentum, options.weight_decay, options.cosine) == ("sgd", 0.9, 5e-4, True)
        assert recipe.augmentation == augment.digits()
        assert pretrain.small(data.generated(4, (1, 28, 28))).augmentation == augment.fashion()
        x = torch.rand(5, 1, 8, 8, generator=generator())
        encoder = recipe.encoder(generator()).eval()
        assert encoder.features(x).shape == (5, 128)
        assert encoder(x).shape == (5, 24)


def test_a_checkpoint_lies_beside_the_fetched_data(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    path = pretrain.checkpoint("cifar10-spectral-200-0")
    assert path.parent == tmp_path / "data" / "checkpoints"
    assert re.fullmatch(r"cifar10-spectral-200-0-[0-9a-f]{12}\.pt", path.name)
    code = tmp_path / "losses" / "__init__.py"
    code.parent.mkdir()
    code.write_text("# another loss\n")
    monkeypatch.setattr(pretrain.losses, "__file__", str(code))
    assert pretrain.checkpoint("cifar10-spectral-200-0") != path  # a state does not outlive the code that made it
    assert path.parent.is_dir()
    assert not path.exists()


def test_a_state_outlives_no_change_of_what_trains_it_and_any_other(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    lab = tmp_path / "lab"
    shutil.copytree(Path(pretrain.__file__).parent, lab, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pretrain, "__file__", str(lab / "pretrain.py"))
    before = pretrain.checkpoint("run")
    for name, counts in {
        "train/loop.py": True,
        "augment.py": True,
        "masked/training.py": False,
        "languages/pcfg.py": False,
    }.items():
        text = (lab / name).read_text()
        (lab / name).write_text(text + "# changed\n")
        assert (pretrain.checkpoint("run") != before) == counts, name
        (lab / name).write_text(text)
    assert pretrain.checkpoint("run") == before


class TestAuthors:
    def test_the_configuration(self):
        cifar = data.generated(1024, (3, 32, 32))
        recipe = pretrain.authors(cifar, epochs=800)
        options = recipe.options
        assert (recipe.loss, recipe.mu) == ("spectral", 1.0)
        assert (options.steps, options.batch_size, options.warmup_steps) == (1600, 512, 20)
        assert (options.lr, options.optimizer, options.momentum, options.weight_decay) == (0.06, "sgd", 0.9, 5e-4)
        assert options.cosine
        assert recipe.augmentation == augment.cifar(32)
        encoder = recipe.encoder(generator())
        assert [tuple(m.weight.shape) for m in encoder.projector if isinstance(m, nn.Linear)] == [
            (2048, 512),
            (1000, 2048),
        ]
        assert tuple(encoder.backbone.conv1.weight.shape) == (64, 3, 3, 3)

    @pytest.mark.parametrize("loss", ["spectral", "info_nce"])
    def test_the_loop_and_the_linear_evaluation_on_generated_images(self, loss, histories):
        """The very cell of the gpu profile, on a few images: pre-train, then evaluate."""
        train_set, test_set = (data.generated(6, (3, 32, 32), classes=2, split=split) for split in ("train", "test"))
        recipe = pretrain.authors(train_set, loss, epochs=2)
        assert (recipe.options.steps, recipe.options.warmup_steps) == (2, 1)
        untrained = state(recipe.encoder(generator()))
        encoder = pretrain.run(train_set, recipe, 0)
        trained = state(encoder)
        accuracy = pretrain.linear_evaluation(encoder, train_set, test_set, recipe.augmentation, epochs=1)
        assert [len(history.losses) for history in histories] == [2, 1]
        assert all(bool(history.losses.isfinite().all()) for history in histories)
        assert not equal(untrained, trained)
        assert all(bool(value.isfinite().all()) for value in trained.values())
        assert accuracy in {n / 6 for n in range(7)}
        assert equal(state(encoder), trained)


PICTURES, MORE_PICTURES = (data.generated(120, (1, 8, 8), classes=3, split=split) for split in ("train", "test"))
VIEWS = augment.Augmentation(area=(0.8, 1.0), brightness=0.4, contrast=0.4, noise=0.3, mean=(0.5,), std=(0.3,))


def small_encoder():
    return encoders.small_cnn(1, 16, 8, size=8, width=4, hidden=(8,), generator=generator())


class TestLinearEvaluation:
    def test_pixels_that_show_the_class_are_enough_and_labels_dealt_at_random_are_not(self):
        pixels = encoders.Encoder(nn.Flatten(), nn.Linear(64, 4))
        dealt = replace(PICTURES, labels=PICTURES.labels[torch.randperm(120, generator=generator())])
        for images, low, high in ((PICTURES, 0.95, 1.0), (dealt, 0.0, 0.6)):
            assert low <= pretrain.linear_evaluation(pixels, images, MORE_PICTURES, VIEWS, epochs=20) <= high

    @pytest.mark.parametrize("training", [False, True])
    def test_parameters_and_buffers_stay(self, training):
        encoder = small_encoder().train(training)
        before = state(encoder)
        pretrain.linear_evaluation(encoder, PICTURES, MORE_PICTURES, VIEWS, epochs=2)
        assert equal(state(encoder), before)
        assert all(p.grad is None and p.requires_grad for p in encoder.parameters())
        assert any("running_mean" in name for name in before)

    def test_the_recipe_of_the_head(self, monkeypatch):
        seen = []

        def spy(model, sample, loss, options, **keywords):
            x1, x2 = sample(options.batch_size, generator())
            value = float(loss(*model(torch.cat([x1, x2])).detach().chunk(2)))
            seen.append((options, [tuple(p.shape) for p in model.parameters()], x1.shape, x2.shape, value))

        monkeypatch.setattr(train, "fit", spy)
        many = data.generated(600, (1, 8, 8), classes=3)
        pretrain.linear_evaluation(small_encoder().eval(), many, MORE_PICTURES, VIEWS, epochs=100)
        ((options, shapes, first, second, loss),) = seen
        assert (options.steps, options.batch_size, options.milestones) == (300, 128, (180, 240))
        assert (options.lr, options.momentum, options.weight_decay, options.cosine) == (30.0, 0.9, 0.0, False)
        assert shapes == [(3, 16), (3,)]  # the head alone is trained
        assert first == second == (128, 1, 8, 8)  # two halves of a batch of 256
        assert loss == pytest.approx(math.log(3), abs=0.1)

    def test_of_the_augmentation_only_crop_and_flip_are_used(self, monkeypatch):
        used = []
        real = augment.Augmentation.__call__

        def spy(self, images, draw):
            used.append(self)
            return real(self, images, draw)

        monkeypatch.setattr(augment.Augmentation, "__call__", spy)
        strong = replace(augment.cifar(64), noise=0.05, mean=(0.5,), std=(0.3,))
        assert strong.blur is not None
        pretrain.linear_evaluation(small_encoder().eval(), PICTURES, MORE_PICTURES, strong, epochs=1)
        weak = augment.Augmentation(area=(0.2, 1.0), flip=0.5, mean=(0.5,), std=(0.3,))
        x = data.generated(20, (3, 8, 8)).images  # in colour, so that saturation and hue would show
        assert used
        for found in used:
            assert torch.equal(real(found, x, generator()), real(weak, x, generator()))

    def test_the_seed_decides_the_head(self, monkeypatch):
        heads, fit = [], train.fit

        def kept(model, *arguments, **keywords):
            fit(model, *arguments, **keywords)
            heads.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

        monkeypatch.setattr(train, "fit", kept)
        for seed in (0, 0, 1):
            pretrain.linear_evaluation(small_encoder().eval(), PICTURES, MORE_PICTURES, VIEWS, epochs=1, seed=seed)
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
