"""Witness: a table of verdicts worked out by hand, and properties of intervals inside intervals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.ledger import paths
from companion.ledger.claims import Claim
from companion.ledger.records import Record, Results
from companion.ledger.verdicts import Verdict, compare, judge, moved, rows

R, C, U, N = Verdict.REPRODUCED, Verdict.CONTRADICTED, Verdict.UNRESOLVED, Verdict.NOT_RUN
BELOW, ABOVE, WITHIN, EQUALS = {"below": 1.0}, {"above": 1.0}, {"within": [1.0, 2.0]}, {"equals": 1.5, "tol": 0.5}
UP, DOWN = {"increasing": True}, {"decreasing": True}


def claim(expect=None, **fields) -> Claim:
    whole = {"paper": "companion", "locator": "1", "says": "s", "evidence": "exact", "quantity": "q", "unit": "1"}
    return Claim(**{"id": "toy.a", "topic": "toy", **whole, "expect": expect or BELOW, **fields})


def number(value, low=None, high=None) -> Record:
    return Record("toy.a", value, None if low is None else [low, high])


@pytest.mark.parametrize(
    ("expect", "interval", "verdict"),
    [
        (BELOW, (0.5, 0.9), R),
        (BELOW, (0.5, 1.0), U),  # strictly below
        (BELOW, (0.5, 1.5), U),
        (BELOW, (1.0, 1.5), C),
        (ABOVE, (1.1, 2.0), R),
        (ABOVE, (1.0, 2.0), U),
        (ABOVE, (0.5, 1.5), U),
        (ABOVE, (0.5, 1.0), C),
        (WITHIN, (1.0, 2.0), R),  # both ends belong to it
        (WITHIN, (1.2, 1.8), R),
        (WITHIN, (0.9, 1.8), U),
        (WITHIN, (1.2, 2.1), U),
        (WITHIN, (0.0, 3.0), U),
        (WITHIN, (0.0, 1.0), U),
        (WITHIN, (0.0, 0.9), C),
        (WITHIN, (2.1, 3.0), C),
        (EQUALS, (1.0, 2.0), R),
        (EQUALS, (0.9, 1.5), U),
        (EQUALS, (2.1, 3.0), C),
    ],
)
def test_an_interval_against_an_expectation(expect, interval, verdict):
    low, high = interval
    assert compare(expect, number((low + high) / 2, low, high)) is verdict


@pytest.mark.parametrize(
    ("expect", "value", "verdict"),
    [(BELOW, 0.9, R), (BELOW, 1.0, C), (ABOVE, 1.1, R), (ABOVE, 1.0, C), (WITHIN, 2.0, R), (EQUALS, 2.1, C)],
)
def test_without_an_interval_the_number_decides(expect, value, verdict):
    assert compare(expect, number(value)) is verdict


@pytest.mark.parametrize(
    ("values", "intervals", "up", "down"),
    [
        ([1, 2, 3], None, R, C),
        ([1, 3, 2], None, C, C),
        ([1, 1], None, C, C),
        ([1, 2, 3], [[0.9, 1.1], [1.9, 2.1], [2.9, 3.1]], R, C),
        ([1, 2, 3], [[0.5, 1.5], [1.4, 2.6], [2.7, 3.3]], U, C),
        ([1, 2], [[0.5, 1.6], [1.4, 2.6]], U, U),
        ([1, 2], [[0.5, 1.5], [1.5, 2.5]], U, C),
        ([3, 2, 1], [[2.9, 3.1], [1.9, 2.1], [0.9, 1.1]], C, R),
    ],
)
def test_a_trend_needs_every_step_and_one_step_breaks_it(values, intervals, up, down):
    record = Record("toy.a", [float(v) for v in values], intervals)
    assert (compare(UP, record), compare(DOWN, record)) == (up, down)


def test_numbers_where_a_trend_is_asked_for_and_the_other_way_round():
    for value in (1.0, [1.0]):
        with pytest.raises(ValueError, match=r"^toy\.a: a trend needs at least two numbers, found"):
            compare(UP, number(value))
    with pytest.raises(TypeError, match=r"^toy\.a: a list of numbers cannot be held against < 1$"):
        compare(BELOW, number([0.5, 0.6]))


BOUND = st.floats(-10, 10, allow_nan=False)
EXPECT = st.one_of(
    st.builds(lambda b: {"below": b}, BOUND),
    st.builds(lambda b: {"above": b}, BOUND),
    st.builds(lambda a, b: {"within": sorted((a, b))}, BOUND, BOUND).filter(lambda e: e["within"][0] < e["within"][1]),
    st.builds(lambda b, tol: {"equals": b, "tol": tol}, BOUND, st.floats(0.01, 5)),
)
NESTED = st.tuples(BOUND, BOUND, BOUND, BOUND).map(sorted)  # outer low, inner low, inner high, outer high


@settings(deadline=None, derandomize=True, max_examples=300)
@given(EXPECT, NESTED)
def test_a_shorter_interval_keeps_a_decision(expect, ends):
    a, b, c, d = ends
    outer, inner = compare(expect, number(b, a, d)), compare(expect, number(b, b, c))
    assert inner is outer or outer is U
    assert compare(expect, number(b)) in ({R, C} if outer is U else {outer})


@settings(deadline=None, derandomize=True, max_examples=300)
@given(BOUND, BOUND, BOUND)
def test_no_interval_satisfies_an_expectation_and_its_opposite(bound, a, b):
    low, high = sorted((a, b))
    record = number(low, low, high)
    below, above = compare({"below": bound}, record), compare({"above": bound}, record)
    assert not (below is R and above is R)
    assert (below is R) <= (above is C)
    assert (above is R) <= (below is C)
    width = max(high - low, 1e-3)
    for far in ([low - 3 * width, low - width], [high + width, high + 3 * width]):
        assert compare({"within": far}, record) is C
        assert compare({"within": [low - width, high + width]}, record) is R


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(NESTED, min_size=2, max_size=5))
def test_shorter_intervals_keep_the_decision_on_a_trend(points):
    wide = Record("toy.a", [b for _, b, _, _ in points], [[a, d] for a, _, _, d in points])
    narrow = Record("toy.a", [b for _, b, _, _ in points], [[b, c] for _, b, c, _ in points])
    for expect in (UP, DOWN):
        before, after = compare(expect, wide), compare(expect, narrow)
        assert after is before or before is U
    assert not (compare(UP, wide) is R and compare(DOWN, wide) is R)


class TestJudge:
    CONTROLLED = claim(control="toy.a-off", control_says="off")

    @pytest.mark.parametrize(
        ("record", "control", "verdict"),
        [
            (number(0.5), number(2.0), R),  # the control fails, as it should
            (number(0.5), number(0.6), U),  # the control passes: the check cannot tell
            (number(0.5), number(1.0, 0.8, 1.2), U),  # the control straddles the bound
            (number(0.5), None, U),
            (number(2.0), number(2.0), C),
            (number(2.0), number(0.5), C),
            (number(2.0), None, C),
            (number(1.0, 0.8, 1.2), number(2.0), U),
            (None, number(2.0), N),
        ],
    )
    def test_with_a_control(self, record, control, verdict):
        assert judge(self.CONTROLLED, record, control, "cpu") is verdict

    def test_without_a_control(self):
        assert judge(claim(), number(0.5), None, "cpu") is R
        assert judge(claim(), None, None, "cpu") is N

    def test_a_profile_in_which_the_claim_does_not_run(self):
        assert judge(claim(runs=("gpu",)), number(0.5), None, "cpu") is N
        assert judge(claim(runs=("gpu",)), number(0.5), None, "gpu") is R

    def test_a_claim_that_no_profile_measures(self):
        assert judge(claim(runs=()), number(0.5), None, "gpu") is N

    def test_verdicts_read_as_words(self):
        assert [str(v) for v in Verdict] == ["reproduced", "contradicted", "unresolved", "not run"]


def write_claims(root, tables: dict[str, str]) -> None:
    text = ""
    for name, more in tables.items():
        text += f'[[claim]]\nid = "toy.{name}"\npaper = "companion"\nlocator = "1"\nsays = "s"\nquantity = "q"\n'
        text += f'unit = "1"\nevidence = "exact"\n{more}\n'
    (root / "claims").mkdir(exist_ok=True)
    (root / "claims" / "toy.toml").write_text(text, encoding="utf-8")


def run(profile="cpu", chapter="07_toy", **values) -> Results:
    """Results with ids a_b for toy.a-b; a value may be a pair (value, interval)."""
    found = {}
    for name, value in values.items():
        id = f"toy.{name.replace('_', '-')}"
        value, interval = value if isinstance(value, tuple) else (value, None)
        found[id] = Record(id, value, interval, seconds=1.5)
    return Results(chapter, "toy", profile, found, {})


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A root whose topic is written by the test."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return lambda **tables: write_claims(tmp_path, tables)


GATED = 'expect = { below = 1.0 }\ngates = ["cpu", "gpu"]\n'
CONTROL = 'control = "toy.a-off"\ncontrol_says = "off"\n'


class TestRows:
    @pytest.mark.parametrize(
        ("values", "verdict", "missing", "gate_failed"),
        [
            ({"a": 0.5, "a_off": 2.0}, R, False, False),
            ({"a": 2.0, "a_off": 2.0}, C, False, True),
            ({"a": (1.0, [0.5, 1.5]), "a_off": 2.0}, U, False, False),  # undecided is no contradiction
            ({"a": 0.5, "a_off": 0.6}, U, False, True),  # a control that passes
            ({"a": 0.5, "a_off": (1.0, [0.5, 1.5])}, U, False, True),
            ({"a": 0.5}, U, True, True),
            ({"a_off": 2.0}, N, True, True),
            ({}, N, True, True),
        ],
    )
    def test_the_gate_of_a_claim_with_a_control(self, toy, values, verdict, missing, gate_failed):
        toy(a=GATED + CONTROL)
        (row,) = rows("cpu", {"07_toy": run(**values)})
        assert (row.verdict, row.missing, row.gate_failed) == (verdict, missing, gate_failed)

    @pytest.mark.parametrize(
        ("profile", "value", "verdict", "missing", "gate_failed"),
        [
            ("cpu", 2.0, C, False, True),
            ("gpu", 2.0, C, False, True),
            ("smoke", 2.0, C, False, False),  # measured there, but the gate is open
            ("smoke", None, N, True, True),  # a missing record fails wherever the claim runs
            ("cpu", 0.5, R, False, False),
        ],
    )
    def test_gates_are_per_profile(self, toy, profile, value, verdict, missing, gate_failed):
        toy(a=GATED)
        (row,) = rows(profile, {"07_toy": run(profile, **({} if value is None else {"a": value}))})
        assert (row.verdict, row.missing, row.gate_failed) == (verdict, missing, gate_failed)

    def test_what_does_not_run_here_is_not_missed(self, toy):
        toy(a='expect = { below = 1.0 }\nruns = ["gpu"]\n')
        (row,) = rows("cpu", {"07_toy": run()})
        assert (row.verdict, row.missing, row.gate_failed, row.measured) == (N, False, False, "-")

    @pytest.mark.parametrize(
        ("profile", "values", "verdict", "missing"),
        [
            ("gpu", {}, N, False),
            ("gpu", {"a": 0.5, "a_off": 2.0}, R, False),
            ("gpu", {"a": 2.0, "a_off": 2.0}, C, False),
            ("gpu", {"a": 0.5}, U, True),  # without its control a claim that was measured is not whole
            ("cpu", {}, N, False),
            ("cpu", {"a": 0.5, "a_off": 2.0}, N, False),
        ],
    )
    def test_what_may_be_left_out_is_judged_where_it_was_not(self, toy, profile, values, verdict, missing):
        toy(a='expect = { below = 1.0 }\nruns = ["gpu"]\noptional = true\n' + CONTROL)
        (row,) = rows(profile, {"07_toy": run(profile, **values)})
        assert (row.verdict, row.missing, row.gate_failed) == (verdict, missing, missing)

    def test_a_row_says_what_was_expected_and_measured(self, toy):
        toy(a=GATED + CONTROL, b="expect = { increasing = true }\n")
        first, second = rows("cpu", {"07_toy": run(a=(0.5, [0.25, 0.75]), a_off=2.0, b=[1.0, 2.0])})
        assert (first.expected, first.measured, first.seconds) == ("< 1", "0.5 [0.25, 0.75]", 3.0)
        assert (second.expected, second.measured, second.seconds) == ("increasing", "1, 2", 1.5)
        assert first.control_record is not None
        assert second.control_record is None

    def test_every_claim_has_a_row_in_the_order_of_its_file(self, toy):
        toy(z=GATED, a=GATED, m=GATED)
        assert [row.claim.id for row in rows("cpu", {"07_toy": run()})] == ["toy.z", "toy.a", "toy.m"]
        assert rows("cpu", {}) == []


class TestMoved:
    def test_a_number_outside_the_references_interval(self, toy):
        toy(a=GATED)
        reference = run(a=(0.5, [0.25, 0.75]))
        for value in (0.25, 0.5, 0.75):
            assert moved(run(a=value), reference) == []
        assert moved(run(a=(0.8, [0.2, 1.4])), reference) == [
            "toy.a: 0.8 [0.2, 1.4] is outside the reference run's [0.25, 0.75]"
        ]
        assert len(moved(run(a=0.2), reference)) == 1

    def test_without_an_interval_the_verdict_has_to_change(self, toy):
        toy(a=GATED)
        assert moved(run(a=0.1), run(a=0.9)) == []
        assert moved(run(a=2.0), run(a=0.9)) == ["toy.a: contradicted with 2, the reference run says reproduced"]

    def test_a_trend_moves_with_its_verdict(self, toy):
        toy(a="expect = { increasing = true }\n")
        assert moved(run(a=[1.0, 3.0]), run(a=[1.0, 2.0])) == []
        assert moved(run(a=[2.0, 1.0]), run(a=[1.0, 2.0])) == [
            "toy.a: contradicted with 2, 1, the reference run says reproduced"
        ]

    def test_what_only_one_of_the_two_has_does_not_count(self, toy):
        toy(a=GATED, b=GATED)
        assert moved(run(a=0.5), run(b=0.5)) == []
