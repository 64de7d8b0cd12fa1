"""Witnesses: the update written out by hand, torch's Muon on plain matrices, bit-equal repetition, a killed process."""

import dataclasses
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from companion.lab import augment, data, probe, train
from companion.lab.encoders import mlp, resnet, small_cnn
from companion.lab.muon import Muon
from companion.lab.train import Options, fit, image_pairs
from companion.theory.losses import info_nce, spectral_contrastive

OPTIONS = Options(steps=12, batch_size=8, lr=0.01, checkpoint_every=5, log_every=3)


def encoder(seed=0):
    return mlp((6, 5, 3), generator=torch.Generator().manual_seed(seed))


def noisy_pairs(n, generator):
    """An image, a point of the unit cube, and two noisy views of it."""
    x = torch.rand(n, 6, generator=generator)
    return tuple(x + 0.1 * torch.randn(n, 6, generator=generator) for _ in range(2))


def state(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


class TestLoop:
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_updates_by_hand(self, optimizer):
        options = dataclasses.replace(OPTIONS, optimizer=optimizer, warmup_steps=3, weight_decay=0.1)
        model, naive = encoder(), encoder()
        history = fit(model, noisy_pairs, spectral_contrastive, options)
        generator = torch.Generator().manual_seed(0)
        first = [torch.zeros_like(p) for p in naive.parameters()]
        second = [torch.zeros_like(p) for p in naive.parameters()]
        losses = []
        for t in range(12):
            x1, x2 = noisy_pairs(8, generator)
            loss = spectral_contrastive(naive(x1), naive(x2))
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(naive.parameters()))
            with torch.no_grad():
                for p, g, m, v in zip(naive.parameters(), gradients, first, second, strict=True):
                    g = g + 0.1 * p
                    if optimizer == "sgd":
                        m.mul_(0.9).add_(g)
                        p -= options.rate(t) * m
                    else:
                        m.mul_(0.9).add_(0.1 * g)
                        v.mul_(0.999).add_(0.001 * g**2)
                        p -= options.rate(t) * (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        assert torch.allclose(state(model), state(naive), atol=1e-6)
        assert history.losses.tolist() == pytest.approx(losses, abs=1e-5)
        assert history.steps.tolist() == list(range(1, 13))
        assert history.seconds > 0
        assert not model.training

    def test_one_seed_one_result(self):
        options = dataclasses.replace(OPTIONS, steps=5, batch_size=32)
        images = data.load("digits").images
        results = []
        for seed in (0, 0, 1):
            model = small_cnn(k=8, size=8, generator=torch.Generator().manual_seed(0))
            sampler = image_pairs(images, augment.digits())
            history = fit(model, sampler, partial(info_nce, temperature=0.5), dataclasses.replace(options, seed=seed))
            results.append((state(model), history.losses))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        assert not torch.equal(results[0][0], results[2][0])

    def test_rate(self):
        options = Options(steps=100, lr=2.0, warmup_steps=10)
        assert [options.rate(t) for t in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
        assert options.rate(55) == pytest.approx(1.0)
        assert options.rate(99) < 1e-3
        assert Options(lr=2.0, cosine=False).rate(599) == 2.0
        assert options.rate(4, largest=0.2) == pytest.approx(0.1)
        falling = Options(lr=2.0, cosine=False, milestones=(60, 80))
        assert [falling.rate(t) for t in (59, 60, 80)] == pytest.approx([2.0, 0.2, 0.02])

    @pytest.mark.parametrize("wrong", [{"optimizer": "rmsprop"}, {"steps": 0}, {"log_every": 0}])
    def test_options_that_cannot_be_meant(self, wrong):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            Options(**wrong)

    def test_a_loss_that_explodes_names_its_step(self):
        calls = []

        def loss(z1, z2):
            calls.append(1)
            return spectral_contrastive(z1, z2) * (float("nan") if len(calls) == 5 else 1.0)

        with pytest.raises(FloatingPointError, match=r"mine: the loss of step 5 is nan, .* smaller lr"):
            fit(encoder(), noisy_pairs, loss, OPTIONS, what="mine")

    def test_pairs_share_the_image_and_not_the_view(self):
        images = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1).expand(-1, 1, 4, 4)
        x1, x2 = image_pairs(images, augment.Augmentation(noise=1e-4))(30, torch.Generator().manual_seed(0))
        first, second = ((255 * x.mean((1, 2, 3))).round() for x in (x1, x2))
        assert torch.equal(first, second)
        assert len(first.unique()) > 20
        assert not torch.equal(x1, x2)

    def test_training_helps_a_probe(self):
        digits, test = data.load("digits"), data.load("digits", "test")
        aug, few = augment.digits(), probe.few_labels(digits.labels, 10, torch.Generator().manual_seed(0))
        accuracy = []
        for steps in (0, 150):
            model = small_cnn(k=16, size=8, generator=torch.Generator().manual_seed(0)).eval()
            if steps:
                options = Options(steps=steps, batch_size=128, lr=0.05)
                history = fit(model, image_pairs(digits.images, aug), partial(info_nce, temperature=0.5), options)
                assert history.losses[-10:].mean() < history.losses[:10].mean() - 0.5
            h, h_test = (probe.extract(model.features, aug.clean(s.images)) for s in (digits.subset(few), test))
            accuracy.append(probe.ridge(h, digits.labels[few], h_test, test.labels, penalty=0.1))
        assert accuracy[1] > accuracy[0] + 0.02


def image_noise(n, generator):
    x = torch.rand(n, 1, 8, 8, generator=generator)
    return tuple(x + 0.1 * torch.randn(n, 1, 8, 8, generator=generator) for _ in range(2))


def network(seed=0):
    """A convolution without bias and a linear map with one: two weights for Muon, a bias for AdamW."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [torch.nn.Conv2d(1, 4, 3, 2, bias=False), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(36, 3)]
    return torch.nn.Sequential(*layers)


class TestMuon:
    OPTIONS = Options(10, 8, 0.02, "muon", weight_decay=0.1, adamw_lr=0.005, warmup_steps=3, checkpoint_every=3)

    def test_it_is_torchs_on_matrices_of_its_own(self):
        model, source = network(), network()
        history = fit(model, image_noise, spectral_contrastive, self.OPTIONS)
        K, W, b = (p.detach().flatten(1) if p.ndim > 1 else p.detach() for p in source.parameters())
        K, W, b = (p.clone().requires_grad_() for p in (K, W, b))
        muon = torch.optim.Muon([K, W], momentum=0.9, weight_decay=0.1)
        adamw = torch.optim.AdamW([b], weight_decay=0.1)
        generator, losses = torch.Generator().manual_seed(0), []
        for t in range(10):
            x = torch.cat(image_noise(8, generator))
            h = torch.nn.functional.conv2d(x, K.view(4, 1, 3, 3), stride=2).tanh().flatten(1)
            loss = spectral_contrastive(*(h @ W.T + b).chunk(2))
            losses.append(loss.item())
            for optimizer, lr in ((muon, 0.02), (adamw, 0.005)):
                optimizer.param_groups[0]["lr"] = self.OPTIONS.rate(t) * lr / 0.02
                optimizer.zero_grad()
            loss.backward()
            muon.step()
            adamw.step()
        assert history.losses.tolist() == pytest.approx(losses, abs=1e-4)
        for found, expected in zip(model.parameters(), (K, W, b), strict=True):
            assert torch.allclose(found.flatten(), expected.flatten(), atol=1e-4)

    def test_every_direction_of_a_weight_moves_at_one_speed(self):
        """Newton and Schulz bring all singular values near 1; of the gradient itself they differ by far more."""
        model, before = network(), network()
        spectral_contrastive(*model(torch.cat(image_noise(8, torch.Generator().manual_seed(0)))).chunk(2)).backward()
        optimizer = Muon(model, 1.0, 0.1)
        optimizer.step()
        change = [
            (a - b).detach().flatten(1)
            for a, b in zip(model.parameters(), before.parameters(), strict=True)
            if a.ndim > 1
        ]
        for D, weight in zip(change, optimizer.weights, strict=True):
            moved, gradient = torch.linalg.svdvals(D), torch.linalg.svdvals(weight.grad.flatten(1))
            assert moved.min() > 0.5
            assert moved.max() < 1.3
            assert gradient.max() > 5 * gradient.min()
        assert len(change) == 2

    def test_stopped_and_resumed(self, tmp_path):
        calls = []

        def stops(n, generator):
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return image_noise(n, generator)

        whole, resumed = network(), network(seed=1)
        expected = fit(whole, image_noise, spectral_contrastive, self.OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            fit(network(), stops, spectral_contrastive, self.OPTIONS, checkpoint=tmp_path / "run.pt")
        found = fit(resumed, image_noise, spectral_contrastive, self.OPTIONS, checkpoint=tmp_path / "run.pt")
        assert torch.equal(state(resumed), state(whole))
        assert torch.equal(found.losses, expected.losses)

    def test_a_model_of_weights_alone_and_one_of_biases_alone(self):
        linear = torch.nn.Linear(3, 2, bias=False)
        assert len(Muon(linear, 0.1, 0.1).parts) == 1
        assert len(Muon(torch.nn.BatchNorm1d(3), 0.1, 0.1).parts) == 1
        linear.weight.requires_grad_(False)
        assert Muon(torch.nn.Sequential(linear, torch.nn.BatchNorm1d(3)), 0.1, 0.1).matrices == []

    def test_a_layout_without_matrices_is_refused(self):
        model = small_cnn(k=4, size=8, generator=torch.Generator().manual_seed(0))
        options = dataclasses.replace(self.OPTIONS, channels_last=True)
        with pytest.raises(ValueError, match=r"\(32, 16, 3, 3\) .* channels_last=False"):
            fit(model, image_noise, spectral_contrastive, options)


class TestObserver:
    def test_when_and_how_it_looks(self):
        seen = []

        def observe(step, model):
            assert not torch.is_grad_enabled()
            assert model.training
            seen.append((step, state(model)))

        model = encoder()
        fit(model, noisy_pairs, spectral_contrastive, OPTIONS, observe=observe, observe_every=5)
        assert [step for step, _ in seen] == [0, 5, 10, 12]
        assert torch.equal(seen[0][1], state(encoder()))
        assert torch.equal(seen[3][1], state(model))
        shorter = encoder()
        constant = dataclasses.replace(OPTIONS, cosine=False)
        seen.clear()
        fit(encoder(), noisy_pairs, spectral_contrastive, constant, observe=observe, observe_every=5)
        fit(shorter, noisy_pairs, spectral_contrastive, dataclasses.replace(constant, steps=5))
        assert torch.equal(seen[1][1], state(shorter))

    def test_resumed(self, tmp_path):
        """Stopped in step 9 after looks at 0, 2, ..., 8 and a checkpoint of step 5: it looks at 6 and 8 again."""

        class Memory:
            def __init__(self):
                self.steps = []

            def __call__(self, step, model):
                self.steps.append(step)

            def state_dict(self):
                return {"steps": self.steps}

            def load_state_dict(self, state):
                self.steps = state["steps"]

        calls, forgetful, first, second = [], [], Memory(), Memory()

        def stops(n, generator):
            calls.append(1)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return noisy_pairs(n, generator)

        looks = {"checkpoint": tmp_path / "run.pt", "observe_every": 2}
        with pytest.raises(KeyboardInterrupt):
            fit(encoder(), stops, spectral_contrastive, OPTIONS, observe=first, **looks)
        assert first.steps == [0, 2, 4, 6, 8]
        (tmp_path / "copy.pt").write_bytes((tmp_path / "run.pt").read_bytes())
        fit(encoder(1), noisy_pairs, spectral_contrastive, OPTIONS, observe=second, **looks)
        assert second.steps == [0, 2, 4, 6, 8, 10, 12]

        def forget(step, model):
            forgetful.append(step)

        again = looks | {"checkpoint": tmp_path / "copy.pt"}
        fit(encoder(1), noisy_pairs, spectral_contrastive, OPTIONS, observe=forget, **again)
        assert forgetful == [6, 8, 10, 12]
        with pytest.raises(ValueError, match=r"copy.pt: .* observed run"):
            fit(encoder(1), noisy_pairs, spectral_contrastive, OPTIONS, observe=Memory(), **again)

    def test_it_sees_no_model_whose_loss_was_not_finite(self):
        seen = []

        def loss(z1, z2):
            return spectral_contrastive(z1, z2) * float("nan")

        with pytest.raises(FloatingPointError, match="step 1 is nan"):
            fit(encoder(), noisy_pairs, loss, OPTIONS, observe=lambda step, model: seen.append(step), observe_every=1)
        assert seen == [0]

    def test_no_interval(self):
        with pytest.raises(ValueError, match="observe_every: expected at least 1, found 0"):
            fit(encoder(), noisy_pairs, spectral_contrastive, OPTIONS, observe_every=0)


class TestCheckpoint:
    def test_killed_and_resumed(self, tmp_path):
        """A run that dies by signal 9 in step 8, with a checkpoint of step 5, ends like one that was left alone."""
        path = tmp_path / "run.pt"
        script = (
            "import sys, time, torch; sys.path[:0] = sys.argv[2:]; import test_train as t\n"
            "torch.set_num_threads(int(sys.argv[4]))\n"
            "def pairs(n, g, calls=[]):\n"
            "    calls.append(1)\n"
            "    if len(calls) == 8: print('in step 8', flush=True); time.sleep(600)\n"
            "    return t.noisy_pairs(n, g)\n"
            "t.fit(t.encoder(), pairs, t.spectral_contrastive, t.OPTIONS, checkpoint=sys.argv[1])"
        )
        folders = [str(Path(__file__).parent), str(Path(train.__file__).parents[3])]
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path), *folders, str(torch.get_num_threads())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with child:
            assert child.stdout.readline() == b"in step 8\n"
            child.send_signal(signal.SIGKILL)
        path.with_name(".run.pt.unfinished").write_bytes(b"half a checkpoint")
        assert torch.load(path, weights_only=True)["done"] == 5
        whole, resumed = encoder(), encoder(seed=1)
        expected = fit(whole, noisy_pairs, spectral_contrastive, OPTIONS)
        found = fit(resumed, noisy_pairs, spectral_contrastive, OPTIONS, checkpoint=path)
        assert torch.equal(state(resumed), state(whole))
        assert torch.equal(found.losses, expected.losses)

    def test_a_finished_run_is_read_not_repeated(self, tmp_path):
        first, second = encoder(), encoder(seed=1)
        expected = fit(first, noisy_pairs, spectral_contrastive, OPTIONS, checkpoint=tmp_path / "run.pt")

        def never(n, generator):
            raise AssertionError("trained again")

        found = fit(second, never, spectral_contrastive, OPTIONS, checkpoint=tmp_path / "run.pt")
        assert torch.equal(state(first), state(second))
        assert torch.equal(found.losses, expected.losses)
        assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]

    def test_other_options_are_refused(self, tmp_path):
        fit(encoder(), noisy_pairs, spectral_contrastive, OPTIONS, checkpoint=tmp_path / "run.pt")
        other = dataclasses.replace(OPTIONS, lr=0.02, seed=1)
        with pytest.raises(ValueError, match=r"run.pt: .* other lr, seed"):
            fit(encoder(), noisy_pairs, spectral_contrastive, other, checkpoint=tmp_path / "run.pt")


class TestGpuConfigurationOnCpu:
    @pytest.mark.parametrize("fast", [False, True])
    def test_resnet_on_generated_images(self, fast):
        """The authors' CIFAR configuration, shortened: the same model, augmentation, loss and loop."""
        images = data.generated(16).images
        model = resnet(18, k=1000, hidden=(2048,), stem="cifar", generator=torch.Generator().manual_seed(0))
        before = state(model)
        options = Options(steps=2, batch_size=4, lr=0.06, warmup_steps=1, bf16=fast, channels_last=fast, log_every=1)

        def loss(z1, z2):
            assert z1.dtype == torch.float32
            return spectral_contrastive(*(torch.nn.functional.normalize(z) for z in (z1, z2)))

        history = fit(model, image_pairs(images, augment.cifar(32)), loss, options)
        assert history.losses.isfinite().all()
        assert state(model).isfinite().all()
        assert not torch.equal(state(model), before)
