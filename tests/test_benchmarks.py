"""Witnesses: rows and bounds worked out by hand; the page written anew from its JSON; every pointer to it followed."""

import importlib
import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as runner
from benchmarks import measure

ROOT = Path(__file__).resolve().parents[1]
POINTER = re.compile(r"benchmarks/RECORDS\.md`?(?:,[\s#]+(\w+))?")
CLAIM = re.compile(
    r"\btimes (?:faster|cheaper|quicker|as fast|as quick)|\b\d+ ?(?:x|×) faster|(?:fast|cheap|quick)er than\b"
)
DYNAMICS = ("dies faster than a slow target",)  # what a flow does, not what a computer does


def sources() -> list[Path]:
    """Text in which the project may speak of its own speed; chapters speak of the speed of learning, in their text."""
    package = [path for folder in ("companion", "workflow") for path in (ROOT / folder).rglob("*.py")]
    pages = [ROOT / "README.md", *(ROOT / "book").glob("*.md"), ROOT / "workflow/Snakefile"]
    return [*package, *pages, *sorted((ROOT / "notebooks").glob("*.py"))]


def paragraphs(path: Path) -> list[str]:
    """Runs of lines between empty ones, in one line each; of a notebook only the code."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.parent.name == "notebooks":
        kept, code = [], False
        for line in lines:
            code = "[markdown]" not in line if line.startswith("# %%") else code
            kept.append("" if line.startswith("# %%") or not code else line)
        lines = kept
    blocks = "\n".join(line.strip().removeprefix("#").strip() for line in lines).split("\n\n")
    return [" ".join(block.split()) for block in blocks]


def names(text: str) -> list[str | None]:
    """What the pointers in a text name; None where one names nothing."""
    return [match[1] for match in POINTER.finditer(text)]


def claims(paragraph: str) -> bool:
    """Whether a paragraph says that something is faster, without a pointer to a measurement."""
    for phrase in DYNAMICS:
        paragraph = paragraph.replace(phrase, "")
    return bool(CLAIM.search(paragraph)) and not POINTER.search(paragraph)


# the page


def test_every_benchmark_says_what_it_measures():
    assert {"ntk", "pipeline", "trajectories", "curvature"} <= set(runner.NAMES)
    for name in runner.NAMES:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        assert module.__doc__.splitlines()[0].endswith((".", ")."))
        assert callable(module.measure)


def test_the_page_is_what_the_records_say():
    records = json.loads((ROOT / "benchmarks/records.json").read_text(encoding="utf-8"))
    page = (ROOT / "benchmarks/RECORDS.md").read_text(encoding="utf-8")
    assert runner.page(records) == page
    assert set(records) <= set(runner.NAMES)
    known = {field.name for field in fields(measure.Measurement)}
    for record in records.values():
        assert set(record) == {"measures", "date", "machine", "rows"}
        for entry in record["rows"]:
            assert set(entry) <= known
            row = measure.Measurement(**entry)
            assert row.low <= row.median <= row.high
            assert row.n >= 1 or row.what.startswith("model")  # a prediction, next to what is measured
            assert row.met is not False or row.missed  # a goal that is missed says why
    first = next(iter(records.values()))["rows"][0]
    first["median"] *= 3
    assert runner.page(records) != page  # control: a number that was changed by hand


def test_a_row_of_the_page():
    row = measure.summary("adding", [3.0, 1.0, 2.0], "s", "on paper", goal=(None, 1.5), missed="tired; next: sleep")
    assert (row.median, row.low, row.high, row.n) == (2.0, 1.0, 3.0, 3)
    record = {"measures": "How long.", "date": "2000-01-01", "machine": {"device": "cpu"}, "rows": [asdict(row)]}
    page = runner.page({"toy": record})
    assert "| adding | 2 | 1 | 3 | s | 3 |" in page
    assert "≤ 1.5: **missed**" in page
    assert "* Missed, adding: tired; next: sleep" in page
    faster = measure.summary("adding", [1.0], "s", ratio=4.0, peer="abacus", goal=(2.0, None), missed="tired")
    faster = {**asdict(faster), "floor": 0.25, "floor_says": "carries"}
    page = runner.page({"toy": {**record, "rows": [faster]}})
    assert "4 × abacus | ≥ 2: met | 0.25 (carries; 4 times it)" in page
    assert "tired" not in page


def test_an_unknown_benchmark_is_named(capsys):
    assert runner.main(["nothing"]) == 2
    assert "no benchmark nothing" in capsys.readouterr().err


# what is measured


@pytest.mark.parametrize(
    ("median", "ratio", "goal", "met"),
    [
        (2.0, None, (None, None), None),
        (2.0, 9.0, (None, None), None),
        (2.0, None, (None, 2.0), True),
        (2.0, None, (None, 1.9), False),
        (2.0, 3.0, (3.0, None), True),
        (2.0, 2.9, (3.0, None), False),
        (9.0, 0.5, (None, 1.05), True),
        (95.0, None, (92.0, 98.0), True),
        (99.0, None, (92.0, 98.0), False),
        (91.0, None, (92.0, 98.0), False),
    ],
)
def test_a_goal_bounds_the_ratio_where_there_is_one_else_the_median(median, ratio, goal, met):
    assert measure.Measurement("x", "s", median, median, median, 1, ratio=ratio, goal=goal).met is met


def test_calls_take_turns():
    order = []
    found = measure.paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, n=2, warm=1)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2}
    assert all(value >= 0 for values in found.values() for value in values)
    assert len(measure.seconds(lambda: order.append("c"), n=3, warm=2)) == 3
    assert order.count("c") == 5


def test_a_slow_minute_that_hits_both_leaves_the_ratio():
    ours, theirs = [1.0, 1.0, 10.0], [3.0, 3.0, 30.0]
    assert measure.versus(ours, theirs) == 3.0
    assert measure.versus([1.0, 1.0, 10.0], [30.0, 3.0, 3.0]) == 3.0
    assert measure.versus([1.0, 2.0, 3.0], [8.0, 8.0]) == 4.0  # of medians
    assert measure.versus(theirs, ours) == pytest.approx(1 / 3)  # control: who is the peer


def test_floor_is_the_slower_of_products_and_copies(monkeypatch):
    slow = measure.Rates({torch.float32: 100.0, torch.float64: 50.0}, 10.0)
    monkeypatch.setattr(measure, "rates", lambda: slow)
    assert measure.floor(flops=200.0) == 2.0
    assert measure.floor(flops=200.0, dtype=torch.float64) == 4.0
    assert measure.floor(flops=200.0, bytes=50.0) == 5.0
    assert measure.floor() == 0.0


def test_operations_are_those_of_the_products():
    a, b = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert measure.flops(lambda: (a @ b).sum().backward()) == 2 * 2 * 3 * 5 * 7


# pointers


def test_every_pointer_names_a_benchmark():
    wrong, found = [], 0
    for path in sources():
        pointers = names(path.read_text(encoding="utf-8"))
        found += len(pointers)
        bare = path.suffix == ".md" or path.name == "Snakefile"  # a page may name the file itself
        wrong += [(path.name, name) for name in pointers if name not in runner.NAMES and not (bare and name is None)]
    assert not wrong
    assert found >= 3
    assert names("(`benchmarks/RECORDS.md`, nothing)") == ["nothing"]  # controls
    assert names("(`benchmarks/RECORDS.md`,\n    # ntk: MLP) and `benchmarks/RECORDS.md`.") == ["ntk", None]


def test_who_says_faster_says_where_it_was_measured():
    bare = [(path.name, text[:200]) for path in sources() for text in paragraphs(path) if claims(text)]
    assert not bare
    for text in (
        "Three times faster than that.",
        "It is several times cheaper.",
        "6x faster",
        "twice, quicker than a loop",
    ):
        assert claims(text)
        assert not claims(f"{text} (`benchmarks/RECORDS.md`, ntk)")
    assert not claims("a mode dies faster than a slow target")


# closed forms beside solvers


def test_a_trajectory_that_is_not_the_solvers_is_an_error():
    module = importlib.import_module("benchmarks.bench_trajectories")
    half = torch.full((3,), 0.5, dtype=torch.float64)
    rate = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    right = module.modes("decay", lambda t: half * (-rate * t).exp(), lambda _, y: -rate.numpy() * y, half, 2.0)
    assert module.difference(right, "RK45") < 1e-6
    wrong = module.modes("decay", lambda t: half * (-rate * t).exp(), lambda _, y: -1.001 * rate.numpy() * y, half, 2.0)
    with pytest.raises(RuntimeError, match=r"decay: closed form and DOP853 differ"):
        module.difference(wrong, "DOP853")
    assert math.isfinite(right.least)
