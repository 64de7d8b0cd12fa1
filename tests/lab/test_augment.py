"""Witnesses: torchvision image by image (values at fixed parameters, distributions at random ones), and identities."""

import itertools
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from companion.lab import augment, pixels
from companion.lab.augment import Augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def colour():
    return torch.rand(6, 3, 20, 24, generator=generator(1))


@pytest.fixture
def grey():
    return torch.rand(6, 1, 20, 24, generator=generator(2))


class TestIdentities:
    def test_defaults_change_nothing(self):
        images = torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8, generator=generator())
        assert torch.equal(Augmentation()(images, generator()), images / 255)

    def test_the_whole_image_is_a_crop(self, colour):
        whole = Augmentation(area=(1.0, 1.0), aspect=(24 / 20, 24 / 20))
        assert torch.allclose(whole(colour, generator()), colour, atol=1e-6)

    def test_clean_normalises_only(self):
        images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
        expected = functional.normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert torch.allclose(augment.cifar().clean(images), expected)

    @pytest.mark.parametrize("flip", [0.0, 1.0])
    @pytest.mark.parametrize("area", [None, (1.0, 1.0)])
    def test_flip(self, flip, area):
        x = torch.rand(3, 1, 8, 8, generator=generator())
        flipped = Augmentation(flip=flip, area=area, aspect=(1, 1))(x, generator())
        assert torch.allclose(flipped, x.flip(3) if flip else x, atol=1e-6)


class TestAgainstTorchvisionAtFixedParameters:
    def test_crops(self, colour):
        top, left = torch.tensor([0, 3, 10, 19, 0, 5]), torch.tensor([0, 1, 14, 23, 4, 0])
        height, width = torch.tensor([20, 10, 10, 1, 7, 13]), torch.tensor([24, 20, 10, 1, 3, 24])
        ours = pixels.resized_crop(colour, top, left, height, width, torch.arange(6) % 2 == 1)
        for i, x in enumerate(colour):
            theirs = functional.resized_crop(x, *(int(v[i]) for v in (top, left, height, width)), [20, 24])
            assert torch.allclose(ours[i], theirs.flip(2) if i % 2 else theirs, atol=2e-6)

    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
    def test_colour(self, name, colour):
        amounts = torch.linspace(-0.5, 0.5, 6) if name == "hue" else torch.tensor([0.0, 0.3, 0.9, 1.0, 1.4, 2.0])
        ours = getattr(pixels, f"adjust_{name}")(colour, amounts)
        theirs = [getattr(functional, f"adjust_{name}")(x, float(a)) for x, a in zip(colour, amounts, strict=True)]
        assert torch.allclose(ours, torch.stack(theirs), atol=2e-6)

    def test_hue_of_grey_pixels(self):
        x = torch.rand(2, 1, 4, 4, generator=generator()).expand(-1, 3, -1, -1)
        assert torch.equal(pixels.adjust_hue(x, torch.tensor([0.1, -0.3])), x)

    @pytest.mark.parametrize("name", ["brightness", "contrast"])
    def test_grey_images(self, name, grey):
        factors = torch.linspace(0.2, 1.8, 6)
        ours = getattr(pixels, f"adjust_{name}")(grey, factors)
        theirs = [getattr(functional, f"adjust_{name}")(x, float(f)) for x, f in zip(grey, factors, strict=True)]
        assert torch.allclose(ours, torch.stack(theirs), atol=2e-6)

    def test_luma(self, colour):
        assert torch.allclose(pixels.luma(colour), functional.rgb_to_grayscale(colour), atol=1e-6)
        assert torch.allclose(Augmentation(grey=1.0)(colour, generator()), pixels.luma(colour).expand_as(colour))

    def test_blur(self, colour):
        sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 1.9, 2.0])
        ours = pixels.gaussian_blur(colour, sigma)
        theirs = [functional.gaussian_blur(x, [13, 13], [float(s)]) for x, s in zip(colour, sigma, strict=True)]
        assert torch.allclose(ours, torch.stack(theirs), atol=2e-6)

    def test_every_order_of_jitter_occurs_and_is_applied_in_that_order(self):
        x = torch.rand(1, 3, 6, 6, generator=generator()).repeat(200, 1, 1, 1)
        strong = Augmentation(brightness=0.5, contrast=0.5)
        views = strong(x, generator(3))
        draws = generator(3)  # the same stream, read in the order of the code: flips, chosen, brightness, contrast
        _, _, brightness, contrast = (torch.rand(200, generator=draws) for _ in range(4))
        seen = set()
        for view, b, c in zip(views, brightness + 0.5, contrast + 0.5, strict=True):
            changes = {"b": (functional.adjust_brightness, float(b)), "c": (functional.adjust_contrast, float(c))}
            for order in itertools.permutations(changes):
                expected = x[0]
                for name in order:
                    change, factor = changes[name]
                    expected = change(expected, factor)
                if torch.allclose(view, expected, atol=2e-6):
                    seen.add(order)
                    break
            else:
                pytest.fail("a view is no torchvision result in any order")
        assert len(seen) == 2


