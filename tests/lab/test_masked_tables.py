"""Witnesses: the printed tables, BERT's published sizes, every cell's very path with a network of two layers."""

import dataclasses
import json
import re

import pytest
import torch

from companion.lab.languages.floors import floor
from companion.lab.masked import __main__, measure, tables
from companion.lab.masked.architecture import Shape
from companion.lab.masked.tables import Cell, Judged, cells, counted, harvest, recipe
from companion.lab.masked.transformer import Transformers

CELLS = cells()
TINY = ("--tiny", "--device", "cpu", "--steps", "3", "--batch", "8")


def tiny(name, **changes):
    cell = CELLS[name]
    shape = Shape(200, 16, 16, 2, 2, padded=cell.data == "pcfg")
    options = dataclasses.replace(recipe(cell.algorithm, 4, 8), checkpoint_every=2)
    return dataclasses.replace(cell, shape=shape, judged=Judged(60, 10, (20,), 40, 8), options=options, **changes)


class TestCells:
    def test_names(self):
        assert len(CELLS) == 12
        assert CELLS["pcfg-adamw-235m"] == Cell("pcfg", "adamw", "235m")
        assert set(tables.PUBLISHED) <= set(CELLS)
        assert set(CELLS["pcfg-lookup"].language().names) > {"S9", "A1_0", "A4_9"}

    @pytest.mark.parametrize(("size", "millions"), [("9m", 9), ("41m", 41), ("67m", 67), ("235m", 235)])
    def test_sizes(self, size, millions):
        """With BERT's own tables the networks have the numbers of parameters that name them."""
        assert int(counted(Cell("pcfg", "adamw", size).network) / 1e6) == millions
        # BERT medium, 8 layers of width 512, is published with 41.4 million; BERT large is 336M with 24 layers
        assert counted(Shape(200, 16, 1024, 24, 16)) / 1e6 == pytest.approx(336, abs=1)

    def test_the_configuration(self):
        cell = CELLS["pcfg-adamw-235m"]
        shape = cell.network
        assert (shape.width, shape.layers, shape.heads, shape.units) == (1024, 16, 16, 4096)
        assert (shape.vocabulary, shape.length, shape.padded) == (200, 16, True)
        options = cell.options
        assert (options.steps, options.batch_size, options.lr, options.optimizer) == (30_000, 4096, 1e-3, "adamw")
        assert (options.warmup_steps, options.weight_decay, options.betas, options.bf16) == (
            1800,
            0.01,
            (0.9, 0.98),
            True,
        )
        sgd = CELLS["hmm-sgd-67m"].options
        assert (sgd.optimizer, sgd.lr, sgd.warmup_steps, sgd.cosine) == ("sgd", 1e-3, 3600, False)
        assert (sgd.momentum, sgd.weight_decay) == (0.0, 0.0)
        assert CELLS["hmm-adamw-67m"].network == Shape(200, 16, 768, 6, 12)

    def test_languages(self):
        grammar, chain = CELLS["pcfg-lookup"].language(), CELLS["hmm-lookup"].language()
        assert (grammar.symbols + 1, grammar.words, grammar.longest) == (50, 200, 16)  # the root counts
        assert (chain.states, chain.words) == (100, 200)
        assert floor(chain, 1000, torch.Generator().manual_seed(0), length=16).value == pytest.approx(3.758, abs=0.05)
        assert torch.equal(grammar.emission, CELLS["pcfg-adamw-9m"].language().emission)

    def test_the_printed_differences(self):
        adam, foe = (tables.PUBLISHED[f"pcfg-{name}-235m"] for name in ("adamw", "adversarial"))
        drops = {task: round(adam[task][0] - foe[task][0], 1) for task in "ABC"}
        assert drops == {"A": 6.8, "B": 6.9, "C": 5.5}
        assert foe["trace"][0] / adam["trace"][0] == pytest.approx(2.41, abs=0.01)
        assert tables.PUBLISHED["pcfg-lookup"]["loss"][0] == min(cell["loss"][0] for cell in tables.PUBLISHED.values())


