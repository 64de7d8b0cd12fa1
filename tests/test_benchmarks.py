"""Witness: the parts of the benchmarks that take no time: all are found, the page is written, the machine named."""

import importlib

import benchmarks.__main__ as runner
from benchmarks import measure


def test_every_benchmark_says_what_it_measures():
    assert {"ntk", "pipeline"} <= set(runner.NAMES)
    for name in runner.NAMES:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        assert module.__doc__.splitlines()[0].endswith((".", ")."))
        assert callable(module.measure)


def test_the_machine_has_a_name():
    found = measure.machine()
    assert found["device"]
    assert found["torch"]


def test_a_row_of_the_page():
    row = measure.summary("adding", [3.0, 1.0, 2.0], "s", "budget 4 s")
    assert (row.median, row.low, row.high, row.n) == (2.0, 1.0, 3.0, 3)
    record = {"measures": "How long.", "date": "2000-01-01", "machine": {"device": "cpu"}, "rows": [vars(row)]}
    assert "| adding | 2 | 1 | 3 | s | 3 | budget 4 s |" in runner.page({"toy": record})


def test_an_unknown_benchmark_is_named(capsys):
    assert runner.main(["nothing"]) == 2
    assert "no benchmark nothing" in capsys.readouterr().err
