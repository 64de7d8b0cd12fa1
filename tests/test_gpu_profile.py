"""Witnesses: the committed table counted again, textbook counts of operations, and the two networks a GPU has timed."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import counting, gpu_profile
from companion.lab import encoders, train
from companion.lab.masked import tables

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = json.loads(gpu_profile.STORE.read_text(encoding="utf-8"))

AGAIN = "python -m benchmarks.gpu_profile writes it anew"


def test_the_committed_table_is_what_counting_gives():
    found = json.loads(json.dumps(gpu_profile.document()))
    for new, old in zip(found["jobs"], COMMITTED["jobs"], strict=True):
        words = {key: value for key, value in old.items() if isinstance(value, str)}
        numbers = {key: value for key, value in old.items() if key not in words}
        assert {key: new[key] for key in words} == words
        assert {key: new[key] for key in numbers} == pytest.approx(numbers, rel=1e-3), AGAIN
    assert {key: found[key] for key in ("assumed_rate", "measured")} == {
        key: COMMITTED[key] for key in ("assumed_rate", "measured")
    }


def test_a_linear_layer_by_hand():
    def build():
        return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))

    operations, kept = counting.count(build, lambda model: model(torch.empty(7, 30)), bf16=False)
    forward = 2 * 7 * (30 * 20 + 20 * 10)
    assert operations == 3 * forward - 2 * 7 * 30 * 20  # nobody asks for the gradient of the input
    assert kept == 4 * 7 * (30 + 20)  # the input, and what the ReLU says, which the next layer reads as well
    frozen, nothing = counting.count(lambda: build().requires_grad_(False), lambda m: m(torch.empty(7, 30)), bf16=False)
    assert (frozen, nothing) == (forward, 0)


def test_bfloat16_halves_what_is_kept():
    def run(model):
        return model(torch.empty(64, 3, 32, 32))

    def build():
        return encoders.resnet(18, 10, (), generator=torch.Generator().manual_seed(0)).train()

    single, half = (counting.count(build, run, bf16)[1] for bf16 in (False, True))
    assert 0.5 < half / single < 0.75  # weights are kept in both precisions, moments of batch norm in float32


@pytest.mark.parametrize(("depth", "published"), [(18, 1.8e9), (50, 4.1e9)])
def test_a_look_costs_what_the_papers_say_of_a_resnet(depth, published):
    """Multiplications and additions of one image of 224 pixels count as one operation in that number."""
    model = encoders.resnet(depth, 10, (), "imagenet", generator=torch.Generator().manual_seed(0))
    step = counting.of_images(
        model, model, lambda z1, z2: (z1 * z2).sum(), train.Options(batch_size=2, bf16=True, channels_last=True), 224
    )
    assert step.look / 2 == pytest.approx(published, rel=0.03)
    assert step.operations == pytest.approx(4 * 3 * step.look, rel=0.04)  # two views of two images; but for the input


def test_transformers_against_six_operations_a_parameter_and_word():
    for name in ("pcfg-adamw-9m", "pcfg-adamw-235m"):
        cell = tables.cells()[name]
        rough = 6 * cell.network.parameters * cell.options.batch_size * cell.network.length
        assert 0.5 < counting.of_sentences(name, 1024).operations / rough < 1.02  # the last layer is for one word only
    assert counting.of_sentences("pcfg-adamw-235m", 1024).operations > 0.9 * rough


def test_memory_is_a_bound_close_to_what_a_gpu_has_measured():
    for size, (_, measured) in gpu_profile.MEASURED.items():
        (job,) = [job for job in COMMITTED["jobs"] if job["command"].startswith(f"pcfg-adamw-{size} ")]
        assert 0.8 * measured < job["gib"] <= measured


def test_the_measured_rates_are_those_of_the_records():
    records = (ROOT / "benchmarks/RECORDS.md").read_text(encoding="utf-8")
    for size, (seconds, gib) in gpu_profile.MEASURED.items():
        rows = [line for line in records.splitlines() if line.startswith(f"| pcfg-adamw-{size}, batch of 4,096 |")]
        assert [row for row in rows if f"| {seconds} |" in row and f"{gib} GiB" in row and "NVIDIA" in row]


def test_every_network_of_the_tables_is_there_once():
    networks = {chapter: 0 for chapter in (1, 2, 3, 4, 6)}
    for job in COMMITTED["jobs"]:
        networks[job["chapter"]] += job["networks"]
        assert job["assumed"] or job["command"].startswith(("pcfg-adamw-9m", "pcfg-adamw-235m", "hmm-adamw-9m"))
    trained = sum(cell.algorithm != "lookup" for cell in tables.cells().values())
    assert networks == {1: 12, 2: 18, 3: 75, 4: 24, 6: trained}


def test_the_page_quotes_the_two_comparisons():
    page = (ROOT / "book/scale.md").read_text(encoding="utf-8")
    for size, (_, measured) in gpu_profile.MEASURED.items():
        (job,) = [job for job in COMMITTED["jobs"] if job["command"].startswith(f"pcfg-adamw-{size} ")]
        words = page.replace("\n", " ")
        assert f"{job['gib']:.1f} GiB for {measured}" in words or f"{job['gib']:.1f} for {measured}" in words
    assert COMMITTED["assumed_rate"] == 3e13
    assert r"$3\cdot10^{13}$ operations a second" in page
