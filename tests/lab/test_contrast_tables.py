"""Witnesses: the printed tables, configurations read off the published code, networks trained for two updates."""

import dataclasses

import pytest
import torch
from torch import nn
from torchvision.utils import save_image

from companion.lab import alignment, contrast, contrast_tables, data, pretrain
from companion.lab.contrast_tables import Row, table_rows

ROWS = table_rows()


def pictures(name, n=12, side=32, split="train"):
    """Generated images under the name of a real set."""
    return dataclasses.replace(data.generated(n, (3, side, side), split=split), name=name)


def named(name, n, side):
    """An image set of that name and size that takes no memory."""
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(n, 3, side, side)
    return data.ImageSet(images, torch.zeros(n, dtype=torch.int64), tuple("abcdefghij"), name)


class TestRows:
    def test_twenty_four_cells(self):
        assert len(ROWS) == len(set(ROWS.values())) == 24
        assert ROWS["simclr-attn-resnet50-cifar10"] == Row("simclr-attn", 50, "cifar10")
        assert ROWS["simsiam-multi-resnet18-imagenet100"].published == 70.52
        assert Row("simsiam", 18, "cifar100").name == "simsiam-resnet18-cifar100"

    def test_gains_are_those_that_the_tables_print(self):
        printed = {
            ("simclr", "simclr-attn"): {18: (0.9, 0.8, 0.8), 50: (1.2, 0.9, 0.7)},
            ("simsiam", "simsiam-multi"): {18: (0.93, 2.53, 1.76), 50: (1.1, 1.4, 1.4)},
        }
        for (before, after), by_depth in printed.items():
            for depth, gains in by_depth.items():
                for images, gain in zip(("cifar10", "cifar100", "imagenet100"), gains, strict=True):
                    a, b = (ROWS[f"{method}-resnet{depth}-{images}"].published for method in (before, after))
                    assert b - a == pytest.approx(gain)

    def test_images_of_another_set(self):
        with pytest.raises(ValueError, match="row simclr-resnet18-cifar10: expected images of cifar10, found 'folder'"):
            ROWS["simclr-resnet18-cifar10"].recipe(pictures("folder"))

    def test_image_sets(self, monkeypatch, tmp_path):
        calls = []
        monkeypatch.setattr(data, "load", lambda name, split, root, size: calls.append((name, split, root, size)))
        for split in ("train", "test"):
            (tmp_path / split).mkdir()
        contrast_tables.image_sets("folder", tmp_path)
        assert calls == [("folder", split, tmp_path, 224) for split in ("train", "test")]


class TestFolder:
    def write(self, top, **classes):
        """One grey picture a class."""
        for split, names in classes.items():
            for number, name in enumerate(names):
                (top / split / name).mkdir(parents=True)
                save_image(torch.full((3, 20, 30), number / 8), top / split / name / "0.png")

    def test_both_splits(self, tmp_path):
        self.write(tmp_path, train=("cat", "dog"), test=("cat", "dog"))
        fit, test = contrast_tables.image_sets("folder", str(tmp_path), 16)
        assert fit.classes == test.classes == ("cat", "dog")
        assert fit.images.shape == test.images.shape == (2, 3, 16, 16)

    def test_val_in_place_of_test(self, tmp_path):
        """Read from the top, `train` and `val` would be two classes of one set that is both trained and counted on."""
        self.write(tmp_path, train=("cat", "dog"), val=("cat", "dog"))
        assert data.load("folder", "test", tmp_path, size=16).classes == ("train", "val")
        message = "expected the folders train and test, .* found no test. Mend it: rename val, .* mv '.*val' '.*test'"
        with pytest.raises(data.DataError, match=message):
            contrast_tables.image_sets("folder", tmp_path, 16)
        (tmp_path / "val").rename(tmp_path / "test")
        assert len(contrast_tables.image_sets("folder", tmp_path, 16)[1]) == 2

    def test_other_classes(self, tmp_path):
        self.write(tmp_path, train=("cat", "dog", "owl"), test=("cat", "emu"))
        message = (
            "same classes in train and test, found 'dog' in train only .3 such.. Mend it: add .*test/dog or remove"
        )
        with pytest.raises(data.DataError, match=message):
            contrast_tables.image_sets("folder", tmp_path, 16)

    def test_no_root(self):
        with pytest.raises(data.DataError, match="found no root"):
            contrast_tables.image_sets("folder")


