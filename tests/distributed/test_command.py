"""Witness: an undisturbed run. A worker that is killed ends the job; the same command goes on to the same numbers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from companion.lab import distributed

ROOT = Path(distributed.__file__).parents[2]
STEPS = 200
MODULE = ["-m", "companion.lab.train"]
ARGUMENTS = ["--data", "digits", "--recipe", "small", "--steps", str(STEPS), "--batch", "16", "--device", "cpu"]
ARGUMENTS += ["--checkpoint-every", "10", "--log-every", "10"]


def start(out, *more, workers=2, script=MODULE):
    """A job of its own, not yet waited for."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}"]
    command = [sys.executable, *torchrun, *script, *ARGUMENTS, "--out", str(out), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(job, timeout=120):
    """Exit status, closing lines, and what was said on stderr."""
    try:
        out, err = job.communicate(timeout=timeout)
    finally:
        job.kill()
    return job.returncode, out, err


def checkpoint(out):
    return out.with_suffix(".checkpoint.pt")


def sentences(err):
    return [line for line in err.splitlines() if line.startswith("error")]


def done(out):
    """Updates in the checkpoint, 0 if there is none."""
    return torch.load(checkpoint(out), weights_only=True)["done"] if checkpoint(out).exists() else 0


def wait_for_another_checkpoint(job, out):
    before, deadline = done(out), time.monotonic() + 120
    while done(out) == before:
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)


def interrupt(job, who):
    """Kill a worker by its rank, or ask torchrun itself to stop."""
    if who == "torchrun":
        job.send_signal(signal.SIGTERM)
        return
    workers = {child.environ().get("RANK"): child for child in psutil.Process(job.pid).children()}
    workers[str(who)].kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run.pt"
    status, said, err = ended(start(out))
    assert status == 0, err
    assert said.startswith(f"digits train, small, spectral, seed 0: {STEPS} updates of 16 pairs in ")
    assert said.count("\n") == 1
    assert "by 2 workers on cpu in float32" in said
    assert sentences(err) == []
    return torch.load(out, weights_only=True)


def test_interrupted_three_times_and_given_again(undisturbed, tmp_path):
    out, before = tmp_path / "run.pt", 0
    for who in (0, "torchrun", 1):
        job = start(out)
        wait_for_another_checkpoint(job, out)
        interrupt(job, who)
        status, said, err = ended(job)
        assert status not in (0, None)
        assert said == ""
        (sentence,) = sentences(err)
        assert f"the last checkpoint is {checkpoint(out)}, go on from it with `torchrun --standalone" in sentence
        assert f"--nproc_per_node=2 -m companion.lab.train {' '.join(ARGUMENTS)} --out {out}`" in sentence
        assert ("SIGTERM" if who == "torchrun" else "another worker has ended") in sentence
        assert not out.exists()
        assert before < done(out) < STEPS
        assert done(out) % 10 == 0
        before = done(out)
    status, said, err = ended(start(out))
    assert status == 0, err
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.checkpoint.pt", "run.pt"]
    found = torch.load(out, weights_only=True)
    assert found["model"].keys() == undisturbed["model"].keys()
    for name, value in undisturbed["model"].items():
        assert torch.equal(found["model"][name], value), name
    assert torch.equal(found["losses"], undisturbed["losses"])


LAME = """
import os, sys
from companion.lab import pretrain
from companion.lab.train.__main__ import main
plain, calls = pretrain.Recipe.objective, []
def lame(recipe, z1, z2):
    calls.append(1)
    value = plain(recipe, z1, z2)
    return value * float("nan") if os.environ["RANK"] == "1" and len(calls) == 15 else value
pretrain.Recipe.objective = lame
sys.exit(main())
"""


def test_one_worker_with_a_loss_that_is_not_finite_ends_all(tmp_path):
    """Its own loss alone is not finite at first; its gradients reach the other, and all say no."""
    (tmp_path / "lame.py").write_text(LAME)
    status, said, err = ended(start(tmp_path / "run.pt", script=[str(tmp_path / "lame.py")]))
    assert status not in (0, None)
    assert said == ""
    (sentence,) = sentences(err)
    assert "is nan, expected a finite number" in sentence
    assert done(tmp_path / "run.pt") == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lame.py", "run.checkpoint.pt"]


def test_what_cannot_be_done_is_said_once(tmp_path):
    status, said, err = ended(start(tmp_path / "run.pt", "--batch", "15"))
    assert (status, said) == (1, "")
    (sentence,) = sentences(err)
    assert "batch of 15: expected a multiple of the 2 workers" in sentence
    assert list(tmp_path.iterdir()) == []
