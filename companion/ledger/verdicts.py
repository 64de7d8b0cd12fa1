"""From claims and records to verdicts: the one place that decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from companion.ledger import claims as claims_
from companion.ledger.claims import Claim
from companion.ledger.records import Record, Results


class Verdict(StrEnum):
    """What a run says of a claim."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    UNRESOLVED = "unresolved"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """One line of the ledger.

    Attributes:
        claim: the claim.
        record: its record, if there is one.
        control_record: its control's record, if it has one.
        verdict: what the run says.
        missing: the profile should have measured it (or its control) and did not; an optional claim may be left out.
        gate_failed: the run has to fail because of this line.
        expected: the expectation in words.
        measured: the measured number in words.
        seconds: wall time that went into the record.
    """

    claim: Claim
    record: Record | None
    control_record: Record | None
    verdict: Verdict
    missing: bool
    gate_failed: bool
    expected: str
    measured: str
    seconds: float | None


def compare(expect: Mapping[str, Any], record: Record) -> Verdict:
    """Hold one record against one expectation.

    With an interval, *reproduced* means that the whole interval satisfies the expectation, *contradicted* that none
    of it does, *unresolved* that it straddles the bound. Without one the number itself decides. A trend is
    reproduced when every step goes the right way with disjoint intervals, contradicted when one goes the wrong way so.
    """
    (kind,) = (k for k in claims_.EXPECTATIONS if k in expect)
    if kind in ("increasing", "decreasing"):
        return _trend(record, up=kind == "increasing")
    if isinstance(record.value, list):
        raise TypeError(f"{record.id}: a list of numbers cannot be held against {expected_text(expect)}")
    low, high = _ends(record, record.value)
    if kind == "below":
        inside, outside = high < expect["below"], low >= expect["below"]
    elif kind == "above":
        inside, outside = low > expect["above"], high <= expect["above"]
    else:
        first, last = (
            expect["within"]
            if kind == "within"
            else (expect["equals"] - expect["tol"], expect["equals"] + expect["tol"])
        )
        inside, outside = first <= low and high <= last, high < first or low > last
    return Verdict.REPRODUCED if inside else Verdict.CONTRADICTED if outside else Verdict.UNRESOLVED


def judge(claim: Claim, record: Record | None, control_record: Record | None, profile: str) -> Verdict:
    """The verdict on a claim.

    Without a record, or in a profile in which it does not run, it is *not run*. A claim that has a control is
    reproduced only if the control violates the very same expectation; a control that does not fail says that the check
    cannot tell, which is *unresolved*.
    """
    if record is None or profile not in claim.runs:
        return Verdict.NOT_RUN
    verdict = compare(claim.expect, record)
    if verdict is Verdict.REPRODUCED and claim.control is not None:
        blind = control_record is None or compare(claim.expect, control_record) is not Verdict.CONTRADICTED
        return Verdict.UNRESOLVED if blind else verdict
    return verdict


def rows(profile: str, results: Mapping[str, Results]) -> list[Row]:
    """The whole ledger of one profile.

    Args:
        profile: ``smoke``, ``cpu`` or ``gpu``.
        results: what each chapter left behind, by chapter; topics without a chapter there are left out.

    Returns:
        One row a claim, topic by topic in the order of the claims files.
    """
    table = []
    for run in sorted(results.values(), key=lambda r: r.chapter):
        for claim in claims_.load(run.topic):
            record = run.records.get(claim.id)
            control = run.records.get(claim.control) if claim.control else None
            absent = not claim.optional if record is None else claim.control is not None and control is None
            missing = profile in claim.runs and absent
            verdict = judge(claim, record, control, profile)
            blind = control is not None and compare(claim.expect, control) is not Verdict.CONTRADICTED
            failed = missing or (profile in claim.gates and (verdict is Verdict.CONTRADICTED or blind))
            text = "-" if verdict is Verdict.NOT_RUN or record is None else measured_text(record)
            seconds = None if record is None else record.seconds + (control.seconds if control else 0.0)
            table.append(
                Row(claim, record, control, verdict, missing, failed, expected_text(claim.expect), text, seconds)
            )
    return table


def moved(results: Results, reference: Results) -> list[str]:
    """Sentences on the numbers that left the reference run's interval; empty when none did.

    A number without an interval has moved when the verdict on its claim has changed.
    """
    sentences = []
    for claim in claims_.load(results.topic):
        mine, theirs = results.records.get(claim.id), reference.records.get(claim.id)
        if mine is None or theirs is None:
            continue
        if isinstance(mine.value, list) or isinstance(theirs.value, list) or theirs.interval is None:
            before, after = compare(claim.expect, theirs), compare(claim.expect, mine)
            if before is not after:
                sentences.append(f"{claim.id}: {after} with {measured_text(mine)}, the reference run says {before}")
            continue
        low, high = _ends(theirs, theirs.value)
        if not low <= mine.value <= high:
            sentences.append(f"{claim.id}: {measured_text(mine)} is outside the reference run's {_interval(low, high)}")
    return sentences


def expected_text(expect: Mapping[str, Any]) -> str:
    """The expectation in words, e.g. ``< 1e-08`` or ``0.5 ± 0.1``.

    >>> expected_text({"below": 1e-8}), expected_text({"equals": 0.5, "tol": 0.1}), expected_text({"increasing": True})
    ('< 1e-08', '0.5 ± 0.1', 'increasing')
    """
    if "below" in expect:
        return f"< {expect['below']:g}"
    if "above" in expect:
        return f"> {expect['above']:g}"
    if "within" in expect:
        return f"in {_interval(*expect['within'])}"
    if "equals" in expect:
        return f"{expect['equals']:g} ± {expect['tol']:g}"
    return "increasing" if "increasing" in expect else "decreasing"


def measured_text(record: Record) -> str:
    """The measured number in words, with its interval and n.

    >>> measured_text(Record("a.b", 0.51234, [0.5, 0.52], 5))
    '0.512 [0.5, 0.52], n = 5'
    """
    if isinstance(record.value, list):
        text = ", ".join(f"{v:.3g}" for v in record.value)
    else:
        text = f"{record.value:.3g}"
        if record.interval is not None:
            text += f" {_interval(*_ends(record, record.value))}"
    return text + (f", n = {record.n:,}" if record.n is not None else "")


def _interval(low: Any, high: Any) -> str:
    return f"[{low:.3g}, {high:.3g}]"


def _ends(record: Record, value: float) -> tuple[float, float]:
    low, high = record.interval or (value, value)
    if isinstance(low, list) or isinstance(high, list):
        raise TypeError(f"{record.id}: one number with a list of intervals")
    return low, high


def _trend(record: Record, *, up: bool) -> Verdict:
    if not isinstance(record.value, list) or len(record.value) < 2:
        raise ValueError(f"{record.id}: a trend needs at least two numbers, found {record.value!r}")
    values: list[float] = record.value
    pairs: Any = record.interval if record.interval is not None else [[v, v] for v in values]
    steps = [(b, a) if up else (a, b) for a, b in pairwise(pairs)]
    if all(later[0] > earlier[1] for later, earlier in steps):
        return Verdict.REPRODUCED
    if any(later[1] <= earlier[0] for later, earlier in steps):
        return Verdict.CONTRADICTED
    return Verdict.UNRESOLVED