class TestRuns:
    @pytest.mark.parametrize("name", ["pcfg-adamw-235m", "hmm-adversarial-67m"])
    def test_the_very_path(self, name, tmp_path, monkeypatch):
        cell, micro = tiny(name), set()
        for module in (tables.training, tables.adversary):
            monkeypatch.setattr(module, "in_parts", lambda *a, plain=module.in_parts: micro.add(a[2]) or plain(*a))
        result = tables.run(cell, device="cpu", seed=3, micro=4, folder=tmp_path)
        assert result == json.loads(json.dumps(result))
        assert harvest(tmp_path) == {name: [result]}
        assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [f"{name}-3.json"]
        assert len(result["losses"]) == 4
        assert result["options"]["bf16"] is True
        generator = torch.Generator().manual_seed(2**31 + 3)
        evaluation = measure.Evaluation.draw(cell.language(), cell.network, 60, generator)
        net = Transformers(cell.network, 1, torch.Generator().manual_seed(3)).eval()
        state = torch.load(result["checkpoint"], weights_only=True)
        assert (state["options"]["seed"], state["options"]["bf16"], micro) == (3, False, {4})
        net.load_state_dict(state["model"])
        assert result["excess"] == pytest.approx(float(evaluation.excess(net)))
        assert result["loss"] == pytest.approx(result["floor"] + result["excess"])
        assert result["floor"] == pytest.approx(evaluation.floor)
        assert set(result["accuracy"]) == set(tables.TASKS[cell.data])
        assert all(set(found) == {"20", "best"} for found in result["accuracy"].values())
        assert result["parameters"] == cell.network.parameters
        assert result["published"] == (None if cell.data == "hmm" else
                                       {k: list(v) for k, v in tables.PUBLISHED[name].items()})  # fmt: skip

    def test_goes_on_from_its_checkpoint(self, tmp_path, monkeypatch):
        cell = tiny("pcfg-adamw-9m")
        whole = tables.run(cell, device="cpu", folder=tmp_path / "whole")

        class KilledError(Exception):
            pass

        plain, calls = tables.training.cross_entropy, []

        def killed(*arguments):
            calls.append(0)
            if len(calls) == 4:
                raise KilledError
            return plain(*arguments)

        monkeypatch.setattr(tables.training, "cross_entropy", killed)
        with pytest.raises(KilledError):
            tables.run(cell, device="cpu", folder=tmp_path / "parts")
        assert harvest(tmp_path / "parts") == {}
        again = tables.run(cell, device="cpu", folder=tmp_path / "parts")
        assert len(calls) == 6
        for name in ("losses", "excess", "trace", "accuracy"):
            assert again[name] == whole[name]

    def test_checkpoints_are_of_one_configuration(self, tmp_path):
        cell = tiny("pcfg-adamw-9m")
        paths = {tables.checkpoint(cell, 0, tmp_path), tables.checkpoint(cell, 1, tmp_path)}
        paths.add(tables.checkpoint(CELLS["pcfg-adamw-9m"], 0, tmp_path))
        paths.add(tables.checkpoint(dataclasses.replace(cell, options=recipe("adamw", 5, 8)), 0, tmp_path))
        assert len(paths) == 4
        judged = dataclasses.replace(cell, judged=Judged())
        assert tables.checkpoint(judged, 0, tmp_path) in paths

    def test_sgd_starts_where_adamw_has_ended(self, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match=r"goes on from pcfg-adamw-235m-0, .* run that cell first"):
            tables.run(tiny("pcfg-sgd-235m"), device="cpu", folder=tmp_path)
        before = tables.run(tiny("pcfg-adamw-235m"), device="cpu", folder=tmp_path)
        seen = []
        go_on = tables.training.go_on

        def look(model, *arguments, **keywords):
            seen.append(model.state())
            return go_on(model, *arguments, **keywords)

        monkeypatch.setattr(tables.training, "go_on", look)
        result = tables.run(tiny("pcfg-sgd-235m"), device="cpu", folder=tmp_path)
        ended = torch.load(before["checkpoint"], weights_only=True)["model"]
        assert all(torch.equal(p, ended[name]) for name, p in seen[0].items())
        assert result["cell"] == "pcfg-sgd-235m"
        assert set(harvest(tmp_path)) == {"pcfg-adamw-235m", "pcfg-sgd-235m"}

    @pytest.mark.parametrize("data", ["pcfg", "hmm"])
    def test_lookup(self, data, tmp_path):
        judged = Judged(60, 10, (50, 2000), 500, 64)
        result = tables.run(dataclasses.replace(CELLS[f"{data}-lookup"], judged=judged), device="cpu", folder=tmp_path)
        assert result["loss"] == result["floor"]
        assert result["excess"] == 0
        for found in result["accuracy"].values():
            assert found["50"] < found["2000"] < found["best"] + 5

    def test_seeds_are_sorted(self, tmp_path):
        for seed in (10, 2):
            tables.run(tiny("hmm-lookup"), device="cpu", seed=seed, folder=tmp_path)
        assert [result["seed"] for result in harvest(tmp_path)["hmm-lookup"]] == [2, 10]
        assert harvest(tmp_path / "nothing") == {}


class TestCommand:
    def test_a_cell(self, tmp_path, capsys):
        assert __main__.main(["hmm-adamw-9m", *TINY, "--micro", "4", "--seed", "5", "--out", str(tmp_path)]) == 0
        assert "hmm-adamw-9m: loss 5." in capsys.readouterr().out
        result = harvest(tmp_path)["hmm-adamw-9m"][0]
        assert (result["seed"], result["options"]["steps"], result["options"]["batch_size"]) == (5, 3, 8)
        assert result["shape"]["layers"] == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["bert"], "cell: expected one of pcfg-adamw-9m, .*, hmm-lookup, found 'bert'"),
            (["hmm-lookup", *TINY, "--micro", "0"], "--steps, --batch and --micro: expected at least 1"),
            (["hmm-lookup", *TINY, "--batch", "-3"], "--steps, --batch and --micro: expected at least 1"),
        ],
    )
    def test_wrong_arguments(self, arguments, message, capsys):
        with pytest.raises(SystemExit, match="2"):
            __main__.main(arguments)
        assert re.search("error: .*" + message, capsys.readouterr().err)

    def test_no_gpu(self, capsys, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit):
            __main__.main(["hmm-adamw-9m", "--device", "cuda"])
        assert "found no GPU that torch can use; take --device cpu --tiny" in capsys.readouterr().err

    def test_errors_of_the_run(self, tmp_path, capsys, monkeypatch):
        assert __main__.main(["pcfg-sgd-235m", *TINY, "--out", str(tmp_path)]) == 1
        assert "error: pcfg-sgd-235m goes on from pcfg-adamw-235m-0" in capsys.readouterr().err

        def full(*arguments, **keywords):
            raise torch.cuda.OutOfMemoryError

        monkeypatch.setattr(tables, "run", full)
        assert __main__.main(["pcfg-adamw-9m", *TINY]) == 1
        assert "too small for this batch; take --micro 4" in capsys.readouterr().err