class TestConfigurations:
    @pytest.mark.parametrize("images", ["cifar10", "cifar100"])
    def test_simclr_on_cifar(self, images):
        recipe = ROWS[f"simclr-attn-resnet18-{images}"].recipe(named(images, 50_000, 32))
        options = recipe.options
        assert (options.steps, options.batch_size, options.optimizer, options.lr) == (19_200, 512, "lars", 1.0)
        assert (options.weight_decay, options.warmup_steps, options.momentum) == (1e-6, 192, 0.9)
        assert options.cosine
        assert (recipe.temperature, recipe.beta) == (0.7, 1.0)
        views = recipe.augmentation
        assert (views.area, views.brightness, views.hue, views.jitter, views.blur) == ((0.08, 1.0), 0.4, 0.1, 0.8, None)
        model = recipe.start(0, 50_000)
        assert self.head(model) == [(512, 512), (512, 128)]
        assert model.encoder.backbone.conv1.kernel_size == (3, 3)
        assert model.memory.numel() == 0
        short = contrast.authors(named(images, 50_000, 32), epochs=2)
        assert short.options.steps == 196

    def test_simclr_on_imagenet(self):
        recipe = ROWS["simclr-resnet50-imagenet100"].recipe(named("folder", 126_689, 224))
        options = recipe.options
        assert (options.steps, options.batch_size, options.optimizer, options.lr) == (125_100, 512, "lars", 1.2)
        assert (options.weight_decay, options.warmup_steps, recipe.temperature) == (1e-6, 12_510, 0.1)
        views = recipe.augmentation
        assert (views.area, views.brightness, views.hue, views.blur, views.blurred) == (
            (0.08, 1.0), 0.8, 0.2, (0.1, 2.0), 0.5,
        )  # fmt: skip
        model = recipe.start(0, 4)
        assert self.head(model) == [(2048, 2048), (2048, 128)]
        assert model.encoder.backbone.conv1.kernel_size == (7, 7)

    @pytest.mark.parametrize(
        ("images", "n", "side", "depth", "batch", "epochs"),
        [("cifar100", 50_000, 32, 18, 256, 1000), ("folder", 126_689, 224, 50, 128, 400)],
    )
    def test_simsiam(self, images, n, side, depth, batch, epochs):
        recipe = Row("simsiam-multi", depth, images).recipe(named(images, n, side))
        options, epoch = recipe.options, -(-n // batch)
        assert (options.steps, options.batch_size, options.optimizer) == (epochs * epoch, batch, "sgd")
        assert (options.lr, options.weight_decay) == (0.5 * batch / 256, 1e-5)
        assert (options.warmup_steps, options.cosine) == (10 * epoch, True)
        assert (recipe.stages, recipe.after) == (2, 51 * epoch)
        assert recipe.augmentation.hue == 0.1
        d = {18: 512, 50: 2048}[depth]
        model = recipe.start(0, 4)
        assert self.head(model) == [(d, 2048), (2048, 2048), (2048, 2048)]
        first, _, _, last = model.predictor.layers
        assert (first.in_features, first.out_features, last.out_features) == (2048, 512, 2048)
        assert [group.get("constant") for group in model.parameter_groups(options)] == [None, True]
        assert model.memory.shape == (1, 4, 2048)
        short = contrast.authors(named(images, n, side), "simsiam-multi", depth, epochs=100)
        assert short.after == 25 * epoch

    def test_other_images_and_depths(self):
        with pytest.raises(ValueError, match="authors: expected images of cifar10, cifar100, folder, found 'digits'"):
            contrast.authors(data.load("digits"))
        with pytest.raises(ValueError, match="expected depth 18 or 50"):
            contrast.authors(pictures("cifar10"), depth=34).start(0, 12)

    def head(self, model):
        layers = [layer for layer in model.encoder.projector if isinstance(layer, nn.Linear)]
        assert sum(isinstance(layer, nn.BatchNorm1d) for layer in model.encoder.projector) == len(layers)
        return [(layer.in_features, layer.out_features) for layer in layers]


@pytest.mark.parametrize("name", ["simclr-attn-resnet18-cifar100", "simsiam-multi-resnet18-imagenet100"])
def test_two_updates_and_an_accuracy(name, tmp_path, monkeypatch):
    """The very cell of the gpu profile, with batches of four."""

    def short(*arguments, **keywords):
        recipe = authors(*arguments, **keywords)
        options = dataclasses.replace(recipe.options, steps=2, batch_size=4, warmup_steps=1)
        return dataclasses.replace(recipe, options=options, after=1)

    authors = contrast.authors
    monkeypatch.setattr(contrast, "authors", short)
    monkeypatch.setattr(pretrain, "checkpoint", lambda name: tmp_path / f"{name}.pt")
    row = ROWS[name]
    if row.method == "simsiam-multi":  # its spectrum of 2,048 eigenvalues would take most of the time

        def glance(self, step, model):
            self.rows.append({"steps": torch.tensor(step), "spectrum": torch.zeros(1)})

        monkeypatch.setattr(alignment.AlignmentWatch, "__call__", glance)
    fit, test = (pictures(row.images, 8, split=split) for split in ("train", "test"))
    model, watch = contrast_tables.train(row, fit, 3, "cpu")
    assert (tmp_path / f"{row.name}-3.pt").is_file()
    assert watch.steps.tolist() == [0, 1, 2]
    assert bool(watch.spectrum.isfinite().all())
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    if row.method == "simsiam-multi":
        assert int(model.visits.sum()) >= 2
    accuracy = contrast_tables.evaluate(model, row, fit, test, epochs=1)
    assert accuracy in {n / 8 for n in range(9)}