class TestImageByImage:
    """The whole chain again, one image at a time by torchvision's functions, on the same draws in the same order."""

    def replay(self, law, images, draws):
        n, channels = images.shape[:2]
        uniform = lambda *shape: torch.rand(n, *shape, generator=draws)  # noqa: E731
        mirrored = uniform() < law.flip
        crops = augment.random_crops(images, law.area, law.aspect, draws)
        names = ["brightness", "contrast", "saturation", "hue"][: 2 if channels == 1 else 4]
        chosen = uniform() < law.jitter
        amounts = {name: getattr(law, name) * (2 * uniform() - 1) + (name != "hue") for name in names}
        order = uniform(len(names)).argsort(1)
        grey = uniform() < law.grey if channels == 3 else torch.zeros(n, dtype=torch.bool)
        noise = law.noise * torch.randn(images.shape, generator=draws)
        views = []
        for i, x in enumerate(images / 255):
            x = functional.resized_crop(x, *(int(place[i]) for place in crops), list(x.shape[1:]))
            x = x.flip(2) if mirrored[i] else x
            for number in order[i].tolist() if chosen[i] else ():
                x = getattr(functional, f"adjust_{names[number]}")(x, float(amounts[names[number]][i]))
            x = functional.rgb_to_grayscale(x, 3) if grey[i] else x
            views.append(functional.normalize(x + noise[i], list(law.mean), list(law.std)))
        return torch.stack(views)

    @pytest.mark.parametrize(
        ("law", "shape"),
        [(augment.fashion(), (1, 28, 28)), (replace(augment.cifar(32), noise=0.02), (3, 20, 24))],
        ids=["grey", "colour"],
    )
    def test_all_parts_in_their_order(self, law, shape):
        images = torch.randint(0, 256, (64, *shape), dtype=torch.uint8, generator=generator(1))
        streams = generator(4), generator(4)
        ours, theirs = law(images, streams[0]), self.replay(law, images, streams[1])
        assert torch.allclose(ours, theirs, atol=2e-5)
        assert torch.equal(streams[0].get_state(), streams[1].get_state())
        assert not torch.allclose(ours, self.replay(law, images, generator(5)), atol=0.1)  # control: other draws

    @pytest.mark.parametrize("law", [augment.fashion(), augment.Augmentation(brightness=0.5, noise=0.1)])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_the_images_are_left_as_they_are(self, law, layout, grey):
        images = grey.expand(-1, 3, -1, -1).contiguous(memory_format=layout)
        before = images.clone()
        views = law(images, generator())
        assert torch.equal(images, before)
        assert torch.equal(views, law(before.contiguous(), generator()))
        assert torch.equal(law.clean(images) * 1.0, law.clean(before))


