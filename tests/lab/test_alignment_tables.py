"""Witnesses: the claims' own sentences, networks built and trained for two updates, runs that were not prolonged."""

import dataclasses
import re
from collections import Counter
from functools import partial

import pytest
import torch

from companion.lab import alignment, alignment_tables, data, fetch, pretrain
from companion.lab.alignment_tables import Row, collapse_rows, grouped, offset_root, table_rows
from companion.lab.predictors import Direct, Identity, Optimal, Trained
from companion.ledger import claims
from companion.theory.direct_predictor import direct_pred

ROWS = table_rows()


def pictures(name, n=16, side=32, split="train"):
    """Generated images under the name of a real set."""
    return dataclasses.replace(data.generated(n, (3, side, side), split=split), name=name)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def predictor(row):
    return row.build()(128, generator=seeded())


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "checkpoint", lambda name: tmp_path / f"{name}.pt")
    return tmp_path


@pytest.fixture
def two_updates(monkeypatch):
    """The authors' configuration with batches of four and two updates."""

    def short(*arguments, **keywords):
        recipe = authors(*arguments, **keywords)
        return dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, steps=2, batch_size=4))

    authors = alignment.authors
    monkeypatch.setattr(alignment, "authors", short)


TABLE = {c.id.removeprefix("alignment."): c for c in claims.load("alignment") if c.evidence == "published"}


class TestTheClaims:
    def test_every_row_that_the_gpu_profile_measures_has_its_network_and_no_other(self):
        assert {name for name, claim in TABLE.items() if claim.runs == ("gpu",)} == set(ROWS)
        assert all(claim.runs == () for name, claim in TABLE.items() if name not in ROWS)

    def test_networks_without_a_table(self):
        known = {name for c in claims.load("alignment") if "gpu" in c.runs for name in (c.id, c.control)}
        assert {f"alignment.{name}" for name in collapse_rows()} <= known

    @pytest.mark.parametrize("name", ROWS)
    def test_a_row_does_what_its_claim_says(self, name):
        """The sentence and the setting of a claim, read as a reader would."""
        row, claim = ROWS[name], TABLE[name]
        setting = claim.published["setting"]
        found = re.match(r"(STL-10|CIFAR-10), ResNet-18, (\d+) epochs", setting)
        assert (row.images, row.epochs) == (found[1].lower().replace("-", ""), int(found[2]))
        says = claim.says
        assert (row.momentum == 0) == ("without a moving average" in says)
        assert row.bias == ("with bias" in says)
        assert (row.predictor == "two-layer") == ("two-layer" in says)
        assert (row.predictor == "optimal") == ("optimal" in says)
        assert (row.predictor == "direct") == ("DirectPred" in says)
        if "symmetric" in says or "regular" in says:
            assert row.symmetric == ("symmetric" in says)
        decays = {
            "Without weight decay": (0, 0),
            "Without any weight": (0, 0),
            "With weight decay on the predictor": (0, 4e-4),
        }
        wanted = next((value for words, value in decays.items() if says.startswith(words)), (4e-4, 4e-4))
        assert (row.decay, row.predictor_decay) == wanted
        every = re.search(r"every (\w+) steps?|every (second|fifth) step", says)
        words = {"2": 2, "3": 3, "5": 5, "second": 2, "fifth": 5}
        assert row.every == (words[every[1] or every[2]] if every else 1)
        if boost := re.search(r"moving average (\S+) and boost (\S+) reaches", says):
            assert (row.rho, row.epsilon) == (float(boost[1]), float(boost[2]))
        if offset := re.search(r"offset (minus )?(\S+) under", says):
            assert row.offset == (-1 if offset[1] else 1) * float(offset[2])
            assert row.epsilon == 0


