"""Witnesses: pretended GPUs, the notebooks' own functions, a count of waits for the device, refused command lines."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from companion.lab import checkpoints, contrast, data, distributed, precision, pretrain
from companion.lab.encoders import mlp, small_cnn
from companion.lab.train import Options, fit
from companion.lab.train.__main__ import main
from companion.lab.train.recipes import RECIPES
from companion.theory.losses import spectral_contrastive

DIGITS = data.load("digits")
SHORT = ["--data", "digits", "--steps", "6", "--batch", "32", "--device", "cpu"]


def pairs(n, generator):
    x = torch.rand(n, 6, generator=generator)
    return tuple(x + 0.1 * torch.randn(n, 6, generator=generator) for _ in range(2))


def encoder():
    return mlp((6, 5, 3), generator=torch.Generator().manual_seed(0))


def gpus(monkeypatch, number):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def torchrun(monkeypatch, local, here):
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))


class TestDevice:
    @pytest.mark.parametrize(
        ("asked", "number", "expected"),
        [("auto", 0, "cpu"), ("cpu", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:1"), ("cuda", 2, "cuda:1")],
    )
    def test_choice(self, monkeypatch, asked, number, expected):
        gpus(monkeypatch, number)
        torchrun(monkeypatch, 1, 2)
        assert distributed.choose(asked) == torch.device(expected)

    def test_without_torchrun_it_is_the_first(self, monkeypatch):
        gpus(monkeypatch, 4)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        assert distributed.choose() == torch.device("cuda:0")

    @pytest.mark.parametrize(
        ("asked", "number", "says"),
        [
            ("cuda", 0, "expected a GPU that torch can use, found none; take the device cpu"),
            ("auto", 1, "2 workers on this machine: expected at most one a GPU, found 1 GPU; take --nproc_per_node=1"),
            ("tpu", 1, "device: expected .* found 'tpu'"),
        ],
    )
    def test_refused(self, monkeypatch, asked, number, says):
        gpus(monkeypatch, number)
        torchrun(monkeypatch, 1, 2)
        with pytest.raises(ValueError, match=says):
            distributed.choose(asked)

    @pytest.mark.parametrize(("number", "backend"), [(0, "gloo"), (2, "nccl")])
    def test_backend(self, monkeypatch, number, backend):
        calls = []
        gpus(monkeypatch, number)
        torchrun(monkeypatch, 1, 2)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
        monkeypatch.setattr(torch.distributed, "init_process_group", calls.append)
        distributed.start()
        assert calls == ["cuda:1"] * (number > 0) + [backend]


class TestPrecision:
    @pytest.mark.parametrize("fast", [False, True])
    def test_bfloat16_only_where_it_is_fast(self, monkeypatch, tmp_path, fast):
        """In float32 elsewhere, bit for bit; the checkpoint knows, and does not go on with the other."""
        monkeypatch.setattr(precision, "bfloat16_is_fast", lambda device: fast)
        ends = []
        for wanted in (True, False):
            model = encoder()
            options = Options(4, 8, bf16=wanted)
            fit(model, pairs, spectral_contrastive, options, checkpoint=tmp_path / f"{wanted}.pt")
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert torch.equal(*ends) == (not fast)
        assert torch.load(tmp_path / "True.pt", weights_only=True)["options"]["bf16"] is fast
        monkeypatch.setattr(precision, "bfloat16_is_fast", lambda device: not fast)
        with pytest.raises(ValueError, match=f"found other bf16 .bf16 {fast} there, {not fast} here"):
            fit(encoder(), pairs, spectral_contrastive, Options(4, 8, bf16=True), checkpoint=tmp_path / "True.pt")

    @pytest.mark.parametrize("last", [False, True])
    def test_layout(self, last):
        model = small_cnn(k=4, size=8, generator=torch.Generator().manual_seed(0))
        seen = []
        model.register_forward_pre_hook(lambda _, x: seen.append(x[0].is_contiguous(memory_format=torch.channels_last)))

        def images(n, generator):
            return torch.rand(n, 3, 8, 8, generator=generator), torch.rand(n, 3, 8, 8, generator=generator)

        model.backbone[0] = torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        fit(model, images, spectral_contrastive, Options(1, 4, channels_last=last))
        assert seen == [last]
        assert model.backbone[0].weight.is_contiguous(memory_format=torch.channels_last) == last


class Waits(TorchDispatchMode):
    """Counts what needs a value on the host: on a GPU each would wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_the_loop_waits_for_the_device_only_when_it_looks():
    counts = []
    for steps, every in ((20, 20), (40, 40), (40, 10)):
        model = small_cnn(k=4, size=8, generator=torch.Generator().manual_seed(0))

        def images(n, generator):
            return tuple(torch.rand(n, 1, 8, 8, generator=generator) for _ in range(2))

        with Waits() as waits:
            fit(model, images, spectral_contrastive, Options(steps, 8, log_every=every, channels_last=True))
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0
    assert counts[2] > counts[1]