class TestAgainstTorchvisionInDistribution:
    N = 3000

    def sample(self, area, aspect, size=(28, 28)):
        x = torch.zeros(self.N, 1, *size)
        ours = torch.stack(augment.random_crops(x, area, aspect, generator()), 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            transform = v2.RandomResizedCrop(size, scale=area, ratio=aspect)
            theirs = [transform.make_params([x[0]]) for _ in range(self.N)]
        return ours, torch.tensor([[p[name] for name in ("top", "left", "height", "width")] for p in theirs])

    @pytest.mark.parametrize("size", [(28, 28), (16, 40)])
    def test_crops(self, size):
        ours, theirs = self.sample((0.2, 1.0), (3 / 4, 4 / 3), size)
        bound = 1.95 * (2 / self.N) ** 0.5  # two-sample Kolmogorov-Smirnov distance at level .001
        for statistic in (
            lambda p: p[:, 0],
            lambda p: p[:, 1],
            lambda p: p[:, 2] * p[:, 3],
            lambda p: p[:, 3] / p[:, 2],
        ):
            assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).statistic < bound
        assert (ours[:, 0] + ours[:, 2]).max() == size[0]
        assert (ours[:, 1] + ours[:, 3]).max() == size[1]

    @pytest.mark.parametrize("aspect", [(2.0, 2.5), (0.3, 0.5)])
    def test_crops_that_never_fit(self, aspect):
        ours, theirs = self.sample((1.0, 1.0), aspect)
        assert torch.equal(ours, theirs)

    def test_jitter_and_grey(self):
        x = torch.rand(3, 4, 4, generator=generator())
        n = 4000
        ours = Augmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grey=0.2)(
            x.expand(n, -1, -1, -1), generator(5)
        )
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            theirs = torch.stack([v2.RandomGrayscale(0.2)(jitter(x)) for _ in range(n)])
        for moment in (lambda v: v, lambda v: v**2):
            a, b = moment(ours).flatten(1), moment(theirs).flatten(1)
            error = ((a.var(0) + b.var(0)) / n).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all()  # 96 means: level .001


class TestDraws:
    def test_every_image_has_its_own(self):
        x = torch.rand(1, 3, 16, 16, generator=generator()).repeat(50, 1, 1, 1)
        views = augment.cifar(64)(x, generator()).flatten(1)
        assert len(views.unique(dim=0)) == 50

    def test_shares(self):
        x = torch.rand(1, 3, 8, 8, generator=generator()).repeat(4000, 1, 1, 1)
        for setting, share in (({"flip": 0.3}, 0.3), ({"grey": 0.2}, 0.2), ({"brightness": 0.4, "jitter": 0.8}, 0.8)):
            views = Augmentation(**setting)(x, generator())
            changed = (views != x).flatten(1).any(1).double().mean()
            assert abs(changed - share) < 4 * (share * (1 - share) / 4000) ** 0.5
        views = Augmentation(blur=(0.5, 1.0), blurred=0.5)(x, generator())
        assert abs((views != x).flatten(1).any(1).double().mean() - 0.5) < 4 * 0.5 / 4000**0.5

    def test_noise(self):
        noise = Augmentation(noise=0.1)(torch.full((100, 1, 20, 20), 0.5), generator()) - 0.5
        assert abs(noise.std().item() - 0.1) < 4 * 0.1 / (2 * noise.numel()) ** 0.5
        assert abs(noise.mean().item()) < 4 * 0.1 / noise.numel() ** 0.5

    @pytest.mark.parametrize(
        ("preset", "shape"),
        [(augment.fashion(), (1, 28, 28)), (augment.digits(), (1, 8, 8)), (augment.cifar(64), (3, 64, 64))],
    )
    def test_presets_repeat_and_leave_the_global_state(self, preset, shape):
        images = torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=generator())
        before = torch.get_rng_state()
        first, second, other = (preset(images, generator(seed)) for seed in (4, 4, 5))
        assert first.shape == (8, *shape)
        assert first.dtype == torch.float32
        assert first.isfinite().all()
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_small_cifar_images_are_not_blurred(self):
        assert augment.cifar(32).blur is None

    @pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (2, 2, 8, 8)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match="expected shape"):
            augment.fashion()(torch.zeros(shape), generator())