class TestRows:
    def test_eighty_numbers_are_seventy_two_networks(self):
        plan = grouped(ROWS)
        assert (len(ROWS), len(plan)) == (80, 72)
        assert sorted(name for names in plan.values() for name in names) == sorted(ROWS)
        twice = {frozenset(names) for names in plan.values() if len(names) > 1}
        again = {
            frozenset({f"table2-{t}-{b}", f"table5-nodecay-{t}-{b}-regular"})
            for t in ("ema", "noema")
            for b in ("nobias", "bias")
        }
        assert twice == again | {
            frozenset({"table3-linear-ema-nobias-regular", "table2-decay-nobias", "table6-sgd-nobias"}),
            frozenset({"table3-linear-ema-nobias-sym", "table8-stl10-sgd-100"}),
            frozenset({"table6-rho03-eps01", "table8-stl10-direct-100"}),
        }

    def test_short_runs_come_first(self):
        lengths = [row.epochs for row in grouped(ROWS)]
        assert lengths == sorted(lengths)
        assert Counter(lengths) == {100: 60, 300: 6, 500: 6}

    def test_names_of_files_differ_as_the_rows_do(self):
        plan = [*grouped(ROWS), *grouped(collapse_rows())]
        assert len({row.name for row in plan}) == len(plan) == 75
        assert Row("direct", epsilon=0.1).name == "stl10-direct-epsilon=0.1-100"

    def test_the_control_of_both_collapses_is_one_run(self):
        plan = grouped(collapse_rows())
        assert list(plan.values()) == [
            ["resnet-no-predictor"],
            ["resnet-no-predictor-trained", "resnet-no-stop-stopped"],
            ["resnet-no-stop"],
        ]
        assert {(row.momentum, row.images, row.epochs) for row in plan} == {(0.0, "cifar10", 10)}

    def test_a_predictor_that_nobody_knows(self):
        with pytest.raises(ValueError, match=r"predictor of a row: expected one of linear, .* found 'cubic'"):
            Row("cubic").build()

    def test_images_of_another_set(self):
        with pytest.raises(ValueError, match="row stl10-linear-100: expected images of stl10, found 'cifar10'"):
            Row().recipe(pictures("cifar10"))


class TestPredictors:
    @pytest.mark.parametrize("hidden", [None, 512])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_trained(self, hidden, bias, symmetric):
        found = predictor(Row("two-layer" if hidden else "linear", bias=bias, symmetric=symmetric))
        assert isinstance(found, Trained)
        assert found.symmetric == symmetric
        shapes = [(128, 128)] if hidden is None else [(512, 128), (128, 512)]
        wanted = [shape for matrix in shapes for shape in (matrix, matrix[:1])[: 2 if bias else 1]]
        assert [tuple(p.shape) for p in found.parameters() if p.requires_grad] == wanted

    @pytest.mark.parametrize(
        ("row", "decays"),
        [
            (Row(), (4e-4, 4e-4)),
            (ROWS["table5-split-ema-bias-sym"], (0.0, 4e-4)),
            (ROWS["table5-nodecay-noema-bias-sym"], (0.0, 0.0)),
            (ROWS["table8-stl10-direct5-100"], (4e-4, 4e-4)),
        ],
    )
    def test_decay_of_the_encoder_and_of_the_predictor(self, row, decays):
        recipe = row.recipe(pictures("stl10"))
        groups = recipe.start(0).parameter_groups(recipe.options)
        assert tuple(group.get("weight_decay", recipe.options.weight_decay) for group in groups) == decays

    def test_set(self):
        found = predictor(ROWS["table1-noema-n3"])
        assert isinstance(found, Optimal)
        assert found.every == 3
        found = predictor(ROWS["table8-cifar10-direct5-500"])
        assert isinstance(found, Direct)
        assert (found.every, found.rho, found.rule.keywords) == (5, 0.3, {"epsilon": 0.1})
        found = predictor(ROWS["table6-rho05-eps001"])
        assert (found.every, found.rho, found.rule.keywords) == (1, 0.5, {"epsilon": 0.01})
        assert found.rule.func is direct_pred
        found = predictor(ROWS["table7-freq2-minus005"])
        assert (found.every, found.rule.func, found.rule.keywords) == (2, offset_root, {"offset": -0.05})
        assert isinstance(predictor(Row("none")), Identity)

    @pytest.mark.parametrize("offset", [-0.1, 0.05, 0.1])
    def test_the_offset_is_direct_preds_but_for_the_floor(self, offset):
        """Both in units of the largest eigenvalue; where the root is above 0.01 they are equal."""
        q, _ = torch.linalg.qr(torch.randn(6, 6, generator=seeded(), dtype=torch.float64))
        F_hat = (q * torch.tensor([7.0, 3.0, 2.0, 1.0, 0.1, 0.0]).double()) @ q.T
        ours, theirs = offset_root(F_hat, offset), direct_pred(F_hat, 0.0, offset=offset)
        p = torch.linalg.eigvalsh(theirs).clamp(min=0.01)
        assert torch.allclose(torch.linalg.eigvalsh(ours), p, atol=1e-12)
        assert torch.allclose(ours, offset_root(5 * F_hat, offset))
        assert float((ours @ F_hat - F_hat @ ours).abs().max()) < 1e-12
        if offset < 0:
            assert torch.allclose(ours, theirs)


class TestImages:
    def test_stl10_has_images_without_label(self, monkeypatch):
        sizes = {"train": 3, "test": 4, "unlabeled": 9}

        def load(name, split):
            found = pictures(name, sizes[split], split=split)
            return dataclasses.replace(found, labels=-torch.ones_like(found.labels)) if split == "unlabeled" else found

        monkeypatch.setattr(data, "load", load)
        pool, labelled, test = alignment_tables.image_sets("stl10")
        assert (len(pool), len(labelled), len(test)) == (12, 3, 4)
        assert torch.equal(pool.images[:3], labelled.images)
        assert pool.labels.tolist() == [*labelled.labels.tolist(), *[-1] * 9]
        del sizes["unlabeled"]
        pool, labelled, test = alignment_tables.image_sets("cifar10")
        assert (len(pool), len(labelled), len(test), pool.name) == (3, 3, 4, "cifar10")