class TestRecipes:
    @pytest.mark.parametrize("name", RECIPES)
    def test_every_one_of_them_has_the_chapters_options(self, name):
        kind = RECIPES[name]
        images = data.generated(40, (3, 32, 32))
        images = dataclasses.replace(images, name="cifar10") if "authors" in name else DIGITS
        for loss in kind.losses:
            made, longer = kind.recipe(images, loss), kind.recipe(images, loss, steps=1000, batch_size=8, label="x")
            assert made.options == kind.build(images, loss, None).options
            assert (longer.options.steps, longer.options.batch_size, longer.options.label) == (1000, 8, "x")
            share = made.options.warmup_steps / made.options.steps
            assert longer.options.warmup_steps == pytest.approx(1000 * share, abs=0.5)

    def test_epochs(self):
        images = data.generated(100, (3, 32, 32))
        small = RECIPES["small"].recipe(images, "spectral", epochs=3, batch_size=40).options
        assert small.steps == 8
        assert (
            RECIPES["authors"].recipe(images, "spectral", epochs=30).options
            == pretrain.authors(images, epochs=30).options
        )


class TestCommand:
    @pytest.mark.parametrize("name", ["small", "growth", "alignment", "contrast"])
    def test_one_process(self, name, tmp_path, capsys):
        out = tmp_path / "deeper" / "run.pt"
        assert main([*SHORT, "--recipe", name, "--seed", "3", "--out", str(out)]) == 0
        said = capsys.readouterr()
        assert said.out.startswith(
            f"digits train, {name}, {RECIPES[name].losses[0]}, seed 3: 6 updates of 32 pairs in "
        )
        assert said.out.endswith(f"; {out}\n")
        assert "by 1 worker on cpu in float32" in said.out
        found = torch.load(out, weights_only=True)
        assert found["steps"].tolist() == [1, 2, 3, 4, 5, 6]
        assert found["losses"].isfinite().all()
        assert found["options"]["seed"] == 3

    def test_it_is_the_notebooks_run(self, tmp_path):
        main([*SHORT, "--loss", "info_nce", "--seed", "2", "--out", str(tmp_path / "run.pt")])
        recipe = pretrain.small(DIGITS, "info_nce", steps=6)
        recipe = dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, batch_size=32))
        expected = pretrain.run(DIGITS, recipe, 2).state_dict()
        found = torch.load(tmp_path / "run.pt", weights_only=True)["model"]
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        made = RECIPES["contrast"].recipe(DIGITS, "simsiam")
        assert made.options == contrast.small(DIGITS, "simsiam").options

    @pytest.mark.parametrize(
        ("more", "status", "says"),
        [
            (["--data", "mnist"], 1, "name: expected one of digits, .* found 'mnist'"),
            (["--split", "half"], 1, "split of digits: expected one of train, test, found 'half'"),
            (["--loss", "barlow"], 2, "--loss: expected one of spectral, info_nce, found 'barlow'; --help says"),
            (["--steps", "0"], 2, "argument --steps: expected at least 1, found 0"),
            (["--recipe", "large"], 2, "argument --recipe: invalid choice: 'large'"),
            (["--recipe", "alignment-authors"], 1, "authors: expected images of cifar10 or stl10, found 'digits'"),
            (["--data", "folder"], 1, "found no root"),
        ],
    )
    def test_refused_in_one_sentence(self, more, status, says, tmp_path, capsys):
        try:
            found = main([*SHORT, "--out", str(tmp_path / "run.pt"), *more])
        except SystemExit as left:
            found = left.code
        said = capsys.readouterr()
        assert found == status
        assert said.out == ""
        (line,) = said.err.strip().splitlines()
        assert line.startswith("error: ")
        assert re.search(says, line)
        assert list(tmp_path.iterdir()) == []

    def test_no_gpu(self, tmp_path, capsys, monkeypatch):
        gpus(monkeypatch, 0)
        assert main([*SHORT, "--device", "cuda", "--out", str(tmp_path / "run.pt")]) == 1
        assert "error: device cuda: expected a GPU that torch can use, found none" in capsys.readouterr().err

    def test_the_checkpoint_of_another_run(self, tmp_path, capsys):
        files = ["--out", str(tmp_path / "run.pt"), "--checkpoint", str(tmp_path / "state.pt")]
        assert main([*SHORT, *files]) == 0
        before = (tmp_path / "run.pt").read_bytes()
        assert main([*SHORT, *files, "--split", "test", "--seed", "1"]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"error: {tmp_path / 'state.pt'}: expected a checkpoint of this run, found other seed, label" in line
        assert "label 'digits train, small, spectral' there, 'digits test, small, spectral' here" in line
        assert (tmp_path / "run.pt").read_bytes() == before

    def test_help_of_a_process_of_its_own(self):
        """As a module the package is imported once: no warning, every option and recipe explained."""
        command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "companion.lab.train", "--help"]
        environment = os.environ | {"PYTHONPATH": str(Path(distributed.__file__).parents[2])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert "torchrun --standalone --nproc_per_node=2 -m companion.lab.train" in done.stdout
        assert all(name in done.stdout for name in RECIPES)


class TestObservedElsewhere:
    def test_another_interval_is_refused(self, tmp_path):
        how = {"checkpoint": tmp_path / "run.pt", "observe": lambda step, model: None}
        fit(encoder(), pairs, spectral_contrastive, Options(4, 8), **how, observe_every=2)
        fit(encoder(), pairs, spectral_contrastive, Options(4, 8), **how, observe_every=2)
        with pytest.raises(ValueError, match=r"run.pt: expected a run observed every 3 updates, found every 2"):
            fit(encoder(), pairs, spectral_contrastive, Options(4, 8), **how, observe_every=3)

    def test_checkpoints_from_before_there_were_labels(self, tmp_path):
        path = tmp_path / "run.pt"
        fit(encoder(), pairs, spectral_contrastive, Options(4, 8), checkpoint=path)
        state = torch.load(path, weights_only=True)
        del state["options"]["label"], state["observe_every"]
        checkpoints.write(path, state)
        fit(encoder(), pairs, spectral_contrastive, Options(4, 8), checkpoint=path)
        with pytest.raises(ValueError, match="found other label"):
            fit(encoder(), pairs, spectral_contrastive, Options(4, 8, label="mine"), checkpoint=path)


def test_workers_that_do_not_all_find_the_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "agree", lambda number, device: False)
    with pytest.raises(ValueError, match=r"run.pt: expected one checkpoint for all workers"):
        fit(encoder(), pairs, spectral_contrastive, Options(4, 8), checkpoint=tmp_path / "run.pt")


def test_names_of_states_do_not_change_with_a_label():
    assert repr(Options(label="x")) == repr(Options())