KINDS = {
    "linear": Row(symmetric=True, momentum=0.0, decay=0.0),
    "two-layer": Row("two-layer", bias=True, symmetric=True),
    "optimal": Row("optimal", every=2),
    "direct": Row("direct", epsilon=0.1, every=2, images="cifar10"),
    "offset": Row("direct", offset=0.1),
    "none": collapse_rows()["resnet-no-predictor"],
    "no stop-gradient": collapse_rows()["resnet-no-stop"],
}


class TestTraining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_two_updates_and_an_accuracy(self, kind, two_updates, checkpoints, monkeypatch):
        row = KINDS[kind]
        side = 96 if row.images == "stl10" else 32
        fit, test = (pictures(row.images, 8, side, split) for split in ("train", "test"))
        model, watch = alignment_tables.train(row, fit, 3, "cpu")
        assert (checkpoints / f"{row.name}-3.pt").is_file()
        assert watch.steps.tolist() == [0, 1, 2]
        assert bool(watch.spectrum.isfinite().all())
        assert model.stop_gradient == row.stop_gradient
        assert (model.slow is None) == (row.momentum == 0)
        if row.symmetric:
            first, last = model.predictor.layers[0].weight, model.predictor.layers[-1].weight
            assert torch.equal(first, last.T)
        if row.predictor in ("direct", "optimal"):
            assert torch.allclose(model.predictor.weight.double(), model.predictor.solution(), atol=1e-6)
        if kind != "linear":
            return
        short = partial(alignment.linear_evaluation, epochs=1)
        monkeypatch.setattr(alignment, "linear_evaluation", short)
        accuracy = alignment_tables.evaluate(model, row, fit, test)
        assert accuracy in {n / 8 for n in range(9)}

    def test_a_classifier_is_fitted_to_the_features_of_clean_images(self):
        """With features that are the pixels, the class of generated pictures is found."""
        fit, test = (pictures("cifar10", 80, 32, split) for split in ("train", "test"))
        model = Row(images="cifar10").recipe(fit).start(0).eval()
        model.encoder.backbone = torch.nn.Flatten()
        assert alignment_tables.evaluate(model, Row(images="cifar10"), fit, test) > 0.9
        other = dataclasses.replace(test, labels=(test.labels + 1) % 4)
        assert alignment_tables.evaluate(model, Row(images="cifar10"), fit, other) < 0.1

    def test_a_prolonged_run_is_the_run_that_was_long_from_the_start(self, checkpoints, monkeypatch):
        monkeypatch.setattr(alignment_tables, "LENGTHS", (1, 2, 3))
        images = pictures("stl10", 8)
        rows = [Row("direct", epsilon=0.1, every=2, epochs=n) for n in (1, 2, 3)]
        whole, seen = alignment_tables.train(rows[2], images, 0, "cpu")
        (checkpoints / f"{rows[2].name}-0.pt").unlink()
        steps = []
        fit = alignment.train.fit

        def counted(model, sample, *arguments, **keywords):
            return fit(model, lambda *a: steps.append(1) or sample(*a), *arguments, **keywords)

        monkeypatch.setattr(alignment.train, "fit", counted)
        for row in rows:
            model, watch = alignment_tables.train(row, images, 0, "cpu")
        assert len(steps) == 3  # and not 1 + 2 + 3
        state, other = model.state_dict(), whole.state_dict()
        assert all(torch.equal(state[name], other[name]) for name in other)
        assert watch.steps.tolist() == seen.steps.tolist() == [0, 1, 2, 3]
        assert torch.equal(watch.spectrum, seen.spectrum)

    def test_what_is_not_prolonged(self, tmp_path):
        first, second = tmp_path / "first.pt", tmp_path / "second.pt"
        alignment_tables.prolong(first, second, 5)
        assert not second.exists()
        torch.save({"losses": torch.zeros(2, dtype=torch.float64), "options": {"steps": 2}, "done": 2}, first)
        second.write_text("begun")
        alignment_tables.prolong(first, second, 5)
        assert second.read_text() == "begun"


def test_a_checkpoint_does_not_outlive_the_rules_that_set_a_predictor(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "store", lambda: tmp_path)
    before = pretrain.checkpoint("run")
    (tmp_path / "rules.py").write_text("# another rule\n")
    monkeypatch.setattr(pretrain.direct_predictor, "__file__", str(tmp_path / "rules.py"))
    assert pretrain.checkpoint("run") != before
